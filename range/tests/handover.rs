//! Leadership that is handed over: see `world` for what it moves between.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use flotilla_range::event::Event;
use flotilla_types::{Admin, Command, RangeError, StoreId};
use world::{USER, World, put, text};

fn others(leader: StoreId) -> Vec<StoreId> {
    (1..=3).map(StoreId).filter(|store| *store != leader).collect()
}

#[test]
fn a_leader_hands_over_and_the_next_one_serves_at_once() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    for n in 2..10 {
        let leader = world.leader(USER).unwrap();
        let to = others(leader)[n as usize % 2];
        let token = world.ask(leader, Command::Admin(Admin::TransferLeader { to }));
        let began = world.time;
        world.run_until("the hand-over", |world| world.leader(USER) == Some(to));
        assert!(world.time - began < Duration::from_millis(500), "no lease is waited for");
        assert!(world.answers[&token].is_ok(), "{:?}", world.answers[&token]);
        world.write(n, put("k", &n.to_string())).unwrap();
        assert_eq!(text(world.get("k")), Some(n.to_string()));
    }
}

#[test]
fn a_target_that_is_no_voter_or_is_away_is_refused_and_the_lease_goes_on() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let transfer = |world: &mut World, to| {
        let token = world.ask(leader, Command::Admin(Admin::TransferLeader { to }));
        world.run_until("an answer", |world| world.answers.contains_key(&token));
        world.answers[&token].clone()
    };
    assert!(transfer(&mut world, leader).is_ok(), "nothing to do");
    assert!(matches!(transfer(&mut world, StoreId(9)), Err(RangeError::Invalid { .. })));
    let away = others(leader)[0];
    world.kill(away);
    let until = world.time + Duration::from_secs(5);
    world.run_until("its support ends", |world| world.time > until);
    assert!(matches!(transfer(&mut world, away), Err(RangeError::Overloaded { .. })));
    assert_eq!(world.leader(USER), Some(leader));
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
}

#[test]
fn a_hand_over_whose_target_dies_ends_with_a_leader_all_the_same() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let to = others(leader)[0];
    world.ask(leader, Command::Admin(Admin::TransferLeader { to }));
    world.tick();
    world.kill(to);
    world.run_until("a leader", |world| world.leader(USER).is_some());
    world.write(2, put("k", "2")).unwrap();
    assert_eq!(text(world.get("k")), Some("2".to_owned()));
}

#[test]
fn a_store_that_drains_ends_up_leading_nothing() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    world.nodes.get_mut(&leader).unwrap().events.push(Event::Drain);
    let began = world.time;
    world.run_until("it leads nothing", |world| world.nodes[&leader].fleet.led() == 0);
    assert!(world.time - began < Duration::from_secs(1));
    world.kill(leader);
    world.write(2, put("k", "2")).unwrap();
}

#[test]
fn a_membership_change_that_removes_the_leader_hands_over_first() {
    let mut world = World::with(&[1, 2, 3], 4);
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let mut next: Vec<_> = others(leader).into_iter().map(|store| store.0).collect();
    next.push(4);
    world.move_to(&next);
    assert_ne!(world.leader(USER), Some(leader));
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
    // All of them, from one replica to another.
    world.move_to(&[4]);
    world.move_to(&[2]);
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
}
