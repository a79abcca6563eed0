//! One thing goes wrong, and the test says what must follow.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use flotilla_kv::KvError;
use flotilla_sim::Cluster;
use flotilla_types::{Key, RangeError, keys};

/// The support duration of the product: so long a lease can last without being renewed.
const LEASE: Duration = Duration::from_millis(2500);
const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(15);

fn key() -> Key {
    keys::user(b"k")
}

/// Three stores, one acknowledged value, led by store 1.
fn cluster(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed, 3);
    for _ in 0..5 {
        if cluster.leader(&key()) == Some(1) {
            break;
        }
        cluster.transfer(&key(), 1);
        cluster.run_for(Duration::from_secs(1));
    }
    assert_eq!(cluster.leader(&key()), Some(1));
    assert_eq!(cluster.put(2, &key(), "old", LONG).unwrap().result, Ok(()));
    cluster
}

fn read(cluster: &mut Cluster, gateway: u64) -> Option<String> {
    cluster.get(gateway, &key(), LONG).expect("an answer").result.expect("a value")
}

fn assert_sound(cluster: &Cluster) {
    assert_eq!(cluster.failures(), Vec::<String>::new());
}

#[test]
fn a_store_whose_log_stalls_loses_its_leaderships_within_the_lease_and_acknowledges_nothing_meanwhile() {
    for seed in 0..10 {
        let mut cluster = cluster(seed);
        cluster.stall_disk(1, Duration::from_secs(30));
        let stalled = cluster.now();
        // A client that insists on this store hears of no success; one that asks the others is served in time.
        let written = cluster.put(2, &key(), "new", LONG).expect("an answer");
        assert_eq!(written.result, Ok(()), "seed {seed}");
        let took = written.at - stalled;
        assert!(took > Duration::from_millis(500) && took < LEASE + Duration::from_secs(3), "seed {seed}: {took:?}");
        assert_ne!(cluster.leader(&key()), None);
        // From here on the stalled store may serve nothing: its lease has ended, at its own clock too.
        let at = cluster.now();
        cluster.run_for((stalled + LEASE + Duration::from_millis(250)).saturating_sub(at));
        let stale = cluster.get_at(1, &key(), Duration::from_secs(1));
        assert!(!matches!(stale, Some(Ok(_))), "seed {seed}: it still serves: {stale:?}");
        assert_eq!(read(&mut cluster, 3).as_deref(), Some("new"));
        cluster.heal();
        cluster.run_for(Duration::from_secs(10));
        assert_eq!(read(&mut cluster, 1).as_deref(), Some("new"));
        assert_sound(&cluster);
    }
}

#[test]
fn a_store_that_hears_nobody_gives_its_leases_up_and_serves_nothing_stale() {
    for seed in 0..10 {
        let mut cluster = cluster(seed);
        // Its messages still arrive: for the others it looks alive.
        cluster.cut(2, 1);
        cluster.cut(3, 1);
        // Its lease ends, and it steps down at its second look at its quorum at the latest.
        cluster.run_for(LEASE * 3 + Duration::from_secs(1));
        assert!(matches!(cluster.leader(&key()), Some(2 | 3)), "seed {seed}: {:?}", cluster.leader(&key()));
        assert_eq!(cluster.put(2, &key(), "new", LONG).expect("an answer").result, Ok(()), "seed {seed}");
        let stale = cluster.get_at(1, &key(), Duration::from_secs(1));
        assert!(!matches!(&stale, Some(Ok(Some(value))) if value == "old"), "seed {seed}: {stale:?}");
        cluster.heal();
        cluster.run_for(Duration::from_secs(10));
        assert_eq!(read(&mut cluster, 1).as_deref(), Some("new"));
        assert_sound(&cluster);
    }
}

#[test]
fn a_clock_that_jumps_past_the_bound_takes_its_store_out_of_service_and_nobody_else() {
    for (seed, jump_ms) in [(0, 1000), (1, 5000), (2, -1000), (3, -5000), (4, 60_000)] {
        let mut cluster = cluster(seed);
        cluster.step_clock(1, jump_ms);
        cluster.run_for(Duration::from_millis(300));
        let asked = cluster.get_at(1, &key(), Duration::from_secs(1));
        match &asked {
            None | Some(Err(RangeError::StoreNotServing { .. } | RangeError::NotLeaseholder { .. })) => {}
            other => panic!("{jump_ms} ms: {other:?}"),
        }
        // Messages from a clock far ahead move nobody's clock, and the others go on.
        let written = cluster.put(2, &key(), "new", LONG).expect("an answer");
        assert_eq!(written.result, Ok(()), "{jump_ms} ms");
        assert_eq!(read(&mut cluster, 3).as_deref(), Some("new"));
        assert!(cluster.count("suspended") >= 1, "{jump_ms} ms: it did not notice");
        assert_sound(&cluster);
    }
}

#[test]
fn a_full_disk_refuses_what_adds_data_and_still_reads_and_deletes() {
    let mut cluster = cluster(0);
    for store in 1..=3 {
        cluster.fill_disk(store, true);
    }
    let refused = cluster.put(2, &key(), "more", SOON).expect("an answer").result;
    assert!(matches!(refused, Err(KvError::DiskFull { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("delete data or add disk"));
    assert_eq!(read(&mut cluster, 3).as_deref(), Some("old"));
    assert_eq!(cluster.delete(2, &key(), SOON).expect("an answer").result, Ok(()));
    assert_eq!(read(&mut cluster, 3), None);
    for store in 1..=3 {
        cluster.fill_disk(store, false);
    }
    assert_eq!(cluster.put(2, &key(), "again", SOON).expect("an answer").result, Ok(()));
    assert_sound(&cluster);
}

#[test]
fn a_store_whose_log_lost_its_synced_tail_does_not_start_as_itself_and_nothing_is_lost() {
    let mut cluster = cluster(0);
    cluster.save_log(1);
    for n in 0..10 {
        assert_eq!(cluster.put(2, &key(), &format!("new {n}"), LONG).unwrap().result, Ok(()));
    }
    cluster.lose_log_tail(1);
    cluster.run_for(Duration::from_secs(8));
    let why = cluster.fenced(1).expect("it must not start");
    assert!(why.contains("was synced up to"), "{why}");
    assert_eq!(read(&mut cluster, 2).as_deref(), Some("new 9"));
    assert_eq!(cluster.put(3, &key(), "later", LONG).unwrap().result, Ok(()));
    assert_sound(&cluster);
}

#[test]
fn a_damaged_entry_costs_its_replica_and_nothing_else() {
    let mut cluster = cluster(1);
    for n in 0..10 {
        assert_eq!(cluster.put(2, &key(), &format!("new {n}"), LONG).unwrap().result, Ok(()));
    }
    assert!(cluster.damage_an_entry(3));
    cluster.run_for(Duration::from_secs(8));
    assert_eq!(cluster.count("replicas lost"), 1, "it is noticed");
    assert_eq!(cluster.put(2, &key(), "later", LONG).unwrap().result, Ok(()));
    assert_eq!(read(&mut cluster, 1).as_deref(), Some("later"));
    // The store lives and serves its other ranges; of this one it says nothing stale.
    let asked = cluster.get_at(3, &key(), Duration::from_secs(1));
    assert!(!matches!(asked, Some(Ok(_))), "{asked:?}");
    assert_sound(&cluster);
}
