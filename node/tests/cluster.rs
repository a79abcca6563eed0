//! Whole nodes in one process, over real sockets and disks, spoken to through the SDK.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_client::Client;
use flotilla_node::cluster::InitRefused;
use flotilla_node::config::NodeConfig;
use flotilla_node::run::{Node, Progress};
use flotilla_proto::v1::{RangeDescriptor, ReplicaDescriptor, ReplicaKind};
use flotilla_storage::engine::{Engine, WriteBatch};
use flotilla_storage::mvcc;
use flotilla_storage::rocks::{RocksEngine, RocksOptions};
use flotilla_types::{KeySpan, keys};

const PATIENCE: Duration = Duration::from_secs(60);

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "a minute passed without: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn node(dir: &Path, join: &[&Node]) -> Node {
    node_that_checks(dir, join, Duration::ZERO).await
}

async fn node_that_checks(dir: &Path, join: &[&Node], every: Duration) -> Node {
    let mut config = NodeConfig::local(dir.to_owned());
    config.check_interval = every;
    config.join = join.iter().map(|node| node.peer_address().to_string()).collect();
    Node::start(config, None).await.unwrap()
}

async fn is_member(node: &Node) {
    let mut progress = node.progress();
    let member = progress.wait_for(|progress| matches!(progress, Progress::Member(_)));
    tokio::time::timeout(PATIENCE, member).await.unwrap().unwrap();
}

async fn client(nodes: &[&Node]) -> Client {
    Client::connect(nodes.iter().map(|node| node.client_address().to_string())).await.unwrap()
}

/// All ranges, once each has three voters. (With two of them and a learner a node could not be missed.)
async fn whole(all: &Client) -> Option<Vec<RangeDescriptor>> {
    let ranges = all.ranges(&KeySpan::ALL, 0).await.ok()?;
    let descriptors: Vec<_> = ranges.into_iter().filter_map(|range| range.descriptor).collect();
    let votes = |replica: &ReplicaDescriptor| replica.kind() == ReplicaKind::Voter;
    let full = |range: &RangeDescriptor| range.replicas.len() == 3 && range.replicas.iter().all(votes);
    (descriptors.len() == 5 && descriptors.iter().all(full)).then_some(descriptors)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_form_a_cluster_and_lose_nothing_with_their_first() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = node(dirs[0].path(), &[]).await;
    let cluster = first.init().await.unwrap();
    assert_eq!(first.init().await, Err(InitRefused::Member(cluster)));
    let second = node(dirs[1].path(), &[&first]).await;
    let third = node(dirs[2].path(), &[&first, &second]).await;
    for member in [&second, &third] {
        is_member(member).await;
        assert_eq!(member.init().await, Err(InitRefused::Member(cluster)), "one cluster has one beginning");
    }
    let all = client(&[&first, &second, &third]).await;
    let put = |key: &'static [u8], value: &'static [u8]| {
        let all = all.clone();
        async move { all.put(Bytes::from_static(key), Bytes::from_static(value)).await.ok().map(drop) }
    };
    eventually("a write", || put(b"k", b"v")).await;
    eventually("three voters of every range", || whole(&all)).await;
    first.stop().await.unwrap();
    let rest = client(&[&second, &third]).await;
    let read = || async { rest.get(Bytes::from_static(b"k")).await.ok()?.map(|row| row.value) };
    assert_eq!(eventually("a read", read).await, Bytes::from_static(b"v"));
    let again = node(dirs[0].path(), &[]).await;
    is_member(&again).await;
    let one = client(&[&again]).await;
    let read = || async { one.get(Bytes::from_static(b"k")).await.ok()?.map(|row| row.value) };
    assert_eq!(eventually("a read through the node that came back", read).await, Bytes::from_static(b"v"));
    for node in [again, second, third] {
        node.stop().await.unwrap();
    }
}

/// Changes the newest version of a key in a store's directory, behind the back of everybody.
fn flip(dir: &Path, key: &[u8], to: &[u8]) {
    let options = RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 };
    let engine = RocksEngine::open(&dir.join("kv"), options).unwrap();
    let key = keys::user(key);
    let version = mvcc::newest(&engine, &key).unwrap().expect("the replica holds it");
    let mut batch = WriteBatch::default();
    mvcc::write(&mut batch, &key, version.timestamp, Some(to), version.request);
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
}

/// Three nodes that compare their replicas; the third is stopped, something is done to its disk, and it starts again: the
/// replica that it was done to is found and replaced.
async fn is_found_and_replaced(damage: impl FnOnce(&Path)) {
    let every = Duration::from_secs(4);
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = node_that_checks(dirs[0].path(), &[], every).await;
    first.init().await.unwrap();
    let second = node_that_checks(dirs[1].path(), &[&first], every).await;
    let third = node_that_checks(dirs[2].path(), &[&first, &second], every).await;
    is_member(&second).await;
    is_member(&third).await;
    let all = client(&[&first, &second]).await;
    let value = Bytes::from(vec![7; 1000]);
    for n in 0..200 {
        let key = Bytes::from(format!("k{n:03}"));
        eventually("a write", || async { all.put(key.clone(), value.clone()).await.ok().map(drop) }).await;
    }
    let before = eventually("three voters of every range", || whole(&all)).await;
    third.stop().await.unwrap();
    damage(dirs[2].path());
    let third = node_that_checks(dirs[2].path(), &[&first, &second], every).await;
    is_member(&third).await;
    // Every replica that is there now was there before, but for one.
    let ids = |ranges: &[RangeDescriptor]| {
        let ids =
            ranges.iter().flat_map(|range| range.replicas.iter().map(|replica| (range.range_id, replica.replica_id)));
        ids.collect::<BTreeSet<_>>()
    };
    let before = ids(&before);
    eventually("another replica in its place", || async {
        let now = ids(&whole(&all).await?);
        (now.difference(&before).count() == 1).then_some(())
    })
    .await;
    eventually("all replicas the same", || async {
        let mut agree = true;
        all.checksum(None, |answer| agree &= answer.agree).await.ok()?;
        agree.then_some(())
    })
    .await;
    for n in 0..200 {
        let row = all.get(Bytes::from(format!("k{n:03}"))).await.unwrap();
        assert_eq!(row.unwrap().value, value);
    }
    for node in [third, second, first] {
        node.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_holds_another_value_is_found_and_replaced() {
    is_found_and_replaced(|dir| flip(dir, b"k100", b"wrong")).await;
}
