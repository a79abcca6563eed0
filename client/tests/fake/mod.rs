//! Nodes that are none: a map behind the real services, with faults on order.

#![allow(unreachable_pub, dead_code, clippy::unwrap_used)]

mod admin;
mod kv;
mod txn;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use flotilla_client::messages as v1;
use flotilla_client::messages::admin_server::AdminServer;
use flotilla_client::messages::kv_server::KvServer;
use flotilla_client::{Client, Options, Reason};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};
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
    /// Commits only: do all but one of the writes, and say that it was done.
    LoseWrite,
}

/// What all nodes share.
#[derive(Default)]
pub struct World {
    pub rows: BTreeMap<Bytes, (Bytes, v1::Timestamp)>,
    pub faults: VecDeque<Fault>,
    /// What to do wrong at steps of transactions: the first waits for a step of its name.
    pub step_faults: VecDeque<(&'static str, Fault)>,
    /// Which node was asked what with which id, in order.
    pub asked: Vec<(usize, &'static str, Bytes)>,
    pub node_addresses: Vec<String>,
    /// How transactions ended, by handle; `None`: rolled back.
    pub ended: HashMap<Bytes, Option<v1::Timestamp>>,
    /// Nobody knows any more how transactions ended.
    pub forgetful: bool,
    /// Which branch was done for an id.
    branches: HashMap<Bytes, bool>,
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

    /// Sets a key, or removes it.
    fn set(&mut self, key: Bytes, value: Option<Bytes>, now: v1::Timestamp) {
        match value {
            Some(value) => self.rows.insert(key, (value, now)),
            None => self.rows.remove(&key),
        };
    }

    pub fn value(&self, key: &[u8]) -> Option<Bytes> {
        self.rows.get(key).map(|(value, _)| value.clone())
    }

    /// How often something was asked.
    pub fn count(&self, what: &str) -> usize {
        self.asked.iter().filter(|(_, asked, _)| *asked == what).count()
    }
}

/// The number in a counter.
fn number(value: Option<&Bytes>) -> Result<i64, Status> {
    let bytes = value.map_or(Ok([0; 8]), |value| value[..].try_into());
    bytes.map(i64::from_be_bytes).map_err(|_| refusal(Reason::Invalid))
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

    pub fn will_at(&self, faults: impl IntoIterator<Item = (&'static str, Fault)>) {
        self.world().step_faults.extend(faults);
    }

    pub fn kill(&mut self, node: usize) {
        let server = self.servers[node].take().unwrap();
        // Waits until it is gone, else it might answer once more; in a thread, since a task may not wait for a runtime.
        std::thread::spawn(move || server.shutdown_timeout(Duration::from_secs(5))).join().unwrap();
    }

    pub fn alive(&self) -> usize {
        self.servers.iter().flatten().count()
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
                Some(Fault::BreakAfter(_) | Fault::LoseWrite) | None => (action(&mut world), false),
            }
        };
        if hang {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(answer))
    }
}

type Chunks<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;
