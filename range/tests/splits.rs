//! Ranges are cut while they serve, and stores die around it: see `world` for what they live on.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_range::event::Event;
use flotilla_range::message::PeerMessage;
use flotilla_types::{
    Admin, CheckId, Command, Key, RangeDescriptor, RangeError, RangeId, Read, ReadAt, Reply, RequestId, StoreId,
    Timestamp, Write,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use world::{USER, World, put, text, user};

/// Who owns a key, by the word of leaders.
fn owner(world: &mut World, key: &Key) -> RangeDescriptor {
    let mut found = None;
    world.run_until("somebody leads the range of the key", |world| {
        let up = world.nodes.values().filter(|node| !node.down);
        let led = up.flat_map(|node| node.fleet.status()).filter(|status| status.leads);
        found = led.map(|status| status.descriptor).find(|descriptor| descriptor.span.contains(key));
        found.is_some()
    });
    found.unwrap()
}

/// What the router does: asks the owner, and another one if that says so.
fn call(world: &mut World, key: &Key, command: &Command) -> Reply {
    for _ in 0..100 {
        let range = owner(world, key).range;
        match world.call_of(range, command) {
            Ok(reply) => return reply,
            Err(RangeError::RangeMismatch { .. }) => world.tick(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("nobody owns {key}");
}

fn write(world: &mut World, n: u32, key: &str, value: &str) {
    let id = RequestId::new(world.time.as_millis() as u64, 1, n);
    let write = put(key, value);
    call(world, &user(key), &Command::Write { id, write });
}

fn get(world: &mut World, key: &str) -> Option<String> {
    let read = Read::Get { key: user(key) };
    match call(world, &user(key), &Command::Read { at: ReadAt::Leaseholder, read }) {
        Reply::Get(row) => text(row.map(|row| row.value)),
        other => panic!("a get was answered with {other:?}"),
    }
}

/// Cuts at a key, as the router does: with the generation it sees, until it is done.
fn split(world: &mut World, key: &str, right: u64) -> (RangeDescriptor, RangeDescriptor) {
    for _ in 0..20 {
        let now = owner(world, &user(key));
        let admin = Admin::Split { generation: now.generation, key: user(key), right: RangeId(right) };
        match world.call_of(now.range, &Command::Admin(admin)) {
            Ok(Reply::Admin(halves)) => return (halves[0].clone(), halves[1].clone()),
            Err(RangeError::GenerationMismatch { current }) if current.span.end == user(key) => {
                return (*current, owner(world, &user(key)));
            }
            Err(RangeError::GenerationMismatch { .. } | RangeError::RangeMismatch { .. }) => world.tick(),
            other => panic!("{other:?}"),
        }
    }
    panic!("never cut at {key}");
}

fn pass(world: &mut World, milliseconds: u64) {
    let until = world.time + Duration::from_millis(milliseconds);
    world.run_until("time passes", |world| world.time >= until);
}

/// All replicas of all ranges hold the same.
fn compare(world: &mut World, check: u64) {
    let up: Vec<_> = world.nodes.values().filter(|node| !node.down).map(|node| node.fleet.status()).collect();
    let ranges: BTreeMap<_, _> = up.iter().flatten().map(|status| (status.descriptor.range, ())).collect();
    for range in ranges.into_keys() {
        world.call_of(range, &Command::Admin(Admin::Check { check: CheckId(check) })).unwrap();
        let stores: Vec<_> = world.nodes.keys().copied().collect();
        world.run_until("all replicas are hashed", |world| {
            stores.iter().all(|store| world.hashes.contains_key(&(*store, range, CheckId(check))))
        });
        let hashes: Vec<_> = stores.iter().map(|store| world.hashes[&(*store, range, CheckId(check))].hash).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{range}: {hashes:?}");
    }
}

#[test]
fn both_halves_serve_what_was_there_and_what_comes() {
    let mut world = World::new();
    for n in 0..20 {
        write(&mut world, n, &format!("k{n:02}"), "before");
    }
    let (left, right) = split(&mut world, "k10", 101);
    assert_eq!((left.range, left.span.end.clone()), (USER, user("k10")));
    assert_eq!((right.range, right.span.start.clone()), (RangeId(101), user("k10")));
    assert_eq!(left.generation, right.generation);
    for n in 0..20 {
        assert_eq!(get(&mut world, &format!("k{n:02}")), Some("before".to_owned()));
        write(&mut world, 100 + n, &format!("k{n:02}"), "after");
        assert_eq!(get(&mut world, &format!("k{n:02}")), Some("after".to_owned()));
    }
    compare(&mut world, 1);
    let read = Read::Get { key: user("k15") };
    let strayed = world.call(&Command::Read { at: ReadAt::Leaseholder, read });
    let Err(RangeError::RangeMismatch { known, .. }) = strayed else { panic!("{strayed:?}") };
    assert!(
        known.iter().any(|known| known.range == RangeId(101)),
        "whoever asks the left half is told of the right one"
    );
}

#[test]
fn a_cut_that_does_not_fit_is_refused() {
    let mut world = World::new();
    write(&mut world, 1, "k", "v");
    let now = owner(&mut world, &user("k"));
    let mut ask = |generation, key: Key, right| {
        world.call(&Command::Admin(Admin::Split { generation, key, right: RangeId(right) }))
    };
    let stale = flotilla_types::Generation(now.generation.0 + 1);
    assert!(matches!(ask(stale, user("k"), 101), Err(RangeError::GenerationMismatch { .. })));
    assert!(matches!(ask(now.generation, now.span.start.clone(), 101), Err(RangeError::Invalid { .. })));
    assert!(matches!(ask(now.generation, user("k"), USER.0), Err(RangeError::Invalid { .. })));
    assert!(matches!(ask(now.generation, flotilla_types::keys::SYSTEM, 101), Err(RangeError::RangeMismatch { .. })));
}

#[test]
fn a_retry_after_the_cut_takes_effect_once() {
    let mut world = World::new();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 7);
    let swap = Write::CompareAndSwap { key: user("z"), expected: None, new: Some("mine".into()) };
    let command = Command::Write { id, write: swap };
    let first = call(&mut world, &user("z"), &command);
    split(&mut world, "m", 101);
    assert_eq!(call(&mut world, &user("z"), &command), first);
}

#[test]
fn no_write_on_the_right_lands_below_a_read_that_the_left_served() {
    let mut world = World::new();
    write(&mut world, 1, "z", "old");
    // The read's timestamp is the present of the leader.
    let read = Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("z") } };
    call(&mut world, &user("z"), &read);
    let before = world.time;
    split(&mut world, "m", 101);
    let id = RequestId::new(world.time.as_millis() as u64, 1, 2);
    let write = put("z", "new");
    call(&mut world, &user("z"), &Command::Write { id, write });
    let past = Timestamp::from_wall(before.as_nanos() as u64);
    let at = ReadAt::Timestamp { timestamp: past, limit: past };
    let Reply::Get(row) = call(&mut world, &user("z"), &Command::Read { at, read: Read::Get { key: user("z") } })
    else {
        panic!("not a get");
    };
    assert_eq!(text(row.map(|row| row.value)), Some("old".to_owned()));
}

#[test]
fn a_child_that_the_engine_forgot_is_made_again_with_all_it_promised() {
    for victims in [&[1][..], &[2], &[3], &[1, 2], &[1, 2, 3]] {
        let mut world = World::new();
        write(&mut world, 1, "a", "1");
        split(&mut world, "m", 101);
        write(&mut world, 2, "z", "2");
        // A grandchild as well.
        split(&mut world, "t", 102);
        write(&mut world, 3, "u", "3");
        write(&mut world, 4, "n", "4");
        pass(&mut world, 500);
        for victim in victims {
            world.kill(StoreId(*victim));
        }
        for victim in victims {
            world.restart(StoreId(*victim));
        }
        for (key, value) in [("a", "1"), ("z", "2"), ("u", "3"), ("n", "4")] {
            assert_eq!(get(&mut world, key), Some(value.to_owned()), "{victims:?}");
        }
        compare(&mut world, 1);
        // And once more, now that births are dropped on some.
        world.flush(StoreId(1));
        pass(&mut world, 500);
        for store in 1..=3 {
            world.kill(StoreId(store));
        }
        for store in 1..=3 {
            world.restart(StoreId(store));
        }
        assert_eq!(get(&mut world, "z"), Some("2".to_owned()));
        compare(&mut world, 2);
    }
}

#[test]
fn a_store_that_was_away_learns_of_the_cut() {
    let mut world = World::new();
    write(&mut world, 1, "a", "1");
    write(&mut world, 2, "z", "1");
    world.kill(StoreId(3));
    split(&mut world, "m", 101);
    write(&mut world, 3, "z", "2");
    world.restart(StoreId(3));
    write(&mut world, 4, "z", "3");
    pass(&mut world, 3000);
    compare(&mut world, 1);
}

#[test]
fn cuts_and_crashes_at_random_lose_nothing_that_was_acknowledged() {
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new();
        let mut wrote = BTreeMap::new();
        let mut next = 100;
        for n in 0..60u32 {
            match rng.random_range(0..12) {
                0..=6 => {
                    let key = format!("k{:03}", rng.random_range(0..1000));
                    write(&mut world, n, &key, &n.to_string());
                    wrote.insert(key, n.to_string());
                }
                7 | 8 => {
                    next += 1;
                    let key = format!("k{:03}5", rng.random_range(0..1000));
                    if owner(&mut world, &user(&key)).span.start < user(&key) {
                        split(&mut world, &key, next);
                    }
                }
                9 => world.flush(StoreId(rng.random_range(1..=3))),
                10 => {
                    let victim = StoreId(rng.random_range(1..=3));
                    world.kill(victim);
                    if rng.random_bool(0.5) {
                        write(&mut world, n, "while", &n.to_string());
                        wrote.insert("while".to_owned(), n.to_string());
                    }
                    world.restart(victim);
                }
                _ => {
                    for store in 1..=3 {
                        world.kill(StoreId(store));
                    }
                    for store in 1..=3 {
                        world.restart(StoreId(store));
                    }
                }
            }
        }
        for (key, value) in wrote {
            assert_eq!(get(&mut world, &key), Some(value), "seed {seed}, {key}");
        }
        pass(&mut world, 3000);
        compare(&mut world, 1);
    }
}

