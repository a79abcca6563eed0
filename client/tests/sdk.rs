//! The client against nodes that fail on order.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::{Duration, Instant};

use bytes::Bytes;
use fake::{CLUSTER_SECONDS, Cluster, Fault, options};
use flotilla_client::{Batch, Client, Error, Reason, ScanOptions, Span, Swap};
use flotilla_types::RequestId;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn read(client: &Client, key: &str) -> Option<Bytes> {
    client.get(bytes(key)).await.unwrap().map(|found| found.value)
}

#[tokio::test]
async fn what_is_written_is_read() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    let when = client.put("a", "1").await.unwrap();
    let found = client.get("a").await.unwrap().unwrap();
    assert_eq!((found.value, found.written), (bytes("1"), when));
    client.batch(Batch::new().put("b", "2").put("c", "3").delete("a")).await.unwrap();
    assert_eq!((read(&client, "a").await, read(&client, "c").await), (None, Some(bytes("3"))));
    client.delete("b").await.unwrap();
    assert_eq!(read(&client, "b").await, None);
    let swapped = client.compare_and_swap("c", Some(bytes("3")), Some(bytes("4"))).await.unwrap();
    assert!(matches!(swapped, Swap::Swapped(_)));
    assert_eq!(client.compare_and_swap("c", None, None).await.unwrap(), Swap::Met(Some(bytes("4"))));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_asked_again_with_the_same_id_and_done_once() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    cluster.will([Fault::LoseAnswer, Fault::Refuse(Reason::Ambiguous), Fault::Hang]);
    let when = client.put("a", "1").await.unwrap();
    assert_eq!(when, client.get("a").await.unwrap().unwrap().written);
    let world = cluster.world();
    let ids: Vec<_> = world.asked.iter().filter(|(_, what, _)| *what == "put").map(|(_, _, id)| id.clone()).collect();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| *id == ids[0]));
    let nodes: Vec<_> = world.asked.iter().map(|(node, ..)| *node).collect();
    assert_ne!(nodes[0], nodes[1], "the node that failed is not the one that is asked next");
}

#[tokio::test]
async fn ids_are_born_in_the_clusters_time() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    let id = RequestId::try_from(&cluster.world().asked[0].2[..]).unwrap();
    assert!(id.born_ms().abs_diff(CLUSTER_SECONDS * 1000) < 10_000, "{}", id.born_ms());
}

#[tokio::test]
async fn a_refusal_for_good_is_told_at_once_and_doubt_stays_doubt() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.will([Fault::Refuse(Reason::TooLarge)]);
    let error = client.put("a", "1").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::TooLarge));
    assert_eq!(cluster.world().asked.len(), 1);

    // The first copy may still be on its way when the second is refused.
    cluster.will([Fault::LoseRequest, Fault::Refuse(Reason::DiskFull)]);
    let Error::Ambiguous { request_id: Some(id), .. } = client.put("a", "1").await.unwrap_err() else {
        panic!("not ambiguous")
    };
    let when = client.resuming(id).put("a", "1").await.unwrap();
    assert_eq!(client.resuming(id).put("a", "1").await.unwrap(), when, "it takes effect once");

    // So it may be when a compare-and-swap meets another value at the second attempt.
    cluster.will([Fault::LoseRequest]);
    let error = client.compare_and_swap("a", None, Some(bytes("2"))).await.unwrap_err();
    assert!(error.is_ambiguous());
    cluster.will([Fault::LoseAnswer]);
    let swapped = client.compare_and_swap("a", Some(bytes("1")), Some(bytes("2"))).await.unwrap();
    assert!(matches!(swapped, Swap::Swapped(_)), "a success settles it");
}

#[tokio::test]
async fn a_cluster_without_leaders_is_waited_for_until_the_deadline() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.will([Fault::Refuse(Reason::RangeUnavailable); 3]);
    client.put("a", "1").await.unwrap();

    cluster.will([Fault::Refuse(Reason::RangeUnavailable); 1000]);
    let began = Instant::now();
    let error = client.with_timeout(Duration::from_millis(400)).put("a", "1").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::RangeUnavailable), "nothing was done, so it is no doubt");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn dead_nodes_are_left_for_living_ones_and_learnt_ones_serve() {
    let mut cluster = Cluster::start(3).await;
    let mut with_learning = options();
    with_learning.learn_nodes = true;
    let client = Client::connect_with([cluster.addresses[0].clone()], with_learning).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let spread = |cluster: &Cluster| cluster.world().asked.iter().any(|(node, ..)| *node == 2);
    while !spread(&cluster) {
        assert!(Instant::now() < deadline, "the other nodes were never learnt");
        client.put("a", "1").await.unwrap();
    }
    cluster.kill(0);
    cluster.kill(1);
    for i in 0..20 {
        client.put(format!("k{i}"), "v").await.unwrap();
    }
    cluster.kill(2);
    let error = client.with_timeout(Duration::from_millis(500)).get("a").await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_there_is_told_as_such() {
    let mut impatient = options();
    impatient.timeout = Duration::from_millis(300);
    let error = Client::connect_with(["127.0.0.1:1"], impatient).await.err().unwrap();
    assert!(matches!(&error, Error::Unreachable { why } if why.contains("refused")), "{error}");
}

#[tokio::test]
async fn a_scan_goes_on_at_another_node_as_of_the_same_moment() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    for i in 0..9 {
        client.put(format!("k{i}"), "old").await.unwrap();
    }
    for reverse in [false, true] {
        cluster.will([Fault::BreakAfter(1), Fault::BreakAfter(2)]);
        let mut scan = client.scan(Span::prefix("k"), ScanOptions { reverse, ..ScanOptions::default() });
        let first = scan.next().await.unwrap().unwrap();
        client.put("k5x", "new").await.unwrap();
        let rest = scan.collect().await.unwrap();
        let mut keys: Vec<_> = std::iter::once(first).chain(rest).map(|row| row.key).collect();
        if reverse {
            keys.reverse();
        }
        assert_eq!(keys, (0..9).map(|i| bytes(&format!("k{i}"))).collect::<Vec<_>>());
        client.delete("k5x").await.unwrap();
    }
    let some = client.scan(Span::all(), ScanOptions { rows_max: 3, ..ScanOptions::default() });
    assert_eq!(some.collect().await.unwrap().len(), 3);
    assert_eq!(client.delete_range(Span::all()).await.unwrap(), 9);
    assert!(client.scan(Span::all(), ScanOptions::default()).collect().await.unwrap().is_empty());
}

#[tokio::test]
async fn commands_that_change_ranges_are_not_repeated_in_doubt() {
    let cluster = Cluster::start(2).await;
    let client = cluster.client().await;
    cluster.will([Fault::LoseAnswer]);
    let error = client.transfer_leader(2, 3).await.unwrap_err();
    assert!(matches!(error, Error::Ambiguous { request_id: None, .. }), "{error:?}");
    cluster.will([Fault::Refuse(Reason::RangeUnavailable)]);
    client.transfer_leader(2, 3).await.unwrap();
    assert_eq!(client.nodes().await.unwrap().len(), 2);
    assert_eq!(client.ranges(&flotilla_types::KeySpan::ALL, 0).await.unwrap().len(), 2);
    assert_eq!(client.init().await.unwrap(), Bytes::from_static(&[7; 16]));
}
