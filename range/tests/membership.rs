//! Replicas come and go while the range serves: see `world` for what they live on.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use flotilla_range::event::Event;
use flotilla_storage::engine::{Engine, WriteBatch};
use flotilla_storage::log::{LogBatch, LogOp, LogStore};
use flotilla_storage::mvcc;
use flotilla_types::{Admin, CheckId, Command, RequestId, StoreId};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use world::{Point, USER, World, put, text, user};

fn write_some(world: &mut World, from: u32, count: u32) {
    for n in from..from + count {
        world.write(n, put(&format!("k{n}"), &format!("v{n}"))).unwrap();
    }
}

/// One write, for as long as a client waits.
fn try_write(world: &mut World, n: u32) -> bool {
    let until = world.time + Duration::from_secs(10);
    let write = put(&format!("k{n}"), &format!("v{n}"));
    let id = RequestId::new(world.time.as_millis() as u64, 1, n);
    while world.time < until {
        let Some(leader) = world.leader(USER) else {
            world.tick();
            continue;
        };
        let token = world.ask(leader, Command::Write { id, write: write.clone() });
        while !world.answers.contains_key(&token) && !world.nodes[&leader].down && world.time < until {
            world.tick();
        }
        if matches!(world.answers.get(&token), Some(Ok(_))) {
            return true;
        }
        world.tick();
    }
    false
}

/// The first seed and how many, for longer runs by hand: `SEEDS=1000 cargo test`.
fn seeds() -> (u64, u64) {
    let of = |name, otherwise| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    (of("SEED", 0), of("SEEDS", 40))
}

fn read_all(world: &mut World, count: u32) {
    for n in 0..count {
        assert_eq!(text(world.get(&format!("k{n}"))), Some(format!("v{n}")));
    }
}

#[test]
fn a_range_grows_from_one_replica_to_three() {
    let mut world = World::with(&[1], 3);
    write_some(&mut world, 0, 20);
    world.move_to(&[1, 2, 3]);
    assert!(world.snapshots >= 2, "new replicas begin with a snapshot");
    write_some(&mut world, 20, 5);
    let leader = world.leader(USER).unwrap();
    world.kill(leader);
    world.run_until("another leader", |world| world.leader(USER).is_some_and(|new| new != leader));
    read_all(&mut world, 25);
    world.restart(leader);
    read_all(&mut world, 25);
}

#[test]
fn a_receiver_that_dies_at_any_step_of_a_snapshot_comes_back_whole() {
    use Point::{AfterIngest, AfterReset, BeforeEvent, BeforeIngest, BeforeReset};
    for point in [BeforeEvent, BeforeIngest, AfterIngest, BeforeReset, AfterReset] {
        let mut world = World::with(&[1], 2);
        write_some(&mut world, 0, 10);
        world.crash_at = Some((StoreId(2), point));
        world.step_towards(&[1, 2]);
        world.run_until("the crash", |world| world.nodes[&StoreId(2)].down);
        world.restart(StoreId(2));
        world.move_to(&[1, 2]);
        write_some(&mut world, 10, 3);
        read_all(&mut world, 13);
    }
}

/// The user range's log on a store: where it begins, and where it ends.
fn log(world: &World, store: u64) -> (u64, u64) {
    let head = world.disk(StoreId(store)).1.heads().into_iter().find(|(range, _)| *range == USER).unwrap().1;
    (head.trunc.index.0, head.last.index.0)
}

fn pass(world: &mut World, milliseconds: u64) {
    let until = world.time + Duration::from_millis(milliseconds);
    world.run_until("time passes", |world| world.time >= until);
}

#[test]
fn logs_are_given_up_once_flushed_and_never_what_a_follower_lacks() {
    let mut world = World::new();
    write_some(&mut world, 0, 200);
    pass(&mut world, 2000);
    let stores = [1, 2, 3];
    assert!(stores.iter().all(|store| log(&world, *store).0 == 10), "nothing is flushed");
    stores.iter().for_each(|store| world.flush(StoreId(*store)));
    pass(&mut world, 2000);
    for store in stores {
        let (first, last) = log(&world, store);
        assert!(first > 150 && first <= last, "store {store}: ({first}, {last}]");
    }
    let leader = world.leader(USER).unwrap();
    let away = stores.into_iter().map(StoreId).find(|store| *store != leader).unwrap();
    world.kill(away);
    let held = log(&world, away.0).1;
    write_some(&mut world, 200, 200);
    stores.iter().map(|store| StoreId(*store)).filter(|store| *store != away).for_each(|store| world.flush(store));
    pass(&mut world, 2000);
    let leader = world.leader(USER).unwrap();
    assert!(log(&world, leader.0).0 <= held, "small logs wait for who is away");
    let sent = world.snapshots;
    world.restart(away);
    world.run_until("it catches up", |world| log(world, away.0).1 == log(world, leader.0).1);
    assert_eq!(world.snapshots, sent, "by the log alone");
    read_all(&mut world, 400);
}

