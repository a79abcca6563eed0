//! The rules of parallel commit and of records, one by one, at a range: each test fails if the rule that it names is broken.
//! Random simulation meets few recoveries, and most breaks of these rules hurt only between two messages of one.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{
    Admin, Claim, Command, EndKind, EndTxn, Isolation, KeySpan, Outcome, Priority, PushKind, PushResult, PushTxn,
    QueryTxn, RangeError, RangeReply, RecordOp, Reply, RequestId, Resolve, ResolveTarget, Seq, SeqRange, Staged,
    StoreId, Timestamp, TxnAnswer, TxnHeader, TxnId, TxnMeta, TxnOp, TxnRefusal, TxnState, Wait,
};
use world::{USER, World, put, text, user};

fn born(world: &World, n: u32) -> RequestId {
    RequestId::new(world.time.as_millis() as u64, 9, n)
}

fn now(world: &World) -> Timestamp {
    Timestamp::from_wall(world.time.as_nanos() as u64)
}

fn meta(world: &World, n: u32, anchor: &str) -> TxnMeta {
    let id = TxnId::from(born(world, n));
    TxnMeta {
        id,
        anchor: user(anchor),
        anchored: now(world),
        min_ts: now(world),
        isolation: Isolation::Serializable,
        priority: Priority::Normal,
        commit_id: id.into(),
    }
}

fn header(meta: &TxnMeta, at: Timestamp, seq: u32) -> TxnHeader {
    TxnHeader {
        meta: meta.clone(),
        read: at,
        write: at,
        limit: at,
        seq: Seq(seq),
        ignored: Vec::new(),
        keep_from: Seq(seq),
        can_forward: false,
        wait: Wait::Error,
        pipelined: false,
    }
}

fn txn(meta: &TxnMeta, at: Timestamp, seq: u32, op: TxnOp) -> Command {
    Command::Txn { header: Box::new(header(meta, at, seq)), op }
}

fn write(key: &str, value: &str) -> TxnOp {
    TxnOp::Write { key: user(key), value: Some(Bytes::copy_from_slice(value.as_bytes())), was_read: false }
}

fn prove(key: &str, seq: u32, at: Timestamp) -> TxnOp {
    TxnOp::Prove { key: user(key), seq: Seq(seq), at }
}

fn record(op: RecordOp) -> Command {
    Command::Record(Box::new(op))
}

fn end(meta: &TxnMeta, kind: EndKind, keys: &[&str]) -> Command {
    record(RecordOp::End(EndTxn {
        meta: meta.clone(),
        kind,
        lock_spans: keys.iter().map(|key| KeySpan::point(user(key))).collect(),
        ignored: Vec::new(),
        local: Vec::new(),
        proofs: Vec::new(),
        held: None,
    }))
}

fn stage(meta: &TxnMeta, at: Timestamp, claims: &[(&str, u32)]) -> Command {
    let in_flight = claims.iter().map(|(key, seq)| Claim { key: user(key), seq: Seq(*seq) }).collect();
    let keys: Vec<_> = claims.iter().map(|(key, _)| *key).collect();
    end(meta, EndKind::Stage(Staged { at, in_flight }), &keys)
}

fn recover(meta: &TxnMeta, at: Timestamp, proven: bool) -> Command {
    record(RecordOp::Recover { meta: meta.clone(), at, proven })
}

fn push(pushee: &TxnMeta, kind: PushKind) -> Command {
    let seen = pushee.anchored;
    let (pushee, priority) = (pushee.clone(), Priority::Normal);
    record(RecordOp::Push(PushTxn { pushee, kind, pusher: None, priority, seen, edges: Vec::new() }))
}

fn resolve(meta: &TxnMeta, outcome: Outcome, key: &str, ignored: &[SeqRange]) -> Command {
    let target = ResolveTarget::Keys(vec![user(key)]);
    Command::Resolve(Box::new(Resolve { meta: meta.clone(), outcome, ignored: ignored.to_vec(), target }))
}

