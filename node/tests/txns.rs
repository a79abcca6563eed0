//! Transactions through the public API of a real node, over ranges of its own: as an application sees them.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_node::config::NodeConfig;
use flotilla_node::run::Node;
use flotilla_proto::v1::admin_client::AdminClient;
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_proto::v1::outcome_response::Outcome;
use flotilla_proto::v1::{self, transact_op::Op, txn_request::Step, txn_response::Answer};
use flotilla_types::keys;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

struct Cluster {
    node: Node,
    kv: KvClient<Channel>,
    _dir: tempfile::TempDir,
}

/// A cluster of one node, whose keys are cut at `c`, `e` and `g`.
async fn cluster() -> Cluster {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(NodeConfig::local(dir.path().join("store")), None).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", node.client_address())).unwrap().connect_lazy();
    let (mut kv, mut admin) = (KvClient::new(channel.clone()), AdminClient::new(channel));
    admin.init(v1::InitRequest {}).await.unwrap();
    let began = Instant::now();
    while kv.get(v1::GetRequest { key: name("is it there?"), at: None, ..Default::default() }).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not serve");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for cut in ["c", "e", "g"] {
        admin.split(v1::SplitRequest { key: keys::user(cut.as_bytes()).into_bytes() }).await.unwrap();
    }
    Cluster { node, kv, _dir: dir }
}

impl Cluster {
    async fn value(&mut self, key: &str) -> Option<String> {
        let answer =
            self.kv.get(v1::GetRequest { key: name(key), at: None, ..Default::default() }).await.unwrap().into_inner();
        answer.value.map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    async fn put(&mut self, key: &str, value: &str) -> v1::Timestamp {
        let put = v1::PutRequest { key: name(key), value: text(value), request_id: None, ..Default::default() };
        self.kv.put(put).await.unwrap().into_inner().timestamp.unwrap()
    }

    async fn txn(&self, begin: v1::TxnBegin) -> Txn {
        let (steps, requests) = mpsc::channel(4);
        let mut kv = self.kv.clone();
        let answers = kv.txn(ReceiverStream::new(requests)).await.unwrap().into_inner();
        let mut txn = Txn { id: Bytes::new(), steps, answers, handle: None };
        let Answer::Begun(begun) = txn.step(Step::Begin(begin)).await else { panic!("it did not begin") };
        txn.id = begun.txn_id;
        txn
    }
}

/// One transaction's stream.
struct Txn {
    id: Bytes,
    steps: mpsc::Sender<v1::TxnRequest>,
    answers: Streaming<v1::TxnResponse>,
    handle: Option<Bytes>,
}

impl Txn {
    async fn ask(&mut self, request: v1::TxnRequest) -> Answer {
        self.steps.send(request).await.unwrap();
        let response = self.answers.message().await.unwrap().unwrap();
        self.handle = response.handle.or(self.handle.take());
        response.answer.unwrap()
    }

    async fn step(&mut self, step: Step) -> Answer {
        self.ask(v1::TxnRequest { step: Some(step), ..Default::default() }).await
    }

