//! Replicas come and go while the range serves: see `world` for what they live on.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use flotilla_types::StoreId;
use world::{Point, USER, World, put, text};

fn write_some(world: &mut World, from: u32, count: u32) {
    for n in from..from + count {
        world.write(n, put(&format!("k{n}"), &format!("v{n}"))).unwrap();
    }
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
