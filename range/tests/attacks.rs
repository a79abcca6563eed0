//! What an adversary would try against transactions at a range.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{
    Claim, Command, Compare, EndKind, EndTxn, Isolation, KeySpan, OneShot, Outcome, Priority, RangeError, RangeReply,
    RecordOp, Reply, RequestId, Seq, SeqRange, Staged, StoreId, Timestamp, TxnAnswer, TxnHeader, TxnId, TxnMeta, TxnOp,
    Wait, Whole, Write, WriteResult,
};
use world::{USER, World, put, user};

fn born(world: &World, n: u32) -> RequestId {
    RequestId::new(world.time.as_millis() as u64, 9, n)
}

fn now(world: &World) -> Timestamp {
    Timestamp::from_wall(world.time.as_nanos() as u64)
}

fn meta(world: &World, n: u32, anchor: &str, commit_id: Option<RequestId>) -> TxnMeta {
    let id = TxnId::from(born(world, n));
    TxnMeta {
        id,
        anchor: user(anchor),
        anchored: now(world),
        min_ts: now(world),
        isolation: Isolation::Serializable,
        priority: Priority::Normal,
        commit_id: commit_id.unwrap_or(id.into()),
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
        wait: Wait::Block,
        pipelined: false,
    }
}

fn txn(header: &TxnHeader, op: TxnOp) -> Command {
    Command::Txn { header: Box::new(header.clone()), op }
}

fn write(key: &str, value: &str) -> TxnOp {
    TxnOp::Write { key: user(key), value: Some(Bytes::copy_from_slice(value.as_bytes())), was_read: false }
}

fn end(meta: &TxnMeta, kind: EndKind, keys: &[&str]) -> Command {
    let end = EndTxn {
        meta: meta.clone(),
        kind,
        lock_spans: keys.iter().map(|key| KeySpan::point(user(key))).collect(),
        ignored: Vec::new(),
        local: Vec::new(),
        proofs: Vec::new(),
        held: None,
    };
    Command::Record(Box::new(RecordOp::End(end)))
}

/// One answer of the leader, whatever it is.
fn once(world: &mut World, command: Command) -> Result<RangeReply, RangeError> {
    world.run_until("a leader", |world| world.leader(USER).is_some());
    let leader = world.leader(USER).unwrap();
    let token = world.ask(leader, command);
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    world.answers[&token].clone()
}

/// Lets time pass while something is written now and then, so that the range does not fall asleep.
fn pass(world: &mut World, seconds: u64) {
    let until = world.time + Duration::from_secs(seconds);
    let mut n = 1_000_000;
    while world.time < until {
        n += 1;
        world.write(n, put("zz-busy", "x")).unwrap();
        let next = world.time + Duration::from_secs(2);
        world.run_until("time passes", |world| world.time > next);
    }
}

fn counter(world: &mut World, key: &str) -> i64 {
    world.get(key).map_or(0, |bytes| i64::from_be_bytes(bytes[..].try_into().unwrap()))
}

/// If `guard` is x, the counter goes up.
fn guarded() -> Whole {
    Whole {
        compares: vec![Compare { key: user("guard"), expected: Some(Bytes::from_static(b"x")) }],
        then: vec![OneShot::Increment(user("n"), 1)],
        otherwise: Vec::new(),
    }
}

#[test]
fn a_conditional_transaction_whose_record_was_forgotten_is_not_done_a_second_time() {
    let mut world = World::new();
    world.write(1, put("guard", "x")).unwrap();
    let command = Command::Write { id: born(&world, 2), write: Write::Whole(Box::new(guarded())) };
    let first = once(&mut world, command.clone()).unwrap().reply;
    assert!(matches!(first, Reply::Write(WriteResult::Whole { held: Some(true), .. })), "{first:?}");
    assert_eq!(counter(&mut world, "n"), 1);
    // While its record is there a repetition finds it.
    once(&mut world, command.clone()).unwrap();
    assert_eq!(counter(&mut world, "n"), 1);
    pass(&mut world, 100);
    let again = once(&mut world, command);
    assert_eq!(counter(&mut world, "n"), 1, "one request id, two effects: {again:?}");
    assert!(matches!(again, Err(RangeError::TooOld { .. })), "{again:?}");
}

