//! A whole node in one place: what is started in which order, and how it stops. Also for programs that embed one.
//!
//! ```text
//!  sockets ─► directory of the store ─┬─ fresh: wait for init, or be taken in (--join)
//!                                     └─ a store
//!                 ─► store (its own threads) ─► peers ─► router ─► cluster ─► services for data
//! ```
//! The public services and the pages answer from the beginning and say what they wait for; the peers' port answers once
//! there is somebody to answer.

mod member;
mod site;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::internal::peer_server::PeerServer;
use flotilla_range::raft::GroupConfig;
use flotilla_types::ClusterId;
use metrics_exporter_prometheus::PrometheusHandle;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use self::member::Member;
use self::site::NodeSite;
use crate::clock::NodeClock;
use crate::cluster::{InitDesk, InitRefused, become_member};
use crate::config::{ConfigError, NodeConfig};
use crate::http;
use crate::peer::directory::{Directory, DirectoryError};
use crate::peer::member::Contact;
use crate::peer::{PeerService, Peers};
use crate::rpc::{self, ServeError};
use crate::store::{DirError, Opened, StartError, StoreDir};

/// How long leaderships may take to be handed over at a stop; then they are found by others.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How long requests in flight and open streams may keep a stopping node.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// Room for envelopes around the largest raft message.
const FRAME_EXTRA: usize = 1 << 20;

/// The node could not start, or had to end.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Settings make no sense. Exit code 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on.
    #[error("listen on {address} for {what}: {source}")]
    Listen {
        /// For whom.
        what: &'static str,
        /// Where.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The directory is refused. Exit code 3.
    #[error(transparent)]
    Dir(#[from] DirError),
    /// The list of peers is damaged. Exit code 3.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The store does not start. Exit code 3, or what the store says.
    #[error(transparent)]
    Store(#[from] StartError),
    /// Another process runs on a newer copy of the directory. Exit code 3.
    #[error("{0}")]
    Fenced(String),
    /// The public services failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A thread could not be started, or ended before its time.
    #[error("start a thread: {0}")]
    Thread(String),
}

impl NodeError {
    /// The exit code of a process that ends with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Dir(_) | Self::Directory(_) | Self::Fenced(_) => 3,
            Self::Store(error) => u8::try_from(error.exit_code()).unwrap_or(3),
            Self::Listen { .. } | Self::Serve(_) | Self::Thread(_) => 1,
        }
    }
}

/// How far a node has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It belongs to no cluster yet.
    Fresh,
    /// It is a member of a cluster and has a store.
    Member(ClusterId),
    /// It ended by itself, and why.
    Ended(String),
}

/// A running node. Dropping it ends it without handing anything over; use [`Node::stop`].
pub struct Node {
    addresses: [SocketAddr; 2],
    http: Option<SocketAddr>,
    site: Arc<NodeSite>,
    progress: watch::Receiver<Progress>,
    /// Becomes a member, then holds the store until it is told to stop.
    life: JoinHandle<Result<(), NodeError>>,
    stop_life: CancellationToken,
    services: Vec<JoinHandle<()>>,
    stop_services: CancellationToken,
    peers: Arc<Peers>,
}

