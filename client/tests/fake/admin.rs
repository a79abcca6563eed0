//! What whoever runs it asks of a cluster that is none.

use bytes::Bytes;
use flotilla_client::messages as v1;
use flotilla_client::messages::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::{Chunks, Node};

fn descriptor(range_id: u64, start: &'static [u8], end: &'static [u8]) -> v1::RangeDescriptor {
    let replicas = (1..=3)
        .map(|n| v1::ReplicaDescriptor { replica_id: n, store_id: n, kind: v1::ReplicaKind::Voter.into() })
        .collect();
    let (start, end) = (Bytes::from_static(start), Bytes::from_static(end));
    v1::RangeDescriptor { range_id, start, end, generation: 1, replicas, next_replica_id: 4 }
}

#[tonic::async_trait]
impl Admin for Node {
    async fn init(&self, _: Request<v1::InitRequest>) -> Result<Response<v1::InitResponse>, Status> {
        self.serve("init", None, |_| v1::InitResponse { cluster_id: Bytes::from_static(&[7; 16]) }).await
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let mut world = self.world.lock().unwrap();
        Ok(Response::new(v1::StatusResponse {
            cluster_id: Bytes::from_static(&[7; 16]),
            version: "0.1.0".to_owned(),
            node_id: self.number as u64 + 1,
            nodes: world.node_addresses.len() as u64,
            nodes_live: 1,
            replicas: 2,
            leaders: 1,
            timestamp: Some(world.now()),
        }))
    }

    async fn nodes(&self, _: Request<v1::NodesRequest>) -> Result<Response<v1::NodesResponse>, Status> {
        let world = self.world.lock().unwrap();
        let node = |(i, address): (usize, &String)| v1::Node {
            node_id: i as u64 + 1,
            address: address.clone(),
            locality: "region=eu".to_owned(),
            live: true,
            ..v1::Node::default()
        };
        Ok(Response::new(v1::NodesResponse { nodes: world.node_addresses.iter().enumerate().map(node).collect() }))
    }

    type RangesStream = Chunks<v1::RangesResponse>;

    async fn ranges(&self, _: Request<v1::RangesRequest>) -> Result<Response<Self::RangesStream>, Status> {
        let stats = Some(v1::RangeStats { applied_index: 12, term: 6, bytes: 4096 });
        let range =
            |descriptor| v1::Range { descriptor: Some(descriptor), leader: Some(1), leaseholder: Some(1), stats };
        let pages = vec![
            Ok(v1::RangesResponse { ranges: vec![range(descriptor(1, b"", b"\x10\0\0\0\0m"))] }),
            Ok(v1::RangesResponse { ranges: vec![range(descriptor(2, b"\x10\0\0\0\0m", b"\xff"))] }),
        ];
        Ok(Response::new(tokio_stream::iter(pages)))
    }

    async fn split(&self, request: Request<v1::SplitRequest>) -> Result<Response<v1::SplitResponse>, Status> {
        let key = request.into_inner().key;
        self.serve("split", None, |_| {
            let (mut left, mut right) = (descriptor(2, b"\x10\0\0\0\0m", b""), descriptor(3, b"", b"\xff"));
            left.end = key.clone();
            right.start = key;
            v1::SplitResponse { left: Some(left), right: Some(right) }
        })
        .await
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        self.serve("transfer", None, |_| v1::TransferLeaderResponse {}).await
    }

    async fn change_replicas(
        &self,
        _: Request<v1::ChangeReplicasRequest>,
    ) -> Result<Response<v1::ChangeReplicasResponse>, Status> {
        let descriptor = Some(descriptor(2, b"\x10\0\0\0\0m", b"\xff"));
        self.serve("replicas", None, |_| v1::ChangeReplicasResponse { descriptor }).await
    }

    async fn transactions(
        &self,
        _: Request<v1::TransactionsRequest>,
    ) -> Result<Response<v1::TransactionsResponse>, Status> {
        let id = |n: usize| Bytes::from(vec![n as u8; 16]);
        // Each node is the gateway of one, and knows of the wait of its neighbour's.
        let number = self.number;
        let transactions = vec![v1::OpenTransaction {
            txn_id: id(number),
            age_ms: 1000 * (number as u64 + 1),
            isolation: v1::Isolation::Snapshot.into(),
            priority: v1::Priority::High.into(),
            locks: 5,
            first_locks: vec![Bytes::from_static(b"\x10\0\0\0\0a"), Bytes::from_static(b"\x10\0\0\0\0b")],
            anchor: Some(Bytes::from_static(b"\x10\0\0\0\0a")),
            aborted: false,
        }];
        let waits = vec![v1::LockWait {
            waiter: id(number + 1),
            holder: id(number),
            key: Bytes::from_static(b"\x10\0\0\0\0b"),
            waiting_ms: 40,
        }];
        let answer = v1::TransactionsResponse { node_id: number as u64 + 1, transactions, waits, open: 1 };
        self.serve("transactions", None, |_| answer.clone()).await
    }

    type ChecksumStream = Chunks<v1::ChecksumResponse>;

    async fn checksum(&self, _: Request<v1::ChecksumRequest>) -> Result<Response<Self::ChecksumStream>, Status> {
        let hash = |replica_id, hash| v1::ReplicaHash {
            replica_id,
            store_id: replica_id,
            applied_index: 12,
            hash,
            pairs: 3,
            error: None,
        };
        let answers = vec![
            Ok(v1::ChecksumResponse { range_id: 1, hashes: vec![hash(1, 0xabc), hash(2, 0xabc)], agree: true }),
            Ok(v1::ChecksumResponse { range_id: 2, hashes: vec![hash(1, 0xabc), hash(2, 0xdef)], agree: false }),
        ];
        Ok(Response::new(tokio_stream::iter(answers)))
    }
}
