//! The fleet's mailbox: everything that happens to it, bounded.
//!
//! Requests and peers' messages have a room each with a size; past it a request is refused as overloaded, and a message
//! is dropped and counted, since raft sends again. What the store tells itself must never be lost, and needs no queue:
//! it coalesces into a slot (the newest ticket, the newest mark, "changed") or is bounded by what was asked for.
//!
//! The whole content is taken at once by swapping, so that an event costs one push; the fleet's thread is woken only if
//! it waits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flotilla_range::event::{Event, FlushMark, Ticket};
use flotilla_range::fleet::RangeStatus;
use flotilla_range::message::PeerMessage;
use flotilla_types::{
    BatchOp, Command, PushResult, RangeDescriptor, RangeError, RangeId, RangeReply, RangeRequest, ReplicaId, StoreId,
    Write,
};
use tokio::sync::oneshot;

/// Requests that wait for a turn. A turn takes all of them in well under a millisecond each thousand.
const REQUESTS_MAX: usize = 16 << 10;
/// Their keys and values: four of the largest requests, or many small ones.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Peers' messages that wait for a turn.
const MESSAGES_MAX: usize = 64 << 10;
/// Their bytes: room for the largest append of the largest entry, and for a turn's worth of others.
const MESSAGE_BYTES_MAX: usize = 96 << 20;
/// Questions of people and metrics that wait for a turn.
const ASKS_MAX: usize = 64;
/// When a refused caller may come again: some turns later.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// A request with its caller.
pub(super) struct Asked {
    pub(super) request: RangeRequest,
    pub(super) answer: oneshot::Sender<Result<RangeReply, RangeError>>,
    pub(super) since: Instant,
}

/// A question about the fleet itself.
pub(super) enum Ask {
    All(oneshot::Sender<Vec<RangeStatus>>),
    One(RangeId, oneshot::Sender<Option<RangeStatus>>),
    /// Replicas to be replaced.
    OutOfOrder(oneshot::Sender<Vec<(RangeId, ReplicaId)>>),
    /// Hand all leaderships over; answered when none is left.
    Drain(oneshot::Sender<()>),
}

/// Everything that waited, in the order in which the fleet should take it.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) persisted: Option<Ticket>,
    pub(super) flushed: Option<FlushMark>,
    pub(super) support_left: Vec<(StoreId, u64)>,
    pub(super) support_changed: bool,
    pub(super) suspended: Option<bool>,
    pub(super) disk_full: Option<bool>,
    pub(super) unreachable: BTreeSet<StoreId>,
    pub(super) confirmed: BTreeMap<RangeId, RangeDescriptor>,
    /// Ends of things that were asked for: bounded by them.
    pub(super) rare: Vec<Event>,
    pub(super) messages: Vec<(StoreId, PeerMessage)>,
    pub(super) requests: Vec<Asked>,
    pub(super) asks: Vec<Ask>,
    message_bytes: usize,
    request_bytes: usize,
    /// Nothing to take, but a reason to look: the clock may have become readable.
    poked: bool,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.requests.is_empty() && self.asks.is_empty() && !self.poked && !self.has_own()
    }

    /// Whether the store told itself something.
    fn has_own(&self) -> bool {
        self.persisted.is_some()
            || self.flushed.is_some()
            || !self.support_left.is_empty()
            || self.support_changed
            || self.suspended.is_some()
            || self.disk_full.is_some()
            || !self.unreachable.is_empty()
            || !self.confirmed.is_empty()
            || !self.rare.is_empty()
    }

    /// After a swap: the counts belong to what was taken.
    fn taken(&mut self) {
        self.poked = false;
        self.message_bytes = 0;
        self.request_bytes = 0;
    }

    /// Moves all that is no request, no message and no question into events.
    pub(super) fn take_own(&mut self, events: &mut Vec<Event>) {
        events.extend(self.persisted.take().map(Event::Persisted));
        events.extend(self.flushed.take().map(Event::Flushed));
        events.extend(self.support_left.drain(..).map(|(peer, epoch)| Event::SupportLeft { peer, epoch }));
        if std::mem::take(&mut self.support_changed) {
            events.push(Event::SupportChanged);
        }
        events.extend(self.suspended.take().map(Event::Suspended));
        events.extend(self.disk_full.take().map(Event::DiskFull));
        events.extend(std::mem::take(&mut self.unreachable).into_iter().map(Event::Unreachable));
        let confirmed = std::mem::take(&mut self.confirmed).into_iter();
        events.extend(confirmed.map(|(range, current)| Event::Confirmed { range, current }));
        events.append(&mut self.rare);
    }
}

