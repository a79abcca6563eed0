//! The liveness thread: drives `range::liveness` apart from the fleet, so that a busy turn cannot hold up support.
//!
//! Before its first step it waits until the physical clock has passed the durable bound (leases 2.7). The store needs no
//! other gate: its clock gives no reading until the first new bound is durable, and that is written by the first step.
//! It answers for the path that commits: its records go through the log writer like entries, and the fleet's loop stamps
//! every turn. The same loop watches the machine's clock (leases 1.4).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use flotilla_range::liveness::{
    ClockVerdict, ClockWatch, Liveness, LivenessEffect, LivenessEvent, LivenessMessage, LivenessNow, LogTicket,
    SupportView, Suspicion,
};
use flotilla_storage::log::LogOp;
use flotilla_storage::writer::{LogWriter, Submission};
use flotilla_types::{StoreId, Timestamp};

use super::fatal::{Failure, OnFailure};
use super::inbox::Inbox;
use crate::clock::{NodeClock, Readings};
use crate::ports::Network;

/// Liveness messages that wait: each peer has two under way in an interval, so that this is for hundreds of peers.
const MESSAGES_MAX: usize = 1024;
/// After this long the boot wait is told to people: the wall clock was set back.
const BOOT_WAIT_TOLD: Duration = Duration::from_secs(10);

/// The mailbox of liveness. All but messages coalesces.
#[derive(Default)]
pub(super) struct LivenessInbox {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Waiting,
    closed: bool,
}

#[derive(Default)]
struct Waiting {
    durable: Option<LogTicket>,
    peers: Option<BTreeSet<StoreId>>,
    lanes: BTreeMap<StoreId, Option<Duration>>,
    messages: Vec<(StoreId, Timestamp, LivenessMessage)>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.durable.is_none() && self.peers.is_none() && self.lanes.is_empty() && self.messages.is_empty()
    }

    fn into_events(self) -> Vec<LivenessEvent> {
        let mut events: Vec<_> = self.durable.map(LivenessEvent::Durable).into_iter().collect();
        events.extend(self.peers.map(LivenessEvent::Peers));
        events.extend(self.lanes.into_iter().map(|(peer, since)| LivenessEvent::LaneUnacked(peer, since)));
        let messages = self.messages.into_iter();
        events.extend(messages.map(|(from, sent, message)| LivenessEvent::Message { from, sent, message }));
        events
    }
}

impl LivenessInbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.state().waiting);
        self.filled.notify_one();
    }

    fn durable(&self, ticket: LogTicket) {
        self.put(|waiting| waiting.durable = waiting.durable.max(Some(ticket)));
    }

    pub(super) fn peers(&self, peers: BTreeSet<StoreId>) {
        self.put(|waiting| waiting.peers = Some(peers));
    }

    pub(super) fn lane_unacked(&self, peer: StoreId, since: Option<Duration>) {
        self.put(|waiting| {
            waiting.lanes.insert(peer, since);
        });
    }

    /// Says whether there was room.
    pub(super) fn message(&self, from: StoreId, sent: Timestamp, message: LivenessMessage) -> bool {
        let mut room = false;
        self.put(|waiting| {
            room = waiting.messages.len() < MESSAGES_MAX;
            if room {
                waiting.messages.push((from, sent, message));
            }
        });
        room
    }

    pub(super) fn close(&self) {
        self.state().closed = true;
        self.filled.notify_one();
    }

    /// Waits for something or until a time; `None` once closed.
    fn take(&self, until: Instant) -> Option<Vec<LivenessEvent>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if !state.waiting.is_empty() || left.is_zero() {
                return Some(std::mem::take(&mut state.waiting).into_events());
            }
            state = self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until a time; false once closed.
    fn rest(&self, until: Instant) -> bool {
        let mut state = self.state();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return !state.closed;
            }
            state = self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The process should stop; it was said why.
struct Stopped;

fn words(why: Suspicion) -> String {
    match why {
        Suspicion::Stepped(by) => format!("it moved by {by:?} against the monotonic clock"),
        Suspicion::Off(by) => format!("it differs by at least {by:?} from a majority of the peers'"),
    }
}

/// What the liveness thread works with.
pub(super) struct LivenessLoop {
    pub(super) liveness: Liveness,
    pub(super) inbox: Arc<LivenessInbox>,
    pub(super) fleet: Arc<Inbox>,
    pub(super) clock: Arc<NodeClock>,
    pub(super) log: Arc<LogWriter>,
    pub(super) network: Arc<dyn Network>,
    pub(super) view: Arc<ArcSwap<SupportView>>,
    /// Counts the turns of the fleet's loop.
    pub(super) turns: Arc<AtomicU64>,
    pub(super) watch: ClockWatch,
    pub(super) suspended: bool,
    pub(super) on_failure: OnFailure,
}

