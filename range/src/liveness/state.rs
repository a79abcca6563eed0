//! The state machine of one store's liveness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::{LogOp, MetaKey, StoreBound};
use flotilla_types::{RecordError, StoreId, Timestamp};
use thiserror::Error;

use super::records::{decode_bound, decode_row, encode_bound, encode_row};
use super::view::SupportView;
use crate::raft::Given;

/// A request that reaches further into the future than this is an error of its sender.
const ASKED_AHEAD_MAX: Duration = Duration::from_secs(10);

/// The two times of store liveness (docs/leases.md, section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessConfig {
    /// D: for how long support is asked.
    pub support: Duration,
    /// H: how often.
    pub interval: Duration,
}

/// The time of one step, as values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LivenessNow {
    /// A fresh reading of the store's HLC, above the durable bound perhaps: then nothing is sent, and nobody is left.
    pub hlc: Timestamp,
    /// Monotonic time since the process started.
    pub mono: Duration,
}

/// Names a log write of liveness; ascends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogTicket(pub u64);

/// That a store gives support to another: told to everybody as a hint (leases 2.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenHint {
    /// To whom.
    pub store: StoreId,
    /// In which boot of that store.
    pub boot: u32,
    /// Whether it stands.
    pub active: bool,
}

/// Asks for support.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// In this epoch of the asking store.
    pub epoch: u64,
    /// Until then. Invariant: at or below the asking store's durable bound.
    pub until: Timestamp,
    /// The asking store's support duration.
    pub support: Duration,
    /// The newest clock reading of the receiver that the asking store has heard: proves that both directions work.
    pub heard: Timestamp,
    /// Whom the asking store supports.
    pub given: Vec<GivenHint>,
}

/// What is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// In which epoch; a higher one than asked for tells which to ask for.
    pub epoch: u64,
    /// Until when; zero if nothing is given.
    pub until: Timestamp,
    /// The sender's wall clock, for the receiver's watch over its own. The shell fills it in; zero says nothing.
    pub wall: Duration,
}

/// What stores say to each other about liveness, on the heartbeat lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessMessage {
    /// Asks.
    Heartbeat(Heartbeat),
    /// Answers.
    Reply(HeartbeatReply),
}

/// What can happen to a store's liveness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessEvent {
    /// Time passed. Call at `next_wake`; calling early is harmless.
    Tick,
    /// All log writes up to and including this one are durable.
    Durable(LogTicket),
    /// A message came. `sent` is its frame's clock reading, which the shell has taken in already.
    Message {
        /// The sender.
        from: StoreId,
        /// The sender's clock when it sent.
        sent: Timestamp,
        /// What it said.
        message: LivenessMessage,
    },
    /// Which stores share a range with this one.
    Peers(BTreeSet<StoreId>),
    /// The fleet's loop turned.
    FleetTurned,
    /// Messages to a peer on the raft lane have waited for their acknowledgement since then (monotonic); `None`: none wait.
    LaneUnacked(StoreId, Option<Duration>),
}

/// What a store's liveness wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LivenessEffect {
    /// Write to the log; tell `LivenessEvent::Durable` when it is durable. At most a few are under way.
    WriteLog(LogTicket, Vec<LogOp>),
    /// The clock's durable bound has risen.
    RaiseBound(Timestamp),
    /// Send on the heartbeat lane.
    Send(StoreId, LivenessMessage),
    /// This store durably left its support of the epoch: fleets may break promises that rest on it.
    SupportLeft(StoreId, u64),
    /// The view changed in an epoch, an end of support, or a hint: publish it.
    ViewChanged,
}

/// What this store gives a peer, durable (leases, `SupportRow`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The newest epoch seen or left.
    pub epoch: u64,
    /// Whether support in it stands.
    pub active: bool,
    /// The peer's support duration.
    pub support: Duration,
}

/// Why liveness cannot go on from what the log holds.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the liveness record {key:?} cannot be read: {source}")]
pub struct RestoreError {
    key: MetaKey,
    source: RecordError,
}

/// What this store gives a peer.
#[derive(Debug)]
struct Giving {
    row: Row,
    /// Support stands until then, at least.
    until: Timestamp,
    /// A change of the row that is not durable yet. Meanwhile nothing is given or extended.
    change: Option<Change>,
}

#[derive(Debug)]
struct Change {
    ticket: LogTicket,
    row: Row,
    /// What the row gives once it is durable.
    until: Timestamp,
}