/// The mailbox.
pub(super) struct Inbox {
    store: StoreId,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    batch: Batch,
    /// The fleet's thread waits and must be woken.
    waiting: bool,
    closed: bool,
}

/// The mailbox was closed and everything in it taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

impl Inbox {
    pub(super) fn new(store: StoreId) -> Self {
        Self { store, state: Mutex::default(), filled: Condvar::new() }
    }

    /// Every change of the state is one push, so it is good even if a pusher panicked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Batch)) {
        let mut state = self.state();
        change(&mut state.batch);
        self.wake(state);
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let wake = std::mem::take(&mut state.waiting);
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    pub(super) fn persisted(&self, ticket: Ticket) {
        self.put(|batch| batch.persisted = batch.persisted.max(Some(ticket)));
    }

    pub(super) fn flushed(&self, mark: FlushMark) {
        self.put(|batch| batch.flushed = batch.flushed.max(Some(mark)));
    }

    /// What liveness has to tell, in one push.
    pub(super) fn support(&self, left: Vec<(StoreId, u64)>, changed: bool) {
        self.put(|batch| {
            batch.support_left.extend(left);
            batch.support_changed |= changed;
        });
    }

    pub(super) fn suspended(&self, suspended: bool) {
        self.put(|batch| batch.suspended = Some(suspended));
    }

    pub(super) fn disk_full(&self, full: bool) {
        self.put(|batch| batch.disk_full = Some(full));
    }

    pub(super) fn unreachable(&self, peer: StoreId) {
        self.put(|batch| {
            batch.unreachable.insert(peer);
        });
    }

    /// The end of something that the fleet asked for, or a snapshot for which there was a permit.
    pub(super) fn rare(&self, event: Event) {
        self.put(|batch| batch.rare.push(event));
    }

    /// What was asked for by `Effect::Confirm`; the newest per range.
    pub(super) fn confirmed(&self, range: RangeId, current: RangeDescriptor) {
        self.put(|batch| {
            batch.confirmed.insert(range, current);
        });
    }

    /// A push ended. As many are under way as the keeper carries out at once.
    pub(super) fn pushed(&self, range: RangeId, number: u64, result: Option<PushResult>) {
        self.put(|batch| batch.rare.push(Event::Pushed { range, number, result }));
    }

    /// Looks again, though nothing happened.
    pub(super) fn poke(&self) {
        self.put(|batch| batch.poked = true);
    }

    /// Takes a peer's messages as far as there is room; says how many were dropped.
    pub(super) fn messages(&self, from: StoreId, messages: Vec<PeerMessage>) -> usize {
        let mut state = self.state();
        let mut dropped = 0;
        if state.closed {
            return messages.len();
        }
        for message in messages {
            let (batch, bytes) = (&mut state.batch, weight_of_message(&message));
            if batch.messages.len() >= MESSAGES_MAX || batch.message_bytes + bytes > MESSAGE_BYTES_MAX {
                dropped += 1;
                continue;
            }
            batch.message_bytes += bytes;
            batch.messages.push((from, message));
        }
        self.wake(state);
        dropped
    }

    /// Takes a request, or says why not.
    pub(super) fn request(&self, asked: Asked) -> Result<(), RangeError> {
        let bytes = weight(&asked.request);
        let mut state = self.state();
        if state.closed {
            return Err(self.stopped());
        }
        let batch = &mut state.batch;
        if batch.requests.len() >= REQUESTS_MAX || batch.request_bytes + bytes > REQUEST_BYTES_MAX {
            return Err(RangeError::Overloaded { queue: "the store's requests".into(), retry_after: RETRY_AFTER });
        }
        batch.request_bytes += bytes;
        batch.requests.push(asked);
        self.wake(state);
        Ok(())
    }

    /// Takes a question; a dropped one answers its asker by dropping the sender.
    pub(super) fn ask(&self, ask: Ask) {
        let mut state = self.state();
        if !state.closed && state.batch.asks.len() < ASKS_MAX {
            state.batch.asks.push(ask);
            self.wake(state);
        }
    }

    /// What a request to a stopped store is told.
    pub(super) fn stopped(&self) -> RangeError {
        RangeError::StoreNotServing { store: self.store, why: "it is stopping".to_owned() }
    }

