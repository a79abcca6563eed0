//! What an adversary would try against transactions of a whole cluster.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, Router, TxnOptions, TxnResult};
use flotilla_sim::{Cluster, Pending};
use flotilla_types::{Compare, Key, OneShot, RequestId, Strength, Wait, Whole, keys};

const LONG: Duration = Duration::from_secs(20);

fn key(name: &str) -> Key {
    keys::user(name.as_bytes())
}

/// Three stores; keys below m lie in one range, the others in another, both led by store 1.
fn cluster(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    assert!(cluster.split(&key("m")));
    for _ in 0..10 {
        if cluster.leader(&key("a")) == Some(1) && cluster.leader(&key("z")) == Some(1) {
            break;
        }
        cluster.transfer(&key("a"), 1);
        cluster.transfer(&key("z"), 1);
        cluster.run_for(Duration::from_secs(1));
    }
    assert_eq!((cluster.leader(&key("a")), cluster.leader(&key("z"))), (Some(1), Some(1)));
    cluster
}

fn wait<T>(cluster: &mut Cluster, pending: &Pending<T>) -> Option<Result<T, KvError>> {
    let limit = cluster.now() + LONG + Duration::from_secs(2);
    cluster.run_until(limit, || pending.is_answered());
    pending.take().map(|answer| answer.result)
}

fn id(cluster: &mut Cluster, born_later_ms: u64) -> RequestId {
    let ask = |router: Router, _| async move { router.clock().now().map_err(KvError::from) };
    let asked = (1..=3).find_map(|gateway| cluster.start(gateway, LONG, ask)).unwrap();
    let now = wait(cluster, &asked).unwrap().unwrap();
    RequestId::new(now.wall / 1_000_000 + born_later_ms, 77, 7)
}

fn transact(cluster: &mut Cluster, gateway: u64, id: RequestId, whole: &Whole) -> Pending<TxnResult> {
    let whole = whole.clone();
    let call = move |router: Router, deadline| async move { router.transact(id, &whole, deadline).await };
    // If it is down, through another one.
    let begin = |gateway| cluster.start(gateway, LONG, call.clone());
    [gateway, 1, 2, 3].into_iter().find_map(begin).unwrap()
}

fn counter(cluster: &mut Cluster, name: &str) -> i64 {
    let key = key(name);
    let call = |router: Router, deadline| {
        let key = key.clone();
        async move { router.get(key, deadline).await }
    };
    let asked = (1..=3).find_map(|gateway| cluster.start(gateway, LONG, call)).unwrap();
    let row = wait(cluster, &asked).expect("an answer").expect("a value").row;
    row.map_or(0, |row| i64::from_be_bytes(row.value[..].try_into().unwrap()))
}

fn both() -> Whole {
    let then = vec![OneShot::Increment(key("a"), 1), OneShot::Increment(key("z"), 1)];
    Whole { then, ..Whole::default() }
}

/// The gateway dies at some step of a parallel commit, and the client sends the same request through another one.
fn dies_at(micros: u64, born_later_ms: u64) -> Option<(i64, i64)> {
    let mut cluster = cluster(micros % 7);
    let id = id(&mut cluster, born_later_ms);
    let first = transact(&mut cluster, 2, id, &both());
    cluster.run_for(Duration::from_micros(micros));
    cluster.crash(2, Duration::from_secs(60));
    drop(first);
    let second = transact(&mut cluster, 3, id, &both());
    let done = wait(&mut cluster, &second);
    cluster.run_for(Duration::from_secs(12));
    let counters = (counter(&mut cluster, "a"), counter(&mut cluster, "z"));
    assert_eq!(cluster.failures(), Vec::<String>::new());
    match done {
        Some(Ok(_)) => Some(counters),
        Some(Err(KvError::Invalid { .. })) => {
            assert_eq!(counters, (0, 0), "{micros} µs: it was refused");
            None
        }
        done => panic!("{micros} µs: {done:?}"),
    }
}

#[test]
fn a_gateway_that_dies_at_any_step_of_a_parallel_commit_leaves_all_of_it_or_nothing_and_a_retry_does_it_once() {
    for micros in (0..40).map(|step| 250 * step) {
        assert_eq!(dies_at(micros, 0), Some((1, 1)), "died after {micros} µs");
    }
}

#[test]
fn a_parallel_commit_that_was_acknowledged_is_there_although_its_gateway_dies_in_the_same_moment() {
    for seed in 0..12 {
        let mut cluster = cluster(seed);
        // Nobody hears that it is committed.
        let id = id(&mut cluster, 0);
        let first = transact(&mut cluster, 2, id, &both());
        let limit = cluster.now() + LONG;
        cluster.run_until(limit, || first.is_answered());
        assert!(first.take().unwrap().result.is_ok(), "seed {seed}");
        cluster.crash(2, Duration::from_secs(60));
        cluster.run_for(Duration::from_secs(12));
        assert_eq!((counter(&mut cluster, "a"), counter(&mut cluster, "z")), (1, 1), "seed {seed}");
        assert_eq!(cluster.failures(), Vec::<String>::new());
    }
}

