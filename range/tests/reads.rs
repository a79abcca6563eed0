//! When a read may be answered, and when a write may be acknowledged (docs/leases.md, section 6).

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use flotilla_range::event::Token;
use flotilla_types::{
    Admin, Command, RangeError, RangeReply, Read, ReadAt, Reply, RequestId, StoreId, Timestamp, Write, WriteResult,
};
use world::{USER, World, put, text, user};

const STORES: [u64; 3] = [1, 2, 3];

fn get(at: ReadAt) -> Command {
    Command::Read { at, read: Read::Get { key: user("k") } }
}

fn exactly(timestamp: Timestamp) -> ReadAt {
    ReadAt::Timestamp { timestamp, limit: timestamp }
}

fn write(world: &World, n: u32, write: Write) -> Command {
    Command::Write { id: RequestId::new(world.time.as_millis() as u64, 9, n), write }
}

/// A timestamp this far ahead of a store's wall clock.
fn in_future(world: &World, store: StoreId, millis: u64) -> Timestamp {
    Timestamp::from_wall((world.wall(store) + Duration::from_millis(millis)).as_nanos() as u64)
}

fn ask_and_wait(world: &mut World, store: StoreId, command: Command) -> Result<RangeReply, RangeError> {
    let token = world.ask(store, command);
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    world.answers[&token].clone()
}

fn value(answer: &Result<RangeReply, RangeError>) -> Option<Option<String>> {
    match &answer.as_ref().ok()?.reply {
        Reply::Get(row) => Some(text(row.as_ref().map(|row| row.value.clone()))),
        other => panic!("a get was answered with {other:?}"),
    }
}

/// A world whose leader of the users' range is known, with `k` = `old`.
fn settled(ahead: impl Fn(StoreId, StoreId) -> u64) -> (World, StoreId) {
    let mut world = World::new();
    world.write(1, put("k", "old")).unwrap();
    let leader = world.leader(USER).unwrap();
    for store in STORES.map(StoreId) {
        world.ahead.insert(store, Duration::from_millis(ahead(store, leader)));
    }
    let started = world.time;
    world.run_until("the clocks are felt", |world| world.time > started + Duration::from_secs(1));
    assert_eq!(world.leader(USER), Some(leader));
    (world, leader)
}

/// Nobody supports anybody any more, and raft goes on.
fn without_support() -> (World, StoreId) {
    let (mut world, _) = settled(|_, _| 0);
    for store in STORES.map(StoreId) {
        World::isolate(&STORES, store, &mut world.cut_liveness);
    }
    let began = world.time;
    world.run_until("support is gone", |world| world.time > began + Duration::from_secs(5));
    let leader = world.leader(USER).expect("a leader without a lease");
    (world, leader)
}

/// Cuts the leader off, for `links`, and reads at it all the time, while a client elsewhere writes as soon as it can: no
/// read that began after the write was acknowledged may miss it.
fn reads_while_another_takes_over(world: &mut World, old: StoreId) -> u64 {
    let mut open: Vec<(Token, Duration)> = Vec::new();
    let (mut acknowledged, mut writing, mut served) = (None, None, 0);
    let end = world.time + Duration::from_secs(8);
    while world.time < end {
        open.push((world.ask(old, get(ReadAt::Leaseholder)), world.time));
        let other = world.nodes.iter().find(|(store, node)| {
            **store != old && node.fleet.status().iter().any(|range| range.descriptor.range == USER && range.leads)
        });
        if let Some((other, _)) = other.filter(|_| writing.is_none()) {
            let other = *other;
            let command = write(world, 2, put("k", "new"));
            writing = Some(world.ask(other, command));
        }
        world.tick();
        if acknowledged.is_none() && writing.is_some_and(|token| matches!(world.answers.get(&token), Some(Ok(_)))) {
            acknowledged = Some(world.time);
        }
        open.retain(|(token, began)| {
            let Some(answer) = world.answers.get(token) else { return true };
            if let Some(value) = value(answer) {
                served += 1;
                let stale = acknowledged.is_some_and(|at| *began >= at) && value.as_deref() != Some("new");
                assert!(!stale, "a read that began at {began:?} misses the write acknowledged at {acknowledged:?}");
            }
            false
        });
    }
    assert!(acknowledged.is_some(), "nobody took over");
    served
}

#[test]
fn a_leader_with_a_slow_clock_serves_nothing_that_a_successor_has_overwritten() {
    for ahead in [0, 100, 200, 240] {
        let (mut world, old) = settled(|store, leader| if store == leader { 0 } else { ahead });
        World::isolate(&STORES, old, &mut world.cut);
        assert!(reads_while_another_takes_over(&mut world, old) > 0, "it serves while it is supported");
    }
}

#[test]
fn without_support_a_leader_proves_its_leadership_and_serves() {
    let (mut world, leader) = without_support();
    let before = world.counts.get("flotilla_reads_by_index_total").copied().unwrap_or_default();
    for n in 0..20 {
        assert_eq!(world.write(10 + n, put("k", &n.to_string())), Ok(WriteResult::Done));
        let answer = ask_and_wait(&mut world, leader, get(ReadAt::Leaseholder));
        assert_eq!(value(&answer), Some(Some(n.to_string())));
    }
    assert!(world.counts["flotilla_reads_by_index_total"] >= before + 10, "{:?}", world.counts);
}

