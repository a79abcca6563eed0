//! The fleet's thread: the one loop that drives every replica of the store.
//!
//! ```text
//!  mailbox ─► all events ─► clock ─► Fleet::step ─► effects, in order
//!     ▲                                              │ Write: the engine, at once
//!     ├── Persisted ◄── log writer ◄─────────────────┤ Append
//!     ├── ends of snapshots, ingests, hashes ◄── IO ◄┤
//!     │                        network, one call ◄───┤ Send
//!     │                        callers ◄─────────────┘ Reply
//! ```
//! Nothing in a turn waits but the engine. A store whose clock may not be read is mute: it takes what concerns its own
//! disk, refuses requests and drops messages until the bound has risen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use flotilla_range::event::{Effect, Event, Now, Ticket, Token};
use flotilla_range::fleet::Fleet;
use flotilla_range::liveness::SupportView;
use flotilla_range::message::PeerMessage;
use flotilla_storage::engine::{Engine, WriteBatch};
use flotilla_storage::log::LogOp;
use flotilla_storage::writer::{LogWriter, Submission};
use flotilla_types::{Command, RangeError, StoreId};
use tokio::sync::oneshot;

use super::background::Background;
use super::callers::{Answer, Callers, Sample};
use super::fatal::{Failure, OnFailure};
use super::flusher::FlushRequests;
use super::inbox::{Ask, Asked, Batch, Inbox};
use super::liveness::LivenessInbox;
use super::marks::Marks;
use super::meters::FleetMeters;
use crate::clock::NodeClock;
use crate::ports::{Keeper, Network, Push};

/// A turn happens at least this often: liveness asks for nobody's support on behalf of a loop that hangs.
const TURN_EVERY: Duration = Duration::from_millis(200);
/// Appends that may be under way. One per turn: so many only wait if the disk is stalled, and the writer's queue has
/// room for more than these and liveness's.
const APPENDS_MAX: u64 = 512;
/// How often replicas are counted for metrics, and leaders while the store is drained.
const COUNT_EVERY: Duration = Duration::from_secs(5);
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the fleet's thread works with.
pub(super) struct FleetLoop {
    pub(super) store: StoreId,
    pub(super) fleet: Fleet,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) clock: Arc<NodeClock>,
    pub(super) view: Arc<ArcSwap<SupportView>>,
    pub(super) log: Arc<LogWriter>,
    pub(super) network: Arc<dyn Network>,
    pub(super) keeper: Arc<dyn Keeper>,
    pub(super) liveness: Arc<LivenessInbox>,
    pub(super) marks: Arc<Marks>,
    pub(super) background: Background,
    pub(super) flush: FlushRequests,
    pub(super) turns: Arc<AtomicU64>,
    pub(super) on_failure: OnFailure,
    pub(super) meters: FleetMeters,
}

/// What the loop remembers from turn to turn.
struct Running {
    callers: Callers,
    /// The last turn could not read the clock: nothing is due before the bound has risen, which wakes the loop.
    mute: bool,
    sample: Option<Sample>,
    submitted: Ticket,
    persisted: Ticket,
    /// Filled and emptied within a turn; kept for their room.
    sends: Vec<(StoreId, PeerMessage)>,
    replies: Vec<(Token, Answer)>,
    draining: Vec<oneshot::Sender<()>>,
    counted_at: Instant,
    drain_looked_at: Instant,
}

impl FleetLoop {
    /// Runs until the mailbox is closed. `first` are the effects of the boot.
    pub(super) fn run(mut self, first: Vec<Effect>) {
        let now = Instant::now();
        let mut running = Running {
            callers: Callers::default(),
            mute: false,
            sample: None,
            submitted: Ticket(0),
            persisted: Ticket(0),
            sends: Vec::new(),
            replies: Vec::new(),
            draining: Vec::new(),
            counted_at: now,
            drain_looked_at: now,
        };
        let (mut batch, mut events) = (Batch::default(), Vec::new());
        let mut ended = self.carry_out(first, &mut running);
        while ended.is_ok() {
            let until = self.wake_at(&running);
            if self.inbox.take(until, &mut batch).is_err() {
                return;
            }
            batch.take_own(&mut events);
            self.turns.fetch_add(1, Ordering::Relaxed);
            self.note_persisted(&events, &mut running);
            ended = self.turn(&mut batch, &mut events, &mut running);
        }
        if let Err(failure) = ended {
            self.on_failure.meet(failure);
        }
    }

    fn wake_at(&self, running: &Running) -> Instant {
        let now = Instant::now();
        if running.mute {
            return now + TURN_EVERY;
        }
        if self.fleet.has_work() {
            return now;
        }
        let soonest = now + if running.draining.is_empty() { TURN_EVERY } else { DRAIN_LOOK_EVERY };
        self.fleet.next_wake().map_or(soonest, |mono| soonest.min(self.clock.instant_of(mono)))
    }

