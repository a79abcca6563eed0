//! What transactions cost between datacenters, in virtual time: nothing else runs and messages take exactly as long as they
//! are told to, so that a latency counts the ways in a row that a client waits for. That is a property of the protocol, so it
//! is asserted; speed on real machines is measured by `make e2e-latency` and `make bench`.
//!
//! `cargo test --release -p flotilla-sim --test latency -- --nocapture` prints the table.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, Router, TxnOptions};
use flotilla_sim::Cluster;
use flotilla_types::{BatchOp, Compare, Key, OneShot, Wait, Whole, Write, WriteResult, keys};

/// From one datacenter to another; there and back is twice that.
const ONE_WAY: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(10);
/// Until nothing of the last transaction is left: its record ends and its locks are resolved behind the client's back.
const REST: Duration = Duration::from_millis(400);
const ROUNDS: usize = 21;
/// Where the client is.
const GATEWAY: u64 = 1;
/// The first keys of six ranges. The first is for what stays in one range, the others for what does not.
const RANGES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn key(range: &str, n: usize) -> Key {
    keys::user(format!("{range}/{n}").as_bytes())
}

/// Ten keys of one range.
fn close() -> Vec<Key> {
    (0..10).map(|n| key(RANGES[0], n)).collect()
}

/// Ten keys over five ranges.
fn far() -> Vec<Key> {
    (0..10).map(|n| key(RANGES[1 + n % 5], n)).collect()
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    Put,
    BatchInOneRange,
    ComparedInOneRange,
    BatchOverRanges,
    ReadsBeside,
    ComparedOverRanges,
    InteractiveOnePut,
    InteractiveTenPuts,
    /// Over five ranges, while the locks of the one before are still there.
    BatchAgainAtOnce,
}

/// Each with its name, and how often a client waits for a way there and back: with all ranges led in its datacenter, with all
/// led in another one, and with ranges led in all three.
const DEEDS: [(Deed, &str, [f64; 3]); 9] = [
    (Deed::Put, "one put", [1.0, 2.0, 1.0]),
    (Deed::BatchInOneRange, "batch: 10 keys, one range", [1.0, 2.0, 1.0]),
    (Deed::ComparedInOneRange, "comparison and 10 puts, one range", [1.0, 2.0, 1.0]),
    (Deed::BatchOverRanges, "batch: 10 keys, 5 ranges", [1.0, 2.0, 2.0]),
    (Deed::ReadsBeside, "5 gets and 10 puts, 5 ranges", [1.0, 3.0, 3.0]),
    // The one before tells its record, which resolves its locks, and then they are its own.
    (Deed::BatchAgainAtOnce, "batch: 10 keys, 5 ranges, the same keys again at once", [3.0, 4.0, 6.0]),
    (Deed::ComparedOverRanges, "5 comparisons and 10 puts, 5 ranges", [2.0, 5.0, 5.0]),
    (Deed::InteractiveOnePut, "interactive: one put", [2.0, 4.0, 2.0]),
    (Deed::InteractiveTenPuts, "interactive: 10 puts, 5 ranges", [11.0, 22.0, 20.0]),
];
/// What is not waiting for messages: syncs, turns of loops, ways within a machine.
const WORK: f64 = 0.2;

fn value(round: usize) -> Bytes {
    Bytes::from(format!("{round:0100}"))
}

fn puts(keys: Vec<Key>, round: usize) -> Vec<OneShot> {
    keys.into_iter().map(|key| OneShot::Write(key, Some(value(round)))).collect()
}

impl Deed {
    async fn perform(self, router: &Router, round: usize, deadline: Duration) -> Result<(), KvError> {
        match self {
            Self::Put => write(router, Write::Put { key: key(RANGES[0], 0), value: value(round) }, deadline).await,
            Self::BatchInOneRange => batch(router, close(), round, deadline).await,
            Self::BatchOverRanges | Self::BatchAgainAtOnce => batch(router, far(), round, deadline).await,
            Self::ComparedInOneRange => {
                let compares = vec![Compare { key: key(RANGES[0], 99), expected: None }];
                transact(router, Whole { compares, then: puts(close(), round), ..Whole::default() }, deadline).await
            }
            Self::ReadsBeside => {
                let gets = RANGES[1..].iter().map(|range| OneShot::Get(key(range, 99)));
                let then = gets.chain(puts(far(), round)).collect();
                transact(router, Whole { then, ..Whole::default() }, deadline).await
            }
            Self::ComparedOverRanges => {
                let compare = |range: &&str| Compare { key: key(range, 99), expected: None };
                let compares = RANGES[1..].iter().map(compare).collect();
                transact(router, Whole { compares, then: puts(far(), round), ..Whole::default() }, deadline).await
            }
            Self::InteractiveOnePut => interactive(router, vec![key(RANGES[0], 0)], round, deadline).await,
            Self::InteractiveTenPuts => interactive(router, far(), round, deadline).await,
        }
    }
}

async fn write(router: &Router, write: Write, deadline: Duration) -> Result<(), KvError> {
    let (result, _) = router.write(router.request_id()?, write, deadline).await?;
    assert_eq!(result, WriteResult::Done);
    Ok(())
}

async fn batch(router: &Router, keys: Vec<Key>, round: usize, deadline: Duration) -> Result<(), KvError> {
    let ops = keys.into_iter().map(|key| BatchOp::Put { key, value: value(round) }).collect();
    write(router, Write::Batch { ops }, deadline).await
}

async fn transact(router: &Router, whole: Whole, deadline: Duration) -> Result<(), KvError> {
    let done = router.transact(router.request_id()?, &whole, deadline).await?;
    assert!(done.held, "its comparisons hold");
    assert_eq!(done.rows.len(), whole.then.len(), "one try did it");
    Ok(())
}

