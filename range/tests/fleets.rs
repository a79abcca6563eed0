//! What three stores promise to their clients, one scenario a test: see `world` for what they run on.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use flotilla_range::event::Event;
use flotilla_types::{
    BatchOp, Command, KeySpan, RangeError, RangeReply, Read, ReadAt, Reply, RequestId, Timestamp, Write, WriteResult,
    keys,
};
use world::{Node, START, USER, World, put, text, user};

#[test]
fn three_stores_elect_leaders_and_keep_what_they_acknowledge() {
    let mut world = World::new();
    for n in 0..20 {
        assert_eq!(world.write(n, put(&format!("k{n}"), &format!("v{n}"))), Ok(WriteResult::Done));
    }
    for n in 0..20 {
        assert_eq!(text(world.get(&format!("k{n}"))), Some(format!("v{n}")));
    }
    world.run_until("all replicas agree", |world| {
        let user = |node: &Node| {
            let status = node.fleet.status().into_iter().find(|range| range.descriptor.range == USER).unwrap();
            (status.applied, status.sum)
        };
        world.nodes.values().map(user).collect::<BTreeSet<_>>().len() == 1
    });
}

#[test]
fn every_kind_of_write_and_read_does_what_it_says() {
    let mut world = World::new();
    let swap = |expected: Option<&'static str>, new: Option<&'static str>| Write::CompareAndSwap {
        key: user("c"),
        expected: expected.map(Bytes::from),
        new: new.map(Bytes::from),
    };
    assert_eq!(world.write(1, swap(None, Some("1"))), Ok(WriteResult::Done));
    let failed = WriteResult::ConditionFailed { actual: Some(Bytes::from("1")) };
    assert_eq!(world.write(2, swap(None, Some("2"))), Ok(failed));
    assert_eq!(world.write(3, swap(Some("1"), None)), Ok(WriteResult::Done));
    assert_eq!(world.get("c"), None);
    let ops = ["a", "b", "d"].map(|key| BatchOp::Put { key: user(key), value: Bytes::from("x") });
    assert_eq!(world.write(4, Write::Batch { ops: ops.to_vec() }), Ok(WriteResult::Done));
    assert_eq!(world.write(5, Write::Delete { key: user("b") }), Ok(WriteResult::Done));
    let span = KeySpan::new(user("a"), user("z")).unwrap();
    let read = Read::Scan { span: span.clone(), reverse: true, rows_max: 0, bytes_max: 1 << 20 };
    let Ok(Reply::Scan(found)) = world.call(&Command::Read { at: ReadAt::Leaseholder, read }) else { panic!() };
    assert_eq!(found.rows.iter().map(|row| row.key.clone()).collect::<Vec<_>>(), [user("d"), user("a")]);
    let twice = vec![BatchOp::Delete { key: user("a") }, BatchOp::Delete { key: user("a") }];
    assert!(matches!(world.write(6, Write::Batch { ops: twice }), Err(RangeError::Invalid { .. })));
    let deleted = |keys, resume: Option<&str>| Ok(WriteResult::Deleted { keys, resume: resume.map(user) });
    assert_eq!(world.write(7, Write::DeleteRange { span: span.clone(), keys_max: 1 }), deleted(1, Some("b")));
    assert_eq!(world.write(8, Write::DeleteRange { span, keys_max: 9 }), deleted(1, None));
    let outside = Write::Put { key: keys::SYSTEM, value: Bytes::new() };
    assert!(matches!(world.write(9, outside), Err(RangeError::RangeMismatch { .. })));
}

#[test]
fn a_request_that_is_sent_again_takes_effect_once() {
    let mut world = World::new();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 1);
    let swap = Write::CompareAndSwap { key: user("c"), expected: None, new: Some(Bytes::from("mine")) };
    let command = Command::Write { id, write: swap };
    let first = world.call(&command);
    assert_eq!(first, Ok(Reply::Write(WriteResult::Done)));
    assert_eq!(world.write(2, put("c", "another's")), Ok(WriteResult::Done));
    assert_eq!(world.call(&command), first, "the retry hears what the first try would have heard");
    assert_eq!(text(world.get("c")), Some("another's".to_owned()));
    let leader = world.leader(USER).unwrap();
    world.kill(leader);
    assert_eq!(world.call(&command), first, "also from another leader");
    let span = KeySpan::new(user("a"), user("z")).unwrap();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 3);
    let delete = Command::Write { id, write: Write::DeleteRange { span, keys_max: 10 } };
    assert_eq!(world.call(&delete), world.call(&delete));
}