    /// One turn: everything that waited, then everything that is wanted.
    fn turn(&mut self, batch: &mut Batch, events: &mut Vec<Event>, running: &mut Running) -> Result<(), Failure> {
        self.await_log(events, running);
        // Read after the mailbox was emptied, so that it lies above every reading that came with a message.
        let reading = self.clock.now();
        running.mute = reading.is_err();
        let Ok(hlc) = reading else {
            self.meters.mute_turns.increment(1);
            self.mute(batch);
            return Ok(());
        };
        let started = Instant::now();
        let messages = batch.messages.drain(..);
        events.extend(messages.map(|(from, message)| Event::Message { from, message }));
        for asked in batch.requests.drain(..) {
            events.push(self.admit(asked, started, running));
        }
        for ask in batch.asks.drain(..) {
            self.answer(ask, events, running);
        }
        self.meters.events.record(events.len() as f64);
        let now = Now { hlc, mono: self.clock.mono() };
        let view = self.view.load_full();
        let effects = self.fleet.step(std::mem::take(events), now, self.engine.as_ref(), view.as_ref());
        if let Some(sample) = running.sample.filter(|sample| sample.submitted.is_none()) {
            self.meters.queue.record(started.saturating_duration_since(sample.since));
            self.meters.evaluate.record(started.elapsed());
        }
        self.carry_out(effects, running)?;
        self.look_around(running);
        self.meters.turn.record(started.elapsed());
        Ok(())
    }

    /// Notes when the sampled write became durable here.
    fn note_persisted(&self, events: &[Event], running: &mut Running) {
        let through = events.iter().find_map(|event| match event {
            Event::Persisted(ticket) => Some(*ticket),
            _ => None,
        });
        let Some(through) = through else { return };
        running.persisted = running.persisted.max(through);
        if let Some(sample) = &mut running.sample
            && let Some((ticket, submitted)) = sample.submitted
            && ticket <= through
            && sample.durable.is_none()
        {
            sample.durable = Some(Instant::now());
            self.meters.log_sync.record(submitted.elapsed());
        }
    }

    /// A stalled disk stalls the fleet instead of filling the writer's queue. The mailbox fills up meanwhile, and says so.
    fn await_log(&self, events: &mut Vec<Event>, running: &mut Running) {
        while running.submitted.0 - running.persisted.0 >= APPENDS_MAX {
            let from = events.len();
            if self.inbox.take_own(Instant::now() + TURN_EVERY, events).is_err() {
                return;
            }
            self.note_persisted(&events[from..], running);
        }
    }

    /// Leases 1.3: above its bound a store neither answers nor decides anything. What it told itself waits.
    fn mute(&self, batch: &mut Batch) {
        self.meters.mute_dropped.increment(batch.messages.len() as u64);
        batch.messages.clear();
        for asked in batch.requests.drain(..) {
            let why = "it just started, or its log disk is stalled".to_owned();
            let _ = asked.answer.send(Err(RangeError::StoreNotServing { store: self.store, why }));
        }
        for ask in batch.asks.drain(..) {
            match ask {
                Ask::All(answer) => drop(answer.send(self.fleet.status())),
                Ask::One(range, answer) => drop(answer.send(self.fleet.status_of(range))),
                Ask::OutOfOrder(answer) => drop(answer.send(self.fleet.out_of_order())),
                // Nothing is led by a mute store for longer than its lease.
                Ask::Drain(answer) => {
                    let _ = answer.send(());
                }
            }
        }
    }

    fn admit(&self, asked: Asked, now: Instant, running: &mut Running) -> Event {
        let Asked { mut request, answer, since } = asked;
        request.timeout = request.timeout.saturating_sub(now.saturating_duration_since(since));
        let writes = matches!(request.command, Command::Write { .. });
        let token = running.callers.open(answer);
        if writes && running.sample.is_none() {
            running.sample = Some(Sample { token, since, submitted: None, durable: None });
        }
        Event::Request { token, request }
    }

