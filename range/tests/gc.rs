//! Old versions go, and nobody reads what went (docs/durability.md, "Old versions").

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use flotilla_range::gc::GcConfig;
use flotilla_storage::engine::{Engine, Reader};
use flotilla_storage::keys as physical;
use flotilla_types::{
    Admin, BatchOp, CheckId, Command, Generation, KeySpan, RangeError, RangeId, Read, ReadAt, Reply, RequestId,
    StoreId, Timestamp, Write,
};
use world::{USER, World, put, text, user};

const TTL: Duration = Duration::from_secs(10);
const SHORT: GcConfig = GcConfig { ttl: TTL, every: Duration::from_secs(2), worth_bytes: 1, worth_markers: u64::MAX };

fn world() -> World {
    World::with_gc(SHORT)
}

fn stores() -> impl Iterator<Item = StoreId> {
    (1..=3).map(StoreId)
}

/// Versions of a key in a store's engine.
fn versions(world: &World, store: StoreId, key: &str) -> usize {
    let (start, end) = physical::version_span(&KeySpan::point(user(key)));
    let mut cursor = world.disk(store).0.cursor(&start, &end);
    let (mut there, mut count) = (cursor.seek(&start).unwrap(), 0);
    while there {
        count += 1;
        there = cursor.next().unwrap();
    }
    count
}

fn everywhere(world: &World, key: &str) -> Vec<usize> {
    stores().map(|store| versions(world, store, key)).collect()
}

fn collect(world: &World) {
    stores().for_each(|store| world.disk(store).0.compact_all());
}

fn threshold(world: &World, store: StoreId) -> Timestamp {
    world.nodes[&store].fleet.status_of(USER).unwrap().gc_threshold
}

/// Lets time pass while something new is written now and then, so that the range does not fall asleep.
fn pass(world: &mut World, time: Duration) {
    let until = world.time + time;
    while world.time < until {
        let n = world.time.as_millis() as u32;
        world.write(n, put(&format!("busy {n}"), "x")).unwrap();
        let next = world.time + Duration::from_secs(1);
        world.run_until("time passes", |world| world.time > next);
    }
}

fn flush(world: &mut World) {
    stores().for_each(|store| world.flush(store));
    world.tick();
}

/// A read at a time, as the leader answers it.
fn read_at(world: &mut World, range: RangeId, key: &str, at: Timestamp) -> Result<Option<String>, RangeError> {
    world.run_until("a leader", |world| world.leader(range).is_some());
    let leader = world.leader(range).unwrap();
    let at = ReadAt::Timestamp { timestamp: at, limit: at };
    let token = world.ask_of(leader, range, Command::Read { at, read: Read::Get { key: user(key) } });
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    match world.answers[&token].clone()?.reply {
        Reply::Get(row) => Ok(text(row.map(|row| row.value))),
        other => panic!("a get was answered with {other:?}"),
    }
}

fn now(world: &World) -> Timestamp {
    Timestamp::from_wall(world.time.as_nanos() as u64)
}

#[test]
fn what_was_overwritten_is_read_for_a_while_then_refused_and_then_gone_everywhere() {
    let mut world = world();
    world.write(1, put("k", "1")).unwrap();
    let first = now(&world);
    pass(&mut world, Duration::from_secs(1));
    world.write(2, put("k", "2")).unwrap();
    let second = now(&world);
    world.write(3, put("gone", "1")).unwrap();
    world.write(4, Write::Delete { key: user("gone") }).unwrap();
    pass(&mut world, Duration::from_secs(6));
    flush(&mut world);
    collect(&world);
    assert_eq!(read_at(&mut world, USER, "k", first), Ok(Some("1".to_owned())), "younger than the TTL");
    pass(&mut world, Duration::from_secs(14));
    let leader = world.leader(USER).unwrap();
    let limit = threshold(&world, leader);
    assert!(limit > second && limit < now(&world).minus(TTL), "{limit}");
    for at in [first, second, limit] {
        let expected = Err(RangeError::BelowGcThreshold { timestamp: at, threshold: limit });
        assert_eq!(read_at(&mut world, USER, "k", at), expected);
    }
    assert_eq!(read_at(&mut world, USER, "k", limit.next()), Ok(Some("2".to_owned())));
    assert_eq!(read_at(&mut world, USER, "gone", limit.next()), Ok(None));
    assert_eq!(everywhere(&world, "k"), [2, 2, 2], "refused at once, gone in time");
    flush(&mut world);
    collect(&world);
    assert_eq!((everywhere(&world, "k"), everywhere(&world, "gone")), (vec![1; 3], vec![0; 3]));
    assert_eq!(text(world.get("k")), Some("2".to_owned()));
    assert_eq!(world.get("gone"), None);
    assert!(world.counts["flotilla_gc_thresholds_raised_total"] > 0);
}