    /// Takes no more; the fleet's thread ends after what is there.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.wake(state);
    }

    /// Waits until something is there or `until` has passed, and swaps all of it for `batch`, which must be empty.
    ///
    /// # Errors
    /// The mailbox is closed and empty.
    pub(super) fn take(&self, until: Instant, batch: &mut Batch) -> Result<(), Closed> {
        self.wait_for(until, |waiting| {
            if waiting.is_empty() {
                return false;
            }
            std::mem::swap(waiting, batch);
            batch.taken();
            true
        })
    }

    /// The same for what the store tells itself alone: the rest stays, and fills the mailbox.
    ///
    /// # Errors
    /// The mailbox is closed.
    pub(super) fn take_own(&self, until: Instant, events: &mut Vec<Event>) -> Result<(), Closed> {
        self.wait_for(until, |waiting| {
            let any = waiting.has_own();
            if any {
                waiting.take_own(events);
            }
            any
        })
    }

    /// Waits until `take` has taken something, or `until` has passed.
    fn wait_for(&self, until: Instant, mut take: impl FnMut(&mut Batch) -> bool) -> Result<(), Closed> {
        let mut state = self.state();
        loop {
            if take(&mut state.batch) {
                return Ok(());
            }
            if state.closed {
                return Err(Closed);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self.wait(state, left);
        }
    }

    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        state.waiting = true;
        let mut state = self.filled.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
        state.waiting = false;
        state
    }
}

fn weight_of_message(message: &PeerMessage) -> usize {
    match message {
        PeerMessage::Raft(envelope) => 64 + envelope.message.len(),
        PeerMessage::Beats(beats) => 64 * beats.len(),
        PeerMessage::BeatReplies(replies) => 72 * replies.len(),
        _ => 64,
    }
}

/// Keys are bounded at the door and small; values are what fills a memory.
fn weight(request: &RangeRequest) -> usize {
    let Command::Write { write, .. } = &request.command else { return 256 };
    let values = match write {
        Write::Put { value, .. } => value.len(),
        Write::CompareAndSwap { expected, new, .. } => {
            expected.as_ref().map_or(0, bytes::Bytes::len) + new.as_ref().map_or(0, bytes::Bytes::len)
        }
        Write::Batch { ops } => ops.iter().map(weight_of_op).sum(),
        _ => 0,
    };
    256 + values
}

fn weight_of_op(op: &BatchOp) -> usize {
    match op {
        BatchOp::Put { value, .. } => 64 + value.len(),
        BatchOp::Delete { .. } => 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn what_the_store_tells_itself_coalesces() {
        let inbox = Inbox::new(StoreId(1));
        inbox.persisted(Ticket(4));
        inbox.persisted(Ticket(3));
        inbox.support(vec![(StoreId(2), 7)], true);
        inbox.support(Vec::new(), true);
        inbox.unreachable(StoreId(2));
        inbox.unreachable(StoreId(2));
        let (mut batch, mut events) = (Batch::default(), Vec::new());
        inbox.take(soon(), &mut batch).unwrap();
        batch.take_own(&mut events);
        let told: Vec<_> = events.iter().map(|event| format!("{event:?}")).collect();
        let expected =
            ["Persisted(Ticket(4))", "SupportLeft { peer: s2, epoch: 7 }", "SupportChanged", "Unreachable(s2)"];
        assert_eq!(told, expected);
        assert!(batch.is_empty());
    }

    #[test]
    fn messages_past_the_bound_are_dropped_and_counted() {
        let inbox = Inbox::new(StoreId(1));
        let many = vec![PeerMessage::Beats(Vec::new()); MESSAGES_MAX + 3];
        assert_eq!(inbox.messages(StoreId(2), many), 3);
        let mut batch = Batch::default();
        inbox.take(soon(), &mut batch).unwrap();
        assert_eq!(batch.messages.len(), MESSAGES_MAX);
        assert_eq!(inbox.messages(StoreId(2), vec![PeerMessage::Beats(Vec::new())]), 0, "taking makes room");
    }

    #[test]
    fn a_closed_mailbox_gives_out_what_it_holds_and_then_ends() {
        let inbox = Inbox::new(StoreId(1));
        inbox.poke();
        inbox.close();
        let mut batch = Batch::default();
        assert_eq!(inbox.take(soon(), &mut batch), Ok(()));
        let mut batch = Batch::default();
        assert_eq!(inbox.take(soon(), &mut batch), Err(Closed));
        assert_eq!(inbox.messages(StoreId(2), vec![PeerMessage::Beats(Vec::new())]), 1);
    }

    #[test]
    fn a_waiting_thread_is_woken() {
        let inbox = Inbox::new(StoreId(1));
        std::thread::scope(|scope| {
            scope.spawn(|| inbox.poke());
            let started = Instant::now();
            let mut batch = Batch::default();
            inbox.take(started + Duration::from_secs(60), &mut batch).unwrap();
            assert!(started.elapsed() < Duration::from_secs(30));
        });
    }
}