/// One answer of the leader, whatever it is.
fn once(world: &mut World, command: Command) -> Result<RangeReply, RangeError> {
    world.run_until("a usable leader", |world| world.leader(USER).is_some());
    let leader = world.leader(USER).unwrap();
    let token = world.ask(leader, command);
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    world.answers[&token].clone()
}

fn told(world: &mut World, command: Command) -> Reply {
    once(world, command).unwrap().reply
}

fn laid(reply: &Reply) -> Timestamp {
    let Reply::Txn { locked: Some(locked), .. } = reply else { panic!("{reply:?}") };
    *locked
}

fn proven(there: bool) -> Reply {
    Reply::Txn { answer: TxnAnswer::Proven(there), locked: None }
}

fn ended(at: Timestamp) -> Reply {
    Reply::Ended(Outcome::Committed { at })
}

const ABORTED: Reply = Reply::Ended(Outcome::Aborted);

fn state(world: &mut World, meta: &TxnMeta) -> Option<TxnState> {
    let query = QueryTxn { meta: meta.clone(), settle: false };
    let Reply::Queried { status, .. } = told(world, record(RecordOp::Query(query))) else { panic!("queried") };
    status
}

fn world() -> World {
    let mut world = World::new();
    world.write(1, put("a", "1")).unwrap();
    world.write(2, put("k", "1")).unwrap();
    world
}

#[test]
fn what_was_missing_at_a_timestamp_never_comes_at_or_below_it_not_even_from_its_own_transaction() {
    let mut world = world();
    let meta = meta(&world, 10, "a");
    let at = now(&world);
    assert_eq!(told(&mut world, txn(&meta, at, 0, prove("k", 1, at))), proven(false));
    let late = told(&mut world, txn(&meta, at, 1, write("k", "2")));
    assert!(laid(&late) > at, "{late:?}");
    assert_eq!(told(&mut world, txn(&meta, at, 0, prove("k", 1, at))), proven(false), "it lies above");
    assert_eq!(told(&mut world, txn(&meta, at, 0, prove("k", 1, laid(&late)))), proven(true));
}

#[test]
fn a_write_is_proven_by_its_number_and_timestamp_and_not_while_it_is_under_way() {
    let mut world = world();
    let meta = meta(&world, 10, "a");
    let at = now(&world);
    let leader = world.leader(USER).unwrap();
    let wrote = world.ask(leader, txn(&meta, at, 1, write("k", "2")));
    let proof = world.ask(leader, txn(&meta, at, 0, prove("k", 1, at)));
    world.run_until("both answers", |world| [wrote, proof].iter().all(|token| world.answers.contains_key(token)));
    let locked = laid(&world.answers[&wrote].clone().unwrap().reply);
    assert_eq!(locked, at);
    assert_eq!(world.answers[&proof].clone().unwrap().reply, proven(true), "it waited for the write");
    assert_eq!(told(&mut world, txn(&meta, at, 0, prove("k", 2, at))), proven(false), "another number");
    let before = Timestamp { wall: at.wall - 1, logical: 0 };
    assert_eq!(told(&mut world, txn(&meta, at, 0, prove("k", 1, before))), proven(false), "above");
}

#[test]
fn a_final_record_is_not_overruled_by_a_recovery_that_comes_late() {
    let mut world = world();
    let meta = meta(&world, 10, "a");
    let at = now(&world);
    let locked = laid(&told(&mut world, txn(&meta, at, 1, write("k", "2"))));
    assert_eq!(told(&mut world, stage(&meta, locked, &[("k", 1)])), Reply::Staged);
    assert_eq!(told(&mut world, recover(&meta, at.minus(Duration::from_secs(1)), false)), Reply::Alive, "of another");
    let higher = now(&world);
    assert_eq!(told(&mut world, end(&meta, EndKind::Commit(higher), &["k"])), ended(higher));
    assert_eq!(told(&mut world, recover(&meta, locked, false)), ended(higher));
    assert_eq!(told(&mut world, recover(&meta, locked, true)), ended(higher));
    told(&mut world, resolve(&meta, Outcome::Committed { at: higher }, "k", &[]));
    told(&mut world, record(RecordOp::Collect { meta: meta.clone() }));
    assert_eq!(told(&mut world, recover(&meta, locked, false)), ended(higher));
    assert_eq!(text(world.get("k")).as_deref(), Some("2"));
}

