//! Stores on real disks: what they do alone, what they refuse, and what three of them survive.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flotilla_node::store::{DirError, Failure, Opened, Space, SpaceProbe, StartError, StoreConfig, StoreDir};
use flotilla_range::gc::GcConfig;
use flotilla_storage::engine::{Engine as _, Reader as _};
use flotilla_storage::keys;
use flotilla_storage::rocks::RocksEngine;
use flotilla_types::{ClusterId, KeySpan, RangeError, RangeId, StoreId};
use world::{Cluster, config, put, start, store_dir};

const CLUSTER: ClusterId = ClusterId([1; 16]);

#[tokio::test]
async fn a_store_keeps_what_it_acknowledged_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    for round in 1..=3u32 {
        let (store, handle) = start(dir.path()).await;
        assert_eq!(handle.boot(), round);
        for earlier in 1..round {
            assert_eq!(world::get(&handle, &format!("k{earlier}")).await, Some(format!("v{earlier}")));
        }
        world::write(&handle, put(&format!("k{round}"), &format!("v{round}"))).await;
        assert_eq!(world::get(&handle, &format!("k{round}")).await, Some(format!("v{round}")));
        assert_eq!(handle.inspect().await.len(), 5);
        assert!(handle.inspect_range(world::USER).await.unwrap().leads);
        world::close(store).await;
        let after = handle.request(world::get_request("k1")).await;
        assert!(matches!(after, Err(RangeError::StoreNotServing { .. })), "a handle may outlive its store: {after:?}");
    }
}

#[tokio::test]
async fn old_versions_are_refused_after_their_time_and_then_go_from_the_disk() {
    let gc = GcConfig {
        ttl: Duration::from_secs(4),
        every: Duration::from_millis(100),
        worth_bytes: 1,
        ..GcConfig::default()
    };
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    let config = || StoreConfig { gc, ..config() };
    let (store, handle) = world::start_with(dir.path(), config()).await;
    world::write(&handle, put("k", "old")).await;
    let reply = handle.request(world::get_request("k")).await.unwrap();
    let at = reply.timestamp;
    for n in 0..10 {
        world::write(&handle, put("k", &n.to_string())).await;
    }
    // What is written keeps the range awake.
    let threshold = loop {
        world::write(&handle, put("busy", "x")).await;
        let threshold = handle.inspect_range(world::USER).await.unwrap().gc_threshold;
        if threshold >= at {
            break threshold;
        }
    };
    let refused = |answer| matches!(answer, Err(RangeError::BelowGcThreshold { timestamp, .. }) if timestamp == at);
    assert!(refused(handle.request(world::get_request_at("k", at)).await));
    world::close(store).await;
    // The threshold survives, and so does what it keeps.
    let (store, handle) = world::start_with(dir.path(), config()).await;
    assert_eq!(world::get(&handle, "k").await, Some("9".to_owned()));
    assert!(handle.inspect_range(world::USER).await.unwrap().gc_threshold >= threshold);
    assert!(refused(handle.request(world::get_request_at("k", at)).await));
    world::close(store).await;
    let engine = RocksEngine::open(&dir.path().join("kv"), config().engine).unwrap();
    let span = keys::version_span(&KeySpan::point(flotilla_types::keys::user(b"k")));
    let versions = || {
        let mut cursor = engine.cursor(&span.0, &span.1);
        let (mut there, mut count) = (cursor.seek(&span.0).unwrap(), 0);
        while there {
            count += 1;
            there = cursor.next().unwrap();
        }
        count
    };
    engine.gc().publish(&KeySpan::ALL, threshold);
    engine.collect(&span);
    assert_eq!(versions(), 1);
}

