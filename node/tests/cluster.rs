//! Whole nodes in one process, over real sockets and disks, spoken to through the SDK.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_client::Client;
use flotilla_node::cluster::InitRefused;
use flotilla_node::config::NodeConfig;
use flotilla_node::run::{Node, Progress};
use flotilla_proto::v1::{RangeDescriptor, ReplicaDescriptor, ReplicaKind};
use flotilla_types::KeySpan;

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
    let mut config = NodeConfig::local(dir.to_owned());
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
    eventually("three voters of every range", || async {
        let ranges = all.ranges(&KeySpan::ALL, 0).await.ok()?;
        // Voters: with two of them and a learner the first could not be missed.
        let votes = |replica: &ReplicaDescriptor| replica.kind() == ReplicaKind::Voter;
        let full = |range: &RangeDescriptor| range.replicas.len() == 3 && range.replicas.iter().all(votes);
        let whole = ranges.len() == 5 && ranges.iter().all(|range| range.descriptor.as_ref().is_some_and(full));
        whole.then_some(())
    })
    .await;
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