    fn answer(&self, ask: Ask, events: &mut Vec<Event>, running: &mut Running) {
        match ask {
            Ask::All(answer) => drop(answer.send(self.fleet.status())),
            Ask::One(range, answer) => drop(answer.send(self.fleet.status_of(range))),
            Ask::OutOfOrder(answer) => drop(answer.send(self.fleet.out_of_order())),
            Ask::Drain(answer) => {
                events.push(Event::Drain);
                running.draining.push(answer);
            }
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>, running: &mut Running) -> Result<(), Failure> {
        for effect in effects {
            match effect {
                Effect::Write(batch) => self.write(&batch)?,
                Effect::Append { ticket, ops } => self.append(ticket, ops, running)?,
                Effect::Send { to, message } => running.sends.push((to, message)),
                Effect::Reply { token, result } => running.replies.push((token, result)),
                Effect::SendSnapshot { to, header } => {
                    self.background.send_snapshot(to, header, self.engine.snapshot());
                }
                Effect::Ingest { id, files, cleared } => {
                    self.background.ingest(id, files, cleared, self.marks.ingest_begins());
                }
                Effect::Discard { files } => self.background.discard(files),
                Effect::Hash { descriptor, replica, check, applied } => {
                    self.background.hash(descriptor, replica, check, applied, self.engine.snapshot());
                }
                Effect::Reclaim { span } => self.background.reclaim(span),
                Effect::PublishGc { span, threshold, garbage } => {
                    self.engine.gc().publish(&span, threshold);
                    self.background.collect(span, garbage);
                }
                Effect::WithdrawGc { span } => self.engine.gc().forget(&span),
                Effect::Flush => self.flush.soon(),
                Effect::Lead { descriptor } => self.keeper.lead(descriptor),
                Effect::Confirm { range, key } => self.keeper.confirm(range, key),
                Effect::Push { range, number, keys, push } => self.keeper.push(Push { range, number, keys, push }),
                Effect::Peers(peers) => self.liveness.peers(peers),
                Effect::Lost { range, why } => {
                    tracing::error!(%range, why, "a replica is lost: it helps nobody and waits to be replaced");
                    self.keeper.lost(range, &why);
                }
                Effect::Count(name, by) => metrics::counter!(name).increment(by),
                Effect::Took(name, time) => metrics::histogram!(name).record(time),
            }
        }
        if !running.sends.is_empty() {
            self.network.send(std::mem::take(&mut running.sends));
        }
        self.reply(running);
        Ok(())
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), Failure> {
        let started = Instant::now();
        self.engine.write(batch)?;
        self.marks.written();
        self.meters.apply.record(started.elapsed());
        self.meters.applied_bytes.increment(batch.bytes as u64);
        Ok(())
    }

    fn append(&self, ticket: Ticket, ops: Vec<LogOp>, running: &mut Running) -> Result<(), Failure> {
        running.submitted = ticket;
        self.meters.proposals.increment(1);
        if let Some(sample) = &mut running.sample
            && sample.submitted.is_none()
        {
            sample.submitted = Some((ticket, Instant::now()));
        }
        let inbox = Arc::clone(&self.inbox);
        let done = Box::new(move |_| inbox.persisted(ticket));
        // Never full: `await_log` keeps it from it. The writer ends only after a failure, which ends the process.
        self.log.submit(Submission { ops, done }).map_err(|error| {
            Failure::Log(flotilla_storage::log::LogFatal::Io(format!("submit to the log writer: {error}")))
        })
    }

    fn reply(&self, running: &mut Running) {
        for (token, result) in running.replies.drain(..) {
            if let Some(sample) = running.sample.take_if(|sample| sample.token == token)
                && result.is_ok()
                && let Some(durable) = sample.durable
            {
                self.meters.quorum.record(durable.elapsed());
                self.meters.write.record(sample.since.elapsed());
            }
            // Who gave up waiting is not told.
            if let Some(caller) = running.callers.close(token) {
                let _ = caller.send(result);
            }
        }
    }

    /// What is looked at now and then.
    fn look_around(&self, running: &mut Running) {
        if running.counted_at.elapsed() >= COUNT_EVERY {
            running.counted_at = Instant::now();
            self.meters.replicas.set(self.fleet.count() as f64);
            self.meters.leaders.set(self.fleet.led() as f64);
            self.meters.asleep.set(self.fleet.asleep() as f64);
            let (versions, bytes) = self.engine.gc().collected();
            self.meters.collected.absolute(versions);
            self.meters.collected_bytes.absolute(bytes);
            let age = self.engine.gc().oldest().map_or(Duration::ZERO, |oldest| self.clock.peek().since(oldest));
            self.meters.gc_age.set(age.as_secs_f64());
            let locks = self.fleet.locks_seen();
            let age = locks.oldest.map_or(Duration::ZERO, |oldest| self.clock.peek().since(oldest));
            self.meters.locks.set(locks.count as f64);
            self.meters.lock_age.set(age.as_secs_f64());
        }
        if !running.draining.is_empty() && running.drain_looked_at.elapsed() >= DRAIN_LOOK_EVERY {
            running.drain_looked_at = Instant::now();
            if self.fleet.led_with_heirs() == 0 {
                running.draining.drain(..).for_each(|drained| {
                    let _ = drained.send(());
                });
            }
        }
    }
}
