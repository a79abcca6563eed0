//! The public API over a real socket, as a client sees it that is not ours: answers, limits, and refusals with reasons.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::time::Duration;

use bytes::Bytes;
use flotilla_node::config::NodeConfig;
use flotilla_node::run::Node;
use flotilla_proto::reason::{DOMAIN, Reason};
use flotilla_proto::v1::admin_client::AdminClient;
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_proto::v1::{self, batch_op};
use flotilla_types::{RequestId, keys};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt;

struct Served {
    node: Node,
    kv: KvClient<Channel>,
    admin: AdminClient<Channel>,
    _dir: tempfile::TempDir,
}

async fn served(change: impl FnOnce(&mut NodeConfig)) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::local(dir.path().join("store"));
    change(&mut config);
    let node = Node::start(config, None).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", node.client_address())).unwrap().connect_lazy();
    let kv = KvClient::new(channel.clone()).max_decoding_message_size(20 << 20);
    Served { node, kv, admin: AdminClient::new(channel), _dir: dir }
}

/// A cluster of one node, once it serves.
async fn cluster(change: impl FnOnce(&mut NodeConfig)) -> Served {
    let mut served = served(change).await;
    served.admin.init(v1::InitRequest {}).await.unwrap();
    for _ in 0..200 {
        if served.kv.get(get("is it there?")).await.is_ok() {
            return served;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it does not serve");
}

fn text(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest { key: text(key), at: None, ..Default::default() }
}

fn put(key: &str, value: &str) -> v1::PutRequest {
    v1::PutRequest { key: text(key), value: text(value), request_id: None, ..Default::default() }
}

fn reason(status: &Status) -> Reason {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{status:?} has no reason"));
    assert_eq!(info.domain, DOMAIN);
    let reason: Reason = info.reason.parse().unwrap();
    assert_eq!(reason.code(), status.code());
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_read_swapped_batched_scanned_and_removed() {
    let mut at = cluster(|_| {}).await;
    let written = at.kv.put(put("a", "1")).await.unwrap().into_inner().timestamp.unwrap();
    let read = at.kv.get(get("a")).await.unwrap().into_inner();
    assert_eq!((read.value, read.written), (Some(text("1")), Some(written)));
    assert_eq!(at.kv.get(get("b")).await.unwrap().into_inner().value, None);

    let swap = |expected: Option<&str>, new: Option<&str>| v1::CompareAndSwapRequest {
        key: text("a"),
        expected: expected.map(text),
        new: new.map(text),
        request_id: None,
        ..Default::default()
    };
    let met = at.kv.compare_and_swap(swap(Some("0"), Some("2"))).await.unwrap().into_inner();
    assert_eq!((met.swapped, met.actual), (false, Some(text("1"))));
    assert!(at.kv.compare_and_swap(swap(Some("1"), Some("2"))).await.unwrap().into_inner().swapped);

    let put_op =
        |key: &str| v1::BatchOp { op: Some(batch_op::Op::Put(v1::BatchPut { key: text(key), value: text("x") })) };
    let delete_op = v1::BatchOp { op: Some(batch_op::Op::Delete(v1::BatchDelete { key: text("a") })) };
    let ops = vec![put_op("b"), put_op("c"), put_op("d"), delete_op];
    at.kv.batch(v1::BatchRequest { ops, request_id: None, ..Default::default() }).await.unwrap();

    let scan = v1::ScanRequest { chunk_bytes: 8, ..Default::default() };
    assert_eq!(keys_of(&mut at.kv, scan.clone()).await, ["b", "c", "d"]);
    assert_eq!(keys_of(&mut at.kv, v1::ScanRequest { reverse: true, ..scan.clone() }).await, ["d", "c", "b"]);
    assert_eq!(keys_of(&mut at.kv, v1::ScanRequest { rows_max: 2, ..scan.clone() }).await, ["b", "c"]);

    let delete = v1::DeleteRangeRequest {
        start: text("b"),
        end: Some(text("d")),
        keys_max: 0,
        request_id: None,
        ..Default::default()
    };
    assert_eq!(at.kv.delete_range(delete).await.unwrap().into_inner().keys, Some(2));
    at.kv.delete(v1::DeleteRequest { key: text("d"), request_id: None, ..Default::default() }).await.unwrap();
    assert!(keys_of(&mut at.kv, scan).await.is_empty());
    at.node.stop().await.unwrap();
}

async fn keys_of(kv: &mut KvClient<Channel>, scan: v1::ScanRequest) -> Vec<String> {
    let mut stream = kv.scan(scan).await.unwrap().into_inner();
    let (mut keys, mut moment) = (Vec::new(), None);
    while let Some(chunk) = stream.message().await.unwrap() {
        assert_eq!(*moment.get_or_insert(chunk.timestamp), chunk.timestamp, "one moment");
        keys.extend(chunk.rows.iter().map(|row| String::from_utf8(row.key.to_vec()).unwrap()));
    }
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_the_same_id_is_one_write_and_chunks_keep_to_their_size() {
    let mut at = cluster(|_| {}).await;
    let now_ms = at.kv.put(put("x", "first")).await.unwrap().into_inner().timestamp.unwrap().wall / 1_000_000;
    let id = Some(Bytes::copy_from_slice(&RequestId::new(now_ms, 7, 1).0));
    let once = v1::PutRequest { request_id: id.clone(), ..put("x", "once") };
    let first = at.kv.put(once.clone()).await.unwrap().into_inner();
    at.kv.put(put("x", "between")).await.unwrap();
    assert_eq!(at.kv.put(once).await.unwrap().into_inner(), first, "the old answer");
    assert_eq!(at.kv.get(get("x")).await.unwrap().into_inner().value, Some(text("between")));

    let large = "v".repeat(700 << 10);
    for n in 0..4 {
        at.kv.put(put(&format!("large/{n}"), &large)).await.unwrap();
    }
    at.kv.put(put("larger", &"w".repeat(3 << 20))).await.unwrap();
    let mut chunks = at.kv.scan(v1::ScanRequest { start: text("l"), ..Default::default() }).await.unwrap().into_inner();
    let mut sizes = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        let bytes: usize = chunk.rows.iter().map(|row| row.key.len() + row.value.len()).sum();
        assert!(bytes <= 1 << 20 || chunk.rows.len() == 1, "{bytes} bytes in {} rows", chunk.rows.len());
        sizes.push(chunk.rows.len());
    }
    assert_eq!(sizes.iter().sum::<usize>(), 6, "{sizes:?}");
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_with_reasons_and_what_would_do() {
    let mut at = served(|_| {}).await;
    let refused = at.kv.get(get("a")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NotInitialized);
    let status = at.admin.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert!(status.cluster_id.is_empty());
    at.node.stop().await.unwrap();

    let mut at = cluster(|config| config.door.limits.value_bytes = 1 << 20).await;
    assert_eq!(reason(&at.admin.init(v1::InitRequest {}).await.unwrap_err()), Reason::AlreadyInitialized);
    let long = "k".repeat((16 << 10) + 1);
    assert_eq!(reason(&at.kv.get(get(&long)).await.unwrap_err()), Reason::TooLarge);
    let refused = at.kv.put(put("a", &"v".repeat((1 << 20) + 1))).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::TooLarge);
    assert!(refused.message().contains("1048576"), "{}", refused.message());
    at.kv.put(put(&"k".repeat(16 << 10), &"v".repeat(1 << 20))).await.unwrap();

    let bad_id = v1::PutRequest { request_id: Some(text("short")), ..put("a", "1") };
    assert_eq!(reason(&at.kv.put(bad_id).await.unwrap_err()), Reason::Invalid);
    let from_the_future = RequestId::new(9_000_000_000_000, 1, 1).0;
    let future = v1::PutRequest { request_id: Some(Bytes::copy_from_slice(&from_the_future)), ..put("a", "1") };
    assert!(matches!(reason(&at.kv.put(future).await.unwrap_err()), Reason::Invalid | Reason::FutureTimestamp));

    let batch = |keys: &[&str]| {
        let delete = |key: &&str| v1::BatchOp { op: Some(batch_op::Op::Delete(v1::BatchDelete { key: text(key) })) };
        v1::BatchRequest { ops: keys.iter().map(delete).collect(), request_id: None, ..Default::default() }
    };
    assert_eq!(reason(&at.kv.batch(batch(&[])).await.unwrap_err()), Reason::Invalid);
    assert_eq!(reason(&at.kv.batch(batch(&["a", "a"])).await.unwrap_err()), Reason::Invalid);
    let empty = v1::BatchRequest { ops: vec![v1::BatchOp { op: None }], ..Default::default() };
    assert_eq!(reason(&at.kv.batch(empty).await.unwrap_err()), Reason::Invalid);
    at.admin.split(v1::SplitRequest { key: keys::user(b"m").into_bytes() }).await.unwrap();
    at.kv.batch(batch(&["a", "z"])).await.unwrap();

    let backwards = v1::ScanRequest { start: text("b"), end: Some(text("a")), ..Default::default() };
    assert_eq!(reason(&at.kv.scan(backwards).await.unwrap_err()), Reason::Invalid);
    let future = v1::Timestamp { wall: u64::MAX / 2, logical: 0 };
    let ahead = v1::ScanRequest { at: Some(future), ..Default::default() };
    let mut stream = at.kv.scan(ahead).await.unwrap().into_inner();
    assert_eq!(reason(&stream.message().await.unwrap_err()), Reason::FutureTimestamp);

    let target = v1::ChangeReplicasRequest { range_id: 1, voters: vec![1, 77], learners: vec![] };
    assert_eq!(reason(&at.admin.change_replicas(target).await.unwrap_err()), Reason::NodeNotFound);
    let transfer = v1::TransferLeaderRequest { range_id: 999, to_store: 1 };
    assert_eq!(reason(&at.admin.transfer_leader(transfer).await.unwrap_err()), Reason::RangeNotFound);
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_node_says_when_to_come_again_and_a_deadline_is_kept() {
    let mut at = cluster(|config| config.door.in_flight_max = 1).await;
    for n in 0..12 {
        at.kv.put(put(&format!("{n}"), &"v".repeat(900 << 10))).await.unwrap();
    }
    // A reader that does not read holds its place: a few chunks wait for it, and no more are read.
    let held = at.kv.scan(v1::ScanRequest { chunk_bytes: 1, ..Default::default() }).await.unwrap();
    let status = at.kv.get(get("0")).await.unwrap_err();
    assert_eq!(reason(&status), Reason::Overloaded);
    assert!(status.get_details_retry_info().and_then(|info| info.retry_delay).is_some());
    drop(held);
    let mut request = Request::new(put("late", "1"));
    request.set_timeout(Duration::from_nanos(1));
    assert!(at.kv.put(request).await.is_err());
    at.node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_pages_tell_whether_it_serves() {
    let at = cluster(|_| {}).await;
    let channel = Channel::from_shared(format!("http://{}", at.node.client_address())).unwrap().connect_lazy();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut serving = false;
    for _ in 0..60 {
        let asked = tonic_health::pb::HealthCheckRequest { service: "flotilla.v1.Kv".to_owned() };
        serving = health.check(asked).await.is_ok_and(|answer| answer.into_inner().status == 1);
        if serving {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(serving);
    let page = page(&at, "/healthz").await;
    assert!(page.starts_with("HTTP/1.0 200") || page.starts_with("HTTP/1.1 200"), "{page}");
    at.node.stop().await.unwrap();

    let fresh = served(|_| {}).await;
    let page = self::page(&fresh, "/healthz").await;
    assert!(page.contains("503") && page.contains("flotilla init"), "{page}");
    fresh.node.stop().await.unwrap();
}

async fn page(at: &Served, path: &str) -> String {
    let mut stream = TcpStream::connect(at.node.http_address().unwrap()).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
