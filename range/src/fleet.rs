//! The fleet: all replicas of one store, driven by one thread.
//!
//! One turn: take events; evaluate what holds its latches, on an engine that shows every write of the turns before;
//! propose; take what each touched group wants; apply what was committed, all ranges in one batch; then reply. Only
//! ranges that something happened to, or whose time has come, are looked at.
//!
//! `snapshots` sends and installs them, `uninit` holds replicas that exist by name only, `peers` knows which stores share
//! a range with this one, `sleep` and `sleepers` keep idle ranges at no cost.

mod births;
mod destroy;
mod door;
mod peers;
mod sleep;
mod sleepers;
mod snapshots;
mod sweep;
mod truncate;
mod uninit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_storage::engine::Reader;
use flotilla_storage::log::{LogHead, LogOp};
use flotilla_types::{KeySpan, LogIndex, RangeDescriptor, RangeError, RangeId, ReplicaId, StoreId, Term, Timestamp};

use crate::apply::{Raised, State};
use crate::boot::{self, BootError};
use crate::cache_budget::CacheBudget;
use crate::event::{Effect, Event, FlushMark, Now, Ticket};
use crate::flush::{Act, AfterFlush};
use crate::gc::GcConfig;
use crate::message::{BeatReply, PeerMessage};
use crate::raft::{self, Ctx, Group, GroupBoot, GroupConfig, GroupReady, LogRead, Role, Support};
pub use crate::replica::LocksSeen;
use crate::replica::Replica;
use crate::snapshot::{Incoming, Outgoing};
use crate::turn::Turn;
use destroy::Lost;
use peers::Peers;
pub(crate) use sleepers::Member;
use sleepers::Sleepers;
use sweep::Sweeps;
use uninit::Uninit;

/// A store that is suspended for longer hands over what it leads: its peers may serve.
const SUSPENDED_LONG: Duration = Duration::from_secs(5);

/// Settings of a fleet.
#[derive(Debug, Clone)]
pub struct FleetConfig {
    /// The store whose replicas these are.
    pub store: StoreId,
    /// Counts starts of the store: makes the names of transfers unique.
    pub boot: u32,
    /// Of every group.
    pub group: GroupConfig,
    /// When old versions go.
    pub gc: GcConfig,
}

/// A range as this store sees it, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeStatus {
    /// Its descriptor.
    pub descriptor: RangeDescriptor,
    /// Whether the replica here leads and may propose.
    pub leads: bool,
    /// The newest raft term that it knows.
    pub term: Term,
    /// Its applied index.
    pub applied: LogIndex,
    /// Running checksum of all applied commands.
    pub sum: u64,
    /// Where its newest lease started.
    pub lease_start: Timestamp,
    /// Replicas that applied other commands than this leader: to be replaced.
    pub diverged: Vec<ReplicaId>,
    /// Where its leader lives, if it knows one.
    pub leader: Option<StoreId>,
    /// The newest index that it knows as committed.
    pub committed: LogIndex,
    /// Where its log ends.
    pub last: LogIndex,
    /// Everything at or below was given up.
    pub truncated: LogIndex,
    /// It is out of order and waits to be replaced.
    pub is_lost: bool,
    /// It sleeps: nothing is asked of it.
    pub asleep: bool,
    /// Reads at or below are refused; zero if there is no such threshold.
    pub gc_threshold: Timestamp,
}

impl RangeStatus {
    fn of(replica: &Replica) -> Self {
        Self {
            descriptor: replica.state.descriptor.clone(),
            leads: replica.group.usable(),
            term: replica.group.role().term,
            applied: replica.state.applied.pos.index,
            sum: replica.state.applied.sum,
            lease_start: replica.state.lease.start,
            diverged: replica.sums.diverged(),
            leader: replica.leader_store(),
            committed: replica.group.committed(),
            last: replica.group.last().index,
            truncated: replica.group.truncated().index,
            is_lost: replica.group.lost().is_some(),
            asleep: replica.slumber.asleep,
            gc_threshold: replica.state.thresholds.gc,
        }
    }
}