#[test]
fn a_threshold_that_a_crash_takes_back_has_removed_nothing() {
    let mut world = world();
    world.write(1, put("k", "1")).unwrap();
    world.write(2, put("k", "2")).unwrap();
    world.run_until("all have both", |world| everywhere(world, "k") == [2, 2, 2]);
    flush(&mut world);
    pass(&mut world, Duration::from_secs(20));
    let leader = world.leader(USER).unwrap();
    let follower = stores().find(|store| *store != leader).unwrap();
    assert!(threshold(&world, follower) > Timestamp::ZERO, "applied, not flushed");
    world.disk(follower).0.compact_all();
    assert_eq!(versions(&world, follower, "k"), 2, "not published before it is flushed");
    world.kill(follower);
    world.restart(follower);
    assert_eq!(versions(&world, follower, "k"), 2);
    world.run_until("it applied it again", |world| threshold(world, follower) > Timestamp::ZERO);
    world.flush(follower);
    world.tick();
    world.disk(follower).0.compact_all();
    assert_eq!(versions(&world, follower, "k"), 1);
    // A start publishes what it finds.
    world.kill(follower);
    world.restart(follower);
    assert!(world.disk(follower).0.gc().active_for(&user("k")).is_some());
}

#[test]
fn replicas_that_collected_and_those_that_did_not_hash_alike() {
    let mut world = world();
    for n in 0..40 {
        world.write(n, put(&format!("k{}", n % 4), &n.to_string())).unwrap();
    }
    world.write(90, Write::Delete { key: user("k3") }).unwrap();
    pass(&mut world, Duration::from_secs(20));
    flush(&mut world);
    world.disk(StoreId(1)).0.compact_all();
    world.disk(StoreId(2)).0.compact_part(&mut |key| key.len() % 2 == 0 || key.ends_with(&[0xff]));
    assert_ne!(versions(&world, StoreId(1), "k0"), versions(&world, StoreId(3), "k0"));
    assert!(world.call(&Command::Admin(Admin::Check { check: CheckId(7) })).is_ok());
    world.run_until("all hashed", |world| world.hashes.len() == 3);
    let found: Vec<_> = world.hashes.values().map(|hash| (hash.applied, hash.hash, hash.pairs)).collect();
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
}

#[test]
fn both_halves_of_a_cut_range_refuse_what_it_refused() {
    let mut world = world();
    world.write(1, put("m", "1")).unwrap();
    world.write(2, put("m", "2")).unwrap();
    pass(&mut world, Duration::from_secs(20));
    let leader = world.leader(USER).unwrap();
    let limit = threshold(&world, leader);
    let split = Admin::Split { generation: Generation(1), key: user("c"), right: RangeId(77) };
    assert!(world.call(&Command::Admin(split)).is_ok());
    let expected = |threshold| Err(RangeError::BelowGcThreshold { timestamp: limit, threshold });
    assert_eq!(read_at(&mut world, RangeId(77), "m", limit), expected(limit));
    let left = threshold(&world, leader);
    assert_eq!(read_at(&mut world, USER, "a", limit), expected(left));
}

#[test]
fn a_write_that_could_have_been_collected_is_not_done_again() {
    let mut world = world();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 1);
    let old = Command::Write { id, write: put("k", "old") };
    assert!(world.call(&old).is_ok());
    world.write(2, put("k", "new")).unwrap();
    pass(&mut world, Duration::from_secs(20));
    flush(&mut world);
    collect(&world);
    let leader = world.leader(USER).unwrap();
    let token = world.ask(leader, old);
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert!(matches!(world.answers[&token], Err(RangeError::TooOld { .. })), "{:?}", world.answers[&token]);
    assert_eq!(text(world.get("k")), Some("new".to_owned()));
}