/// What a peer gives this store.
#[derive(Debug, Default)]
struct Receiving {
    /// The epoch to ask for, in this boot.
    epoch: u64,
    /// What the peer echoed in that epoch.
    until: Timestamp,
    /// The newest reading of the peer's clock.
    heard: Timestamp,
    unacked_since: Option<Duration>,
}

/// The liveness of one store. See the module's page.
#[derive(Debug)]
pub struct Liveness {
    config: LivenessConfig,
    boot: u32,
    bound: Timestamp,
    bound_write: Option<(LogTicket, Timestamp)>,
    next_bound_at: Duration,
    /// When the last log write of this module became durable: a disk that syncs nothing supports nobody (2.4).
    synced_at: Duration,
    fleet_turned_at: Duration,
    next_ticket: LogTicket,
    peers: BTreeSet<StoreId>,
    giving: BTreeMap<StoreId, Giving>,
    receiving: BTreeMap<StoreId, Receiving>,
    hints: BTreeMap<StoreId, (Timestamp, Vec<GivenHint>)>,
}

impl Liveness {
    /// Takes up from what the log holds. `boot` is this start's number, durable already; `phase` spreads the stores'
    /// heartbeats over the interval. The caller keeps the store mute until its physical clock has passed `bound()`.
    ///
    /// # Errors
    /// A record cannot be read.
    pub fn restore(
        config: LivenessConfig,
        boot: u32,
        phase: Duration,
        metas: &[(MetaKey, Bytes)],
        now: LivenessNow,
    ) -> Result<Self, RestoreError> {
        let mut bound = Timestamp::ZERO;
        let mut giving = BTreeMap::new();
        for (key, value) in metas {
            let failed = |source| RestoreError { key: *key, source };
            match key {
                MetaKey::Bound => bound = decode_bound(value).map_err(failed)?.bound,
                MetaKey::Support(peer) => {
                    let row = decode_row(value).map_err(failed)?;
                    giving.insert(*peer, Giving { row, until: Timestamp::ZERO, change: None });
                }
                MetaKey::Identity | MetaKey::Boot => {}
            }
        }
        for given in giving.values_mut().filter(|given| given.row.active) {
            // All it can have promised: until ≤ sender's clock + D ≤ own clock + D ≤ bound + D (2.7).
            given.until = bound.plus(given.row.support);
        }
        Ok(Self {
            config,
            boot,
            bound,
            bound_write: None,
            next_bound_at: now.mono + phase,
            synced_at: now.mono,
            fleet_turned_at: now.mono,
            next_ticket: LogTicket(1),
            peers: BTreeSet::new(),
            giving,
            receiving: BTreeMap::new(),
            hints: BTreeMap::new(),
        })
    }

    /// The durable bound of this store's clock.
    #[must_use]
    pub const fn bound(&self) -> Timestamp {
        self.bound
    }

    /// When to tick next, in monotonic time. Ends of given support are HLC readings; they are looked for at least this
    /// often.
    #[must_use]
    pub fn next_wake(&self, now: LivenessNow) -> Duration {
        let ends = self.giving.values().filter(|given| given.row.active && given.change.is_none());
        let soonest = ends.map(|given| now.mono + given.until.since(now.hlc)).min();
        let bound_at = if self.bound_write.is_none() { self.next_bound_at } else { now.mono + self.config.interval };
        soonest.map_or(bound_at, |soonest| soonest.min(bound_at))
    }

    /// The picture for the fleets.
    #[must_use]
    pub fn view(&self, as_of: Timestamp) -> Arc<SupportView> {
        let given = self.giving.iter().map(|(peer, given)| {
            let until = if given.row.active { given.until } else { Timestamp::ZERO };
            (*peer, Given { epoch: given.row.epoch, active: given.row.active, until })
        });
        Arc::new(SupportView {
            as_of,
            bound: self.bound,
            given: given.collect(),
            received: self.receiving.iter().map(|(peer, got)| (*peer, (got.epoch, got.until))).collect(),
            hints: self.hints.clone(),
            hint_age_max: self.config.support,
        })
    }