impl LivenessLoop {
    /// Runs until the mailbox is closed.
    pub(super) fn run(mut self) {
        if !self.boot_wait() {
            return;
        }
        let mut turns = 0;
        loop {
            let wake = self.liveness.next_wake(self.now());
            let Some(mut events) = self.inbox.take(self.clock.instant_of(wake)) else { return };
            if self.watch_clock(&events).is_err() {
                return;
            }
            let turned = self.turns.load(Ordering::Relaxed);
            if turned != turns {
                turns = turned;
                events.push(LivenessEvent::FleetTurned);
            }
            events.push(LivenessEvent::Tick);
            let mut effects = Vec::new();
            for event in events {
                let now = self.now();
                effects.append(&mut self.liveness.step(event, now));
            }
            self.carry_out(effects);
        }
    }

    /// Holds the clock against itself and against the peers'. Fails if the process should stop.
    fn watch_clock(&mut self, events: &[LivenessEvent]) -> Result<(), Stopped> {
        let Readings { wall, mono } = self.clock.readings();
        // A step first: what was asked before it measures nothing.
        let mut verdict = self.watch.look(wall, mono);
        for event in events {
            match event {
                LivenessEvent::Peers(peers) => self.watch.peers(peers),
                LivenessEvent::Message { from, message: LivenessMessage::Reply(reply), .. }
                    if !reply.wall.is_zero() =>
                {
                    self.watch.answered(*from, reply.wall, wall, mono);
                    verdict = self.watch.look(wall, mono);
                }
                _ => {}
            }
        }
        match verdict {
            ClockVerdict::Trusted if self.suspended => {
                tracing::warn!("the clock is trusted again: the store serves");
                self.suspend(false);
            }
            ClockVerdict::Suspended(why) if !self.suspended => {
                let why = words(why);
                tracing::error!(
                    why,
                    "the clock is not trusted: the store serves nobody until a majority of its peers agrees with it"
                );
                self.suspend(true);
            }
            ClockVerdict::Hopeless(why) => {
                self.on_failure.meet(Failure::Clock(words(why)));
                return Err(Stopped);
            }
            ClockVerdict::Trusted | ClockVerdict::Suspended(_) => {}
        }
        Ok(())
    }

    fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        metrics::gauge!("flotilla_suspended").set(f64::from(u8::from(suspended)));
        self.fleet.suspended(suspended);
    }

    /// Leases 2.7: everything that this store was ever promised or promised lies below its bound. Says false if the store
    /// was closed meanwhile.
    fn boot_wait(&self) -> bool {
        let bound = self.liveness.bound();
        let started = Instant::now();
        let mut told = false;
        loop {
            let wall = u64::try_from(self.clock.readings().wall.as_nanos()).unwrap_or(u64::MAX);
            let left = bound.since(Timestamp::from_wall(wall));
            if left.is_zero() {
                return true;
            }
            if !told && started.elapsed() >= BOOT_WAIT_TOLD {
                told = true;
                tracing::warn!(
                    ?left,
                    "the store stays out until the wall clock has passed what it promised before its restart: the clock \
                     was set back; it will not be skipped"
                );
            }
            // The wall clock may be set right meanwhile.
            if !self.inbox.rest(Instant::now() + left.min(Duration::from_secs(1))) {
                return false;
            }
        }
    }

    fn now(&self) -> LivenessNow {
        LivenessNow { hlc: self.clock.peek(), mono: self.clock.mono() }
    }

    fn carry_out(&mut self, effects: Vec<LivenessEffect>) {
        let (mut sends, mut left, mut changed, mut raised) = (Vec::new(), Vec::new(), false, false);
        for effect in effects {
            match effect {
                LivenessEffect::WriteLog(ticket, ops) => self.write(ticket, ops),
                LivenessEffect::RaiseBound(bound) => {
                    self.clock.raise_bound(bound);
                    raised = true;
                }
                LivenessEffect::Send(to, message) => sends.push((to, message)),
                LivenessEffect::SupportLeft(peer, epoch) => left.push((peer, epoch)),
                LivenessEffect::ViewChanged => changed = true,
            }
        }
        // The view first: who hears that support was left must see it.
        let mut told = false;
        if changed || !left.is_empty() {
            let view = self.liveness.view(self.clock.peek());
            told = !view.tells_the_same(&self.view.load());
            self.view.store(view);
        }
        if told || !left.is_empty() {
            self.fleet.support(left, told);
        } else if raised {
            // It may have waited for a readable clock.
            self.fleet.poke();
        }
        for (to, mut message) in sends {
            let wall = self.clock.readings().wall;
            match &mut message {
                LivenessMessage::Heartbeat(_) => self.watch.asked(to, wall),
                LivenessMessage::Reply(reply) => reply.wall = wall,
            }
            self.network.send_liveness(to, message);
        }
    }

    fn write(&self, ticket: LogTicket, ops: Vec<LogOp>) {
        let inbox = Arc::clone(&self.inbox);
        let done = Box::new(move |_| inbox.durable(ticket));
        // A few are under way at most, and the queue has room for them beside the fleet's. If the writer ended, the
        // process is about to.
        if let Err(error) = self.log.submit(Submission { ops, done }) {
            tracing::error!(%error, "a liveness record was not written");
        }
    }
}