#[test]
fn a_parallel_commit_one_of_whose_writes_never_arrived_is_undone() {
    for seed in 0..6 {
        let mut cluster = cluster(seed);
        for _ in 0..10 {
            if cluster.leader(&key("z")) == Some(3) {
                break;
            }
            cluster.transfer(&key("z"), 3);
            cluster.run_for(Duration::from_secs(1));
        }
        assert_eq!(cluster.leader(&key("z")), Some(3));
        let id = id(&mut cluster, 0);
        // Its gateway knows where everything lies.
        for name in ["a", "z"] {
            assert_eq!(cluster.put(2, &key(&format!("{name}-known")), "x", LONG).unwrap().result, Ok(()));
        }
        cluster.cut(2, 3);
        let _first = transact(&mut cluster, 2, id, &both());
        cluster.run_for(Duration::from_millis(60));
        cluster.crash(2, Duration::from_secs(60));
        cluster.run_for(Duration::from_secs(12));
        assert_eq!((counter(&mut cluster, "a"), counter(&mut cluster, "z")), (0, 0), "seed {seed}");
        assert_eq!(cluster.failures(), Vec::<String>::new());
    }
}

/// Copies of one request through several gateways, some of which die, while messages come late and get lost.
fn copies(seed: u64) {
    // Of those that keep old versions for hours: else the request grows too old meanwhile.
    let mut cluster = cluster(seed / 3 * 9 + seed % 3);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut roll = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    if roll(2) == 0 {
        cluster.transfer(&key("z"), 1 + roll(3));
        cluster.run_for(Duration::from_secs(1));
    }
    assert_eq!(cluster.put(1, &key("guard"), "x", LONG).unwrap().result, Ok(()));
    let mut done = 0;
    for round in 0..6 {
        // What has comparisons is known again by its record, what has none by its versions.
        let compares = vec![Compare { key: key("guard"), expected: Some(Bytes::from_static(b"x")) }];
        let whole = if roll(2) == 0 { both() } else { Whole { compares, ..both() } };
        let id = id(&mut cluster, 0);
        let id = RequestId::new(id.born_ms(), 77, round);
        let mut calls: Vec<_> =
            (0..=roll(3)).map(|_| (roll(4000), 1 + roll(3))).map(|(at, gateway)| (at, Some(gateway))).collect();
        // One gateway dies or loses its way to a leader, at some step.
        calls.push((roll(9000), None));
        calls.sort_unstable();
        let (mut began, mut pending) = (0, Vec::new());
        for (at, gateway) in calls {
            cluster.run_for(Duration::from_micros(at - began));
            began = at;
            match gateway {
                Some(gateway) => {
                    let whole = whole.clone();
                    let call =
                        move |router: Router, deadline| async move { router.transact(id, &whole, deadline).await };
                    pending.extend(cluster.start(gateway, LONG, call));
                }
                None if roll(3) == 0 => cluster.spoil_network(0.15, 0.3),
                None if roll(2) == 0 => cluster.crash(1 + roll(3), Duration::from_millis(200 + roll(9000))),
                None => cluster.cut(1 + roll(3), 1 + roll(3)),
            }
        }
        cluster.run_for(Duration::from_millis(roll(12_000)));
        cluster.heal();
        cluster.run_for(Duration::from_secs(2));
        // It must go through in the end; that it takes effect once is what this is about.
        let mut last = None;
        for _ in 0..20 {
            let asked = transact(&mut cluster, 1 + roll(3), id, &whole);
            last = wait(&mut cluster, &asked);
            cluster.run_for(Duration::from_secs(1));
            if matches!(last, Some(Ok(_))) {
                break;
            }
        }
        assert!(matches!(last, Some(Ok(_))), "seed {seed}, round {round}: it never goes through: {last:?}");
        done += 1;
        cluster.run_for(Duration::from_secs(8));
        let counters = (counter(&mut cluster, "a"), counter(&mut cluster, "z"));
        assert_eq!(counters, (done, done), "seed {seed}, round {round}");
        drop(pending);
    }
    assert_eq!(cluster.failures(), Vec::<String>::new());
}

