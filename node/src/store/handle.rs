//! What the rest of the node knows of its store. Cheap to clone; methods never wait for the disk, and the async ones
//! wait for one answer only. It may outlive the store, and then says that the store stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use flotilla_range::check::Survey;
use flotilla_range::event::Event;
use flotilla_range::fleet::RangeStatus;
use flotilla_range::liveness::{LivenessMessage, SupportView};
use flotilla_range::message::{PeerMessage, SnapshotHeader};
use flotilla_storage::log::LogSeq;
use flotilla_types::{
    CheckId, Command, PushResult, RangeDescriptor, RangeError, RangeId, RangeReply, RangeRequest, ReplicaId, StoreId,
    StoreUuid, Timestamp,
};
use metrics::Counter;
use tokio::sync::oneshot;

use super::hashes::Hashes;
use super::ident::Identity;
use super::inbox::{Ask, Asked, Inbox};
use super::intake::{Incoming, SnapshotIntake};
use super::liveness::LivenessInbox;
use crate::clock::NodeClock;

/// The store, as its neighbours see it.
#[derive(Clone)]
pub struct StoreHandle {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) boot: u32,
    pub(super) recovered: LogSeq,
    pub(super) synced: Arc<AtomicU64>,
    pub(super) clock: Arc<NodeClock>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) liveness: Arc<LivenessInbox>,
    pub(super) view: Arc<ArcSwap<SupportView>>,
    pub(super) hashes: Arc<Hashes>,
    /// Gone once the store is closed, so that a handle keeps no engine open.
    pub(super) incoming: arc_swap::ArcSwapOption<Incoming>,
    pub(super) dropped: Counter,
    pub(super) dropped_liveness: Counter,
}

impl StoreHandle {
    /// Its number in the cluster.
    #[must_use]
    pub fn store(&self) -> StoreId {
        self.shared.identity.store
    }

    /// Its directory's name for ever.
    #[must_use]
    pub fn uuid(&self) -> StoreUuid {
        self.shared.identity.uuid
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// Counts its starts; durable before anything was said in this one.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.shared.boot
    }

    /// How far its log was synced before this start.
    #[must_use]
    pub fn recovered(&self) -> LogSeq {
        self.shared.recovered
    }

    /// How far its log is synced.
    #[must_use]
    pub fn synced(&self) -> LogSeq {
        LogSeq(self.shared.synced.load(Ordering::Acquire))
    }