#[test]
fn a_request_id_used_for_a_range_delete_and_then_for_a_transaction_costs_no_replica() {
    let mut world = World::new();
    world.write(1, put("guard", "x")).unwrap();
    let id = born(&world, 2);
    let span = KeySpan::new(user("guard"), user("h")).unwrap();
    once(&mut world, Command::Write { id, write: Write::DeleteRange { span, keys_max: 10 } }).unwrap();
    let leader = world.leader(USER).unwrap();
    world.may_lose = Some(leader);
    let answer = once(&mut world, Command::Write { id, write: Write::Whole(Box::new(guarded())) });
    (0..100).for_each(|_| world.tick());
    assert_eq!(world.lost, [], "a client's request costs the leader its replica: {answer:?}");
}

#[test]
fn a_request_id_used_for_a_transaction_and_then_for_a_range_delete_costs_no_replica() {
    let mut world = World::new();
    world.write(1, put("guard", "x")).unwrap();
    let id = born(&world, 2);
    once(&mut world, Command::Write { id, write: Write::Whole(Box::new(guarded())) }).unwrap();
    let leader = world.leader(USER).unwrap();
    world.may_lose = Some(leader);
    let span = KeySpan::new(user("guard"), user("h")).unwrap();
    let answer = once(&mut world, Command::Write { id, write: Write::DeleteRange { span, keys_max: 10 } });
    (0..100).for_each(|_| world.tick());
    assert_eq!(world.lost, [], "a client's request costs the leader its replica: {answer:?}");
}