    /// Takes one event.
    pub fn step(&mut self, event: LivenessEvent, now: LivenessNow) -> Vec<LivenessEffect> {
        let mut effects = Vec::new();
        match event {
            LivenessEvent::Tick => {}
            LivenessEvent::FleetTurned => self.fleet_turned_at = now.mono,
            LivenessEvent::Peers(peers) => self.peers = peers,
            LivenessEvent::LaneUnacked(peer, since) => {
                self.receiving.entry(peer).or_default().unacked_since = since;
            }
            LivenessEvent::Durable(ticket) => self.durable(ticket, now, &mut effects),
            // 1.3: beyond its durable bound a store neither answers nor decides anything.
            LivenessEvent::Message { .. } if now.hlc > self.bound => {}
            LivenessEvent::Message { from, sent, message: LivenessMessage::Heartbeat(asked) } => {
                self.heard(from, sent);
                self.asked(from, asked, now, &mut effects);
            }
            LivenessEvent::Message { from, sent, message: LivenessMessage::Reply(reply) } => {
                let first = self.heard(from, sent);
                self.answered(from, reply, first, now, &mut effects);
            }
        }
        self.leave(now, &mut effects);
        self.write_bound(now, &mut effects);
        effects
    }

    /// Notes a peer's clock; true if it is the first reading.
    fn heard(&mut self, from: StoreId, sent: Timestamp) -> bool {
        let receiving = self.receiving.entry(from).or_default();
        let first = receiving.heard == Timestamp::ZERO;
        receiving.heard = receiving.heard.max(sent);
        first
    }

    fn write(&mut self, key: MetaKey, value: Bytes, effects: &mut Vec<LivenessEffect>) -> LogTicket {
        let ticket = self.next_ticket;
        self.next_ticket.0 += 1;
        effects.push(LivenessEffect::WriteLog(ticket, vec![LogOp::Meta { key, value }]));
        ticket
    }

    /// 2.3, first half: a new bound, one write at a time, so that a slow disk stretches the interval.
    fn write_bound(&mut self, now: LivenessNow, effects: &mut Vec<LivenessEffect>) {
        if self.bound_write.is_some() || now.mono < self.next_bound_at {
            return;
        }
        let bound = now.hlc.plus(self.config.support).max(self.bound);
        let record = encode_bound(&StoreBound { bound, support: self.config.support });
        let ticket = self.write(MetaKey::Bound, record, effects);
        self.bound_write = Some((ticket, bound));
        self.next_bound_at = now.mono + self.config.interval;
    }

    fn durable(&mut self, through: LogTicket, now: LivenessNow, effects: &mut Vec<LivenessEffect>) {
        self.synced_at = now.mono;
        let peers: Vec<_> = self.giving.keys().copied().collect();
        for peer in peers {
            self.row_durable(peer, through, effects);
        }
        if let Some((ticket, bound)) = self.bound_write
            && ticket <= through
        {
            self.bound_write = None;
            self.bound = bound;
            effects.push(LivenessEffect::RaiseBound(bound));
            effects.push(LivenessEffect::ViewChanged);
            self.ask_all(now, effects);
        }
    }

    fn row_durable(&mut self, peer: StoreId, through: LogTicket, effects: &mut Vec<LivenessEffect>) {
        let Some(given) = self.giving.get_mut(&peer) else { return };
        let Some(change) = given.change.take_if(|change| change.ticket <= through) else { return };
        let before = given.row;
        given.row = change.row;
        given.until = if before.epoch == change.row.epoch { given.until.max(change.until) } else { change.until };
        let (epoch, until) = (given.row.epoch, given.until);
        if before.active && before.epoch != epoch {
            effects.push(LivenessEffect::SupportLeft(peer, before.epoch));
        }
        effects.push(LivenessEffect::ViewChanged);
        if change.row.active {
            effects.push(LivenessEffect::Send(
                peer,
                LivenessMessage::Reply(HeartbeatReply { epoch, until, wall: Duration::ZERO }),
            ));
        }
    }

    /// 2.3, second half: asks everybody who may be asked.
    fn ask_all(&self, now: LivenessNow, effects: &mut Vec<LivenessEffect>) {
        let peers = self.peers.iter().copied();
        effects.extend(peers.filter_map(|peer| self.request(peer, now)));
    }

    /// Nobody is asked on behalf of a fleet that hangs, nor over a lane that does not carry writes: liveness answers for
    /// the path that commits, not for itself.
    fn request(&self, peer: StoreId, now: LivenessNow) -> Option<LivenessEffect> {
        if now.mono.saturating_sub(self.fleet_turned_at) > 2 * self.config.interval || self.bound < now.hlc {
            return None;
        }
        let nothing = Receiving::default();
        let receiving = self.receiving.get(&peer).unwrap_or(&nothing);
        if receiving.unacked_since.is_some_and(|since| now.mono.saturating_sub(since) >= self.config.support) {
            return None;
        }
        let given = self.giving.iter().map(|(store, given)| GivenHint {
            store: *store,
            boot: u32::try_from(given.row.epoch >> 32).unwrap_or(u32::MAX),
            active: given.row.active,
        });
        let heartbeat = Heartbeat {
            epoch: receiving.epoch.max(u64::from(self.boot) << 32),
            until: self.bound,
            support: self.config.support,
            heard: receiving.heard,
            given: given.collect(),
        };
        Some(LivenessEffect::Send(peer, LivenessMessage::Heartbeat(heartbeat)))
    }