#[test]
fn a_pinned_log_is_given_up_and_who_was_away_gets_a_snapshot() {
    let mut world = World::new();
    write_some(&mut world, 0, 10);
    let leader = world.leader(USER).unwrap();
    let away = [1, 2, 3].map(StoreId).into_iter().find(|store| *store != leader).unwrap();
    world.kill(away);
    write_some(&mut world, 10, 30);
    pass(&mut world, 5000);
    let leader = world.leader(USER).unwrap();
    world.nodes.get_mut(&leader).unwrap().events.push(Event::Pinned(vec![USER]));
    pass(&mut world, 100);
    world.flush(leader);
    pass(&mut world, 1000);
    let (first, last) = log(&world, leader.0);
    assert!(first > 30 && first <= last);
    world.restart(away);
    world.run_until("it catches up", |world| log(world, away.0).1 == log(world, leader.0).1);
    assert!(world.snapshots > 0);
    world.kill(leader);
    read_all(&mut world, 40);
}

#[test]
fn a_check_hashes_every_replica_at_one_index_and_a_flipped_value_is_seen() {
    let mut world = World::new();
    write_some(&mut world, 0, 50);
    let check = |world: &mut World, id: u64| {
        world.call(&Command::Admin(Admin::Check { check: CheckId(id) })).unwrap();
        let hashes = |world: &World| -> Vec<_> {
            let of = |store| world.hashes.get(&(StoreId(store), USER, CheckId(id))).copied();
            (1..=3).filter_map(of).collect()
        };
        world.run_until("all hashes", |world| hashes(world).len() == 3);
        hashes(world)
    };
    let found = check(&mut world, 1);
    assert!(found.iter().all(|hash| (hash.applied, hash.hash) == (found[0].applied, found[0].hash)));
    assert!(found[0].pairs > 50);
    // Bit rot that no checksum of the engine has noticed.
    let engine = &world.disk(StoreId(2)).0;
    let key = mvcc::newest(engine, &user("k7")).unwrap().unwrap();
    let mut batch = WriteBatch::default();
    mvcc::write(&mut batch, &user("k7"), key.timestamp, Some(b"flipped"), key.request);
    engine.write(&batch).unwrap();
    write_some(&mut world, 50, 1);
    let found = check(&mut world, 2);
    assert!(found.iter().all(|hash| hash.applied == found[0].applied));
    assert_eq!((found[0].hash, found[0].pairs), (found[2].hash, found[2].pairs));
    assert_ne!(found[1].hash, found[0].hash, "the minority is named by its replica");
    assert_eq!(found[1].replica.0, 2);
}

/// The stores that hold a replica of the user range.
fn holders(world: &World) -> Vec<u64> {
    let holds = |store: &&StoreId| {
        let status = world.nodes[store].fleet.status();
        status.iter().any(|range| range.descriptor.range == USER)
    };
    world.nodes.keys().filter(holds).map(|store| store.0).collect()
}

/// Those that are removed lose their replica, and may get a new one.
#[test]
fn a_removed_replica_destroys_itself_and_may_come_back_under_a_new_id() {
    let mut world = World::with(&[1, 2, 3], 4);
    write_some(&mut world, 0, 20);
    let leader = world.leader(USER).unwrap().0;
    let out = [1, 2, 3].into_iter().find(|store| *store != leader).unwrap();
    let mut others: Vec<_> = [1, 2, 3, 4].into_iter().filter(|store| *store != out).collect();
    world.move_to(&others);
    world.run_until("it is gone", |world| holders(world) == others);
    write_some(&mut world, 20, 5);
    // Through a crash that takes the destruction back.
    world.kill(StoreId(out));
    world.restart(StoreId(out));
    world.run_until("it is gone", |world| holders(world) == others);
    let leader = world.leader(USER).unwrap().0;
    let next = others.iter().copied().find(|store| *store != leader).unwrap();
    others.retain(|store| *store != next);
    others.push(out);
    others.sort_unstable();
    world.move_to(&others);
    world.run_until("it is back", |world| holders(world) == others);
    read_all(&mut world, 25);
}

#[test]
fn a_replica_that_missed_its_removal_asks_who_owns_its_keys() {
    let mut world = World::with(&[1, 2, 3], 4);
    write_some(&mut world, 0, 5);
    let leader = world.leader(USER).unwrap().0;
    let out = [1, 2, 3].into_iter().find(|store| *store != leader).unwrap();
    let others: Vec<_> = [1, 2, 3, 4].into_iter().filter(|store| *store != out).collect();
    world.kill(StoreId(out));
    world.move_to(&others);
    world.restart(StoreId(out));
    // Its store supports the leader's, so it campaigns against nobody; it asks who owns its keys.
    assert_eq!(holders(&world), [1, 2, 3, 4]);
    pass(&mut world, 30_000);
    world.run_until("it is gone", |world| holders(world) == others);
    read_all(&mut world, 5);
}

