//! What waits to be sent to one peer, and the forwarded requests whose answers it owes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_kv::SendError;
use flotilla_range::liveness::LivenessMessage;
use flotilla_range::message::{Beat, BeatReply, Envelope};
use flotilla_types::{RangeId, RangeReply, RangeRequest, ReplicaId, StoreId, Term};
use tokio::sync::oneshot;

use super::outbox::{Outbox, Weighed};

/// Messages that wait on the raft lane: some rounds of all ranges of a busy store. Raft sends again what was dropped.
const RAFT_ITEMS_MAX: usize = 16 << 10;
/// Their bytes: what a slow peer may hold of this node's memory.
const RAFT_BYTES_MAX: usize = 64 << 20;
/// Beats of all awake ranges, twice over.
const HEARTBEAT_ITEMS_MAX: usize = 64 << 10;
const HEARTBEAT_BYTES_MAX: usize = 8 << 20;
/// How often a peer that cannot be reached is reported while messages for it are dropped.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// What travels on the raft lane.
pub(super) enum RaftItem {
    Envelope(Envelope),
    Release { range: RangeId, replica: ReplicaId, term: Term },
    Removed { range: RangeId, next: ReplicaId },
    Request { id: u64, request: RangeRequest },
}

/// What travels on the heartbeat lane.
pub(super) enum HeartbeatItem {
    Liveness(LivenessMessage),
    Beats(Vec<Beat>),
    BeatReplies(Vec<BeatReply>),
}

impl Weighed for RaftItem {
    fn weight(&self) -> usize {
        match self {
            Self::Envelope(envelope) => 48 + envelope.message.len(),
            Self::Release { .. } | Self::Removed { .. } => 48,
            // Values are counted at the door; here what matters is that many of them are not queued.
            Self::Request { .. } => 512,
        }
    }
}

impl Weighed for HeartbeatItem {
    fn weight(&self) -> usize {
        match self {
            Self::Liveness(_) => 256,
            Self::Beats(beats) => 64 * beats.len(),
            Self::BeatReplies(replies) => 64 * replies.len(),
        }
    }
}

type Waiting = oneshot::Sender<Result<RangeReply, SendError>>;

/// See the module's page.
pub(super) struct Link {
    pub(super) peer: StoreId,
    pub(super) raft: Outbox<RaftItem>,
    pub(super) heartbeats: Outbox<HeartbeatItem>,
    /// Liveness goes ahead of what ranges say.
    pub(super) liveness: Outbox<HeartbeatItem>,
    /// The peer has answered on the heartbeat lane, and the lane stands.
    pub(super) up: AtomicBool,
    next_request: AtomicU64,
    waiting: Mutex<HashMap<u64, Waiting>>,
    unacknowledged: Mutex<VecDeque<(u64, Duration)>>,
    reported: Mutex<Option<Duration>>,
}