#[test]
fn an_aborted_record_stays_so_whatever_copy_comes() {
    let mut world = world();
    let meta = meta(&world, 10, "a");
    let at = now(&world);
    let locked = laid(&told(&mut world, txn(&meta, at, 1, write("k", "2"))));
    assert_eq!(told(&mut world, stage(&meta, locked, &[("k", 1), ("l", 1)])), Reply::Staged);
    assert_eq!(told(&mut world, recover(&meta, locked, false)), ABORTED);
    let beat = record(RecordOp::Heartbeat { meta: meta.clone(), lock_spans: Vec::new() });
    for copy in [
        stage(&meta, locked, &[("k", 1), ("l", 1)]),
        end(&meta, EndKind::Commit(locked), &["k"]),
        recover(&meta, locked, true),
        beat,
    ] {
        assert_eq!(told(&mut world, copy.clone()), ABORTED, "{copy:?}");
    }
}

#[test]
fn what_is_staged_is_staged_once_and_neither_heartbeats_nor_pushes_change_it() {
    let mut world = world();
    let meta = meta(&world, 10, "a");
    let at = now(&world);
    let locked = laid(&told(&mut world, txn(&meta, at, 1, write("k", "2"))));
    let in_flight = vec![Claim { key: user("k"), seq: Seq(1) }];
    let staging = Some(TxnState::Staging(Staged { at: locked, in_flight: in_flight.clone() }));
    assert_eq!(told(&mut world, stage(&meta, locked, &[("k", 1)])), Reply::Staged);
    let beat = record(RecordOp::Heartbeat { meta: meta.clone(), lock_spans: Vec::new() });
    assert_eq!(told(&mut world, beat), Reply::Alive);
    assert_eq!(state(&mut world, &meta), staging);
    let later = now(&world);
    assert_eq!(told(&mut world, stage(&meta, later, &[("l", 2)])), Reply::Staged);
    assert_eq!(state(&mut world, &meta), staging);
    // It may have been acknowledged at `locked`: a reader that began above has to wait, one that began below passes.
    let above = PushKind::Timestamp { above: locked, limit: locked };
    assert_eq!(told(&mut world, push(&meta, above)), Reply::Pushed(PushResult::Waiting));
    assert_eq!(told(&mut world, push(&meta, PushKind::Ask { limit: locked })), Reply::Pushed(PushResult::Waiting));
    let below = locked.minus(Duration::from_millis(1));
    let passes = PushKind::Timestamp { above: below, limit: below };
    assert_eq!(told(&mut world, push(&meta, passes)), Reply::Pushed(PushResult::Passed));
    assert_eq!(told(&mut world, push(&meta, PushKind::End)), Reply::Pushed(PushResult::Waiting));
    // Nobody hears of its coordinator: whoever pushes has to prove it.
    let until = world.time + Duration::from_secs(7);
    world.run_until("it expires", |world| world.time > until);
    let indeterminate = Reply::Pushed(PushResult::Indeterminate(Staged { at: locked, in_flight }));
    assert_eq!(told(&mut world, push(&meta, PushKind::End)), indeterminate);
    assert_eq!(state(&mut world, &meta), staging);
}

