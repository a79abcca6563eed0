//! How nodes talk to each other: standing streams on a port of its own (docs/cluster.md).
//!
//! ```text
//!  fleet, liveness ──► Network ──► Outbox ──► lane (raft | heartbeats) ══ stream ══► PeerService ──► StoreHandle
//!  router ──► Transport ──► forward ──┘  ▲                                                │
//!             answer ◄── waiting ◄───────┴──────────── answers on the same stream ◄───────┘
//! ```
//!
//! Promises: a frame carries this node's clock, and a receiver forwards its own before it looks at the rest; what a queue
//! has no room for is dropped and told, never waited for; a forwarded request that was not sent and one whose answer
//! never came are told apart; lanes break apart and are dialled again. How often two idle nodes talk depends on
//! liveness alone, not on the number of ranges.

pub(crate) mod convert;
pub mod directory;
mod hello;
mod lanes;
mod link;
pub mod member;
mod meters;
mod outbox;
mod server;
mod snapshots;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use flotilla_kv::SendError;
use flotilla_proto::internal as wire;
use flotilla_proto::v1;
use flotilla_range::liveness::LivenessMessage;
use flotilla_range::message::{PeerMessage, SnapshotHeader};
use flotilla_types::{Generation, RangeDescriptor, RangeId, RangeReply, RangeRequest, StoreId, Timestamp};
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;

use self::directory::Directory;
use self::hello::Me;
use self::link::{HeartbeatItem, Link, RaftItem};
use self::member::Contact;
use self::meters::{Lane, PeerMeters};
pub use self::server::PeerService;
use crate::clock::NodeClock;
use crate::ports::{Network, SnapshotOutlet};
use crate::store::StoreHandle;

pub(crate) use self::hello::{check_offset, malformed};

/// A connection of its own to a node that is not known yet.
///
/// # Errors
/// It is not reached.
pub(crate) async fn connect(address: &str) -> Result<tonic::transport::Channel, Status> {
    lanes::connect(address).await
}

/// The range of meta1, for ever.
const ROOT: RangeId = RangeId(1);
/// How often the store's liveness is told what the raft lanes wait for.
const LANE_CHECK: Duration = Duration::from_millis(500);
/// How long a peer may take to answer a question of this node.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes nodes into the cluster.
#[tonic::async_trait]
pub trait JoinDesk: Send + Sync + 'static {
    /// A node asks to be taken in.
    async fn join(&self, request: wire::JoinRequest) -> Result<wire::JoinResponse, Status>;
}

/// All peers of this node. See the module's page.
pub struct Peers {
    /// Which nodes there are.
    pub directory: Arc<Directory>,
    clock: Arc<NodeClock>,
    links: DashMap<StoreId, Arc<Link>>,
    meters: DashMap<StoreId, Arc<PeerMeters>>,
    me: OnceLock<Me>,
    store: OnceLock<StoreHandle>,
    desk: OnceLock<Arc<dyn JoinDesk>>,
    on_fenced: Box<dyn Fn(&str) + Send + Sync>,
    /// Told when a node called that is not in the directory.
    unknown_caller: Notify,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    message_bytes_max: usize,
}