#[test]
fn nobody_writes_below_a_transaction_that_only_read_and_was_answered_through_the_log() {
    let mut world = World::new();
    world.write(1, put("a", "1")).unwrap();
    world.write(2, put("b", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    // Liveness stops, so that the lease is not renewed; the log goes on.
    for other in [1, 2, 3].map(StoreId) {
        for another in [1, 2, 3].map(StoreId) {
            if other != another {
                world.cut_liveness.insert((other, another));
            }
        }
    }
    let whole = Whole { then: vec![OneShot::Get(user("a")), OneShot::Get(user("b"))], ..Whole::default() };
    let mut below = None;
    for n in 0..4000 {
        // A writer whose gateway chose its timestamp a little before.
        let before = now(&world);
        let meta = meta(&world, 10 + n, "a", None);
        let read = Command::Write { id: born(&world, 100_000 + n), write: Write::Whole(Box::new(whole.clone())) };
        let token = world.ask(leader, read);
        for _ in 0..20 {
            world.tick();
        }
        let Some(Ok(answer)) = world.answers.get(&token).cloned() else { break };
        let op = TxnOp::Write { key: user("a"), value: Some(Bytes::from_static(b"2")), was_read: false };
        let token = world.ask(leader, txn(&header(&meta, before, 1), op));
        for _ in 0..20 {
            world.tick();
        }
        let Some(Ok(RangeReply { reply: Reply::Txn { locked: Some(locked), .. }, .. })) = world.answers.get(&token)
        else {
            break;
        };
        if *locked <= answer.timestamp {
            below = Some((answer.timestamp, *locked));
            break;
        }
        let token = world.ask(leader, end(&meta, EndKind::Abort, &[]));
        for _ in 0..4 {
            world.tick();
        }
        let _ = world.answers.get(&token);
        let resolve = flotilla_types::Resolve {
            meta,
            outcome: Outcome::Aborted,
            ignored: Vec::new(),
            target: flotilla_types::ResolveTarget::Keys(vec![user("a")]),
        };
        world.ask(leader, Command::Resolve(Box::new(resolve)));
        for _ in 0..4 {
            world.tick();
        }
    }
    assert_eq!(below, None, "(read at, written at or below)");
}

#[test]
fn a_committed_transaction_whose_record_was_forgotten_is_not_said_to_be_aborted() {
    let mut world = World::new();
    world.write(1, put("a", "1")).unwrap();
    let meta = meta(&world, 2, "a", Some(born(&world, 3)));
    let at = now(&world);
    let locked = once(&mut world, txn(&header(&meta, at, 1), write("k", "2"))).unwrap();
    let Reply::Txn { locked: Some(locked), .. } = locked.reply else { panic!("{locked:?}") };
    let in_flight = vec![Claim { key: user("k"), seq: Seq(1) }];
    let staged = once(&mut world, end(&meta, EndKind::Stage(Staged { at: locked, in_flight }), &["k"])).unwrap();
    assert_eq!(staged.reply, Reply::Staged);
    // Somebody recovers it, its locks are resolved, and its record is collected, while its coordinator is cut off.
    let recover = RecordOp::Recover { meta: meta.clone(), at: locked, proven: true };
    once(&mut world, Command::Record(Box::new(recover))).unwrap();
    let resolve = flotilla_types::Resolve {
        meta: meta.clone(),
        outcome: Outcome::Committed { at: locked },
        ignored: Vec::new(),
        target: flotilla_types::ResolveTarget::Keys(vec![user("k")]),
    };
    once(&mut world, Command::Resolve(Box::new(resolve))).unwrap();
    once(&mut world, Command::Record(Box::new(RecordOp::Collect { meta: meta.clone() }))).unwrap();
    assert_eq!(world::text(world.get("k")).as_deref(), Some("2"));
    pass(&mut world, 100);
    // give_up_staged asks so, and tells its caller by the answer.
    let answer = once(&mut world, end(&meta, EndKind::Abort, &["k"]));
    assert!(!matches!(&answer, Ok(reply) if reply.reply == Reply::Ended(Outcome::Aborted)), "{answer:?}");
}

#[test]
fn a_copy_of_a_write_that_was_refused_as_locked_does_not_commit() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let (other, mine) = (meta(&world, 2, "k", None), meta(&world, 3, "m", None));
    let at = now(&world);
    once(&mut world, txn(&header(&other, at, 1), write("k", "other"))).unwrap();
    let own = once(&mut world, txn(&header(&mine, at, 1), write("m", "mine"))).unwrap();
    let Reply::Txn { locked: Some(first), .. } = own.reply else { panic!("{own:?}") };
    // `Wait::Error`. The first attempt got no answer; the second is told that the key is locked. The router tells the caller
    // so, the transaction goes on, and takes the number back: that is what makes the copy harmless.
    let refused = TxnHeader { wait: Wait::Error, ..header(&mine, at, 2) };
    // The other one goes.
    once(&mut world, end(&other, EndKind::Abort, &["k"])).unwrap();
    let resolve = |meta: &TxnMeta, outcome, key: &str| {
        let target = flotilla_types::ResolveTarget::Keys(vec![user(key)]);
        let ignored = vec![SeqRange { from: Seq(2), to: Seq(2) }];
        Command::Resolve(Box::new(flotilla_types::Resolve { meta: meta.clone(), outcome, ignored, target }))
    };
    once(&mut world, resolve(&other, Outcome::Aborted, "k")).unwrap();
    // Now the first attempt arrives.
    let late = once(&mut world, txn(&refused, write("k", "late"))).unwrap();
    let Reply::Txn { locked: Some(stray), answer: TxnAnswer::Written } = late.reply else { panic!("{late:?}") };
    // Its transaction commits, without a thought of k, a little later.
    let commit = first.max(stray).max(now(&world));
    let done = once(&mut world, end(&mine, EndKind::Commit(commit), &["m"])).unwrap();
    assert_eq!(done.reply, Reply::Ended(Outcome::Committed { at: commit }));
    // Whoever meets the lock on k learns that, and clears it.
    once(&mut world, resolve(&mine, Outcome::Committed { at: commit }, "k")).unwrap();
    assert_eq!(world::text(world.get("k")).as_deref(), Some("1"), "the statement was told to have failed");
}