impl Link {
    pub(super) fn new(peer: StoreId) -> Self {
        Self {
            peer,
            raft: Outbox::new(RAFT_ITEMS_MAX, RAFT_BYTES_MAX),
            heartbeats: Outbox::new(HEARTBEAT_ITEMS_MAX, HEARTBEAT_BYTES_MAX),
            liveness: Outbox::new(64, HEARTBEAT_BYTES_MAX),
            up: AtomicBool::new(false),
            next_request: AtomicU64::new(1),
            waiting: Mutex::default(),
            unacknowledged: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Whether this is the time to tell the store that the peer cannot be reached.
    pub(super) fn report_due(&self, mono: Duration) -> bool {
        let mut reported = lock(&self.reported);
        let due = reported.is_none_or(|at| mono.saturating_sub(at) >= REPORT_EVERY);
        if due {
            *reported = Some(mono);
        }
        due
    }

    /// Queues a request for the peer. The answer comes when the peer gives it, or the lane breaks.
    pub(super) fn forward(
        &self,
        request: RangeRequest,
    ) -> (Pending<'_>, oneshot::Receiver<Result<RangeReply, SendError>>) {
        let id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (answer, outcome) = oneshot::channel();
        lock(&self.waiting).insert(id, answer);
        if let Some(RaftItem::Request { id, .. }) = self.raft.push([RaftItem::Request { id, request }]).pop() {
            let why = if self.raft.is_open() { "its queue is full" } else { "there is no connection to it" };
            self.answer(id, Err(SendError::NotSent(format!("{}: {why}", self.peer))));
        }
        (Pending { link: self, id }, outcome)
    }

    /// The peer's answer to a request.
    pub(super) fn answer(&self, id: u64, result: Result<RangeReply, SendError>) {
        let waiting = lock(&self.waiting).remove(&id);
        if let Some(waiting) = waiting {
            // Who does not wait any more has given up.
            let _ = waiting.send(result);
        }
    }

    /// The raft lane broke: what was queued was not sent, what was sent is in doubt.
    pub(super) fn raft_broke(&self, why: &str) {
        for item in self.raft.shut() {
            if let RaftItem::Request { id, .. } = item {
                self.answer(id, Err(SendError::NotSent(format!("{}: {why}", self.peer))));
            }
        }
        let lost: Vec<_> = std::mem::take(&mut *lock(&self.waiting)).into_values().collect();
        for waiting in lost {
            let _ = waiting.send(Err(SendError::Lost(format!("{}: {why}", self.peer))));
        }
        lock(&self.unacknowledged).clear();
    }

    /// A frame left.
    pub(super) fn sent(&self, number: u64, mono: Duration) {
        lock(&self.unacknowledged).push_back((number, mono));
    }

    /// The peer took in all frames up to this one.
    pub(super) fn acknowledged(&self, number: u64) {
        let mut unacknowledged = lock(&self.unacknowledged);
        while unacknowledged.front().is_some_and(|(sent, _)| *sent <= number) {
            unacknowledged.pop_front();
        }
    }

    /// Since when the raft lane waits for an acknowledgement.
    pub(super) fn unacknowledged_since(&self) -> Option<Duration> {
        lock(&self.unacknowledged).front().map(|(_, since)| *since)
    }

    /// No more is sent.
    pub(super) fn close(&self) {
        self.raft_broke("this node stops");
        self.raft.close();
        self.heartbeats.close();
        self.liveness.close();
    }
}

/// A request that somebody waits for; forgotten when dropped.
pub(super) struct Pending<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        lock(&self.link.waiting).remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Command, Key, RangeError, Read, ReadAt};

    use super::*;

    fn request() -> RangeRequest {
        let read = Read::Get { key: Key::new(&b"\x10k"[..]) };
        RangeRequest {
            range: RangeId(1),
            timeout: Duration::from_secs(1),
            command: Command::Read { at: ReadAt::Leaseholder, read },
        }
    }

    #[tokio::test]
    async fn what_was_not_sent_and_what_is_in_doubt_are_told_apart() {
        let link = Link::new(StoreId(2));
        let (_pending, outcome) = link.forward(request());
        assert!(matches!(outcome.await.unwrap(), Err(SendError::NotSent(_))), "no connection");
        let life = link.raft.open();
        let (_first, sent) = link.forward(request());
        let taken = link.raft.take(life, 1).await.unwrap();
        assert_eq!(taken.len(), 1);
        let (_second, queued) = link.forward(request());
        link.raft_broke("cut");
        assert!(matches!(sent.await.unwrap(), Err(SendError::Lost(_))));
        assert!(matches!(queued.await.unwrap(), Err(SendError::NotSent(_))));
    }

    #[tokio::test]
    async fn an_answer_finds_its_request_and_a_late_one_nobody() {
        let link = Link::new(StoreId(2));
        link.raft.open();
        let (pending, outcome) = link.forward(request());
        let error = RangeError::DeadlineExceeded { range: RangeId(1) };
        link.answer(1, Err(error.clone().into()));
        assert_eq!(outcome.await.unwrap(), Err(SendError::Range(error)));
        drop(pending);
        let (pending, _outcome) = link.forward(request());
        drop(pending);
        assert!(lock(&link.waiting).is_empty());
        link.answer(2, Err(SendError::Lost(String::new())));
    }

    #[test]
    fn the_oldest_frame_without_acknowledgement_counts() {
        let link = Link::new(StoreId(2));
        let at = Duration::from_millis;
        (1..=3).for_each(|n| link.sent(n, at(n * 10)));
        link.acknowledged(1);
        assert_eq!(link.unacknowledged_since(), Some(at(20)));
        link.acknowledged(3);
        assert_eq!(link.unacknowledged_since(), None);
    }
}
