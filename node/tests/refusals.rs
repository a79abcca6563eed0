//! Who and what is turned away at a node's ports: with a sentence that says what to do, and nothing else happens.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use flotilla_client::Client;
use flotilla_node::config::NodeConfig;
use flotilla_node::run::{Node, NodeError, Progress};
use flotilla_proto::internal::{self as wire, peer_client::PeerClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(60);

async fn first(dir: &Path) -> (Node, Bytes) {
    let node = Node::start(NodeConfig::local(dir.to_owned()), None).await.unwrap();
    let cluster = node.init().await.unwrap();
    (node, Bytes::copy_from_slice(&cluster.0))
}

async fn serves(node: &Node) -> Client {
    let client = Client::connect([node.client_address().to_string()]).await.unwrap();
    client.put(Bytes::from_static(b"k"), Bytes::from_static(b"v")).await.unwrap();
    client
}

fn hello(cluster: &Bytes, uuid: [u8; 16], store_id: u64, boot: u32) -> wire::Hello {
    let address = "127.0.0.1:9".to_owned();
    let contact = wire::Contact {
        peer_address: address.clone(),
        client_address: address.clone(),
        http_address: address,
        locality: String::new(),
        version: "test".to_owned(),
    };
    wire::Hello {
        cluster_id: cluster.clone(),
        store_uuid: uuid.to_vec().into(),
        store_id,
        boot,
        contact: Some(contact),
        max_offset_ns: 250_000_000,
        nonce: 1,
        called_store_id: 1,
        recovered: 100,
    }
}

async fn present(node: &Node, hello: wire::Hello) -> Result<(), Status> {
    let mut client = PeerClient::connect(format!("http://{}", node.peer_address())).await.unwrap();
    let frame = wire::RaftFrame { hello: Some(hello), ..wire::RaftFrame::default() };
    client.raft(tokio_stream::iter([frame])).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_why_they_are_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let (node, cluster) = first(dir.path()).await;
    serves(&node).await;
    let mut peer = PeerClient::connect(format!("http://{}", node.peer_address())).await.unwrap();
    let join = |uuid: u8, max_offset_ns| wire::JoinRequest {
        store_uuid: vec![uuid; 16].into(),
        contact: hello(&cluster, [1; 16], 2, 1).contact,
        max_offset_ns,
    };
    let taken = peer.join(join(7, 250_000_000)).await.unwrap().into_inner();
    assert_eq!((taken.store_id, taken.cluster_id, taken.members.len()), (2, cluster.clone(), 2));
    assert_eq!(peer.join(join(7, 250_000_000)).await.unwrap().into_inner().store_id, 2, "asked twice, taken once");

    let refused = |answer: Result<(), Status>, code: Code, text: &str| {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "'{}' does not say '{text}'", status.message());
    };
    let other = peer.join(join(8, 1_000_000)).await.map(drop);
    refused(other, Code::FailedPrecondition, "--max-offset");
    refused(present(&node, hello(&Bytes::from(vec![9; 16]), [7; 16], 2, 1)).await, Code::FailedPrecondition, "--join");
    refused(present(&node, hello(&cluster, [8; 16], 2, 1)).await, Code::FailedPrecondition, "join as a new node");
    refused(present(&node, hello(&cluster, [9; 16], 99, 1)).await, Code::Unavailable, "not known");
    present(&node, hello(&cluster, [7; 16], 2, 5)).await.unwrap();
    refused(present(&node, hello(&cluster, [7; 16], 2, 4)).await, Code::FailedPrecondition, "copies");
    let astray = wire::Hello { called_store_id: 3, ..hello(&cluster, [7; 16], 2, 5) };
    refused(present(&node, astray).await, Code::Unavailable, "an address that s3 had");
    let twin = wire::Hello { nonce: 2, ..hello(&cluster, [7; 16], 2, 5) };
    refused(present(&node, twin).await, Code::FailedPrecondition, "copies");
    // It says how far its log is synced; a later start that holds less is of an older disk.
    let mut client = PeerClient::connect(format!("http://{}", node.peer_address())).await.unwrap();
    let first = wire::HeartbeatFrame { hello: Some(hello(&cluster, [7; 16], 2, 5)), ..Default::default() };
    let now = Some(flotilla_proto::v1::Timestamp { wall: 1, logical: 0 });
    let second = wire::HeartbeatFrame { now, synced: 500, ..Default::default() };
    let mut answers = client.heartbeats(tokio_stream::iter([first, second])).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let rewound = wire::Hello { recovered: 499, nonce: 3, ..hello(&cluster, [7; 16], 2, 6) };
    refused(present(&node, rewound.clone()).await, Code::FailedPrecondition, "set back to an older state");
    present(&node, wire::Hello { recovered: 500, ..rewound }).await.unwrap();
    present(&node, hello(&cluster, [7; 16], 2, 7)).await.unwrap_err();
    let twin = wire::Hello { nonce: 2, recovered: 500, ..hello(&cluster, [7; 16], 2, 7) };
    present(&node, twin).await.unwrap();
    let crooked = wire::Hello { cluster_id: Bytes::from_static(b"short"), ..hello(&cluster, [7; 16], 2, 7) };
    refused(present(&node, crooked).await, Code::InvalidArgument, "16 bytes");
    node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_port_disturbs_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = first(dir.path()).await;
    let client = serves(&node).await;
    let ports = [node.client_address(), node.peer_address(), node.http_address().unwrap()];
    for round in 0..20u8 {
        for port in ports {
            let mut stream = tokio::net::TcpStream::connect(port).await.unwrap();
            // Sometimes the beginning of HTTP/2, so that the garbage comes further.
            let mut bytes = if round % 2 == 0 { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec() } else { Vec::new() };
            bytes.extend((0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ round));
            // The node may hang up at any byte.
            let _ = stream.write_all(&bytes).await;
            let _ = tokio::time::timeout(Duration::from_millis(20), stream.read_to_end(&mut Vec::new())).await;
        }
    }
    let value = client.get(Bytes::from_static(b"k")).await.unwrap().unwrap().value;
    assert_eq!(value, Bytes::from_static(b"v"));
    node.stop().await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_with_one_identity_the_later_must_end() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let (one, _) = first(dirs[0].path()).await;
    serves(&one).await;
    let mut config = NodeConfig::local(dirs[1].path().to_owned());
    config.join = vec![one.peer_address().to_string()];
    let two = Node::start(config.clone(), None).await.unwrap();
    let mut progress = two.progress();
    let member = progress.wait_for(|progress| matches!(progress, Progress::Member(_)));
    tokio::time::timeout(PATIENCE, member).await.unwrap().unwrap();
    two.stop().await.unwrap();
    copy(dirs[1].path(), dirs[2].path());
    let two = Node::start(config.clone(), None).await.unwrap();
    // The original is heard of first.
    let client = serves(&one).await;
    let start = std::time::Instant::now();
    while !client.nodes().await.unwrap().iter().all(|node| node.live) {
        assert!(start.elapsed() < PATIENCE, "the second node is not live");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut twin = Node::start(NodeConfig { store: dirs[2].path().to_owned(), ..config }, None).await.unwrap();
    tokio::time::timeout(PATIENCE, twin.ended()).await.expect("the copy ends by itself");
    let error = twin.stop().await.unwrap_err();
    assert!(matches!(error, NodeError::Fenced(_)), "{error}");
    assert!(error.to_string().contains("copies of a store directory"), "{error}");
    serves(&one).await;
    two.stop().await.unwrap();
    one.stop().await.unwrap();
}