#[test]
fn a_child_is_led_at_once_by_the_store_of_its_parents_leader() {
    for n in 0..10 {
        let mut world = World::new();
        write(&mut world, n, "a", "1");
        pass(&mut world, 37 * u64::from(n));
        let parent = world.leader(USER).unwrap();
        split(&mut world, "m", 101);
        let before = world.time;
        world.run_until("the child is led", |world| world.leader(RangeId(101)).is_some());
        let waited = world.time - before;
        assert!(waited < Duration::from_millis(120), "{waited:?}");
        assert_eq!(world.leader(RangeId(101)), Some(parent));
    }
}

#[test]
fn a_parent_that_is_removed_by_the_first_message_after_a_start_has_made_its_child_before() {
    let mut world = World::new();
    write(&mut world, 1, "a", "1");
    split(&mut world, "m", 101);
    write(&mut world, 2, "z", "2");
    pass(&mut world, 500);
    world.kill(StoreId(3));
    world.restart(StoreId(3));
    let me = owner(&mut world, &user("a")).on_store(StoreId(3)).unwrap().replica;
    let message = PeerMessage::Removed { range: USER, next: me.next() };
    world.nodes.get_mut(&StoreId(3)).unwrap().events.insert(0, Event::Message { from: StoreId(1), message });
    pass(&mut world, 1000);
    let ranges: Vec<_> = world.nodes[&StoreId(3)].fleet.status().iter().map(|status| status.descriptor.range).collect();
    assert!(ranges.contains(&RangeId(101)) && !ranges.contains(&USER), "{ranges:?}");
}