/// All replicas of one store. See the module's page.
pub struct Fleet {
    config: FleetConfig,
    replicas: BTreeMap<RangeId, Replica>,
    /// Ranges to look at in this turn.
    touched: BTreeSet<RangeId>,
    /// When each range wants a turn, and the same the other way round.
    wakes: BTreeSet<(Duration, RangeId)>,
    wake_of: BTreeMap<RangeId, Duration>,
    next_ticket: Ticket,
    /// Log writes under way: which groups wait for them, with their number.
    writing: BTreeMap<Ticket, Vec<(RangeId, u64)>>,
    suspended: bool,
    /// Since when it is suspended, or is not.
    suspended_at: Duration,
    disk_full: bool,
    /// The process is about to stop: it leads nothing that another can lead.
    draining: bool,
    flush: AfterFlush,
    /// Reads entries for groups that are started later.
    log: Arc<dyn LogRead>,
    /// Replicas without state. Invariant: none of a range that is in `replicas`.
    uninit: BTreeMap<RangeId, Uninit>,
    /// Replicas that a start found out of order. They have state, and no group: they answer nobody until they are removed.
    lost: BTreeMap<RangeId, Lost>,
    /// Children with a log whose split has to be replayed first (see `births`).
    unborn: BTreeMap<RangeId, LogHead>,
    /// Destroyed in the engine, not known to be flushed: no new replica of these begins (durability D11). With the span
    /// that they had, if any.
    closing: BTreeMap<RangeId, Option<KeySpan>>,
    outgoing: Outgoing,
    incoming: Incoming,
    peers: Peers,
    caches: CacheBudget,
    sleepers: Sleepers,
    sweeps: Sweeps,
    /// Replicas that do not sleep, and those that lead.
    awake: BTreeSet<RangeId>,
    leaders: BTreeSet<RangeId>,
    /// Somebody may rest on support that is gone, or came.
    support_changed: bool,
    /// No turn was made yet.
    fresh: bool,
}

/// Lets the engine know of a threshold that is durable.
fn publish(state: &State, threshold: Timestamp, garbage: u64) -> Option<Effect> {
    let span = state.descriptor.span.clone();
    (threshold > Timestamp::ZERO).then_some(Effect::PublishGc { span, threshold, garbage })
}

impl Fleet {
    /// Takes up every replica that the engine holds.
    ///
    /// # Errors
    /// The store contradicts itself and must not start.
    pub fn boot(
        config: FleetConfig,
        engine: &dyn Reader,
        log: Arc<dyn LogRead>,
        heads: &[(RangeId, LogHead)],
        mono: Duration,
    ) -> Result<(Self, Vec<Effect>), BootError> {
        let outgoing = Outgoing::new(config.store, config.boot);
        let peers = Peers::new(config.store);
        let sleepers = Sleepers::new(config.store);
        let mut fleet = Self {
            config,
            replicas: BTreeMap::new(),
            touched: BTreeSet::new(),
            wakes: BTreeSet::new(),
            wake_of: BTreeMap::new(),
            next_ticket: Ticket(1),
            writing: BTreeMap::new(),
            suspended: false,
            suspended_at: mono,
            disk_full: false,
            draining: false,
            flush: AfterFlush::default(),
            log: Arc::clone(&log),
            uninit: BTreeMap::new(),
            lost: BTreeMap::new(),
            unborn: BTreeMap::new(),
            closing: BTreeMap::new(),
            outgoing,
            incoming: Incoming::default(),
            peers,
            caches: CacheBudget::default(),
            sleepers,
            sweeps: Sweeps::default(),
            awake: BTreeSet::new(),
            leaders: BTreeSet::new(),
            support_changed: false,
            fresh: true,
        };
        let mut effects = Vec::new();
        let found = boot::find(engine, log.as_ref(), heads)?;
        let mut repairs = Vec::new();
        for (range, head) in heads.iter().filter(|(range, _)| !found.contains_key(range)) {
            if boot::is_gone(engine, *range, head.replica) {
                repairs.push(LogOp::Remove { range: *range });
            } else if head.birth.is_some() {
                fleet.unborn.insert(*range, *head);
            } else {
                fleet.start_uninit(*range, *head, mono);
            }
        }
        for (range, found) in found {
            repairs.extend(found.repair);
            let started = found.head.map_err(str::to_owned).and_then(|head| {
                let boot = GroupBoot {
                    range,
                    me: found.me,
                    store: fleet.config.store,
                    descriptor: Some(&found.state.descriptor),
                    head,
                    applied: found.state.applied.pos,
                    lease: found.state.lease,
                    commit_at_least: fleet.proven(range, found.me),
                    mono,
                };
                if head.birth.is_some() {
                    // What a restart finds is what was flushed, the split included.
                    repairs.push(LogOp::DropBirth { range });
                }
                Group::start(&boot, &fleet.config.group, Arc::clone(&log)).map_err(|why| why.to_string())
            });
            match started {
                Ok(group) => {
                    // What a restart finds is what was flushed.
                    effects.extend(publish(&found.state, found.state.thresholds.gc, 0));
                    let mut replica = Replica::new(found.me, fleet.config.store, group, found.state);
                    // What a restart finds is what was flushed.
                    replica.keeping.flushed = replica.state.applied.pos.index;
                    fleet.replicas.insert(range, replica);
                    fleet.touched.insert(range);
                }
                Err(why) => {
                    fleet.lost.insert(range, Lost { me: found.me, descriptor: found.state.descriptor });
                    effects.push(Effect::Lost { range, why });
                }
            }
        }
        for (range, _) in fleet.unborn.iter().filter(|(_, head)| !fleet.is_expected(head)) {
            let why = "its log is here, and the split that made it cannot be found any more".to_owned();
            effects.push(Effect::Lost { range: *range, why });
        }
        for replica in fleet.replicas.values() {
            fleet.peers.count(None, Some(&replica.state.descriptor));
        }
        if !repairs.is_empty() {
            // Whatever the group writes comes behind it.
            effects.insert(0, Effect::Append { ticket: fleet.next_ticket, ops: repairs });
            fleet.next_ticket = Ticket(fleet.next_ticket.0 + 1);
        }
        effects.push(Effect::Peers(fleet.peers.stores()));
        Ok((fleet, effects))
    }