#[test]
fn a_replica_that_lost_its_log_does_not_begin_anew_under_its_old_id() {
    let mut world = World::new();
    write_some(&mut world, 0, 10);
    let leader = world.leader(USER).unwrap();
    let hurt = [1, 2, 3].map(StoreId).into_iter().find(|store| *store != leader).unwrap();
    world.flush(hurt);
    world.kill(hurt);
    let head = world.disk(hurt).1.heads().into_iter().find(|(range, _)| *range == USER).unwrap().1;
    let log = &world.disk(hurt).1;
    let cut = LogOp::Create { range: USER, replica: head.replica, birth: None, trunc: head.trunc, hard: head.hard };
    log.write(&LogBatch { ops: vec![cut] }).unwrap();
    world.may_lose = Some(hurt);
    world.restart(hurt);
    assert_eq!(world.lost, [USER]);
    assert_eq!(world.nodes[&hurt].fleet.out_of_order(), [(USER, head.replica)], "whoever places replicas can see it");
    write_some(&mut world, 10, 5);
    pass(&mut world, 5000);
    assert!(!holders(&world).contains(&hurt.0), "it takes part in nothing");
    let others: Vec<_> = (1..=3).filter(|store| *store != hurt.0).collect();
    world.move_to(&others);
    world.move_to(&[1, 2, 3]);
    world.run_until("a new replica", |world| holders(world) == [1, 2, 3]);
    assert!(world.nodes[&hurt].fleet.out_of_order().is_empty(), "it was replaced");
    read_all(&mut world, 15);
}

#[test]
fn replicas_move_at_random_through_crashes_flushes_and_truncations_and_all_stay_alike() {
    let (first, count) = seeds();
    for seed in first..first + count {
        eprintln!("seed {seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::with(&[1, 2, 3], 5);
        let (mut written, mut down) = (0, None::<StoreId>);
        for _ in 0..60 {
            match random.random_range(0..12) {
                10 => {
                    let (from, to) = (random.random_range(1..=5), random.random_range(1..=5));
                    world.cut.insert((StoreId(from), StoreId(to)));
                    if random.random_bool(0.5) {
                        world.cut.insert((StoreId(to), StoreId(from)));
                    }
                }
                11 => world.cut.clear(),
                0..4 => {
                    // Not every cut leaves a quorum.
                    let done = (written..written + 5).all(|n| try_write(&mut world, n));
                    world.cut.retain(|_| done);
                    if !done {
                        write_some(&mut world, written, 5);
                    }
                    written += 5;
                }
                4..6 => {
                    let mut stores = [1, 2, 3, 4, 5];
                    stores.shuffle(&mut random);
                    let target = &stores[..3];
                    for _ in 0..random.random_range(1..12) {
                        world.step_towards(target);
                        pass(&mut world, 150);
                    }
                }
                6 => {
                    let store = StoreId(random.random_range(1..=5));
                    if !world.nodes[&store].down {
                        world.flush(store);
                    }
                }
                7 => {
                    let store = StoreId(random.random_range(1..=5));
                    let node = world.nodes.get_mut(&store).unwrap();
                    if !node.down {
                        node.events.push(Event::Pinned(vec![USER]));
                    }
                }
                8 if down.is_none() => {
                    let store = StoreId(random.random_range(1..=5));
                    if random.random_bool(0.5) {
                        world.kill(store);
                    } else {
                        let point = [Point::BeforeIngest, Point::AfterIngest, Point::BeforeReset, Point::AfterReset];
                        world.crash_at = Some((store, *point.choose(&mut random).unwrap()));
                    }
                    down = Some(store);
                }
                _ => {
                    if let Some(store) = down.take() {
                        world.crash_at = None;
                        if world.nodes[&store].down {
                            world.restart(store);
                        }
                    }
                    pass(&mut world, random.random_range(0..3000));
                }
            }
        }
        world.cut.clear();
        if let Some(store) = down.filter(|store| world.nodes[store].down) {
            world.restart(store);
        }
        world.crash_at = None;
        world.run_until("a leader", |world| world.leader(USER).is_some());
        let last = [1, 2, 3];
        world.move_to(&last);
        read_all(&mut world, written);
        // Whoever missed its removal asks after a minute.
        let gone = |world: &World| holders(world) == last;
        for _ in 0..70 {
            if !gone(&world) {
                pass(&mut world, 1000);
            }
        }
        world.run_until("the removed are gone", |world| holders(world) == last);
        world.call(&Command::Admin(Admin::Check { check: CheckId(seed) })).unwrap();
        let hashes = |world: &World| -> Vec<_> {
            let of = |store: &u64| world.hashes.get(&(StoreId(*store), USER, CheckId(seed))).copied();
            last.iter().filter_map(of).collect()
        };
        world.run_until("all hashes", |world| hashes(world).len() == 3);
        let found = hashes(&world);
        assert!(found.iter().all(|hash| (hash.applied, hash.hash) == (found[0].applied, found[0].hash)), "seed {seed}");
        let diverged = |world: &World| {
            world.nodes.values().any(|node| node.fleet.status().iter().any(|range| !range.diverged.is_empty()))
        };
        assert!(!diverged(&world), "seed {seed}");
    }
}