impl Node {
    /// Starts a node: comes back when its ports answer. Install the metrics recorder before, if there shall be one.
    ///
    /// # Errors
    /// See [`NodeError`]; nothing was changed.
    pub async fn start(config: NodeConfig, metrics: Option<PrometheusHandle>) -> Result<Self, NodeError> {
        config.validate()?;
        let clients = listen("clients", &config.listen).await?;
        let nodes = listen("nodes", &config.peer_listen).await?;
        let pages = match &config.http {
            Some(address) => Some(listen("pages", address).await?),
            None => None,
        };
        let store_path = config.store.clone();
        let (opened, directory) = off_runtime("open-store", move || -> Result<_, NodeError> {
            let opened = StoreDir::open(&store_path)?;
            Ok((opened, Directory::open(&store_path)?))
        })
        .await??;

        let addresses = [address_of(&clients)?, address_of(&nodes)?];
        let http_address = pages.as_ref().map(address_of).transpose()?;
        let contact = contact(&config, addresses, http_address);
        let clock = Arc::new(NodeClock::new(config.max_offset));
        clock.set_wrong_by_ns(config.clock_wrong_by_ms.saturating_mul(1_000_000));
        let (progress_tx, progress) = watch::channel(Progress::Fresh);
        let stop_life = CancellationToken::new();
        let (fenced_tx, fenced) = watch::channel(None);
        let message_bytes_max = GroupConfig::default().message_bytes_max + FRAME_EXTRA;
        let on_fenced = move |why: &str| {
            fenced_tx.send_replace(Some(why.to_owned()));
        };
        let peers = Peers::new(Arc::clone(&directory), Arc::clone(&clock), message_bytes_max, on_fenced);
        let (desk, asked) = InitDesk::new();
        let site = NodeSite::new(Arc::clone(&clock), desk);
        if let Opened::Store(dir) = &opened {
            // Before the first client asks: who belongs to a cluster never says that it belongs to none.
            site.belongs(dir.identity());
        }

        let stop_services = CancellationToken::new();
        let (routes, health) = rpc::services(Arc::clone(&site) as Arc<dyn rpc::Site>, config.door).await?;
        let mut services = vec![
            spawn_serving("clients", rpc::serve(routes, clients, stop_services.clone().cancelled_owned())),
            spawn_peer_server(Arc::clone(&peers), nodes, message_bytes_max, stop_services.clone()),
            tokio::spawn(site::report_health(Arc::clone(&site), health, stop_services.clone())),
        ];
        if let Some(pages) = pages {
            let ailing: http::Ailing = {
                let site = Arc::clone(&site);
                Arc::new(move || rpc::Site::not_serving(site.as_ref()))
            };
            let measure: http::Measure = {
                let site = Arc::clone(&site);
                Arc::new(move || {
                    if let Some(router) = rpc::Site::router(site.as_ref()) {
                        router.measure();
                    }
                })
            };
            let served = http::serve(pages, metrics, ailing, measure, stop_services.clone().cancelled_owned());
            services.push(spawn_serving("pages", served));
        }
        let life = Life { config, contact, clock, directory, site: Arc::clone(&site), peers: Arc::clone(&peers) };
        let life = tokio::spawn(life.run(opened, asked, progress_tx, fenced, stop_life.clone()));
        Ok(Self { addresses, http: http_address, site, progress, life, stop_life, services, stop_services, peers })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn client_address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where other nodes connect.
    #[must_use]
    pub const fn peer_address(&self) -> SocketAddr {
        self.addresses[1]
    }

    /// Where the pages are, if anywhere.
    #[must_use]
    pub const fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// How far it has come, and every change of that.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Makes a cluster of which this node is the first.
    ///
    /// # Errors
    /// See [`InitRefused`].
    pub async fn init(&self) -> Result<ClusterId, InitRefused> {
        self.site.init_desk().init().await
    }

    /// Waits until the node ends by itself, which is always for an error.
    pub async fn ended(&mut self) {
        let over = |progress: &Progress| matches!(progress, Progress::Ended(_));
        // An error here: the life is over as well.
        let _ = self.progress.wait_for(over).await;
    }

    /// Stops: leaderships are handed over first, requests in flight are answered, the store is flushed and closed.
    ///
    /// # Errors
    /// Why the node had ended by itself, if it had.
    pub async fn stop(self) -> Result<(), NodeError> {
        self.site.stopping();
        if let Some(store) = self.site.store() {
            let deadline = store.clock().mono() + DRAIN_TIME;
            if !store.drain(deadline).await {
                tracing::warn!("not all leaderships were handed over in time; others will find them");
            }
        }
        self.stop_services.cancel();
        for service in self.services {
            if tokio::time::timeout(CLOSE_TIME, service).await.is_err() {
                tracing::warn!("a service did not end in time");
            }
        }
        self.stop_life.cancel();
        let ended = self.life.await.unwrap_or_else(|error| Err(NodeError::Thread(error.to_string())));
        self.peers.close().await;
        ended
    }
}

/// From a fresh directory to a member, and on until the node stops.
struct Life {
    config: NodeConfig,
    contact: Contact,
    clock: Arc<NodeClock>,
    directory: Arc<Directory>,
    site: Arc<NodeSite>,
    peers: Arc<Peers>,
}

type InitAsked = tokio::sync::mpsc::Receiver<oneshot::Sender<Result<ClusterId, InitRefused>>>;

impl Life {
    async fn run(
        self,
        opened: Opened,
        asked: InitAsked,
        progress: watch::Sender<Progress>,
        fenced: watch::Receiver<Option<String>>,
        stop: CancellationToken,
    ) -> Result<(), NodeError> {
        let ended = self.live(opened, asked, &progress, fenced, stop).await;
        if let Err(error) = &ended {
            tracing::error!(%error, "the node ends");
            progress.send_replace(Progress::Ended(error.to_string()));
        }
        ended
    }