/// T26: the proof is of this moment, and not of later ones, whatever the clock of a voter shows.
#[test]
fn a_proof_of_leadership_serves_no_read_that_a_successor_has_overwritten() {
    for (slow, fast) in [(0, 240), (120, 0), (240, 0)] {
        let (mut world, old) = without_support();
        for store in STORES.map(StoreId) {
            world.ahead.insert(store, Duration::from_millis(if store == old { slow } else { fast }));
        }
        let began = world.time;
        world.run_until("the clocks are felt", |world| world.time > began + Duration::from_secs(1));
        world.cut_liveness.clear();
        World::isolate(&STORES, old, &mut world.cut_liveness);
        // Some proofs are under way when the links break.
        for _ in 0..3 {
            world.ask(old, get(ReadAt::Leaseholder));
            world.tick();
        }
        World::isolate(&STORES, old, &mut world.cut);
        reads_while_another_takes_over(&mut world, old);
        assert!(world.counts["flotilla_reads_by_index_total"] > 0);
    }
}

#[test]
fn a_leader_that_cannot_prove_its_leadership_says_so_in_time() {
    let (mut world, old) = settled(|_, _| 0);
    World::isolate(&STORES, old, &mut world.cut);
    let began = world.time;
    world.run_until("support is gone", |world| world.time > began + Duration::from_millis(2600));
    let answer = ask_and_wait(&mut world, old, get(ReadAt::Leaseholder));
    assert!(matches!(answer, Err(RangeError::NotLeaseholder { .. })), "{answer:?}");
    assert!(world.time < began + Duration::from_secs(6));
}

/// T29, and leases 6.2: a read a little ahead of the clock is served under the lease, and what is written after it is
/// acknowledged only when every read of the present elsewhere would see it.
#[test]
fn a_write_pushed_above_a_future_read_is_acknowledged_when_its_time_has_come() {
    let (mut world, leader) = settled(|_, _| 0);
    let timestamp = in_future(&world, leader, 200);
    let answer = ask_and_wait(&mut world, leader, get(exactly(timestamp)));
    assert_eq!(value(&answer), Some(Some("old".to_owned())));
    let command = write(&world, 2, put("k", "new"));
    let written = world.ask(leader, command.clone());
    let present = world.ask(leader, get(ReadAt::Leaseholder));
    world.run_until("an answer", |world| world.answers.contains_key(&written));
    let RangeReply { timestamp: wrote, .. } = world.answers[&written].clone().unwrap();
    assert!(wrote > timestamp, "written below a served read");
    let now = in_future(&world, leader, 0);
    assert!(now.wall >= wrote.wall, "acknowledged at {now}, before its time {wrote}");
    assert!(world.counts["flotilla_commit_waits_total"] > 0);
    // The same to whoever sends it again.
    let again = ask_and_wait(&mut world, leader, command).unwrap();
    assert_eq!(again.timestamp, wrote);
    world.run_until("an answer", |world| world.answers.contains_key(&present));
    // It met a version that may have been acknowledged, and reads at that.
    assert_eq!(value(&world.answers[&present]), Some(Some("new".to_owned())));
}

/// T27.
#[test]
fn a_future_read_holds_against_the_next_leader() {
    let (mut world, leader) = settled(|_, _| 0);
    let timestamp = in_future(&world, leader, 200);
    let answer = ask_and_wait(&mut world, leader, get(exactly(timestamp)));
    assert_eq!(value(&answer), Some(Some("old".to_owned())));
    let to = STORES.map(StoreId).into_iter().find(|store| *store != leader).unwrap();
    let moved = ask_and_wait(&mut world, leader, Command::Admin(Admin::TransferLeader { to }));
    assert!(moved.is_ok(), "{moved:?}");
    world.run_until("the next leader", |world| world.leader(USER) == Some(to));
    let command = write(&world, 2, put("k", "new"));
    let wrote = ask_and_wait(&mut world, to, command).unwrap().timestamp;
    assert!(wrote > timestamp, "written at {wrote}, below a read served at {timestamp}");
    assert!(in_future(&world, to, 0).wall >= wrote.wall, "acknowledged before its time");
}

#[test]
fn a_future_read_that_the_lease_does_not_cover_waits_for_its_clock() {
    let (mut world, leader) = without_support();
    let timestamp = in_future(&world, leader, 150);
    let answer = ask_and_wait(&mut world, leader, get(exactly(timestamp)));
    assert_eq!(value(&answer), Some(Some("old".to_owned())));
    assert!(in_future(&world, leader, 0).wall >= timestamp.wall, "answered before its time");
    assert!(world.counts["flotilla_reads_awaiting_clock_total"] > 0);
    let far = in_future(&world, leader, 1000);
    assert_eq!(
        ask_and_wait(&mut world, leader, get(exactly(far))),
        Err(RangeError::FutureTimestamp { timestamp: far })
    );
}

/// T28: a condition that failed is a read.
#[test]
fn a_condition_that_failed_is_answered_without_a_lease_through_the_log() {
    let (mut world, leader) = without_support();
    let applied = |world: &World| {
        let status = world.nodes[&leader].fleet.status();
        status.into_iter().find(|range| range.descriptor.range == USER).unwrap().applied
    };
    let before = applied(&world);
    let swap = Write::CompareAndSwap { key: user("k"), expected: None, new: None };
    let command = write(&world, 2, swap);
    let answer = ask_and_wait(&mut world, leader, command).unwrap().reply;
    assert!(matches!(answer, Reply::Write(WriteResult::ConditionFailed { actual: Some(_) })), "{answer:?}");
    assert!(applied(&world) > before, "it did not pass the log");
}