    /// Whether another turn is wanted at once.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.touched.is_empty()
    }

    /// When a turn is wanted although nothing happens.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        let ranges = self.wakes.first().map(|(at, _)| *at);
        ranges
            .into_iter()
            .chain(self.outgoing.next_wake())
            .chain(self.sleepers.next_wake())
            .chain(self.sweeps.next_wake())
            .min()
    }

    /// How many ranges are led here.
    #[must_use]
    pub fn led(&self) -> usize {
        self.leaders.len()
    }

    /// How many replicas sleep.
    #[must_use]
    pub fn asleep(&self) -> usize {
        self.sleepers.len()
    }

    /// The locks in the ranges that are led here, when their leaders last looked. A range with locks does not sleep.
    #[must_use]
    pub fn locks_seen(&self) -> LocksSeen {
        let leaders = self.awake.intersection(&self.leaders).filter_map(|range| self.replicas.get(range));
        leaders.map(Replica::locks_seen).fold(LocksSeen::default(), LocksSeen::and)
    }

    /// How many of them have another voter that could lead: what a drain waits for.
    #[must_use]
    pub fn led_with_heirs(&self) -> usize {
        let led = self.replicas.values().filter(|replica| replica.group.role().role == Role::Leader);
        let has_heir = |replica: &&Replica| {
            replica.state.descriptor.voters_incoming().any(|voter| voter.store != self.config.store)
        };
        led.filter(has_heir).count()
    }

    /// How many replicas live here.
    #[must_use]
    pub fn count(&self) -> usize {
        self.replicas.len()
    }

    /// Every range, ascending.
    #[must_use]
    pub fn status(&self) -> Vec<RangeStatus> {
        self.replicas.values().map(RangeStatus::of).collect()
    }

    /// Replicas that are to be replaced although their stores live: those here that are out of order, and those that
    /// leaders here saw apply other commands than they did.
    #[must_use]
    pub fn out_of_order(&self) -> Vec<(RangeId, ReplicaId)> {
        let mut found: Vec<_> = self.lost.iter().map(|(range, lost)| (*range, lost.me)).collect();
        for (range, replica) in &self.replicas {
            found.extend(replica.group.lost().map(|_| (*range, replica.id())));
            if replica.group.usable() {
                found.extend(replica.sums.diverged().into_iter().map(|other| (*range, other)));
            }
        }
        // A child that will not be made has its log only, under the id that it had.
        let orphans = self.unborn.iter().filter(|(_, head)| !self.is_expected(head));
        found.extend(orphans.map(|(range, head)| (*range, head.replica)));
        found
    }

    /// One range.
    #[must_use]
    pub fn status_of(&self, range: RangeId) -> Option<RangeStatus> {
        self.replicas.get(&range).map(RangeStatus::of)
    }

    /// One turn. See the module's page.
    pub fn step(&mut self, events: Vec<Event>, now: Now, engine: &dyn Reader, support: &dyn Support) -> Vec<Effect> {
        let ctx = Ctx { now: now.hlc, mono: now.mono, support, may_campaign: !self.suspended && !self.draining };
        let mut turn = Turn::default();
        if !self.unborn.is_empty() {
            self.replay_births(&ctx, engine, &mut turn);
        }
        if std::mem::take(&mut self.fresh) {
            self.start_asleep(&ctx);
        }
        for event in events {
            self.take(&ctx, event, engine, &mut turn);
        }
        self.wake_sleepers(&ctx);
        self.wake_due(now.mono);
        for range in std::mem::take(&mut self.touched) {
            self.turn_of(&ctx, range, engine, &mut turn);
        }
        while let Some(range) = self.caches.largest_if_over() {
            let left = self.replicas.get_mut(&range).map_or(0, |replica| replica.group.shed());
            self.caches.note(range, left);
            turn.effects.push(Effect::Count("flotilla_entry_cache_sheds_total", 1));
            if left > 0 {
                // What is left is not applied yet, and must stay.
                break;
            }
        }
        self.sweep(&ctx, engine, &mut turn);
        self.finish(&ctx, turn)
    }

    fn take(&mut self, ctx: &Ctx<'_>, event: Event, engine: &dyn Reader, turn: &mut Turn) {
        match event {
            Event::Message { from, message } => self.message(ctx, from, message, engine, turn),
            Event::Request { token, request } => {
                let range = request.range;
                if let Some(error) = self.refusal(&request) {
                    return turn.effects.push(Effect::Reply { token, result: Err(error) });
                }
                self.wake_for(ctx, &request);
                match self.replicas.get_mut(&range) {
                    Some(replica) => replica.request(ctx, token, request, &mut turn.effects),
                    None => {
                        let error = RangeError::RangeNotFound { range, store: self.config.store };
                        turn.effects.push(Effect::Reply { token, result: Err(error) });
                    }
                }
                self.touch(range);
            }
            Event::Persisted(through) => self.persisted(ctx, through, turn),
            Event::Flushed(through) => {
                for act in self.flush.flushed(through) {
                    self.after_flush(ctx, act, through, turn);
                }
            }
            Event::SupportLeft { peer, epoch } => {
                self.sleepers.support_left(peer, epoch);
                self.support_changed = true;
                self.each_awake(|replica| replica.group.support_left(ctx, peer, epoch));
            }
            Event::SupportChanged => {
                self.support_changed = true;
                self.each_awake(|replica| replica.group.support_changed(ctx));
            }
            Event::Unreachable(store) => self.each_awake(|replica| replica.group.unreachable(ctx, store)),
            Event::Suspended(suspended) => {
                self.suspended = suspended;
                self.suspended_at = ctx.mono;
                if suspended {
                    self.each(|replica| replica.refuse_waiting(&mut turn.effects));
                }
            }
            Event::SnapshotReceived { header, files } => self.snapshot_received(ctx, header, files, turn),
            Event::SnapshotSent { id, delivered } => self.snapshot_sent(ctx, id, delivered),
            Event::Ingested(id) => self.ingested(ctx, id, engine, turn),
            Event::Damaged { range, why } => {
                if let Some(group) = self.group(range) {
                    group.lose(ctx, raft::LossReason::Damaged(why));
                }
            }
            Event::Wrong { range, replica, why } => {
                self.wake(ctx, range, false);
                if let Some(found) = self.replicas.get_mut(&range).filter(|found| found.id() == replica) {
                    found.wrong = Some((why, ctx.mono));
                    self.touched.insert(range);
                }
            }
            Event::Diverged { range, diverged } => {
                if let Some(replica) = self.replicas.get_mut(&range) {
                    replica.diverged = diverged;
                }
            }
            Event::Confirmed { range, current } => self.confirmed(ctx, range, &current, turn),
            Event::Pushed { range, number, result } => {
                if let Some(replica) = self.replicas.get_mut(&range) {
                    replica.pushed(ctx, number, result.as_ref(), &mut turn.effects);
                    self.touched.insert(range);
                }
            }
            Event::Pinned(ranges) => self.pinned(ctx, ranges, turn),
            Event::Drain => {
                self.draining = true;
                self.sleepers.wake_leaders();
                self.touched.extend(self.replicas.keys());
            }
            Event::DiskFull(full) => self.disk_full = full,
            // The shell keeps the results for whoever compares them.
            Event::Hashed { .. } => {}
        }
    }

    /// What the log gives up once the engine has it (docs/durability.md, "Apply").
    fn after_flush(&mut self, ctx: &Ctx<'_>, act: Act, through: FlushMark, turn: &mut Turn) {
        match act {
            Act::MayTruncate { range } => self.flushed(ctx, range, through, turn),
            Act::RemoveLog { range } => self.remove_log(range, turn),
            Act::DropBirth { range } => self.drop_birth(range, turn),
            Act::PublishGc { range, raised: Raised { threshold, garbage, sweep } } => {
                // Of the keys that it still has: what was cut off meanwhile waits for its own next threshold. A merge, once
                // there are some, must not widen it: the other half's threshold may not be flushed.
                // And nobody rewrites files that are known to be damaged.
                let replica = self.replicas.get(&range).filter(|replica| replica.group.lost().is_none());
                turn.effects.extend(replica.and_then(|replica| publish(&replica.state, threshold, garbage)));
                if sweep {
                    self.sweeps.add(range, threshold);
                }
            }
        }
    }

    /// Rare events that concern every range that does not sleep.
    fn each_awake(&mut self, mut what: impl FnMut(&mut Replica)) {
        for range in &self.awake {
            if let Some(replica) = self.replicas.get_mut(range) {
                what(replica);
                self.touched.insert(*range);
            }
        }
    }

    /// Rarer ones, that concern every range.
    fn each(&mut self, mut what: impl FnMut(&mut Replica)) {
        self.replicas.values_mut().for_each(&mut what);
        self.touched.extend(self.replicas.keys());
    }

    fn touch(&mut self, range: RangeId) {
        if self.replicas.contains_key(&range) {
            self.touched.insert(range);
        }
    }

    fn message(&mut self, ctx: &Ctx<'_>, from: StoreId, message: PeerMessage, engine: &dyn Reader, turn: &mut Turn) {
        match message {
            PeerMessage::Raft(envelope) => {
                self.meet(ctx, envelope.range, envelope.to, engine, turn);
                self.answer_removed(envelope.range, envelope.from, from, turn);
                self.wake(ctx, envelope.range, false);
                if let Some(group) = self.group(envelope.range) {
                    group.receive(ctx, from, &envelope);
                }
            }
            PeerMessage::Beats(beats) => {
                for beat in &beats {
                    self.meet(ctx, beat.range, beat.to, engine, turn);
                    self.beat(ctx, from, beat);
                    self.told_to_keep(ctx, beat, turn);
                }
            }
            PeerMessage::BeatReplies(replies) => {
                for reply in &replies {
                    self.beat_reply(ctx, from, reply);
                    self.compare(reply, turn);
                }
            }
            PeerMessage::Release { range, replica, term } => {
                self.wake(ctx, range, false);
                if let Some(group) = self.group(range) {
                    group.receive_release(ctx, replica, term);
                }
            }
            PeerMessage::Removed { range, next } => self.told_removed(ctx, range, next, turn),
        }
    }

    /// The group of a range that something happens to.
    fn group(&mut self, range: RangeId) -> Option<&mut Group> {
        let group = match self.replicas.get_mut(&range) {
            Some(replica) => &mut replica.group,
            None => &mut self.uninit.get_mut(&range)?.group,
        };
        self.touched.insert(range);
        Some(group)
    }

    fn persisted(&mut self, ctx: &Ctx<'_>, through: Ticket, turn: &mut Turn) {
        while let Some(entry) = self.writing.first_entry()
            && *entry.key() <= through
        {
            for (range, number) in entry.remove() {
                let Some(group) = self.group(range) else { continue };
                let sends = group.persisted(ctx, number);
                self.send(ctx, range, sends, turn);
            }
        }
        self.snapshots_logged(through, turn);
    }

    /// Fills in what the group does not know.
    fn send(&mut self, ctx: &Ctx<'_>, range: RangeId, mut sends: raft::Sends, turn: &mut Turn) {
        // A replica that has just applied its own removal has nothing left to be compared by.
        let applied = self.replicas.get(&range).map(|replica| replica.state.applied).unwrap_or_default();
        for (_, reply) in &mut sends.beat_replies {
            (reply.applied, reply.sum) = (applied.pos.index, applied.sum);
        }
        self.tell_sleep(ctx, range, &mut sends);
        if !sends.beats.is_empty() {
            let keep_from = self.keep_from(ctx, range);
            sends.beats.iter_mut().for_each(|(_, beat)| beat.keep_from = keep_from);
            self.truncate(ctx, range, turn);
        }
        for (to, _) in std::mem::take(&mut sends.wants_snapshot) {
            self.outgoing.want(range, to, ctx.mono);
        }
        turn.send(sends);
    }

    fn wake_due(&mut self, mono: Duration) {
        while let Some((at, range)) = self.wakes.first().copied()
            && at <= mono
        {
            self.wakes.remove(&(at, range));
            self.wake_of.remove(&range);
            self.touched.insert(range);
        }
    }

    fn turn_of(&mut self, ctx: &Ctx<'_>, range: RangeId, engine: &dyn Reader, turn: &mut Turn) {
        if !self.replicas.contains_key(&range) {
            return self.turn_of_uninit(ctx, range, turn);
        }
        self.tick(ctx, range);
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        replica.expire(ctx, &mut turn.effects);
        replica.evaluate_granted(ctx, engine, &mut turn.effects);
        replica.prove_leadership(ctx);
        replica.forget_finished(ctx, engine, &mut turn.effects);
        replica.look_for_leftovers(ctx, engine, &mut turn.effects);
        replica.collect_garbage(ctx, &self.config.gc, engine, &mut turn.effects);
        replica.leave_joint(ctx);
        replica.give_up_if_wrong(ctx, &mut turn.effects);
        let suspended_long = self.suspended && ctx.mono.saturating_sub(self.suspended_at) >= SUSPENDED_LONG;
        if self.draining || suspended_long {
            replica.leave_to_others(ctx, &mut turn.effects);
        }
        while let Some(replica) = self.replicas.get_mut(&range)
            && let Some(ready) = replica.group.ready(ctx)
        {
            let ended = ready.snapshot.is_some();
            self.carry_out(ctx, range, ready, engine, turn);
            if ended {
                break;
            }
        }
        if let Some(replica) = self.replicas.get_mut(&range) {
            replica.admit_proven(ctx, &mut turn.effects);
        }
        self.discard_refused(range, turn);
        self.ask_if_orphaned(ctx, range, turn);
        self.settle(ctx, range);
        let Some(replica) = self.replicas.get_mut(&range) else { return self.caches.note(range, 0) };
        self.caches.note(range, replica.group.cached_bytes());
        if let Some(why) = replica.newly_lost() {
            turn.effects.push(Effect::Lost { range, why });
            replica.role_changed(ctx, replica.group.role(), &mut turn.effects);
            self.lose_unborn_of(range, turn);
        }
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        // A leader that was just elected, and requests whose latches came free, go on in the next turn, on an engine that
        // shows what this one wrote.
        if replica.has_work() || replica.group.needs_lease_start() {
            self.touched.insert(range);
        }
        let wake = replica.next_wake();
        if let Some(before) = self.wake_of.remove(&range) {
            self.wakes.remove(&(before, range));
        }
        if let Some(at) = wake {
            self.wakes.insert((at, range));
            self.wake_of.insert(range, at);
        }
    }

    /// One ready of a replica that has state.
    fn carry_out(&mut self, ctx: &Ctx<'_>, range: RangeId, ready: GroupReady, engine: &dyn Reader, turn: &mut Turn) {
        self.snapshot_ready(range, &ready, turn);
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        for op in &ready.log_ops {
            if let LogOp::Append { entries, .. } = op {
                replica.keeping.appended(entries);
            }
        }
        turn.log_ops.extend(ready.log_ops);
        turn.numbers.extend(ready.number.map(|number| (range, number)));
        for (to, term) in ready.releases {
            turn.messages.push((to, PeerMessage::Release { range, replica: replica.id(), term }));
        }
        if ready.wants_catch_up {
            replica.catch_up_term(ctx, &mut turn.effects);
        }
        if let Some(role) = ready.role {
            replica.role_changed(ctx, role, &mut turn.effects);
            if role.role == Role::Leader {
                turn.effects.push(Effect::Lead { descriptor: replica.state.descriptor.clone() });
            }
        }
        replica.proven(&ready.reads);
        let mut committed = &ready.committed[..];
        while !committed.is_empty() {
            let Some(replica) = self.replicas.get_mut(&range) else { break };
            let before = replica.state.descriptor.clone();
            let born = match replica.apply_committed(ctx, committed, turn) {
                Ok((applied, born)) => {
                    committed = &committed[applied..];
                    born
                }
                Err(why) => {
                    replica.group.lose(ctx, raft::LossReason::Boot(why));
                    committed = &[];
                    None
                }
            };
            if let Some(born) = born {
                self.born(ctx, range, *born, engine, turn);
            }
            self.descriptor_changed(ctx, range, &before, turn);
            turn.applied.push(range);
        }
        self.send(ctx, range, ready.sends, turn);
    }

    /// What follows from a new descriptor that was just applied.
    fn descriptor_changed(&mut self, ctx: &Ctx<'_>, range: RangeId, before: &RangeDescriptor, turn: &mut Turn) {
        let Some(replica) = self.replicas.get(&range) else { return };
        let after = &replica.state.descriptor;
        if after.generation == before.generation {
            return;
        }
        if self.peers.count(Some(before), Some(after)) {
            turn.effects.push(Effect::Peers(self.peers.stores()));
        }
        if replica.group.role().role == Role::Leader {
            turn.effects.push(Effect::Lead { descriptor: after.clone() });
            // Whoever is gone does not hear it from the log any more.
            for gone in before.replicas.iter().filter(|replica| after.replica(replica.replica).is_none()) {
                turn.messages.push((gone.store, PeerMessage::Removed { range, next: gone.replica.next() }));
            }
        }
        let me = replica.id();
        if after.replica(me).is_none() {
            self.destroy(ctx, range, me.next(), turn);
        }
    }

    /// A follower says what it has applied.
    fn compare(&mut self, reply: &BeatReply, turn: &mut Turn) {
        let Some(replica) = self.replicas.get_mut(&reply.range) else { return };
        let role = replica.group.role();
        if role.role != Role::Leader || role.term != reply.term {
            return;
        }
        replica.heard_applied(reply);
        if replica.sums.differs(reply) {
            tracing::error!(
                range = %reply.range, replica = %reply.from, index = %reply.applied,
                "a replica has applied other commands than its leader; it should be replaced"
            );
            turn.effects.push(Effect::Count("flotilla_replicas_diverged_total", 1));
        }
    }

    /// Puts the turn's effects in order.
    fn finish(&mut self, ctx: &Ctx<'_>, mut turn: Turn) -> Vec<Effect> {
        self.send_snapshots(ctx, &mut turn);
        let append = (!turn.log_ops.is_empty() || !turn.numbers.is_empty()).then_some(self.next_ticket);
        if let Some(ticket) = append {
            self.next_ticket = Ticket(ticket.0 + 1);
            self.writing.insert(ticket, std::mem::take(&mut turn.numbers));
        }
        let applied = std::mem::take(&mut turn.applied);
        let effects = turn.finish(append, &mut self.flush);
        self.await_flush(applied);
        effects
    }
}