#[test]
fn leaders_die_one_after_the_other_and_nothing_acknowledged_is_lost() {
    let mut world = World::new();
    let mut acknowledged = BTreeMap::new();
    for round in 0..6u32 {
        for n in 0..5 {
            let (key, value) = (format!("k{}", (round * 3 + n) % 11), format!("{round}-{n}"));
            assert_eq!(world.write(round * 10 + n, put(&key, &value)), Ok(WriteResult::Done));
            acknowledged.insert(key, value);
        }
        let leader = world.leader(USER).unwrap();
        world.kill(leader);
        world.run_until("another leader", |world| world.leader(USER).is_some_and(|new| new != leader));
        for (key, value) in &acknowledged {
            assert_eq!(text(world.get(key)).as_ref(), Some(value));
        }
        world.restart(leader);
    }
}

#[test]
fn all_stores_crash_at_once_and_come_back_with_everything() {
    let mut world = World::new();
    for n in 0..10 {
        world.write(n, put(&format!("k{n}"), "kept")).unwrap();
    }
    let stores: Vec<_> = world.nodes.keys().copied().collect();
    stores.iter().for_each(|store| world.kill(*store));
    stores.iter().for_each(|store| world.restart(*store));
    for n in 0..10 {
        assert_eq!(text(world.get(&format!("k{n}"))), Some("kept".to_owned()));
    }
}

#[test]
fn a_leader_that_is_cut_off_stops_answering_before_another_writes() {
    let mut world = World::new();
    world.write(1, put("k", "old")).unwrap();
    let old = world.leader(USER).unwrap();
    for other in world.nodes.keys().copied().filter(|store| *store != old).collect::<Vec<_>>() {
        world.cut.extend([(old, other), (other, old)]);
    }
    let usable_elsewhere = |world: &World| {
        let leads = |node: &Node| node.fleet.status().iter().any(|r| r.descriptor.range == USER && r.leads);
        world.nodes.iter().any(|(store, node)| *store != old && leads(node))
    };
    let mut served = 0;
    while !usable_elsewhere(&world) {
        let token = world.ask(old, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } });
        world.tick();
        served += u32::from(matches!(world.answers.get(&token), Some(Ok(_))));
    }
    assert!(served > 0, "it serves while it is supported");
    for _ in 0..400 {
        let token = world.ask(old, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } });
        world.tick();
        assert!(!matches!(world.answers.get(&token), Some(Ok(_))), "a stale leader answered");
    }
    world.cut.clear();
    assert_eq!(text(world.get("k")), Some("old".to_owned()));
}

#[test]
fn a_minority_acknowledges_nothing_and_says_so_in_time() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    for other in world.nodes.keys().copied().filter(|store| *store != leader).collect::<Vec<_>>() {
        world.kill(other);
    }
    let id = RequestId::new(world.time.as_millis() as u64, 2, 2);
    let token = world.ask(leader, Command::Write { id, write: put("k", "2") });
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert!(matches!(world.answers[&token], Err(RangeError::Ambiguous { .. })), "{:?}", world.answers[&token]);
}

#[test]
fn what_comes_from_the_future_is_refused() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let later = world.time + Duration::from_secs(60);
    let id = RequestId::new(later.as_millis() as u64, 1, 2);
    let refused = world.call(&Command::Write { id, write: put("k", "2") });
    assert!(matches!(refused, Err(RangeError::Invalid { .. })), "its retries could not be recognised");
    let leader = world.leader(USER).unwrap();
    let timestamp = Timestamp::from_wall(world.time.as_nanos() as u64 + 1_000_000_000);
    let at = ReadAt::Timestamp { timestamp, limit: timestamp };
    let token = world.ask(leader, Command::Read { at, read: Read::Get { key: user("k") } });
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert_eq!(world.answers[&token], Err(RangeError::FutureTimestamp { timestamp }));
}

#[test]
fn a_read_of_the_past_sees_the_past_and_a_write_in_its_uncertainty_restarts_it() {
    let mut world = World::new();
    world.write(1, put("k", "old")).unwrap();
    world.run_until("time passes", |world| world.time > START + Duration::from_secs(8));
    let before = Timestamp::from_wall(world.time.as_nanos() as u64);
    world.run_until("time passes", |world| world.time > START + Duration::from_secs(9));
    world.write(2, put("k", "new")).unwrap();
    let leader = world.leader(USER).unwrap();
    let mut read = |limit: Timestamp| {
        let at = ReadAt::Timestamp { timestamp: before, limit };
        let token = world.ask(leader, Command::Read { at, read: Read::Get { key: user("k") } });
        world.run_until("an answer", |world| world.answers.contains_key(&token));
        world.answers[&token].clone()
    };
    let Ok(RangeReply { reply: Reply::Get(Some(row)), .. }) = read(before) else { panic!("the past is gone") };
    assert_eq!(row.value, Bytes::from("old"));
    assert!(matches!(read(before.plus(Duration::from_secs(2))), Err(RangeError::Uncertain { .. })));
}