    async fn live(
        &self,
        opened: Opened,
        asked: InitAsked,
        progress: &watch::Sender<Progress>,
        mut fenced: watch::Receiver<Option<String>>,
        stop: CancellationToken,
    ) -> Result<(), NodeError> {
        let (dir, asker) = match opened {
            Opened::Store(dir) => (dir, None),
            Opened::Fresh(fresh) => {
                let Life { config, contact, directory, site, .. } = self;
                let desk = site.init_desk();
                let member = become_member(&fresh, contact, &config.join, config.max_offset, directory, desk, asked);
                let (membership, asker) = tokio::select! {
                    member = member => member,
                    () = stop.cancelled() => return Ok(()),
                };
                (off_runtime("make-store", move || member::make_store(fresh, membership)).await??, asker)
            }
        };
        let cluster = dir.identity().cluster;
        self.site.belongs(dir.identity());
        let member = Member::start(dir, &self.config, &self.contact, &self.clock, &self.directory, &self.peers).await;
        if let Some(asker) = asker {
            let answer = member.as_ref().map(|_| cluster).map_err(|error| InitRefused::Failed(error.to_string()));
            // Who asked may have gone.
            let _ = asker.send(answer);
        }
        let member = member?;
        self.site.is_member(&member);
        progress.send_replace(Progress::Member(cluster));
        let ended = tokio::select! {
            () = stop.cancelled() => Ok(()),
            why = fenced.wait_for(Option::is_some) => {
                Err(NodeError::Fenced(why.ok().and_then(|why| why.clone()).unwrap_or_default()))
            }
        };
        member.stop().await?;
        ended
    }
}

/// Runs something that blocks on the disk on a thread of its own.
async fn off_runtime<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, NodeError> {
    let (done, outcome) = oneshot::channel();
    let run = move || {
        // Nobody waits any more if the node was dropped.
        let _ = done.send(work());
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| NodeError::Thread(error.to_string()))?;
    outcome.await.map_err(|_| NodeError::Thread(format!("'{name}' panicked")))
}

async fn listen(what: &'static str, address: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { what, address: address.to_owned(), source })
}

fn address_of(listener: &TcpListener) -> Result<SocketAddr, NodeError> {
    let failed = |source| NodeError::Listen { what: "an address", address: "?".to_owned(), source };
    listener.local_addr().map_err(failed)
}

fn contact(config: &NodeConfig, [clients, nodes]: [SocketAddr; 2], http: Option<SocketAddr>) -> Contact {
    let said = |advertised: &Option<String>, bound: SocketAddr| advertised.clone().unwrap_or_else(|| bound.to_string());
    Contact {
        client_address: said(&config.advertise, clients),
        peer_address: said(&config.peer_advertise, nodes),
        // A node without pages names its client port: it answers there that it has none.
        http_address: http.unwrap_or(clients).to_string(),
        locality: config.locality.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn spawn_serving<E: std::fmt::Display + Send>(
    what: &'static str,
    serve: impl Future<Output = Result<(), E>> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(what, %error, "a service ended");
        }
    })
}

fn spawn_peer_server(
    peers: Arc<Peers>,
    listener: TcpListener,
    message_bytes_max: usize,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = PeerServer::new(PeerService::new(peers))
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(message_bytes_max);
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(32 << 20)
        .add_service(service);
    // Not gracefully: standing streams would never end by themselves, and their peers know what that means.
    spawn_serving("nodes", async move {
        tokio::select! {
            served = server.serve_with_incoming(incoming) => served,
            () = stop.cancelled() => Ok(()),
        }
    })
}