/// A store that was away gets the parent by a snapshot from behind the cut, and so has the child by name only. When the
/// child's other followers are gone for good, such a replica has to vote.
#[test]
fn a_child_that_one_store_knows_by_name_only_elects_a_leader_with_its_vote() {
    let mut world = World::new();
    write(&mut world, 1, "a", "1");
    write(&mut world, 2, "z", "2");
    let leader = world.leader(USER).unwrap();
    let mut others = [1, 2, 3].map(StoreId).into_iter().filter(|store| *store != leader);
    let (gone, away) = (others.next().unwrap(), others.next().unwrap());
    world.kill(away);
    split(&mut world, "m", 77);
    for n in 0..20 {
        write(&mut world, 10 + n, "b", "3");
        write(&mut world, 50 + n, "y", "4");
    }
    // Nothing of the cut is left in the log for the store that is away.
    (0..1000).for_each(|_| world.tick());
    let before = world.nodes[&leader].fleet.status_of(USER).unwrap().applied;
    world.nodes.get_mut(&leader).unwrap().push(Event::Pinned(vec![USER]));
    (0..20).for_each(|_| world.tick());
    world.flush(leader);
    (0..200).for_each(|_| world.tick());
    let status = world.nodes[&leader].fleet.status_of(USER).unwrap();
    assert!(status.truncated == before, "{status:?}");
    world.kill(gone);
    world.kill(leader);
    world.restart(leader);
    world.restart(away);
    world.run_until("the parent is led", |world| world.leader(USER).is_some());
    world.run_until("the child is led", |world| world.leader(RangeId(77)).is_some());
    assert_eq!(get(&mut world, "y"), Some("4".to_owned()));
    write(&mut world, 99, "z", "5");
    assert_eq!(get(&mut world, "z"), Some("5".to_owned()));
    assert_eq!(get(&mut world, "b"), Some("3".to_owned()));
}
