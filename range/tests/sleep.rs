//! Ranges that nobody asks for fall asleep, cost nothing, and are there when they are wanted (docs/leases.md, section 7).

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use flotilla_range::event::Event;
use flotilla_types::{Command, Read, ReadAt, StoreId, WriteResult};
use world::{USER, World, put, text, user};

const RANGES: usize = 4_000;

fn pass(world: &mut World, time: Duration) {
    let until = world.time + time;
    while world.time < until {
        world.tick();
    }
}

fn asleep(world: &World) -> usize {
    world.nodes.values().filter(|node| !node.down).map(|node| node.fleet.asleep()).sum()
}

fn all_asleep(world: &World) -> bool {
    world.nodes.values().filter(|node| !node.down).all(|node| node.fleet.asleep() == node.fleet.count())
}

fn settled() -> World {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    world.run_until("all ranges sleep", all_asleep);
    world
}

fn terms(world: &World) -> Vec<u64> {
    world.nodes[&StoreId(1)].fleet.status().iter().map(|range| range.term.0).collect()
}

#[test]
fn idle_ranges_fall_asleep_and_send_nothing_while_their_lease_stands() {
    let mut world = settled();
    let (terms_before, sent) = (terms(&world), world.range_messages);
    pass(&mut world, Duration::from_secs(30));
    assert!(all_asleep(&world));
    assert_eq!(world.range_messages, sent, "a sleeping range says nothing");
    assert_eq!(terms(&world), terms_before);
}

#[test]
fn a_leased_read_wakes_nobody_and_a_write_wakes_all() {
    let mut world = settled();
    let leader = world.leader(USER).unwrap();
    let read = Read::Get { key: user("k") };
    let token = world.ask(leader, Command::Read { at: ReadAt::Leaseholder, read });
    world.tick();
    assert!(matches!(world.answers.get(&token), Some(Ok(_))));
    assert!(all_asleep(&world));
    let sleeping = asleep(&world);
    assert_eq!(world.write(2, put("k", "2")), Ok(WriteResult::Done));
    assert!(asleep(&world) < sleeping);
    world.run_until("all ranges sleep again", all_asleep);
    assert_eq!(text(world.get("k")), Some("2".to_owned()));
}

#[test]
fn a_sleeping_leader_that_dies_is_replaced_and_one_that_comes_back_is_known_again() {
    let mut world = settled();
    let leader = world.leader(USER).unwrap();
    world.kill(leader);
    let died = world.time;
    world.run_until("another leader", |world| world.leader(USER).is_some());
    let took = world.time - died;
    assert!(took < Duration::from_millis(3800), "{took:?}");
    world.write(3, put("k", "3")).unwrap();
    world.run_until("the survivors sleep", all_asleep);
    world.restart(leader);
    assert_eq!(text(world.get("k")), Some("3".to_owned()));
    world.run_until("all three sleep", all_asleep);
    let follower = world.nodes[&leader].fleet.status_of(USER).unwrap();
    assert_eq!(follower.leader, world.leader(USER));
    assert_eq!(follower.applied, follower.last);
}

#[test]
fn a_follower_that_was_away_gets_what_it_missed_and_sleeps_again() {
    let mut world = settled();
    let leader = world.leader(USER).unwrap();
    let other = world.nodes.keys().copied().find(|store| *store != leader).unwrap();
    world.kill(other);
    world.write(4, put("k", "4")).unwrap();
    world.run_until("the two sleep", all_asleep);
    world.restart(other);
    world.run_until("all three sleep", all_asleep);
    let applied = |store: StoreId| world.nodes[&store].fleet.status_of(USER).unwrap().applied;
    assert_eq!(applied(other), applied(leader));
    assert_eq!(world.leader(USER), Some(leader), "nobody lost its lease over it");
}