    async fn get(&mut self, key: &str) -> Option<String> {
        match self.step(Step::Get(v1::TxnGet { key: name(key), lock: 0 })).await {
            Answer::Value(value) => value.value.map(|value| String::from_utf8(value.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    async fn put(&mut self, key: &str, value: &str) -> Answer {
        self.step(Step::Put(v1::BatchPut { key: name(key), value: text(value) })).await
    }

    async fn commit(&mut self) -> Answer {
        self.step(Step::Commit(v1::TxnCommit {})).await
    }
}

/// A key of a usual length: filters treat short ones differently.
fn name(key: &str) -> Bytes {
    format!("{key}/of a usual length").into()
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn begin() -> v1::TxnBegin {
    v1::TxnBegin::default()
}

fn failed(answer: &Answer) -> &str {
    if let Answer::Failure(failure) = answer { &failure.reason } else { panic!("{answer:?}") }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_writes_is_there_after_its_commit_and_not_before() {
    let mut at = cluster().await;
    let mut txn = at.txn(begin()).await;
    assert_eq!(txn.get("a").await, None);
    for key in ["a", "c", "e", "g"] {
        assert!(matches!(txn.put(key, "1").await, Answer::Done(_)));
    }
    assert_eq!(txn.get("c").await.as_deref(), Some("1"), "it sees its own writes");
    let scan = v1::TxnScan { start: text("a"), chunk_bytes: 0, ..Default::default() };
    let Answer::Scan(chunk) = txn.step(Step::Scan(scan)).await else { panic!() };
    let keys: Vec<_> = chunk.rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(keys, ["a", "c", "e", "g"].map(name));
    let handle = txn.handle.clone().unwrap();
    let Answer::Committed(committed) = txn.commit().await else { panic!() };
    for key in ["a", "c", "e", "g"] {
        assert_eq!(at.value(key).await.as_deref(), Some("1"));
    }
    let outcome = at.kv.outcome(v1::OutcomeRequest { handle }).await.unwrap().into_inner();
    assert_eq!((outcome.outcome(), outcome.timestamp), (Outcome::Committed, committed.timestamp));
    let before = at.put("a", "2").await;
    at.put("a", "3").await;
    let past = v1::GetRequest { key: name("a"), at: Some(before), ..Default::default() };
    assert_eq!(at.kv.get(past).await.unwrap().into_inner().value, Some(text("2")));
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_rolled_back() {
    let mut at = cluster().await;
    let mut txn = at.txn(begin()).await;
    txn.put("a", "1").await;
    txn.put("e", "1").await;
    let handle = txn.handle.clone().unwrap();
    drop(txn);
    // These wait for its locks.
    at.put("a", "2").await;
    at.put("e", "2").await;
    assert_eq!(at.value("a").await.as_deref(), Some("2"));
    let outcome = at.kv.outcome(v1::OutcomeRequest { handle }).await.unwrap().into_inner();
    assert_eq!(outcome.outcome(), Outcome::Aborted);
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_take_back_what_came_after_and_keep_what_came_before() {
    let mut at = cluster().await;
    let mut txn = at.txn(begin()).await;
    txn.put("a", "1").await;
    assert!(matches!(txn.step(Step::Savepoint("s".to_owned())).await, Answer::Done(_)));
    txn.put("a", "2").await;
    txn.put("e", "2").await;
    assert!(matches!(txn.step(Step::RollbackTo("s".to_owned())).await, Answer::Done(_)));
    assert_eq!(txn.get("a").await.as_deref(), Some("1"));
    assert_eq!(txn.get("e").await, None);
    assert_eq!(failed(&txn.step(Step::RollbackTo("t".to_owned())).await), "INVALID");
    txn.put("g", "3").await;
    assert!(matches!(txn.commit().await, Answer::Committed(_)));
    assert_eq!(at.value("a").await.as_deref(), Some("1"));
    assert_eq!(at.value("e").await, None);
    assert_eq!(at.value("g").await.as_deref(), Some("3"));
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_want_to_wait_for_a_lock_is_told_whose_it_is() {
    let mut at = cluster().await;
    at.put("a", "0").await;
    let (mut holder, mut other) = (at.txn(begin()).await, at.txn(begin()).await);
    let lock = v1::TxnGet { key: name("a"), lock: v1::LockStrength::Update.into() };
    assert!(matches!(holder.step(Step::Get(lock.clone())).await, Answer::Value(_)));
    let hurried = |wait: v1::WaitPolicy| v1::TxnRequest {
        step: Some(Step::Get(lock.clone())),
        wait: wait.into(),
        ..Default::default()
    };
    let Answer::Failure(failure) = other.ask(hurried(v1::WaitPolicy::Error)).await else { panic!() };
    assert_eq!((&failure.reason[..], failure.key), ("LOCKED", Some(name("a"))));
    assert_eq!(failure.other.as_ref(), Some(&holder.id));
    let Answer::Value(skipped) = other.ask(hurried(v1::WaitPolicy::Skip)).await else { panic!() };
    assert_eq!(skipped.value, None);
    assert_eq!(other.get("a").await.as_deref(), Some("0"), "a lock without a value stops no reader");
    let short = v1::TxnRequest { timeout_ms: 300, ..hurried(v1::WaitPolicy::Block) };
    assert_eq!(failed(&other.ask(short).await), "LOCKED");
    assert!(matches!(holder.commit().await, Answer::Committed(_)));
    assert!(matches!(other.ask(hurried(v1::WaitPolicy::Block)).await, Answer::Value(_)));
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_to_begin_again_is_told_because_of_which_key_and_whom() {
    let mut at = cluster().await;
    at.put("a", "0").await;
    let (mut reader, mut writer) = (at.txn(begin()).await, at.txn(begin()).await);
    assert_eq!(reader.get("a").await.as_deref(), Some("0"));
    writer.put("a", "1").await;
    assert!(matches!(writer.commit().await, Answer::Committed(_)));
    let Answer::Failure(failure) = reader.put("a", "2").await else { panic!("its snapshot is too old") };
    assert_eq!((&failure.reason[..], failure.key), ("RETRY_TXN", Some(name("a"))));
    assert_eq!(failure.other.as_ref(), Some(&writer.id), "{}", failure.message);
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_read_what_the_other_writes_one_fails() {
    let at = cluster().await;
    let (mut one, mut two) = (at.txn(begin()).await, at.txn(begin()).await);
    assert_eq!(one.get("a").await, None);
    assert_eq!(two.get("e").await, None);
    one.put("e", "1").await;
    two.put("a", "2").await;
    let ends = tokio::join!(one.commit(), two.commit());
    let committed = [&ends.0, &ends.1].into_iter().filter(|end| matches!(end, Answer::Committed(_))).count();
    assert_eq!(committed, 1, "{ends:?}");
    let failure = if matches!(ends.0, Answer::Committed(_)) { &ends.1 } else { &ends.0 };
    assert!(["RETRY_TXN", "TXN_ABORTED"].contains(&failed(failure)), "{failure:?}");
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_of_five_over_ranges_costs_one_of_them() {
    let at = cluster().await;
    let keys = ["a", "c", "d", "e", "g"];
    let mut txns = Vec::new();
    for key in keys {
        let mut txn = at.txn(begin()).await;
        assert!(matches!(txn.put(key, "own").await, Answer::Done(_)));
        txns.push(txn);
    }
    let began = Instant::now();
    let waits = txns.into_iter().zip(keys.into_iter().cycle().skip(1)).map(|(mut txn, next)| async move {
        let answer = txn.put(next, "next").await;
        let done = matches!(answer, Answer::Done(_)) && matches!(txn.commit().await, Answer::Committed(_));
        (done, began.elapsed())
    });
    let ends = futures::future::join_all(waits).await;
    assert_eq!(ends.iter().filter(|(done, _)| !done).count(), 1, "{ends:?}");
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_and_conditional_transactions_take_effect_once() {
    let mut at = cluster().await;
    let id = flotilla_types::RequestId::new(
        u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap(),
        7,
        1,
    );
    let id = Some(Bytes::copy_from_slice(&id.0));
    let increment = v1::IncrementRequest { key: name("a"), by: 5, request_id: id.clone(), ..Default::default() };
    for _ in 0..2 {
        assert_eq!(at.kv.increment(increment.clone()).await.unwrap().into_inner().value, 5, "the same, once");
    }
    let op = |op| v1::TransactOp { op: Some(op) };
    let request = v1::TransactRequest {
        compare: vec![v1::Compare { key: name("c"), expected: None }],
        then: vec![
            op(Op::Put(v1::BatchPut { key: name("c"), value: text("1") })),
            op(Op::Increment(v1::TransactIncrement { key: name("a"), by: 1 })),
            op(Op::Put(v1::BatchPut { key: name("g"), value: text("1") })),
        ],
        otherwise: vec![op(Op::Get(name("c")))],
        request_id: None,
        ..Default::default()
    };
    let first = at.kv.transact(request.clone()).await.unwrap().into_inner();
    assert!(first.held);
    assert_eq!(first.results[1].value, Some(Bytes::copy_from_slice(&6i64.to_be_bytes())));
    let second = at.kv.transact(request).await.unwrap().into_inner();
    assert!(!second.held);
    assert_eq!(second.results[0].value, Some(text("1")));
    let mut txn = at.txn(begin()).await;
    let delete = v1::TxnDeleteRange { start: text("a"), end: Some(text("z")) };
    assert_eq!(txn.step(Step::DeleteRange(delete)).await, Answer::Deleted(3));
    assert!(matches!(txn.commit().await, Answer::Committed(_)));
    assert_eq!(at.value("g").await, None);
    let wrong = at.kv.outcome(v1::OutcomeRequest { handle: text("nonsense") }).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_over_ranges_shows_all_or_nothing() {
    let mut at = cluster().await;
    let mut writer = at.kv.clone();
    let puts = tokio::spawn(async move {
        for n in 0..40 {
            let op = |key: &&str| {
                let put = v1::BatchPut { key: name(key), value: text(&n.to_string()) };
                v1::BatchOp { op: Some(v1::batch_op::Op::Put(put)) }
            };
            let ops = ["a", "c", "e", "g"].iter().map(op).collect();
            writer.batch(v1::BatchRequest { ops, request_id: None, ..Default::default() }).await.unwrap();
        }
    });
    while !puts.is_finished() {
        let mut txn = at.txn(begin()).await;
        let mut seen = Vec::new();
        for key in ["a", "c", "e", "g"] {
            match txn.step(Step::Get(v1::TxnGet { key: name(key), lock: 0 })).await {
                Answer::Value(value) => seen.push(value.value),
                Answer::Failure(failure) if failure.reason == "RETRY_TXN" => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
        txn.step(Step::Rollback(v1::TxnRollback {})).await;
    }
    puts.await.unwrap();
    assert_eq!(at.value("g").await.as_deref(), Some("39"));
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_delete_takes_all_or_nothing_and_once() {
    let mut at = cluster().await;
    for key in ["a", "c", "e", "g"] {
        at.put(key, "1").await;
    }
    let mut holder = at.txn(begin()).await;
    holder.put("e", "2").await;
    let id = Some(Bytes::from(flotilla_types::RequestId::new(now_ms(), 1, 1).0.to_vec()));
    let delete = |end: &str, id| v1::DeleteRangeRequest {
        start: text("a"),
        end: Some(text(end)),
        request_id: id,
        ..Default::default()
    };
    let mut short = tonic::Request::new(delete("z", None));
    short.set_timeout(Duration::from_millis(500));
    assert!(at.kv.delete_range(short).await.is_err(), "a key of it is locked");
    assert_eq!(at.value("a").await.as_deref(), Some("1"), "nothing was removed");
    assert!(matches!(holder.commit().await, Answer::Committed(_)));
    let first = at.kv.delete_range(delete("z", id.clone())).await.unwrap().into_inner();
    assert_eq!((first.keys, first.resume), (Some(4), None));
    at.put("c", "3").await;
    let second = at.kv.delete_range(delete("z", id)).await.unwrap().into_inner();
    assert_eq!((second.keys, second.timestamp), (None, first.timestamp), "it was done before");
    assert_eq!(at.value("c").await.as_deref(), Some("3"));
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_at_a_past_timestamp_sees_what_was_there_then_and_writes_nothing() {
    let mut at = cluster().await;
    let before = at.put("a", "1").await;
    at.put("a", "2").await;
    let mut past = at.txn(v1::TxnBegin { at: Some(before), ..begin() }).await;
    assert_eq!(past.get("a").await.as_deref(), Some("1"));
    assert_eq!(past.get("e").await, None);
    assert_eq!(failed(&past.put("e", "1").await), "INVALID");
    let Answer::Committed(committed) = past.commit().await else { panic!() };
    assert_eq!(committed.timestamp, Some(before));
    let mut stale = at.txn(v1::TxnBegin { staleness_ms: 3_600_000, ..begin() }).await;
    assert_eq!(stale.get("a").await, None, "an hour ago there was nothing");
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_orders_what_comes_after_it_and_a_foreign_one_is_refused() {
    let mut at = cluster().await;
    let token = at.put("a", "1").await;
    let ahead = v1::Timestamp { wall: token.wall + 100_000_000, logical: 0 };
    let put = |after| v1::PutRequest { key: name("c"), value: text("1"), after, ..Default::default() };
    let later = at.kv.put(put(Some(ahead))).await.unwrap().into_inner().timestamp.unwrap();
    assert!((later.wall, later.logical) > (ahead.wall, ahead.logical));
    let foreign = v1::Timestamp { wall: token.wall + 60_000_000_000, logical: 0 };
    let refused = at.kv.put(put(Some(foreign))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    at.node.stop().await.unwrap();
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}