async fn interactive(router: &Router, keys: Vec<Key>, round: usize, deadline: Duration) -> Result<(), KvError> {
    let mut txn = router.begin(TxnOptions::default())?;
    for key in keys {
        txn.write(key, Some(value(round)), Wait::Block, deadline).await?;
    }
    txn.commit(deadline).await.map(drop)
}

/// How long a client at the gateway waits for a deed.
fn time(cluster: &mut Cluster, deed: Deed, round: usize) -> Duration {
    let call = move |router: Router, deadline| async move {
        // Not when it was asked for: the simulator begins it with its next event.
        let begun = router.clock().mono();
        deed.perform(&router, round, deadline).await?;
        Ok(router.clock().mono() - begun)
    };
    let pending = cluster.start(GATEWAY, PATIENCE, call).expect("the gateway is up");
    let limit = cluster.now() + PATIENCE;
    cluster.run_until(limit, || pending.is_answered());
    pending.take().expect("an answer").result.unwrap_or_else(|error| panic!("{deed:?}: {error}"))
}

/// Three datacenters, and six ranges whose leaders are where they should be.
fn cluster(seed: u64, leader: impl Fn(usize) -> u64) -> Cluster {
    let mut cluster = Cluster::over_datacenters(seed, 3, ONE_WAY);
    for range in RANGES {
        assert!(cluster.split(&keys::user(range.as_bytes())), "no range begins at {range}");
    }
    for (place, range) in RANGES.iter().enumerate() {
        // Who has led for a moment only may not hand over yet.
        for _ in 0..10 {
            if cluster.leader(&key(range, 0)) != Some(leader(place)) {
                cluster.transfer(&key(range, 0), leader(place));
                cluster.run_for(Duration::from_millis(500));
            }
        }
        assert_eq!(cluster.leader(&key(range, 0)), Some(leader(place)), "the leader of {range}");
    }
    // The gateway finds out where the ranges are.
    for deed in [Deed::Put, Deed::BatchOverRanges] {
        time(&mut cluster, deed, 0);
    }
    cluster.run_for(REST);
    cluster
}

/// Sorted latencies by deed. The deeds take turns.
fn measure(cluster: &mut Cluster) -> BTreeMap<Deed, Vec<Duration>> {
    let mut latencies: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (deed, ..) in DEEDS {
            if deed == Deed::BatchAgainAtOnce {
                time(cluster, deed, round);
            }
            latencies.entry(deed).or_default().push(time(cluster, deed, round));
            // Not in step with what nodes do at regular times.
            cluster.run_for(REST + Duration::from_millis(7) * u32::try_from(round).unwrap());
        }
    }
    assert_eq!(cluster.failures(), Vec::<String>::new());
    latencies.values_mut().for_each(|all| all.sort());
    latencies
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn print(title: &str, latencies: &BTreeMap<Deed, Vec<Duration>>) {
    println!("\n{title}\n{:<56}{:>10}{:>10}{:>8}", "", "median ms", "worst ms", "ratio");
    let put = milliseconds(latencies[&Deed::Put][ROUNDS / 2]);
    for (deed, name, _) in DEEDS {
        let all = &latencies[&deed];
        let (median, worst) = (milliseconds(all[ROUNDS / 2]), milliseconds(all[ROUNDS - 1]));
        println!("{name:<56}{median:>10.2}{worst:>10.2}{:>8.2}", median / put);
    }
}

/// A median may take as many ways as the table says; fewer are welcome.
fn assert_ways(latencies: &BTreeMap<Deed, Vec<Duration>>, place: usize) {
    for (deed, name, ways) in DEEDS {
        let taken = latencies[&deed][ROUNDS / 2].as_secs_f64() / (2 * ONE_WAY).as_secs_f64();
        assert!(taken <= ways[place] + WORK, "{name}: {taken:.2} ways there and back");
    }
}

#[test]
fn one_shots_that_are_led_in_the_clients_datacenter_cost_about_as_much_as_one_put() {
    for seed in 0..5 {
        let latencies = measure(&mut cluster(seed, |_| GATEWAY));
        if seed == 0 {
            print("10 ms one way, all ranges led in the client's datacenter", &latencies);
        }
        // The worst of its kind against the best put.
        let ratio = |deed: Deed| latencies[&deed][ROUNDS - 1].as_secs_f64() / latencies[&Deed::Put][0].as_secs_f64();
        for deed in [Deed::BatchInOneRange, Deed::ComparedInOneRange] {
            assert!(ratio(deed) <= 1.1, "seed {seed}, {deed:?}: {}", ratio(deed));
        }
        for deed in [Deed::BatchOverRanges, Deed::ReadsBeside] {
            assert!(ratio(deed) <= 1.3, "seed {seed}, {deed:?}: {}", ratio(deed));
        }
        assert_ways(&latencies, 0);
    }
}

#[test]
fn transactions_that_are_led_in_another_datacenter_wait_once_more_for_each_round() {
    let latencies = measure(&mut cluster(0, |_| 2));
    print("10 ms one way, all ranges led in another datacenter", &latencies);
    assert_ways(&latencies, 1);
}

#[test]
fn transactions_over_ranges_that_are_led_all_over_wait_for_the_farthest() {
    let latencies = measure(&mut cluster(0, |place| u64::try_from(place).unwrap() % 3 + 1));
    print("10 ms one way, ranges led in all three datacenters, that of the put in the client's", &latencies);
    assert_ways(&latencies, 2);
}