#[test]
fn a_link_that_flaps_between_two_followers_wakes_nobody_and_starts_no_election() {
    let mut world = settled();
    let leader = world.leader(USER).unwrap();
    let others: Vec<_> = world.nodes.keys().copied().filter(|store| *store != leader).collect();
    // Ranges that the others lead may move; this one may not.
    let term = world.nodes[&leader].fleet.status_of(USER).unwrap().term;
    for _ in 0..3 {
        world.cut.extend([(others[0], others[1]), (others[1], others[0])]);
        pass(&mut world, Duration::from_secs(5));
        world.cut.clear();
        pass(&mut world, Duration::from_secs(3));
    }
    let status = world.nodes[&leader].fleet.status_of(USER).unwrap();
    assert_eq!((status.term, status.leads), (term, true));
}

#[test]
fn a_write_right_after_a_long_sleep_does_not_cost_the_leader_its_term() {
    let mut world = settled();
    pass(&mut world, Duration::from_secs(120));
    let before = terms(&world);
    world.write(5, put("k", "5")).unwrap();
    pass(&mut world, Duration::from_secs(10));
    assert_eq!(terms(&world), before, "a stale count of silent followers deposed it");
}

#[test]
fn all_stores_start_again_and_all_ranges_sleep_in_the_end() {
    let mut world = settled();
    let stores: Vec<_> = world.nodes.keys().copied().collect();
    stores.iter().for_each(|store| world.kill(*store));
    stores.iter().for_each(|store| world.restart(*store));
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
    world.run_until("all ranges sleep", all_asleep);
    assert!(world.leader(USER).is_some());
}

#[test]
fn a_store_that_stops_hands_over_what_it_leads_in_its_sleep() {
    let mut world = settled();
    let leader = world.leader(USER).unwrap();
    world.nodes.get_mut(&leader).unwrap().push(Event::Drain);
    world.run_until("it leads nothing", |world| world.nodes[&leader].fleet.led() == 0);
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
}

#[test]
fn sleep_replies_that_are_lost_only_delay_it() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let others: Vec<_> = world.nodes.keys().copied().filter(|store| *store != leader).collect();
    // Every second moment nothing gets back to the leader.
    for round in 0..120 {
        world.cut = if round % 2 == 0 { [(others[0], leader)].into() } else { [(others[1], leader)].into() };
        pass(&mut world, Duration::from_millis(100));
    }
    world.cut.clear();
    world.run_until("all ranges sleep", all_asleep);
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
}

#[test]
fn thousands_of_idle_ranges_cost_three_stores_next_to_nothing_and_a_dead_store_wakes_only_what_it_led() {
    let mut world = World::with_ranges(RANGES as u64);
    let all = |world: &World, stores: &[u64]| {
        stores.iter().map(|store| &world.nodes[&StoreId(*store)]).all(|node| {
            node.fleet.asleep() == node.fleet.count() && node.fleet.status().iter().all(|range| range.leader.is_some())
        })
    };
    for _ in 0..40 {
        pass(&mut world, Duration::from_secs(1));
        if all(&world, &[1, 2, 3]) {
            break;
        }
    }
    assert!(all(&world, &[1, 2, 3]), "all sleep, and know who leads");
    let led: Vec<_> = world.nodes.values().map(|node| node.fleet.led()).collect();
    assert_eq!(led.iter().sum::<usize>(), RANGES + 5, "{led:?}");
    let (sent, began) = (world.range_messages, std::time::Instant::now());
    pass(&mut world, Duration::from_secs(20));
    let took = began.elapsed();
    assert_eq!(world.range_messages, sent);
    // With debug assertions off this is about a thousandth of a core; the bound leaves room for a busy machine.
    assert!(took < Duration::from_secs(1), "20 s of idleness took {took:?}: more than 5 % of a core");
    world.kill(StoreId(1));
    let mut most_awake = 0;
    for _ in 0..40 {
        pass(&mut world, Duration::from_millis(250));
        let node = &world.nodes[&StoreId(2)].fleet;
        most_awake = most_awake.max(node.count() - node.asleep());
    }
    assert!(most_awake <= led[0] + 200, "{most_awake} ranges woke; the dead store led {}", led[0]);
    let led: usize = [2, 3].iter().map(|store| world.nodes[&StoreId(*store)].fleet.led()).sum();
    assert_eq!(led, RANGES + 5);
}