#[test]
fn a_replica_that_is_lost_answers_all_that_wait_for_it() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    for other in world.nodes.keys().copied().filter(|store| *store != leader).collect::<Vec<_>>() {
        world.cut.extend([(leader, other), (other, leader)]);
    }
    let id = RequestId::new(world.time.as_millis() as u64, 1, 2);
    let in_the_log = world.ask(leader, Command::Write { id, write: put("a", "2") });
    world.tick();
    let behind_it = world.ask(leader, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("a") } });
    world.tick();
    world.unreadable = Some(leader);
    let fails = world.ask(leader, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } });
    for _ in 0..3 {
        world.tick();
    }
    assert!(matches!(world.answers.get(&in_the_log), Some(Err(RangeError::Ambiguous { .. }))));
    assert!(matches!(world.answers.get(&behind_it), Some(Err(RangeError::NotLeaseholder { .. }))));
    assert!(matches!(world.answers.get(&fails), Some(Err(RangeError::NotLeaseholder { .. }))));
    assert_eq!(world.lost, [USER], "it is told once");
    let fleet = &world.nodes[&leader].fleet;
    let replica = fleet.status_of(USER).unwrap().descriptor.on_store(leader).unwrap().replica;
    assert_eq!(fleet.out_of_order(), [(USER, replica)], "and to be replaced");
}

#[test]
fn a_suspended_store_does_not_serve_what_waited_for_a_latch() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    let id = RequestId::new(world.time.as_millis() as u64, 1, 2);
    world.ask(leader, Command::Write { id, write: put("k", "2") });
    let waits = world.ask(leader, Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: user("k") } });
    world.nodes.get_mut(&leader).unwrap().events.push(Event::Suspended(true));
    let id = RequestId::new(world.time.as_millis() as u64, 1, 3);
    let later = world.ask(leader, Command::Write { id, write: put("k", "3") });
    world.run_until("answers", |world| world.answers.contains_key(&waits) && world.answers.contains_key(&later));
    for token in [waits, later] {
        assert!(
            matches!(world.answers[&token], Err(RangeError::StoreNotServing { .. })),
            "{:?}",
            world.answers[&token]
        );
    }
}

#[test]
fn a_full_disk_refuses_what_adds_data_and_lets_room_be_made() {
    let mut world = World::new();
    world.write(1, put("k", "v")).unwrap();
    let leader = world.leader(USER).unwrap();
    world.nodes.get_mut(&leader).unwrap().events.push(Event::DiskFull(true));
    let put_more = Command::Write { id: RequestId::new(world.time.as_millis() as u64, 1, 2), write: put("more", "v") };
    let token = world.ask(leader, put_more.clone());
    world.run_until("an answer", |world| world.answers.contains_key(&token));
    assert_eq!(world.answers[&token], Err(RangeError::DiskFull { store: leader }));
    world.write(3, Write::Delete { key: user("k") }).unwrap();
    assert_eq!(world.get("k"), None);
    world.nodes.get_mut(&leader).unwrap().events.push(Event::DiskFull(false));
    world.call(&put_more).unwrap();
}

#[test]
fn a_leader_without_followers_says_so_at_once_and_calls_what_is_in_the_log_in_doubt() {
    let mut world = World::new();
    world.write(1, put("k", "1")).unwrap();
    let leader = world.leader(USER).unwrap();
    // Liveness goes on, so that it stays leader for a while; what it appends reaches nobody.
    world.cut_ranges = world.nodes.keys().filter(|store| **store != leader).map(|store| (leader, *store)).collect();
    let write = |n: u32| Command::Write { id: RequestId::new(START.as_millis() as u64, 2, n), write: put("k", "2") };
    let first = world.ask(leader, write(1));
    let asked = world.time;
    world.run_until("an answer", |world| world.answers.contains_key(&first));
    assert!(matches!(world.answers[&first], Err(RangeError::Ambiguous { .. })), "{:?}", world.answers[&first]);
    assert!(world.time - asked <= Duration::from_millis(3100), "{:?}", world.time - asked);
    let second = world.ask(leader, write(2));
    world.tick();
    assert!(matches!(world.answers.get(&second), Some(Err(RangeError::RangeUnavailable { .. }))));
    world.cut_ranges.clear();
    assert_eq!(world.write(3, put("k", "3")), Ok(WriteResult::Done));
    assert_eq!(text(world.get("k")), Some("3".to_owned()));
}