#[tokio::test]
async fn a_restarted_store_is_mute_until_its_clock_has_passed_what_it_promised() {
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    let (store, handle) = start(dir.path()).await;
    world::write(&handle, put("k", "v")).await;
    let promised = handle.clock().bound();
    world::close(store).await;
    let (store, handle) = start(dir.path()).await;
    let early = handle.request(world::get_request("k")).await;
    assert!(matches!(early, Err(RangeError::StoreNotServing { .. })), "{early:?}");
    assert_eq!(world::get(&handle, "k").await, Some("v".to_owned()));
    assert!(handle.clock().now().unwrap() > promised);
    world::close(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_stores_serve_on_when_one_is_gone_and_take_it_back() {
    let mut cluster = Cluster::start(3).await;
    for n in 0..50 {
        cluster.write(put(&format!("k{n:02}"), &format!("a{n}"))).await;
    }
    let leader = cluster.leader().await;
    cluster.kill(leader).await;
    for n in 0..50 {
        cluster.write(put(&format!("k{n:02}"), &format!("b{n}"))).await;
    }
    assert_ne!(cluster.leader().await, leader);
    cluster.restart(leader).await;
    for n in 0..50 {
        assert_eq!(cluster.get(&format!("k{n:02}")).await, Some(format!("b{n}")));
    }
    let sums = cluster.settle().await;
    assert!(sums.len() == 3 && sums.iter().all(|sum| *sum == sums[0]), "replicas differ: {sums:?}");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_store_leads_nothing() {
    let mut cluster = Cluster::start(3).await;
    cluster.write(put("k", "v")).await;
    let leader = cluster.leader().await;
    assert!(cluster.drain(leader, Duration::from_secs(20)).await, "every range has another voter to lead it");
    assert_eq!(cluster.get("k").await, Some("v".to_owned()));
    assert_ne!(cluster.leader().await, leader);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_store_gets_its_replica_by_snapshot_and_keeps_it_over_a_kill() {
    let mut cluster = Cluster::start(3).await;
    let value = "v".repeat(50_000);
    for n in 0..60 {
        cluster.write(put(&format!("k{n:02}"), &value)).await;
    }
    cluster.join(StoreId(4)).await;
    cluster.move_to(world::USER, &[1, 2, 4]).await;
    cluster.compare(world::USER, 1).await;
    cluster.kill(StoreId(4)).await;
    cluster.write(put("while", "away")).await;
    cluster.restart(StoreId(4)).await;
    cluster.move_to(world::USER, &[2, 3, 4]).await;
    assert_eq!(cluster.get("while").await, Some("away".to_owned()));
    assert_eq!(cluster.get("k59").await, Some(value));
    cluster.compare(world::USER, 2).await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_range_comes_back_whole_on_every_store() {
    let mut cluster = Cluster::start(3).await;
    for n in 0..20 {
        cluster.write(put(&format!("k{n:02}"), "old")).await;
    }
    let right = cluster.split(world::USER, "k10", 101).await;
    assert_eq!(right.range, RangeId(101));
    cluster.write_in(RangeId(101), put("k15", "new")).await;
    for store in 1..=3 {
        // The files of a running store: nothing of the cut is flushed in them, and the child's log is.
        cluster.kill(StoreId(store)).await;
        cluster.restart(StoreId(store)).await;
        assert_eq!(cluster.get_in(RangeId(101), "k15").await, Some("new".to_owned()));
        assert_eq!(cluster.get("k05").await, Some("old".to_owned()));
    }
    cluster.compare(world::USER, 1).await;
    cluster.compare(RangeId(101), 1).await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_past_the_bound_takes_its_store_out_and_nobody_else() {
    let mut cluster = Cluster::start(3).await;
    cluster.write(put("k", "before")).await;
    let leader = cluster.leader().await;
    let wrong = cluster.handle(leader);
    wrong.clock().set_wrong_by_ns(3_600_000_000_000);
    let refuses = async {
        while !matches!(wrong.request(world::get_request("k")).await, Err(RangeError::StoreNotServing { .. })) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refuses).await.unwrap();
    // The others take no reading of its clock, and go on without it.
    cluster.write(put("k", "after")).await;
    assert_eq!(cluster.get("k").await, Some("after".to_owned()));
    for other in cluster.handles().iter().filter(|other| other.store() != leader) {
        assert!(other.clock().peek() < wrong.clock().peek().minus(Duration::from_secs(3000)));
    }
    let still = wrong.request(world::get_request("k")).await;
    assert!(matches!(still, Err(RangeError::StoreNotServing { .. })), "{still:?}");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_right_is_trusted_again() {
    let mut cluster = Cluster::start(3).await;
    cluster.write(put("k", "before")).await;
    let leader = cluster.leader().await;
    let wrong = cluster.handle(leader);
    wrong.clock().set_wrong_by_ns(-200_000_000);
    let serves = |wanted: bool| {
        let wrong = wrong.clone();
        async move {
            loop {
                let answer = wrong.request(world::get_request("k")).await;
                if matches!(answer, Err(RangeError::StoreNotServing { .. })) != wanted {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), serves(false)).await.unwrap();
    wrong.clock().set_wrong_by_ns(0);
    tokio::time::timeout(Duration::from_secs(10), serves(true)).await.unwrap();
    cluster.write(put("k", "after")).await;
    assert_eq!(cluster.get("k").await, Some("after".to_owned()));
    cluster.close().await;
}

fn refused(dir: &Path) -> DirError {
    match StoreDir::open(dir) {
        Err(error) => error,
        Ok(opened) => panic!("opened: {opened:?}"),
    }
}

async fn not_started(dir: &Path) -> StartError {
    let Ok(Opened::Store(opened)) = StoreDir::open(dir) else { panic!("the files alone should not tell") };
    match world::try_start(opened, config()).await {
        Err(error) => error,
        Ok(_) => panic!("started"),
    }
}

#[test]
fn a_directory_with_other_things_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let error = refused(dir.path());
    assert!(matches!(&error, DirError::Foreign { found, .. } if found == "thesis.tex"), "{error}");
    assert!(error.to_string().contains("give an empty directory"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made there");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let held = store_dir(dir.path(), CLUSTER, &[1], 1);
    assert!(matches!(refused(dir.path()), DirError::Locked { .. }));
    drop(held);
    assert!(StoreDir::open(dir.path()).is_ok());
}

#[test]
fn a_store_with_a_missing_part_is_refused_by_name() {
    for part in ["IDENT", "FORMAT", "kv", "log", "kv/CURRENT", "log/sync.mark"] {
        let dir = tempfile::tempdir().unwrap();
        drop(store_dir(dir.path(), CLUSTER, &[1], 1));
        fs::rename(dir.path().join(part), dir.path().join("elsewhere")).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, DirError::Missing { part: missing, .. } if missing == part), "{part}: {error}");
    }
}

#[test]
fn a_store_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    fs::write(dir.path().join("FORMAT"), "flotilla store, format 9\n").unwrap();
    assert!(matches!(refused(dir.path()), DirError::Format { .. }));
}

#[test]
fn a_uuid_stays_until_the_store_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let uuid = |opened| match opened {
        Opened::Fresh(fresh) => fresh.uuid(),
        Opened::Store(_) => panic!("no store was made"),
    };
    let first = uuid(StoreDir::open(dir.path()).unwrap());
    // A crash in the midst of making it.
    fs::create_dir(dir.path().join("kv")).unwrap();
    fs::write(dir.path().join("FORMAT"), "half").unwrap();
    let Ok(Opened::Fresh(again)) = StoreDir::open(dir.path()) else { panic!("still fresh") };
    assert_eq!(again.uuid(), first);
    let made = again.join_cluster(CLUSTER, StoreId(4)).unwrap();
    assert_eq!((made.identity().uuid, made.identity().store), (first, StoreId(4)));
}

#[tokio::test]
async fn parts_of_two_stores_do_not_make_one() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(store_dir(one.path(), CLUSTER, &[1], 1));
    drop(store_dir(other.path(), CLUSTER, &[2], 2));
    fs::copy(other.path().join("IDENT"), one.path().join("IDENT")).unwrap();
    let error = not_started(one.path()).await;
    assert!(matches!(error, StartError::Dir(DirError::Identity { .. })), "{error}");
    assert_eq!(error.exit_code(), 3);

    let third = tempfile::tempdir().unwrap();
    drop(store_dir(third.path(), CLUSTER, &[3], 3));
    fs::remove_dir_all(third.path().join("kv")).unwrap();
    fs::rename(other.path().join("kv"), third.path().join("kv")).unwrap();
    let error = not_started(third.path()).await;
    assert!(matches!(error, StartError::Dir(DirError::Identity { part: "kv", .. })), "{error}");
}

#[test]
fn a_damaged_identity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    let mut bytes = fs::read(dir.path().join("IDENT")).unwrap();
    bytes[5] ^= 1;
    fs::write(dir.path().join("IDENT"), bytes).unwrap();
    assert!(matches!(refused(dir.path()), DirError::Identity { part: "IDENT", .. }));
}

#[tokio::test]
async fn a_log_that_lost_synced_batches_fences_the_store() {
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    let (store, handle) = start(dir.path()).await;
    for n in 0..20 {
        world::write(&handle, put(&format!("k{n}"), "v")).await;
    }
    world::close(store).await;
    // The last thousand bytes of what was written, as a disk that lies would lose them.
    let mut files: Vec<_> = fs::read_dir(dir.path().join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "raftlog"));
    files.sort();
    let last = files.last().unwrap();
    let content = fs::read(last).unwrap();
    let end = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut file = fs::File::options().write(true).open(last).unwrap();
    file.seek(SeekFrom::Start((end - 1000) as u64)).unwrap();
    file.write_all(&vec![0; 1000]).unwrap();
    drop(file);
    let error = not_started(dir.path()).await;
    assert!(matches!(error, StartError::Fenced { store: StoreId(1), .. }), "{error}");
    assert!(error.to_string().contains("join again"));
    assert_eq!(error.exit_code(), 3);
}

/// A disk that has as much room as it is told.
struct Told(std::sync::atomic::AtomicU64);

impl SpaceProbe for Told {
    fn space(&self, _: &Path) -> std::io::Result<Space> {
        Ok(Space { free: self.0.load(std::sync::atomic::Ordering::Relaxed), total: 1 << 40 })
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_process_with_its_own_code_and_refuses_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let opened = store_dir(dir.path(), CLUSTER, &[1], 1);
    let told = Arc::new(Told((1 << 30).into()));
    let (failure, mut failures) = tokio::sync::mpsc::channel(4);
    let on_failure = flotilla_node::store::OnFailure::new(move |met| drop(failure.try_send(met)));
    let space: Arc<dyn SpaceProbe> = Arc::clone(&told) as _;
    let config = StoreConfig { space, on_failure, reserve_bytes: Some(4 << 20), ..config() };
    let (store, handle) = world::try_start(opened, config.clone()).await.unwrap();
    world::write(&handle, put("k", "v")).await;
    told.0.store(1000, std::sync::atomic::Ordering::Relaxed);
    let met = tokio::time::timeout(Duration::from_secs(10), failures.recv()).await.unwrap().unwrap();
    assert_eq!((&met, met.exit_code()), (&Failure::DiskFull, 5));
    assert!(!dir.path().join("reserve").exists(), "the reserve was given back before");
    world::close(store).await;
    let Ok(Opened::Store(opened)) = StoreDir::open(dir.path()) else { panic!("it is a store") };
    let Err(error) = world::try_start(opened, config.clone()).await else { panic!("started") };
    assert_eq!(error.exit_code(), 5, "{error}");
    told.0.store(1 << 30, std::sync::atomic::Ordering::Relaxed);
    let Ok(Opened::Store(opened)) = StoreDir::open(dir.path()) else { panic!("it is a store") };
    let (store, handle) = world::try_start(opened, config).await.unwrap();
    assert_eq!(world::get(&handle, "k").await, Some("v".to_owned()));
    world::close(store).await;
}

#[tokio::test]
async fn a_store_that_is_dropped_mid_way_answers_everybody() {
    let dir = tempfile::tempdir().unwrap();
    drop(store_dir(dir.path(), CLUSTER, &[1], 1));
    let (store, handle) = start(dir.path()).await;
    world::write(&handle, put("k", "v")).await;
    let callers: Vec<_> = (0..200)
        .map(|n| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.request(world::put_request(&format!("k{n}"), "w")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    world::close(store).await;
    for caller in callers {
        // Done, refused, or in doubt; never silent.
        let _ = tokio::time::timeout(Duration::from_secs(5), caller).await.unwrap().unwrap();
    }
}