#[test]
fn a_pushed_transaction_commits_above_the_push_also_under_the_next_lease_and_what_was_staged_before_may_stay() {
    let mut world = world();
    let weak = TxnMeta { isolation: Isolation::Snapshot, ..meta(&world, 10, "a") };
    let staged = meta(&world, 11, "b");
    let at = now(&world);
    let pushed = laid(&told(&mut world, txn(&weak, at, 1, write("k", "2"))));
    let other = laid(&told(&mut world, txn(&staged, at, 1, write("l", "2"))));
    assert_eq!(told(&mut world, stage(&staged, other, &[("l", 1)])), Reply::Staged);
    let p = now(&world);
    let kind = PushKind::Timestamp { above: p, limit: p };
    assert_eq!(told(&mut world, push(&weak, kind)), Reply::Pushed(PushResult::Passed));
    let refused = |answer: &Result<RangeReply, RangeError>| matches!(answer, Err(RangeError::Txn(TxnRefusal::Pushed { above })) if *above >= p);
    let answer = once(&mut world, end(&weak, EndKind::Commit(pushed), &["k"]));
    assert!(refused(&answer), "{answer:?}");
    let leader = world.leader(USER).unwrap();
    let heir = (1..=3).map(StoreId).find(|store| *store != leader).unwrap();
    once(&mut world, Command::Admin(Admin::TransferLeader { to: heir })).unwrap();
    world.run_until("the heir leads", |world| world.leader(USER) == Some(heir));
    world.write(3, put("z", "1")).unwrap();
    let answer = once(&mut world, end(&weak, EndKind::Commit(p), &["k"]));
    assert!(refused(&answer), "{answer:?}");
    assert_eq!(told(&mut world, end(&staged, EndKind::Commit(other), &["l"])), ended(other));
    let above = now(&world);
    assert_eq!(told(&mut world, end(&weak, EndKind::Commit(above), &["k"])), ended(above));
}

#[test]
fn a_stray_lock_above_the_commit_and_a_write_that_was_taken_back_only_go() {
    let mut world = world();
    let meta = meta(&world, 10, "a");
    let at = now(&world);
    let locked = laid(&told(&mut world, txn(&meta, at, 1, write("k", "2"))));
    let taken_back = laid(&told(&mut world, txn(&meta, at, 2, write("l", "3"))));
    let commit = locked.max(taken_back);
    let stray = now(&world).max(commit.next());
    told(&mut world, txn(&meta, stray, 3, write("m", "4")));
    let ignored = [SeqRange { from: Seq(2), to: Seq(2) }];
    for key in ["k", "l", "m"] {
        told(&mut world, resolve(&meta, Outcome::Committed { at: commit }, key, &ignored));
    }
    assert_eq!(text(world.get("k")).as_deref(), Some("2"));
    assert_eq!((world.get("l"), world.get("m")), (None, None));
}

#[test]
fn an_intention_is_done_once_whoever_comes_again_and_however_the_first_one_ended() {
    for by_recovery in [false, true] {
        let mut world = world();
        let intention = born(&world, 99);
        let mine = TxnMeta { commit_id: intention, ..meta(&world, 10, "a") };
        let twin = TxnMeta { commit_id: intention, ..meta(&world, 11, "a") };
        let at = now(&world);
        let locked = laid(&told(&mut world, txn(&mine, at, 1, write("k", "2"))));
        assert_eq!(told(&mut world, stage(&mine, locked, &[("k", 1)])), Reply::Staged);
        let verdict =
            if by_recovery { recover(&mine, locked, true) } else { end(&mine, EndKind::Commit(locked), &["k"]) };
        assert_eq!(told(&mut world, verdict), ended(locked));
        told(&mut world, resolve(&mine, Outcome::Committed { at: locked }, "k", &[]));
        told(&mut world, record(RecordOp::Collect { meta: mine.clone() }));
        world.write(50, put("k", "of another")).unwrap();
        let already = |answer: &Result<RangeReply, RangeError>| matches!(answer, Err(RangeError::Txn(TxnRefusal::AlreadyCommitted { at, .. })) if *at == locked);
        let later = now(&world);
        for copy in [
            txn(&twin, later, 1, write("k", "2")),
            stage(&twin, later, &[("k", 1)]),
            end(&twin, EndKind::Commit(later), &["k"]),
        ] {
            let answer = once(&mut world, copy.clone());
            assert!(already(&answer), "{copy:?}: {answer:?}");
        }
        assert_eq!(text(world.get("k")).as_deref(), Some("of another"));
    }
}

