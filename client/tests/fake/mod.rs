//! Nodes that are none: a map behind the real services, with faults on order.

#![allow(unreachable_pub, dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use flotilla_client::messages as v1;
use flotilla_client::messages::admin_server::{Admin, AdminServer};
use flotilla_client::messages::kv_server::{Kv, KvServer};
use flotilla_client::{Client, Options, Reason};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The time that the cluster believes it is: not this machine's, so that a client that trusts its own clock is caught.
pub const CLUSTER_SECONDS: u64 = 4_000_000_000;

/// What to do wrong, once.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Say this, and do nothing.
    Refuse(Reason),
    /// Do it, and lose the answer.
    LoseAnswer,
    /// Do nothing, and lose the answer.
    LoseRequest,
    /// Do it, and be silent.
    Hang,
    /// Scans only: break off after so many chunks.
    BreakAfter(usize),
}

/// What all nodes share.
#[derive(Default)]
pub struct World {
    pub rows: BTreeMap<Bytes, (Bytes, v1::Timestamp)>,
    pub faults: VecDeque<Fault>,
    /// Which node was asked what with which id, in order.
    pub asked: Vec<(usize, &'static str, Bytes)>,
    pub node_addresses: Vec<String>,
    done: HashMap<Bytes, v1::Timestamp>,
    ticks: u64,
}

impl World {
    fn now(&mut self) -> v1::Timestamp {
        self.ticks += 1;
        v1::Timestamp { wall: CLUSTER_SECONDS * 1_000_000_000 + self.ticks, logical: 0 }
    }

    /// Does a write once per id.
    fn write(&mut self, id: Option<&Bytes>, write: impl FnOnce(&mut Self, v1::Timestamp)) -> v1::Timestamp {
        if let Some(before) = id.and_then(|id| self.done.get(id)) {
            return *before;
        }
        let now = self.now();
        write(self, now);
        if let Some(id) = id {
            self.done.insert(id.clone(), now);
        }
        now
    }
}

/// Some nodes over one world.
pub struct Cluster {
    pub world: Arc<Mutex<World>>,
    pub addresses: Vec<String>,
    /// One runtime a node, so that a kill closes its connections too.
    servers: Vec<Option<Runtime>>,
}

impl Cluster {
    pub async fn start(nodes: usize) -> Self {
        let world = Arc::new(Mutex::new(World::default()));
        let mut cluster = Self { world, addresses: Vec::new(), servers: Vec::new() };
        for number in 0..nodes {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address: SocketAddr = listener.local_addr().unwrap();
            let node = Node { number, world: Arc::clone(&cluster.world) };
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.spawn(async move {
                let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
                let server = tonic::transport::Server::builder()
                    .add_service(KvServer::new(node.clone()))
                    .add_service(AdminServer::new(node));
                server.serve_with_incoming(incoming).await.unwrap();
            });
            cluster.servers.push(Some(runtime));
            cluster.addresses.push(address.to_string());
        }
        cluster.world().node_addresses = cluster.addresses.clone();
        cluster
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    pub fn will(&self, faults: impl IntoIterator<Item = Fault>) {
        self.world().faults.extend(faults);
    }

    pub fn kill(&mut self, node: usize) {
        self.servers[node].take().unwrap().shutdown_background();
    }

    pub async fn client(&self) -> Client {
        Client::connect_with(self.addresses.clone(), options()).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.servers.drain(..).flatten().for_each(Runtime::shutdown_background);
    }
}

/// Impatient, so that tests are quick.
pub fn options() -> Options {
    let mut options = Options::default();
    options.timeout = Duration::from_secs(5);
    options.attempt_timeout = Duration::from_millis(300);
    options.learn_nodes = false;
    options
}

#[derive(Clone)]
struct Node {
    number: usize,
    world: Arc<Mutex<World>>,
}

fn refusal(reason: Reason) -> Status {
    let details = ErrorDetails::with_error_info(reason.word(), "flotilla", HashMap::new());
    Status::with_error_details(reason.code(), format!("refused: {reason}"), details)
}

impl Node {
    /// Notes the request, does it unless a fault says no, and answers unless a fault says no.
    async fn serve<T>(
        &self,
        what: &'static str,
        id: Option<&Bytes>,
        action: impl FnOnce(&mut World) -> T,
    ) -> Result<Response<T>, Status> {
        let (answer, hang) = {
            let mut world = self.world.lock().unwrap();
            world.asked.push((self.number, what, id.cloned().unwrap_or_default()));
            match world.faults.pop_front() {
                Some(Fault::Refuse(reason)) => return Err(refusal(reason)),
                Some(Fault::LoseRequest) => return Err(Status::unavailable("connection reset")),
                Some(Fault::LoseAnswer) => {
                    action(&mut world);
                    return Err(Status::unavailable("connection reset"));
                }
                Some(Fault::Hang) => (action(&mut world), true),
                Some(Fault::BreakAfter(_)) | None => (action(&mut world), false),
            }
        };
        if hang {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(answer))
    }
}

type Chunks<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

#[tonic::async_trait]
impl Kv for Node {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let key = request.into_inner().key;
        self.serve("get", None, |world| {
            let found = world.rows.get(&key).cloned();
            let written = found.as_ref().map(|(_, written)| *written);
            v1::GetResponse { value: found.map(|(value, _)| value), written, timestamp: Some(world.now()) }
        })
        .await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let v1::PutRequest { key, value, request_id } = request.into_inner();
        let id = request_id.clone();
        self.serve("put", id.as_ref(), |world| {
            let when = world.write(request_id.as_ref(), |world, now| {
                world.rows.insert(key, (value, now));
            });
            v1::PutResponse { timestamp: Some(when) }
        })
        .await
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let v1::DeleteRequest { key, request_id } = request.into_inner();
        let id = request_id.clone();
        self.serve("delete", id.as_ref(), |world| {
            let when = world.write(request_id.as_ref(), |world, _| {
                world.rows.remove(&key);
            });
            v1::DeleteResponse { timestamp: Some(when) }
        })
        .await
    }

