//! What a range remembers of requests that were done, and for how long (docs/durability.md, "Requests take effect once").

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::time::Duration;

use flotilla_storage::engine::Reader;
use flotilla_storage::keys as physical;
use flotilla_types::{
    Admin, Command, Generation, KeySpan, RangeError, RangeId, Reply, RequestId, StoreId, Write, WriteResult,
};
use world::{USER, World, put, user};

fn delete(world: &World, n: u32, start: &str, end: &str) -> Command {
    let span = KeySpan::new(user(start), user(end)).unwrap();
    let id = RequestId::new(world.time.as_millis() as u64, 3, n);
    Command::Write { id, write: Write::DeleteRange { span, keys_max: 100 } }
}

/// Finished records in a store's engine.
fn records(world: &World, store: StoreId) -> usize {
    let (start, end) = physical::finished_span(&KeySpan::ALL);
    let engine = &world.disk(store).0;
    let mut cursor = engine.cursor(&start, &end);
    let (mut there, mut count) = (cursor.seek(&start).unwrap(), 0);
    while there {
        physical::decode_finished(cursor.key()).unwrap();
        count += 1;
        there = cursor.next().unwrap();
    }
    count
}

/// Lets time pass while something is written now and then, so that the range does not fall asleep.
fn pass(world: &mut World, seconds: u64) {
    let until = world.time + Duration::from_secs(seconds);
    let mut n = 1_000_000;
    while world.time < until {
        n += 1;
        world.write(n, put("busy", "x")).unwrap();
        let next = world.time + Duration::from_secs(2);
        world.run_until("time passes", |world| world.time > next);
    }
}

#[test]
fn a_range_delete_is_remembered_while_it_may_be_sent_again_and_then_forgotten() {
    let mut world = World::new();
    world.write(1, put("a", "1")).unwrap();
    let first = delete(&world, 2, "a", "m");
    let old_put = Command::Write { id: RequestId::new(world.time.as_millis() as u64, 3, 3), write: put("k", "1") };
    let deleted = Ok(Reply::Write(WriteResult::Deleted { keys: 1, resume: None }));
    assert_eq!(world.call(&first), deleted);
    assert!(world.call(&old_put).is_ok());
    pass(&mut world, 40);
    world.write(4, put("a", "2")).unwrap();
    assert_eq!(world.call(&first), deleted, "the first answer, and nothing removed again");
    assert!(world.get("a").is_some());
    pass(&mut world, 60);
    for store in 1..=3 {
        assert_eq!(records(&world, StoreId(store)), 0, "on store {store}");
    }
    let leader = world.leader(USER).unwrap();
    let token = world.ask(leader, first.clone());
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert!(matches!(world.answers[&token], Err(RangeError::TooOld { .. })), "{:?}", world.answers[&token]);
    assert!(world.get("a").is_some(), "nothing was removed");
    // A write's version is its own memory.
    assert_eq!(world.call(&old_put), Ok(Reply::Write(WriteResult::Done)));
    assert_eq!(world::text(world.get("k")), Some("1".to_owned()));
    // The floor is part of the state: it comes back, and a child has it, too.
    let stores: Vec<_> = world.nodes.keys().copied().collect();
    for store in &stores {
        world.kill(*store);
    }
    for store in &stores {
        world.restart(*store);
    }
    world.run_until("a leader", |world| world.leader(USER).is_some());
    let split = Admin::Split { generation: Generation(1), key: user("c"), right: RangeId(77) };
    assert!(world.call(&Command::Admin(split)).is_ok());
    world.run_until("the child is led", |world| world.leader(RangeId(77)).is_some());
    let leader = world.leader(RangeId(77)).unwrap();
    let Command::Write { id, .. } = first else { unreachable!() };
    let span = KeySpan::new(user("d"), user("m")).unwrap();
    let in_child = Command::Write { id, write: Write::DeleteRange { span, keys_max: 100 } };
    let token = world.ask_of(leader, RangeId(77), in_child);
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert!(matches!(world.answers[&token], Err(RangeError::TooOld { .. })), "{:?}", world.answers[&token]);
}

#[test]
fn however_many_there_are_a_range_keeps_no_more_than_its_bound() {
    const BOUND: usize = 64 << 10;
    let mut world = World::new();
    world.write(1, put("a", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let (mut n, mut most, mut open, mut refused) = (0u32, 0, Vec::new(), 0);
    for round in 0..500 {
        for _ in 0..400 {
            n += 1;
            let command = delete(&world, n, &format!("k{n:08}"), &format!("k{n:08}x"));
            open.push(world.ask(leader, command));
        }
        world.tick();
        if round % 50 == 49 {
            most = most.max(records(&world, leader));
        }
        open.retain(|token| match world.answers.get(token) {
            None => true,
            Some(Ok(_)) => false,
            Some(Err(RangeError::Overloaded { .. })) => {
                refused += 1;
                false
            }
            Some(Err(other)) => panic!("{other}"),
        });
    }
    assert!(most > BOUND / 2 && most <= BOUND + 4096, "{most} records");
    assert!(refused > 0, "200,000 in 2.5 s are more than may be kept");
    pass(&mut world, 100);
    assert_eq!(records(&world, leader), 0);
}