#[test]
fn what_was_forgotten_cannot_come_again() {
    let mut world = world();
    let (old, intention) = (meta(&world, 10, "a"), born(&world, 99));
    let until = world.time + Duration::from_secs(100);
    let mut n = 1000;
    // Something ends now and then, so that there is something to forget.
    while world.time < until {
        let other = meta(&world, n, "a");
        told(&mut world, end(&other, EndKind::Abort, &[]));
        n += 1;
        let next = world.time + Duration::from_secs(2);
        world.run_until("time passes", |world| world.time > next);
    }
    let at = now(&world);
    let young = TxnMeta { commit_id: intention, ..meta(&world, 11, "a") };
    for of in [old, young] {
        for copy in [stage(&of, at, &[("k", 1)]), end(&of, EndKind::Commit(at), &["k"])] {
            let answer = once(&mut world, copy);
            assert!(matches!(answer, Err(RangeError::TooOld { .. })), "{of:?}: {answer:?}");
        }
    }
}

#[test]
fn a_refresh_is_a_promise_and_fails_on_versions_and_on_intents() {
    let mut world = world();
    let (mine, other) = (meta(&world, 10, "a"), meta(&world, 11, "b"));
    let from = now(&world);
    world.write(20, put("other", "1")).unwrap();
    let to = now(&world);
    let refresh = |key: &str| TxnOp::Refresh { span: KeySpan::point(user(key)), from, to };
    assert!(once(&mut world, txn(&mine, from, 0, refresh("k"))).is_ok());
    let above = laid(&told(&mut world, txn(&other, from, 1, write("k", "2"))));
    assert!(above > to, "{above} is at or below what was promised up to {to}");
    let failed = |answer: Result<RangeReply, RangeError>| {
        assert!(matches!(answer, Err(RangeError::Txn(TxnRefusal::RefreshFailed { .. }))), "{answer:?}");
    };
    failed(once(&mut world, txn(&mine, from, 0, refresh("other"))));
    let intent = laid(&told(&mut world, txn(&other, from, 2, write("l", "2"))));
    assert!(intent <= to);
    failed(once(&mut world, txn(&mine, from, 0, refresh("l"))));
}

#[test]
fn a_write_lies_above_what_others_read_and_a_late_copy_overwrites_nothing() {
    let mut world = world();
    let (mine, other) = (meta(&world, 10, "a"), meta(&world, 11, "b"));
    let at = now(&world);
    assert!(once(&mut world, txn(&other, at, 1, TxnOp::Get { key: user("k"), lock: None })).is_ok());
    let before = at.minus(Duration::from_millis(1));
    let first = laid(&told(&mut world, txn(&mine, before, 1, write("k", "first"))));
    assert!(first > at, "{first} is at or below the read at {at}");
    told(&mut world, txn(&mine, before, 2, write("k", "between")));
    told(&mut world, txn(&mine, before, 3, write("k", "second")));
    // Nothing is remembered of the first one any more.
    let copy = once(&mut world, txn(&mine, before, 1, write("k", "first")));
    assert!(matches!(copy, Err(RangeError::Txn(TxnRefusal::StaleWrite { .. }))), "{copy:?}");
    let seen = told(&mut world, txn(&mine, first, 4, TxnOp::Get { key: user("k"), lock: None }));
    let Reply::Txn { answer: TxnAnswer::Row(Some(row)), .. } = seen else { panic!("{seen:?}") };
    assert_eq!(&row.value[..], b"second");
}