    async fn delete_range(
        &self,
        request: Request<v1::DeleteRangeRequest>,
    ) -> Result<Response<v1::DeleteRangeResponse>, Status> {
        let v1::DeleteRangeRequest { start, end, keys_max, .. } = request.into_inner();
        self.serve("delete_range", None, |world| {
            let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
            let span: Vec<Bytes> =
                world.rows.range((Bound::Included(start), upper)).map(|(key, _)| key.clone()).collect();
            // A small page, so that clients have to go on.
            let page = keys_max.min(3) as usize;
            span.iter().take(page).for_each(|key| {
                world.rows.remove(key);
            });
            let resume = span.get(page).cloned();
            let keys = span.len().min(page) as u64;
            v1::DeleteRangeResponse { keys, resume, timestamp: Some(world.now()) }
        })
        .await
    }

    type ScanStream = Chunks<v1::ScanResponse>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let mut world = self.world.lock().unwrap();
        world.asked.push((self.number, "scan", Bytes::new()));
        let chunks_max = match world.faults.pop_front() {
            Some(Fault::BreakAfter(chunks)) => chunks,
            _ => usize::MAX,
        };
        let at = request.at.unwrap_or_else(|| world.now());
        let upper = request.end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows: Vec<v1::Row> = world
            .rows
            .range((Bound::Included(request.start), upper))
            .filter(|(_, (_, written))| written.wall <= at.wall)
            .map(|(key, (value, written))| v1::Row {
                key: key.clone(),
                value: value.clone(),
                timestamp: Some(*written),
            })
            .collect();
        if request.reverse {
            rows.reverse();
        }
        if request.rows_max > 0 {
            rows.truncate(request.rows_max as usize);
        }
        let mut chunks: Vec<Result<v1::ScanResponse, Status>> = Vec::new();
        for (i, pair) in rows.chunks(2).enumerate() {
            if i == chunks_max {
                chunks.push(Err(Status::unavailable("connection reset")));
                break;
            }
            let last = pair.last().unwrap();
            let more = 2 * (i + 1) < rows.len();
            let next = if request.reverse { last.key.clone() } else { [&last.key[..], b"\0"].concat().into() };
            let resume = more.then_some(next);
            chunks.push(Ok(v1::ScanResponse { rows: pair.to_vec(), resume, timestamp: Some(at) }));
        }
        if rows.is_empty() {
            chunks.push(Ok(v1::ScanResponse { rows, resume: None, timestamp: Some(at) }));
        }
        Ok(Response::new(tokio_stream::iter(chunks)))
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapResponse>, Status> {
        let v1::CompareAndSwapRequest { key, expected, new, request_id } = request.into_inner();
        self.serve("cas", request_id.clone().as_ref(), |world| {
            let actual = world.rows.get(&key).map(|(value, _)| value.clone());
            if actual != expected && !request_id.as_ref().is_some_and(|id| world.done.contains_key(id)) {
                return v1::CompareAndSwapResponse { swapped: false, actual, timestamp: Some(world.now()) };
            }
            let when = world.write(request_id.as_ref(), |world, now| {
                match new {
                    Some(value) => world.rows.insert(key, (value, now)),
                    None => world.rows.remove(&key),
                };
            });
            v1::CompareAndSwapResponse { swapped: true, actual: None, timestamp: Some(when) }
        })
        .await
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::BatchResponse>, Status> {
        let v1::BatchRequest { ops, request_id } = request.into_inner();
        self.serve("batch", request_id.clone().as_ref(), |world| {
            let when = world.write(request_id.as_ref(), |world, now| {
                for op in ops {
                    match op.op.unwrap() {
                        v1::batch_op::Op::Put(put) => world.rows.insert(put.key, (put.value, now)),
                        v1::batch_op::Op::Delete(delete) => world.rows.remove(&delete.key),
                    };
                }
            });
            v1::BatchResponse { timestamp: Some(when) }
        })
        .await
    }

    async fn increment(&self, _: Request<v1::IncrementRequest>) -> Result<Response<v1::IncrementResponse>, Status> {
        Err(Status::unimplemented("a map has no counters"))
    }

    async fn transact(&self, _: Request<v1::TransactRequest>) -> Result<Response<v1::TransactResponse>, Status> {
        Err(Status::unimplemented("a map has no transactions"))
    }

    type TxnStream = Chunks<v1::TxnResponse>;

    async fn txn(&self, _: Request<tonic::Streaming<v1::TxnRequest>>) -> Result<Response<Self::TxnStream>, Status> {
        Err(Status::unimplemented("a map has no transactions"))
    }

    async fn outcome(&self, _: Request<v1::OutcomeRequest>) -> Result<Response<v1::OutcomeResponse>, Status> {
        Err(Status::unimplemented("a map has no transactions"))
    }
}

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