    /// The node's clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<NodeClock> {
        &self.shared.clock
    }

    /// Messages of a peer, whose clock reading was taken in already. Never waits; what has no room is dropped.
    pub fn deliver(&self, from: StoreId, messages: Vec<PeerMessage>) {
        let dropped = self.shared.inbox.messages(from, messages);
        if dropped > 0 {
            self.shared.dropped.increment(dropped as u64);
        }
    }

    /// A liveness message of a peer, with the reading that its frame carried.
    pub fn deliver_liveness(&self, from: StoreId, sent: Timestamp, message: LivenessMessage) {
        if !self.shared.liveness.message(from, sent, message) {
            self.shared.dropped_liveness.increment(1);
        }
    }

    /// A lane to the peer broke, or messages to it were dropped.
    pub fn unreachable(&self, peer: StoreId) {
        self.shared.inbox.unreachable(peer);
    }

    /// Since when (monotonic) the raft lane to a peer waits for an acknowledgement; `None`: it does not.
    pub fn lane_unacked(&self, peer: StoreId, since: Option<Duration>) {
        self.shared.liveness.lane_unacked(peer, since);
    }

    /// One request to one range of this store.
    ///
    /// # Errors
    /// The range's own, or that the store has no room, does not serve, or stopped before the outcome was known.
    pub async fn request(&self, request: RangeRequest) -> Result<RangeReply, RangeError> {
        let reads = matches!(request.command, Command::Read { .. });
        let (answer, outcome) = oneshot::channel();
        self.shared.inbox.request(Asked { request, answer, since: Instant::now() })?;
        outcome.await.unwrap_or_else(|_| {
            if reads {
                return Err(self.shared.inbox.stopped());
            }
            Err(RangeError::Ambiguous { why: "the store stopped before it knew".to_owned() })
        })
    }

    /// Begins to take a snapshot in.
    ///
    /// # Errors
    /// Too many are under way, or the store stops.
    pub fn intake(&self, header: SnapshotHeader) -> Result<SnapshotIntake, RangeError> {
        let incoming = self.shared.incoming.load_full().ok_or_else(|| self.shared.inbox.stopped())?;
        incoming.admit(header)
    }

    /// The addressing record of the range that owns a key was read, as `Keeper::confirm` asked.
    pub fn confirmed(&self, range: RangeId, current: RangeDescriptor) {
        self.shared.inbox.confirmed(range, current);
    }

    /// A push that `Keeper::push` asked for was answered, or given up.
    pub fn pushed(&self, range: RangeId, number: u64, result: Option<PushResult>) {
        self.shared.inbox.pushed(range, number, result);
    }

    /// Every range of the store; empty if it stopped or too many ask.
    pub async fn inspect(&self) -> Vec<RangeStatus> {
        let (answer, status) = oneshot::channel();
        self.shared.inbox.ask(Ask::All(answer));
        status.await.unwrap_or_default()
    }

    /// Every range of the store, with about how many bytes it takes (0 if that is not known).
    pub async fn inspect_sizes(&self) -> Vec<(RangeStatus, u64)> {
        let ranges = self.inspect().await;
        let spans = ranges.iter().map(|status| status.descriptor.span.clone()).collect();
        let sizes = match self.shared.incoming.load_full() {
            Some(incoming) => incoming.sizes(spans).await.unwrap_or_default(),
            None => Vec::new(),
        };
        let sizes = sizes.into_iter().chain(std::iter::repeat(0));
        ranges.into_iter().zip(sizes).collect()
    }

    /// One range of the store.
    pub async fn inspect_range(&self, range: RangeId) -> Option<RangeStatus> {
        let (answer, status) = oneshot::channel();
        self.shared.inbox.ask(Ask::One(range, answer));
        status.await.ok().flatten()
    }

    /// Replicas to be replaced although their stores live, as far as this store sees (`Fleet::out_of_order`).
    pub async fn out_of_order(&self) -> Vec<(RangeId, ReplicaId)> {
        let (answer, found) = oneshot::channel();
        self.shared.inbox.ask(Ask::OutOfOrder(answer));
        found.await.unwrap_or_default()
    }

    /// This store's hash of a range for a check, once it is made; `None` if it is not by the deadline (monotonic).
    pub async fn hash(&self, range: RangeId, check: CheckId, deadline: Duration) -> Option<Arc<Survey>> {
        let left = deadline.saturating_sub(self.shared.clock.mono());
        tokio::time::timeout(left, self.shared.hashes.get(range, check)).await.ok()?.ok()
    }

    /// A check found this store's replica of a range to be wrong: it is given up and waits to be replaced.
    pub fn give_up(&self, range: RangeId, replica: ReplicaId, why: String) {
        self.shared.inbox.rare(Event::Wrong { range, replica, why });
    }

    /// A check found the replicas of a range to differ without a majority, or to be the same again: whether the range is
    /// served here depends on it.
    pub fn diverged(&self, range: RangeId, diverged: bool) {
        self.shared.inbox.rare(Event::Diverged { range, diverged });
    }

    /// Hands all leaderships over; comes back when none is left or the deadline (monotonic) has passed. Says which.
    pub async fn drain(&self, deadline: Duration) -> bool {
        let (answer, drained) = oneshot::channel();
        self.shared.inbox.ask(Ask::Drain(answer));
        let left = deadline.saturating_sub(self.shared.clock.mono());
        tokio::time::timeout(left, drained).await.is_ok_and(|drained| drained.is_ok())
    }

    /// What store liveness looks like at this moment.
    #[must_use]
    pub fn support(&self) -> Arc<SupportView> {
        self.shared.view.load_full()
    }
}