#[test]
fn garbage_of_a_former_term_is_found_and_none_is_not_worth_a_command() {
    let mut world = world();
    for n in 0..40 {
        let key = |at: u32| user(&format!("{:04}", n / 2 * 50 + at));
        let ops = (0..50).map(|at| BatchOp::Put { key: key(at), value: Bytes::from(n.to_string()) });
        world.write(n, Write::Batch { ops: ops.collect() }).unwrap();
    }
    let leader = world.leader(USER).unwrap();
    let heir = stores().find(|store| *store != leader).unwrap();
    assert!(world.call(&Command::Admin(Admin::TransferLeader { to: heir })).is_ok());
    world.run_until("it leads", |world| world.leader(USER) == Some(heir));
    assert_eq!(threshold(&world, heir), Timestamp::ZERO);
    pass(&mut world, Duration::from_secs(45));
    assert!(threshold(&world, heir) > Timestamp::ZERO, "it looked at 2000 versions, page by page");
    let (limit, raised) = (threshold(&world, heir), world.counts["flotilla_gc_thresholds_raised_total"]);
    pass(&mut world, Duration::from_secs(30));
    assert_eq!(threshold(&world, heir), limit, "new keys hide nothing");
    assert_eq!(world.counts["flotilla_gc_thresholds_raised_total"], raised);
}

#[test]
fn a_sleeping_range_is_not_woken_for_its_garbage() {
    let mut world = world();
    world.write(1, put("k", "1")).unwrap();
    world.write(2, put("k", "2")).unwrap();
    let asleep =
        |world: &World| world.nodes.values().all(|node| node.fleet.status_of(USER).is_some_and(|status| status.asleep));
    world.run_until("it sleeps", asleep);
    let until = world.time + Duration::from_secs(40);
    while world.time < until {
        world.tick();
        assert!(asleep(&world));
    }
    assert_eq!(threshold(&world, StoreId(1)), Timestamp::ZERO);
    // Awake again, it thinks of it.
    pass(&mut world, Duration::from_secs(5));
    assert!(threshold(&world, StoreId(1)) > Timestamp::ZERO);
}

#[test]
fn a_replica_that_comes_by_a_snapshot_has_the_threshold() {
    let mut world = World::build_with(&[1, 2, 3], 4, SHORT);
    world.write(1, put("k", "1")).unwrap();
    world.write(2, put("k", "2")).unwrap();
    pass(&mut world, Duration::from_secs(20));
    flush(&mut world);
    collect(&world);
    world.move_to(&[2, 3, 4]);
    assert_eq!(versions(&world, StoreId(4), "k"), 1);
    let limit = threshold(&world, StoreId(4));
    assert!(limit > Timestamp::ZERO);
    assert!(world.call(&Command::Admin(Admin::TransferLeader { to: StoreId(4) })).is_ok());
    world.run_until("it leads", |world| world.leader(USER) == Some(StoreId(4)));
    let refused = read_at(&mut world, USER, "k", limit);
    assert!(matches!(refused, Err(RangeError::BelowGcThreshold { .. })), "{refused:?}");
}

#[test]
fn delete_markers_go_with_what_they_hide_without_a_compaction() {
    let mut world = World::with_gc(GcConfig { worth_markers: 2, ..SHORT });
    world.write(1, put("a", "1")).unwrap();
    world.write(2, put("b", "1")).unwrap();
    world.write(3, put("b", "2")).unwrap();
    world.write(4, Write::Delete { key: user("a") }).unwrap();
    pass(&mut world, Duration::from_secs(20));
    flush(&mut world);
    pass(&mut world, Duration::from_secs(2));
    assert_eq!(everywhere(&world, "a"), [2; 3], "one marker is not worth a walk");
    world.write(5, Write::Delete { key: user("b") }).unwrap();
    let deleted = now(&world);
    pass(&mut world, Duration::from_secs(20));
    // Two stores hear that their threshold is durable, and walk.
    world.flush(StoreId(1));
    world.flush(StoreId(2));
    world.run_until("they walked", |world| everywhere(world, "b")[..2] == [0, 0]);
    assert_eq!((everywhere(&world, "a"), everywhere(&world, "b")), (vec![0, 0, 2], vec![0, 0, 3]));
    assert!(world.call(&Command::Admin(Admin::Check { check: CheckId(7) })).is_ok());
    world.run_until("all hashed", |world| world.hashes.len() == 3);
    let found: Vec<_> = world.hashes.values().map(|hash| (hash.applied, hash.hash, hash.pairs)).collect();
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
    // What was deleted is flushed later than the threshold: a crash brings back all of it or nothing.
    world.kill(StoreId(1));
    world.restart(StoreId(1));
    world.run_until("it serves again", |world| world.leader(USER).is_some());
    assert_eq!(versions(&world, StoreId(1), "b"), 3);
    for key in ["a", "b"] {
        assert_eq!(world.get(key), None);
        assert_eq!(read_at(&mut world, USER, key, deleted.plus(Duration::from_secs(15))), Ok(None));
    }
}