impl Peers {
    /// A node that knows nobody yet. `on_fenced` is called if a peer knows a newer start of this store's directory: the
    /// process must end. Call within a runtime.
    #[must_use]
    pub fn new(
        directory: Arc<Directory>,
        clock: Arc<NodeClock>,
        message_bytes_max: usize,
        on_fenced: impl Fn(&str) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            directory,
            clock,
            links: DashMap::new(),
            meters: DashMap::new(),
            me: OnceLock::new(),
            store: OnceLock::new(),
            desk: OnceLock::new(),
            on_fenced: Box::new(on_fenced),
            unknown_caller: Notify::new(),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            message_bytes_max,
        })
    }

    /// This node's store runs: from now on peers are dialled and listened to.
    pub fn attach(self: &Arc<Self>, store: StoreHandle, contact: Contact) {
        let me = Me {
            identity: store.identity(),
            boot: store.boot(),
            nonce: rand::random(),
            recovered: store.recovered(),
            contact,
            max_offset: self.clock.max_offset(),
        };
        self.directory.learn(vec![me.member()]);
        // Set once: a node has one store.
        let _ = self.me.set(me);
        let _ = self.store.set(store);
        self.spawn(Arc::clone(self).follow_directory());
        self.spawn(Arc::clone(self).watch_lanes());
    }

    /// Who takes nodes in.
    pub fn set_desk(&self, desk: Arc<dyn JoinDesk>) {
        let _ = self.desk.set(desk);
    }

    /// Ends all streams and waits for the tasks.
    pub async fn close(&self) {
        self.stop.cancel();
        self.links.iter().for_each(|link| link.close());
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Whether a peer answers on its heartbeat lane.
    #[must_use]
    pub fn is_up(&self, peer: StoreId) -> bool {
        self.links.get(&peer).is_some_and(|link| link.up.load(std::sync::atomic::Ordering::Acquire))
    }

    /// Waits until a node calls that the directory does not know.
    pub async fn unknown_caller(&self) {
        self.unknown_caller.notified().await;
    }

    /// Asks a peer something on a connection of its own.
    ///
    /// # Errors
    /// It cannot be reached, or does not answer in time.
    pub async fn ask<T, F>(
        &self,
        peer: StoreId,
        timeout: Duration,
        question: impl FnOnce(wire::peer_client::PeerClient<tonic::transport::Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let asked = async { question(lanes::client(self, &Link::new(peer)).await?).await };
        tokio::time::timeout(timeout, asked)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("{peer} did not answer in {timeout:?}"))))
    }

    /// The largest offset between two clocks of the cluster, as this node has it.
    #[must_use]
    pub fn max_offset(&self) -> Duration {
        self.clock.max_offset()
    }

    fn me(&self) -> Option<&Me> {
        self.me.get()
    }

    fn store(&self) -> Option<StoreHandle> {
        self.store.get().cloned()
    }

    fn desk(&self) -> Result<Arc<dyn JoinDesk>, Status> {
        let why = "this node belongs to no cluster yet: run 'flotilla init' on one node of a new cluster, once";
        self.desk.get().cloned().ok_or_else(|| Status::failed_precondition(why))
    }

    fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    fn fenced(&self, why: &str) {
        (self.on_fenced)(why);
    }

    /// A task of this layer: it ends when the layer is closed.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn_on(
            async move {
                tokio::select! {
                    () = task => {}
                    () = stop.cancelled() => {}
                }
            },
            &self.runtime,
        );
    }

    /// This node's clock, for answers; absent while it may not be read.
    fn now(&self) -> Option<v1::Timestamp> {
        self.clock.now().ok().map(Into::into)
    }

    /// Forwards the clock by what a frame carried (leases 1.2); false: the frame must be dropped.
    fn take_clock(&self, peer: StoreId, now: Option<v1::Timestamp>) -> bool {
        let Some(now) = now else { return false };
        let now = Timestamp::from(now);
        let wall = self.clock.readings().wall;
        let meters = self.meters(peer);
        meters.clock_offset.set(Duration::from_nanos(now.wall).as_secs_f64() - wall.as_secs_f64());
        match self.clock.forward(now) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%peer, %error, "a frame was dropped");
                meters.clock_ahead.increment(1);
                false
            }
        }
    }

    /// Dials every node of the directory, as it grows.
    async fn follow_directory(self: Arc<Self>) {
        let mut changed = self.directory.watch();
        loop {
            changed.mark_unchanged();
            for member in self.directory.members() {
                self.link_to(member.store);
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    fn link_to(self: &Arc<Self>, peer: StoreId) {
        if self.me().is_none_or(|me| me.identity.store == peer) || self.links.contains_key(&peer) {
            return;
        }
        let link = Arc::new(Link::new(peer));
        self.links.insert(peer, Arc::clone(&link));
        self.spawn(lanes::keep(Arc::clone(self), Arc::clone(&link), Lane::Raft, lanes::raft));
        self.spawn(lanes::keep(Arc::clone(self), link, Lane::Heartbeats, lanes::heartbeats));
    }

    /// Leases 2.3: liveness must answer for the path that commits writes.
    async fn watch_lanes(self: Arc<Self>) {
        let mut told = BTreeMap::new();
        let mut every = tokio::time::interval(LANE_CHECK);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let Some(store) = self.store() else { continue };
            for link in &self.links {
                let since = link.unacknowledged_since();
                if told.insert(link.peer, since).flatten() != since {
                    store.lane_unacked(link.peer, since);
                }
            }
        }
    }

    fn meters(&self, peer: StoreId) -> Arc<PeerMeters> {
        if let Some(known) = self.meters.get(&peer) {
            return Arc::clone(&known);
        }
        Arc::clone(&self.meters.entry(peer).or_insert_with(|| Arc::new(PeerMeters::new(peer))))
    }

    fn link(&self, peer: StoreId) -> Option<Arc<Link>> {
        self.links.get(&peer).map(|link| Arc::clone(&link))
    }

    /// Messages to a peer had no room: its ranges' leaders probe it instead of streaming.
    fn dropped(&self, lane: Lane, peer: StoreId, count: usize) {
        self.meters(peer).lane(lane).dropped.increment(count as u64);
        let due = self.link(peer).is_none_or(|link| link.report_due(self.clock.mono()));
        if let Some(store) = self.store().filter(|_| due && lane == Lane::Raft) {
            store.unreachable(peer);
        }
    }

    /// The newest descriptor of meta1's range that this node knows: that of its replica, or what it heard.
    pub async fn own_root(&self) -> Option<RangeDescriptor> {
        let replica = match self.store() {
            Some(store) => store.inspect_range(ROOT).await.map(|status| status.descriptor),
            None => None,
        };
        if let Some(descriptor) = replica {
            self.directory.learn_root(descriptor);
        }
        self.directory.root()
    }

    async fn find_root(self: Arc<Self>, stale: Option<Generation>) -> Result<RangeDescriptor, String> {
        let newer = |root: &RangeDescriptor| stale.is_none_or(|stale| root.generation > stale);
        if let Some(root) = self.own_root().await.filter(newer) {
            return Ok(root);
        }
        let me = self.me().map(|me| me.identity.store);
        let others = self.directory.members().into_iter().map(|member| member.store).filter(|store| Some(*store) != me);
        let asked = others.map(|peer| {
            self.ask(peer, ASK_TIMEOUT, |mut client| async move {
                client.root(wire::RootRequest {}).await.map(tonic::Response::into_inner)
            })
        });
        for answer in futures::future::join_all(asked).await.into_iter().flatten() {
            if let Some(Ok(root)) = answer.descriptor.map(RangeDescriptor::try_from) {
                self.directory.learn_root(root);
            }
        }
        self.directory.root().ok_or_else(|| "no node that is reached knows where meta1 lies".to_owned())
    }
}

impl Network for PeerNetwork {
    fn send(&self, turn: Vec<(StoreId, PeerMessage)>) {
        let mut raft: BTreeMap<StoreId, Vec<RaftItem>> = BTreeMap::new();
        for (to, message) in turn {
            let item = match message {
                PeerMessage::Raft(envelope) => RaftItem::Envelope(envelope),
                PeerMessage::Release { range, replica, term } => RaftItem::Release { range, replica, term },
                PeerMessage::Removed { range, next } => RaftItem::Removed { range, next },
                PeerMessage::Beats(beats) => {
                    self.heartbeat(to, HeartbeatItem::Beats(beats));
                    continue;
                }
                PeerMessage::BeatReplies(replies) => {
                    self.heartbeat(to, HeartbeatItem::BeatReplies(replies));
                    continue;
                }
            };
            raft.entry(to).or_default().push(item);
        }
        for (to, items) in raft {
            let count = items.len();
            let refused = self.0.link(to).map_or(count, |link| link.raft.push(items).len());
            if refused > 0 {
                self.0.dropped(Lane::Raft, to, refused);
            }
        }
    }

    fn send_liveness(&self, to: StoreId, message: LivenessMessage) {
        let Some(link) = self.0.link(to) else { return self.0.dropped(Lane::Heartbeats, to, 1) };
        let refused = link.liveness.push([HeartbeatItem::Liveness(message)]).len();
        if refused > 0 {
            self.0.dropped(Lane::Heartbeats, to, refused);
        }
    }

    fn open_snapshot(&self, to: StoreId, header: SnapshotHeader) -> Box<dyn SnapshotOutlet> {
        Box::new(snapshots::Outlet::open(&self.0, to, header))
    }
}

/// The peers as the store's way to other stores, and as the router's to ranges.
#[derive(Clone)]
pub struct PeerNetwork(pub Arc<Peers>);

impl PeerNetwork {
    fn heartbeat(&self, to: StoreId, item: HeartbeatItem) {
        let refused = self.0.link(to).map_or(1, |link| link.heartbeats.push([item]).len());
        if refused > 0 {
            self.0.dropped(Lane::Heartbeats, to, refused);
        }
    }
}

impl flotilla_kv::Transport for PeerNetwork {
    fn send(&self, to: StoreId, request: RangeRequest) -> BoxFuture<'static, Result<RangeReply, SendError>> {
        let peers = Arc::clone(&self.0);
        Box::pin(async move {
            let Some(store) = peers.store() else {
                return Err(SendError::NotSent("this node has no store yet".to_owned()));
            };
            if store.store() == to {
                return store.request(request).await.map_err(SendError::Range);
            }
            let Some(link) = peers.link(to) else {
                return Err(SendError::NotSent(format!("{to} is not known here")));
            };
            let (_pending, outcome) = link.forward(request);
            outcome.await.unwrap_or_else(|_| Err(SendError::Lost("this node stops".to_owned())))
        })
    }

    fn root(&self, stale: Option<Generation>) -> BoxFuture<'static, Result<RangeDescriptor, String>> {
        Box::pin(Arc::clone(&self.0).find_root(stale))
    }
}