    /// 2.4: the ladder of the supporter.
    fn asked(&mut self, from: StoreId, asked: Heartbeat, now: LivenessNow, effects: &mut Vec<LivenessEffect>) {
        if asked.until > now.hlc.plus(ASKED_AHEAD_MAX) {
            return;
        }
        let hint_changed = self.hints.get(&from).is_none_or(|(_, given)| *given != asked.given);
        self.hints.insert(from, (now.hlc, asked.given));
        if hint_changed {
            effects.push(LivenessEffect::ViewChanged);
        }
        let fresh = Row { epoch: 0, active: false, support: asked.support };
        let given = self.giving.entry(from).or_insert(Giving { row: fresh, until: Timestamp::ZERO, change: None });
        if given.change.is_some() {
            // The answer waits for the disk; the next request finds it.
            return;
        }
        let until = if given.row.active { given.until } else { Timestamp::ZERO };
        let row = LivenessEffect::Send(
            from,
            LivenessMessage::Reply(HeartbeatReply { epoch: given.row.epoch, until, wall: Duration::ZERO }),
        );
        if asked.epoch < given.row.epoch {
            effects.push(row);
            return;
        }
        if now.mono.saturating_sub(self.synced_at) > self.config.support / 2 {
            return;
        }
        if now.hlc.since(asked.heard) > self.config.support / 2 {
            effects.push(row);
            return;
        }
        let renewed = asked.epoch == given.row.epoch && given.row.active && asked.support <= given.row.support;
        if renewed {
            given.until = given.until.max(asked.until);
            let reply = HeartbeatReply { epoch: asked.epoch, until: given.until, wall: Duration::ZERO };
            effects.push(LivenessEffect::Send(from, LivenessMessage::Reply(reply)));
            effects.push(LivenessEffect::ViewChanged);
            return;
        }
        let row = Row { epoch: asked.epoch, active: true, support: asked.support.max(given.row.support) };
        self.change_row(from, row, asked.until, effects);
    }

    /// 2.6: what is believed is what was echoed, never the time of the reply plus a duration.
    fn answered(
        &mut self,
        from: StoreId,
        reply: HeartbeatReply,
        first: bool,
        now: LivenessNow,
        effects: &mut Vec<LivenessEffect>,
    ) {
        let boot = u64::from(self.boot);
        if reply.epoch >> 32 == boot {
            let receiving = self.receiving.entry(from).or_default();
            if reply.epoch > receiving.epoch {
                (receiving.epoch, receiving.until) = (reply.epoch, reply.until);
            } else if reply.epoch == receiving.epoch {
                receiving.until = receiving.until.max(reply.until);
            }
            effects.push(LivenessEffect::ViewChanged);
        }
        // First contact: the peer extends nothing before it knows that it was heard. Tell it at once.
        if first && self.peers.contains(&from) {
            effects.extend(self.request(from, now));
        }
    }

    /// 2.5: leaves whom nobody has heard of in time. The durable bound must have passed the end too: else a restart
    /// with the wall clock set back would vote below it.
    fn leave(&mut self, now: LivenessNow, effects: &mut Vec<LivenessEffect>) {
        let over = self.giving.iter().filter(|(_, given)| {
            given.row.active && given.change.is_none() && now.hlc >= given.until && self.bound >= given.until
        });
        let over: Vec<_> = over.map(|(peer, given)| (*peer, given.row)).collect();
        for (peer, row) in over {
            self.change_row(peer, Row { epoch: row.epoch + 1, active: false, ..row }, Timestamp::ZERO, effects);
        }
    }

    fn change_row(&mut self, peer: StoreId, row: Row, until: Timestamp, effects: &mut Vec<LivenessEffect>) {
        let ticket = self.write(MetaKey::Support(peer), encode_row(&row), effects);
        if let Some(given) = self.giving.get_mut(&peer) {
            given.change = Some(Change { ticket, row, until });
        }
    }
}
