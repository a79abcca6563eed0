//! What follows from a check of a range's replicas (docs/durability.md, "Checking that replicas agree").

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use flotilla_range::event::Event;
use flotilla_types::{Command, RangeError, Read, ReadAt, StoreId};
use world::{USER, World, put, text, user};

fn wrong(world: &mut World, store: StoreId) {
    let replica = world.descriptor().unwrap().on_store(store).unwrap().replica;
    world.may_lose = Some(store);
    let why = "it holds something else".to_owned();
    world.nodes.get_mut(&store).unwrap().push(Event::Wrong { range: USER, replica, why });
}

#[test]
fn a_leader_that_is_wrong_hands_over_before_it_is_given_up() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    wrong(&mut world, leader);
    world.run_until("it is given up", |world| world.lost == [USER]);
    let given_up = world.time;
    world.run_until("another leads", |world| world.leader(USER).is_some_and(|next| next != leader));
    assert!(world.time < given_up + Duration::from_millis(200), "it was asked to lead before, and no lease ran out");
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
    world.write(2, put("k", "2")).unwrap();
    let status = world.nodes[&leader].fleet.status_of(USER).unwrap();
    assert!(status.is_lost);
}

#[test]
fn a_verdict_on_another_replica_is_not_taken() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let other = world.descriptor().unwrap().next_replica;
    let why = "it was replaced meanwhile".to_owned();
    world.nodes.get_mut(&leader).unwrap().push(Event::Wrong { range: USER, replica: other, why });
    (0..1000).for_each(|_| world.tick());
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
}

#[test]
fn a_range_without_a_majority_serves_nobody_until_it_is_the_same_again() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let tell = |world: &mut World, diverged| {
        world.nodes.values_mut().for_each(|node| node.push(Event::Diverged { range: USER, diverged }));
        world.tick();
    };
    tell(&mut world, true);
    let leader = world.leader(USER).unwrap();
    for command in [
        Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } },
        Command::Write { id: flotilla_types::RequestId::new(1_000_000_000, 1, 1), write: put("k", "2") },
    ] {
        let token = world.ask(leader, command);
        world.run_until("an answer", |world| world.answers.contains_key(&token));
        assert_eq!(world.answers[&token], Err(RangeError::Diverged { range: USER }));
    }
    tell(&mut world, false);
    assert_eq!(text(world.get("k")), Some("1".to_owned()));
}
