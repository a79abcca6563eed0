//! The router against a dumb cluster: what it finds, what it survives, and what it says.

#![allow(clippy::unwrap_used)]

mod world;

use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, ScanRequest};
use flotilla_types::{
    CheckId, ConfTarget, Key, KeySpan, RangeId, RequestId, StoreId, Timestamp, Write, WriteResult, keys,
};
use world::{Faults, MAX_OFFSET, STORES, World};

fn key(text: &str) -> Key {
    keys::user(text.as_bytes())
}

fn put(name: &str, value: &str) -> Write {
    Write::Put { key: key(name), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn span(start: &str, end: &str) -> KeySpan {
    KeySpan::new(key(start), key(end)).unwrap()
}

/// Writes and reads until the end of the alphabet, over ranges cut at every third letter.
fn letters(world: &World) -> flotilla_kv::Router {
    let router = world.router();
    for letter in "dgjmpsvy".chars() {
        world.state().split(&key(&letter.to_string()));
    }
    for letter in 'a'..='z' {
        let id = router.request_id().unwrap();
        let write = put(&letter.to_string(), &letter.to_string().repeat(10));
        world.run(router.write(id, write, world.deadline(10))).unwrap();
    }
    router
}

fn scan(world: &World, router: &flotilla_kv::Router, mut request: ScanRequest) -> (String, usize) {
    let (mut text, mut chunks) = (String::new(), 0);
    loop {
        let chunk = world.run(router.scan(request.clone(), world.deadline(30))).unwrap();
        for row in &chunk.rows {
            text.push(char::from(*row.key.as_bytes().last().unwrap()));
        }
        chunks += 1;
        assert!(request.at.is_none_or(|at| at == chunk.timestamp), "one moment");
        request.at = Some(chunk.timestamp);
        match chunk.resume {
            Some(key) if request.reverse => request.span.end = key,
            Some(key) => request.span.start = key,
            None => return (text, chunks),
        }
    }
}

#[test]
fn a_put_is_read_back_through_leaders_that_move_and_stores_that_are_down() {
    let world = World::new(1);
    let router = world.router();
    for round in 0..30_u64 {
        let leader = STORES[usize::try_from(round % 3).unwrap()];
        world.state().move_leader(&key("a"), Some(leader));
        world.state().move_leader(&keys::META2, Some(leader));
        world.state().move_leader(&Key::MIN, Some(leader));
        world.state().down = vec![STORES[usize::try_from((round + 1) % 3).unwrap()]];
        let id = router.request_id().unwrap();
        world.run(router.write(id, put("a", &round.to_string()), world.deadline(10))).unwrap();
        let row = world.run(router.get(key("a"), world.deadline(10))).unwrap().row.unwrap();
        assert_eq!(row.value, round.to_string());
    }
}

#[test]
fn once_the_leader_is_known_one_request_is_enough() {
    let world = World::new(1);
    world.state().move_leader(&key("a"), Some(STORES[2]));
    let router = world.router();
    world.run(router.get(key("a"), world.deadline(10))).unwrap();
    let before = world.state().requests;
    world.run(router.get(key("a"), world.deadline(10))).unwrap();
    assert_eq!(world.state().requests, before + 1);
}

#[test]
fn a_range_without_a_leader_is_unavailable_at_the_deadline_and_no_later() {
    let world = World::new(1);
    let router = world.router();
    world.state().move_leader(&key("a"), None);
    let deadline = world.deadline(3);
    let id = router.request_id().unwrap();
    let error = world.run(router.write(id, put("a", "1"), deadline)).unwrap_err();
    assert!(matches!(error, KvError::Unavailable { .. }), "{error:?}");
    let late = flotilla_kv::Clock::mono(&world).saturating_sub(deadline);
    assert!(late < Duration::from_millis(50), "{late:?}");
}

#[test]
fn a_write_whose_answers_are_all_lost_is_ambiguous_and_a_retry_resolves_it() {
    let world = World::new(1);
    let router = world.router();
    world.run(router.get(key("a"), world.deadline(10))).unwrap();
    world.state().faults = Faults { lost_after: 1000, ..Faults::default() };
    let id = router.request_id().unwrap();
    let error = world.run(router.write(id, put("a", "1"), world.deadline(2))).unwrap_err();
    assert!(matches!(error, KvError::Ambiguous { .. }), "{error:?}");
    world.state().faults = Faults::default();
    let (result, _) = world.run(router.write(id, put("a", "1"), world.deadline(20))).unwrap();
    assert_eq!(result, WriteResult::Done);
}

#[test]
fn a_failed_condition_after_a_lost_answer_stays_in_doubt() {
    let world = World::new(1);
    let router = world.router();
    world.run(router.get(key("a"), world.deadline(10))).unwrap();
    world.state().faults = Faults { lost_before: 900, ..Faults::default() };
    let (id, swap) = (router.request_id().unwrap(), |expected: &'static str| Write::CompareAndSwap {
        key: key("a"),
        expected: Some(Bytes::from_static(expected.as_bytes())),
        new: None,
    });
    let answer = world.run(router.write(id, swap("no such value"), world.deadline(60)));
    assert!(matches!(answer, Err(KvError::Ambiguous { .. })), "{answer:?}");
    world.state().faults = Faults::default();
    let id = router.request_id().unwrap();
    let (result, _) = world.run(router.write(id, swap("no such value"), world.deadline(10))).unwrap();
    assert_eq!(result, WriteResult::ConditionFailed { actual: None });
}

#[test]
fn splits_that_are_not_recorded_yet_are_found_out_by_asking() {
    let world = World::new(1);
    let router = world.router();
    world.run(router.get(key("x"), world.deadline(10))).unwrap();
    world.state().lagging = Some(Vec::new());
    world.state().split(&key("m"));
    // The right half is known to nobody but itself until its record is written; the left half goes on at once.
    world.run(router.get(key("a"), world.deadline(1))).unwrap();
    assert!(world.run(router.get(key("x"), world.deadline(1))).is_err());
    world.state().catch_up();
    world.run(router.get(key("x"), world.deadline(1))).unwrap();
}

#[test]
fn scans_go_over_ranges_in_both_directions_in_chunks_of_bounded_size() {
    let world = World::new(1);
    let router = letters(&world);
    let all = ScanRequest { span: span("a", "zz"), reverse: false, rows_max: 0, bytes_max: 50, at: None };
    let alphabet: String = ('a'..='z').collect();
    let (text, chunks) = scan(&world, &router, all.clone());
    assert_eq!(text, alphabet);
    assert!(chunks >= 8, "three rows of 16 bytes fit into a chunk of 50: {chunks}");
    let reverse = ScanRequest { reverse: true, ..all.clone() };
    assert_eq!(scan(&world, &router, reverse).0, alphabet.chars().rev().collect::<String>());
    let chunk = world.run(router.scan(all.clone(), world.deadline(10))).unwrap();
    assert_eq!(chunk.rows.len(), 3);
    let few = ScanRequest { rows_max: 5, bytes_max: 1 << 20, ..all };
    let chunk = world.run(router.scan(few, world.deadline(10))).unwrap();
    assert_eq!((chunk.rows.len(), chunk.resume), (5, Some(key("e").next())));
}

#[test]
fn a_scan_of_many_chunks_sees_one_moment() {
    let world = World::new(1);
    let router = letters(&world);
    let request = ScanRequest { span: span("a", "zz"), reverse: false, rows_max: 0, bytes_max: 50, at: None };
    let chunk = world.run(router.scan(request.clone(), world.deadline(10))).unwrap();
    let id = router.request_id().unwrap();
    world.run(router.write(id, Write::Delete { key: key("y") }, world.deadline(10))).unwrap();
    let rest = KeySpan { start: chunk.resume.unwrap(), ..request.span.clone() };
    let rest = ScanRequest { span: rest, at: Some(chunk.timestamp), ..request.clone() };
    assert!(scan(&world, &router, rest).0.contains('y'));
    assert!(!scan(&world, &router, request).0.contains('y'));
}

#[test]
fn a_scan_over_ranges_sees_what_was_acknowledged_before_it_by_a_clock_that_is_ahead() {
    let world = World::new(1);
    let router = letters(&world);
    // Written by a leaseholder whose clock is ahead, within the bound, and acknowledged before the scan began.
    let ahead = world.state().hlc().plus(MAX_OFFSET / 2);
    world.state().write_at(&key("k"), "new", ahead);
    let request = ScanRequest { span: span("j", "n"), reverse: false, rows_max: 0, bytes_max: 1 << 20, at: None };
    let chunk = world.run(router.scan(request, world.deadline(10))).unwrap();
    let row = chunk.rows.iter().find(|row| row.key == key("k")).unwrap();
    assert_eq!(row.value, "new");
    assert!(chunk.timestamp >= ahead);
    let past = ScanRequest {
        span: span("j", "n"),
        reverse: false,
        rows_max: 0,
        bytes_max: 1 << 20,
        at: Some(Timestamp { wall: ahead.wall - 1, logical: 0 }),
    };
    let chunk = world.run(router.scan(past, world.deadline(10))).unwrap();
    assert_eq!(chunk.rows.iter().find(|row| row.key == key("k")).unwrap().value, "k".repeat(10), "the past is certain");
}

#[test]
fn a_range_delete_goes_over_ranges_and_its_repetition_removes_nothing_new() {
    let world = World::new(1);
    let router = letters(&world);
    let id = router.request_id().unwrap();
    let delete = |keys_max| router.delete_range(id, span("b", "y"), keys_max, world.deadline(30));
    let answer = world.run(delete(0)).unwrap();
    assert_eq!((answer.keys, answer.resume), (Some(23), None));
    let all = ScanRequest { span: span("a", "zz"), reverse: false, rows_max: 0, bytes_max: 1 << 20, at: None };
    assert_eq!(scan(&world, &router, all.clone()).0, "ayz");
    // Written afterwards, and a range was cut meanwhile: the retry finds its own pieces all the same.
    for name in ["e", "f"] {
        let write = put(name, "again");
        world.run(router.write(router.request_id().unwrap(), write, world.deadline(10))).unwrap();
    }
    world.state().split(&key("e"));
    let again = world.run(delete(0)).unwrap();
    assert_eq!((again.keys, again.resume), (Some(23), None));
    assert_eq!(scan(&world, &router, all).0, "aefyz");
}

#[test]
fn a_bounded_range_delete_says_where_to_go_on() {
    let world = World::new(1);
    let router = letters(&world);
    let id = router.request_id().unwrap();
    let answer = world.run(router.delete_range(id, span("a", "zz"), 10, world.deadline(30))).unwrap();
    assert_eq!(answer.keys, Some(10));
    assert_eq!(answer.resume, Some(key("j").next()));
}

#[test]
fn splits_are_done_once_and_repeated_without_harm() {
    let world = World::new(1);
    let router = world.router();
    let halves = world.run(router.split(&key("m"), RangeId(50), world.deadline(10))).unwrap();
    assert_eq!((&halves.left.span.end, &halves.right.span.start), (&key("m"), &key("m")));
    let again = world.run(router.split(&key("m"), RangeId(51), world.deadline(10))).unwrap();
    assert_eq!(again, halves);
    let ranges = world.run(router.ranges(&KeySpan::ALL, world.deadline(10))).unwrap();
    assert_eq!(ranges.len(), 6);
    assert!(ranges.windows(2).all(|pair| pair[0].span.end == pair[1].span.start));
    let found = world.run(router.range(halves.right.range, world.deadline(10))).unwrap();
    assert_eq!(found, halves.right);
    let missing = world.run(router.range(RangeId(99), world.deadline(10)));
    assert_eq!(missing, Err(KvError::NoSuchRange { range: RangeId(99) }));
}

#[test]
fn replicas_are_changed_step_by_step_until_they_match() {
    let world = World::new(1);
    let router = world.router();
    let target = ConfTarget { voters: [1, 4, 5].map(StoreId).into_iter().collect(), learners: Default::default() };
    let changed = world.run(router.change_replicas(&key("a"), target.clone(), world.deadline(60))).unwrap();
    let stores: Vec<_> = changed.replicas.iter().map(|replica| replica.store).collect();
    assert_eq!(stores, target.voters.to_vec());
    world.run(router.transfer(&key("a"), StoreId(4), world.deadline(10))).unwrap();
    assert!(matches!(
        world.run(router.transfer(&key("a"), StoreId(2), world.deadline(10))),
        Err(KvError::Invalid { .. })
    ));
    world.run(router.check(&key("a"), CheckId(1), world.deadline(10))).unwrap();
    world.run(router.keep_meta(changed, world.deadline(10))).unwrap();
}

#[test]
fn ids_are_fresh_and_born_now() {
    let router = World::new(1).router();
    let ids: Vec<RequestId> = (0..3).map(|_| router.request_id().unwrap()).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    assert!(ids[0].born_ms() >= 1_790_000_000_000);
}

#[test]
fn a_listing_waits_a_moment_for_records_that_lag_and_then_tells_what_there_is() {
    let world = World::new(1);
    let router = world.router();
    world.state().lagging = Some(Vec::new());
    world.state().split(&key("m"));
    // Only the parent's record is there: it covers all.
    assert_eq!(world.run(router.ranges(&KeySpan::ALL, world.deadline(10))).unwrap().len(), 5);
    // The left half's record alone leaves a hole.
    world.state().record_first_lagging();
    let before = flotilla_kv::Clock::mono(&world);
    let ranges = world.run(router.ranges(&KeySpan::ALL, world.deadline(10))).unwrap();
    assert_eq!(ranges.len(), 5, "{ranges:?}");
    assert!(flotilla_kv::Clock::mono(&world) - before >= Duration::from_secs(2));
    world.state().catch_up();
    assert_eq!(world.run(router.ranges(&KeySpan::ALL, world.deadline(10))).unwrap().len(), 6);
}

#[test]
fn a_hung_store_costs_one_timeout_and_not_one_for_each_of_its_ranges() {
    let world = World::new(1);
    let router = letters(&world);
    world.run(router.get(key("zz"), world.deadline(10))).unwrap();
    // It hangs, and the other two elect for each of its ranges; the router has not heard of that.
    world.state().hung = vec![STORES[0]];
    for range in ["a", "d", "g", "j", "m", "p"] {
        world.state().move_leader(&key(range), Some(STORES[1]));
    }
    let before = flotilla_kv::Clock::mono(&world);
    for range in ["a", "d", "g", "j", "m", "p"] {
        let write = put(range, "new");
        world.run(router.write(router.request_id().unwrap(), write, world.deadline(10))).unwrap();
    }
    let took = flotilla_kv::Clock::mono(&world) - before;
    assert!(took < Duration::from_millis(1750 + 6 * 600), "{took:?}");
    world.state().hung.clear();
    world.run(router.get(key("zz"), world.deadline(10))).unwrap();
}