#[test]
fn copies_of_one_request_through_several_gateways_take_effect_once() {
    let seeds = std::env::var("FLOTILLA_ATTACKS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(30);
    let first = std::env::var("FLOTILLA_ATTACKS_FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(0);
    (first..first + seeds).for_each(copies);
}

#[test]
fn a_request_id_of_a_client_whose_clock_is_ahead_is_refused_also_over_several_ranges() {
    for micros in (0..40).map(|step| 250 * step) {
        assert_eq!(dies_at(micros, 20_000), None, "died after {micros} µs");
    }
}

#[test]
fn two_answers_to_one_request_name_the_same_branch() {
    let mut cluster = cluster(3);
    assert_eq!(cluster.put(1, &key("a"), "x", LONG).unwrap().result, Ok(()));
    let id = id(&mut cluster, 0);
    // The first try waits for a lock on what it is to write.
    let hold = |router: Router, deadline: Duration| async move {
        let mut txn = router.begin(TxnOptions::default())?;
        txn.write(key("z"), Some(Bytes::from_static(b"held")), Wait::Block, deadline).await?;
        router.clock().sleep(Duration::from_millis(300)).await;
        txn.rollback().await;
        Ok(())
    };
    let _holder = cluster.start(1, LONG, hold).unwrap();
    cluster.run_for(Duration::from_millis(40));
    let whole = Whole {
        compares: vec![Compare { key: key("a"), expected: Some(Bytes::from_static(b"x")) }],
        then: vec![OneShot::Increment(key("z"), 1)],
        otherwise: Vec::new(),
    };
    let first = transact(&mut cluster, 2, id, &whole);
    cluster.run_for(Duration::from_millis(40));
    assert!(!first.is_answered());
    // Meanwhile the comparison does not hold any more, and its client, out of patience, comes again through another gateway.
    assert_eq!(cluster.put(3, &key("a"), "y", LONG).unwrap().result, Ok(()));
    let second = transact(&mut cluster, 3, id, &whole);
    let second = wait(&mut cluster, &second).unwrap();
    let first = wait(&mut cluster, &first).unwrap();
    cluster.run_for(Duration::from_secs(5));
    let z = counter(&mut cluster, "z");
    if let Ok(second) = &second {
        assert!(second.held == (z == 1), "told {second:?} (first: {first:?}), and z is {z}");
    }
}

#[test]
fn nobody_is_told_of_a_commit_that_his_clock_has_not_reached() {
    let mut cluster = cluster(3);
    let id = id(&mut cluster, 0);
    for gateway in [2, 3] {
        for name in ["a-known", "z-known"] {
            assert_eq!(cluster.put(gateway, &key(name), "x", LONG).unwrap().result, Ok(()));
        }
    }
    // Somebody reads a little ahead, as a causality token of a clock that is ahead makes him.
    let ahead = |router: Router, deadline: Duration| async move {
        let token = Some(router.clock().now()?.plus(Duration::from_millis(220)));
        let mut txn = router.begin(TxnOptions { token, ..TxnOptions::default() })?;
        txn.get(key("a"), Wait::Block, deadline).await.map(drop)
    };
    let _reader = cluster.start(1, LONG, ahead).unwrap();
    cluster.run_for(Duration::from_millis(5));
    // What is written now commits above; whichever of the two copies commits waits for its clock before it tells, and the
    // other one finds it done.
    let copy = || {
        let whole = both();
        move |router: Router, deadline| async move {
            let done = router.transact(id, &whole, deadline).await?;
            Ok((done.at, router.clock().now()?))
        }
    };
    let first = cluster.start(2, LONG, copy()).unwrap();
    cluster.run_for(Duration::from_millis(60));
    let second = cluster.start(3, LONG, copy()).unwrap();
    for pending in [first, second] {
        let (at, clock) = wait(&mut cluster, &pending).unwrap().unwrap();
        assert!(clock >= at, "told of a commit at {at} while the clock shows {clock}");
    }
}

#[test]
fn a_key_that_was_skipped_is_no_matter_of_whoever_skipped_it() {
    let mut cluster = cluster(3);
    for name in ["q1", "q2"] {
        assert_eq!(cluster.put(1, &key(name), "job", LONG).unwrap().result, Ok(()));
    }
    // Two workers take jobs from a queue.
    let other = |router: Router, deadline: Duration| async move {
        let mut txn = router.begin(TxnOptions::default())?;
        txn.get_and_lock(key("q1"), Strength::Exclusive, Wait::Skip, deadline).await?;
        router.clock().sleep(Duration::from_millis(100)).await;
        // Somebody looks at the job, so that its removal lies above.
        assert!(router.get(key("q1"), deadline).await?.row.is_some());
        txn.write(key("q1"), None, Wait::Block, deadline).await?;
        txn.commit(deadline).await.map(drop)
    };
    let other = cluster.start(1, LONG, other).unwrap();
    cluster.run_for(Duration::from_millis(50));
    let mine = |router: Router, deadline: Duration| async move {
        let mut txn = router.begin(TxnOptions::default())?;
        assert_eq!(txn.get_and_lock(key("q1"), Strength::Exclusive, Wait::Skip, deadline).await?, None);
        assert!(txn.get_and_lock(key("q2"), Strength::Exclusive, Wait::Skip, deadline).await?.is_some());
        router.clock().sleep(Duration::from_millis(100)).await;
        assert!(router.get(key("q2"), deadline).await?.row.is_some());
        txn.write(key("q2"), None, Wait::Block, deadline).await?;
        txn.commit(deadline).await.map(drop)
    };
    let mine = cluster.start(2, LONG, mine).unwrap();
    assert_eq!(wait(&mut cluster, &other), Some(Ok(())));
    assert_eq!(wait(&mut cluster, &mine), Some(Ok(())));
}
