//! One replica that lives here: its group, its state, and the requests that wait or are under way at it.
//!
//! The road of a request through this file: `request` (admit) → latches (sequence) → `evaluate_granted` (evaluate,
//! propose) → `apply_committed` (apply, reply). A request leaves at each step with an answer, and exactly one.

mod changes;
mod end;
mod forget;
mod gc;
mod leftovers;
mod lock_waits;
mod proposals;
mod reads;
mod sleep;
mod split;
mod transact;
mod waits;

pub use leftovers::LocksSeen;
pub(crate) use split::write_records;

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_storage::engine::{Reader, WriteBatch};
use flotilla_storage::log::LogEntry;
use flotilla_storage::mvcc::ReadWindow;
use flotilla_types::{
    Admin, Command as RangeCommand, KeySpan, LogIndex, RangeDescriptor, RangeError, RangeReply, RangeRequest,
    ReplicaId, RequestId, StoreId, Term, Timestamp, Write,
};

use crate::apply::{Born, State};
use crate::command::{Command, Versions};
use crate::entry::{EntryCommand, Payload};
use crate::evaluate::{self, Evaluated, Failed};
use crate::event::{Effect, Token};
use crate::flush::Act;
use crate::latches::{Access, LatchId, Latches};
use crate::raft::{Ctx, Group, LossReason, Refused, Role, RoleState};
use crate::sums::Sums;
use crate::timestamp_cache::TimestampCache;
use crate::transact::conflicts;
use crate::truncation::LogKeeping;
use crate::turn::Turn;
use forget::Forgetting;
use gc::{Garbage, Hiding};
use leftovers::Leftovers;
use lock_waits::{LockWaits, Story};
use proposals::{BREAKS_AFTER, Proposals, Proposed};
use sleep::Slumber;
use transact::Transactions;
use waits::{Held, Proof, Waits};

/// Requests that may hold latches or wait for them in one range: some rounds of consensus at full speed.
const OPEN_MAX: usize = 4096;
/// Pieces of the timestamp cache; at about 100 bytes each.
const CACHE_PIECES: usize = 4096;
/// When a full range may be asked again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Bytes of commands in one entry, unless a single one is larger; and how many a turn evaluates before others have theirs.
const ENTRY_BYTES: usize = 1 << 20;
const TURN_BYTES: usize = 4 << 20;

/// Asks for commands that no client would repeat under an id.
const NOBODY: RequestId = RequestId([0; 16]);

/// A replica that hears of no leader for so long asks who owns its keys.
const ORPHANED: Duration = Duration::from_secs(60);

/// A request between admission and its answer or proposal.
struct Open {
    token: Token,
    request: RangeRequest,
    deadline: Duration,
    /// What a read that waited saw as the present when it came.
    stamp: Option<ReadWindow>,
    /// That this replica still led after it came.
    proof: Option<Proof>,
    /// What it remembers of waiting for locks.
    story: Story,
}

/// A replica.
pub(crate) struct Replica {
    me: ReplicaId,
    store: StoreId,
    pub(crate) group: Group,
    pub(crate) state: State,
    latches: Latches,
    cache: TimestampCache,
    open: BTreeMap<LatchId, Open>,
    /// Open requests by deadline.
    deadlines: BTreeMap<(Duration, LatchId), ()>,
    /// Requests without latches, and answers, that wait for a clock or a proof.
    waits: Waits,
    /// Requests without latches that wait for locks of transactions.
    lock_waits: LockWaits,
    /// What it remembers of transactions.
    transactions: Transactions,
    /// Open requests that hold their latches and wait to be evaluated in the next turn.
    granted: Vec<LatchId>,
    /// Commands in the log, by the entry that carries them.
    proposed: Proposals,
    /// Since when it leads without being able to serve.
    unusable_since: Option<Duration>,
    /// Changes of the range itself that are in the log, by their entry.
    changing: BTreeMap<LogIndex, (Term, Token)>,
    /// The highest timestamp that a read was served at: the floor of the next term (leases 3.8).
    max_served: Timestamp,
    /// What it remembers of requests that were done.
    forgetting: Forgetting,
    /// Old versions that may go some time.
    garbage: Garbage,
    /// What dead coordinators left.
    leftovers: Leftovers,
    /// How far each follower has applied, as it said in this term.
    followers: BTreeMap<ReplicaId, LogIndex>,
    /// Whom leadership is being handed to.
    heir: Option<StoreId>,
    /// What was last cut off on the right: for callers who do not know it yet.
    cut_off: Option<RangeDescriptor>,
    /// When a split made it here, in this process.
    pub(crate) born: Option<Duration>,
    /// When it last asked who owns its keys.
    pub(crate) asked: Duration,
    /// What it applied lately.
    pub(crate) sums: Sums,
    /// What of its log may go.
    pub(crate) keeping: LogKeeping,
    /// A check found it to be wrong, and when.
    pub(crate) wrong: Option<(String, Duration)>,
    /// A check found that its range's replicas differ and no majority says which is right: nothing is served.
    pub(crate) diverged: bool,
    /// The loss of the group was told, and its callers were answered.
    loss_told: bool,
    /// Whether it sleeps, and what it knows about that.
    pub(crate) slumber: Slumber,
}

impl Replica {
    pub(crate) fn new(me: ReplicaId, store: StoreId, group: Group, state: State) -> Self {
        Self {
            me,
            store,
            group,
            state,
            latches: Latches::default(),
            cache: TimestampCache::new(Timestamp::ZERO, CACHE_PIECES),
            open: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            waits: Waits::default(),
            lock_waits: LockWaits::default(),
            transactions: Transactions::default(),
            granted: Vec::new(),
            proposed: Proposals::default(),
            unusable_since: None,
            changing: BTreeMap::new(),
            max_served: Timestamp::ZERO,
            forgetting: Forgetting::default(),
            garbage: Garbage::default(),
            leftovers: Leftovers::default(),
            followers: BTreeMap::new(),
            heir: None,
            cut_off: None,
            born: None,
            asked: Duration::ZERO,
            sums: Sums::default(),
            keeping: LogKeeping::default(),
            wrong: None,
            diverged: false,
            loss_told: false,
            slumber: Slumber::default(),
        }
    }

    /// Its id within the range.
    pub(crate) const fn id(&self) -> ReplicaId {
        self.me
    }

    /// Whether something waits for the next turn.
    pub(crate) fn has_work(&self) -> bool {
        !self.granted.is_empty()
    }

    /// When a deadline or the group wants a turn.
    pub(crate) fn next_wake(&self) -> Option<Duration> {
        let deadline = self.deadlines.first_key_value().map(|((at, _), ())| *at);
        // Only if it would do something then: a wake that is due and changes nothing comes again at once.
        let looks = [self.forgetting.next_wake(), self.garbage.next_wake(), self.looks_for_leftovers_at()];
        let looks = looks.into_iter().flatten();
        let looks = looks.min().filter(|_| self.group.usable() && !self.slumber.asleep);
        let group = self.group.next_wake().filter(|_| !self.slumber.asleep);
        let waits = self.waits.next_wake(self.round_patience());
        deadline
            .into_iter()
            .chain(self.proposed.next_deadline())
            .chain(waits)
            .chain(self.lock_waits.next_wake())
            .chain(looks)
            .chain(group)
            .chain(self.asks_at())
            .min()
    }

    /// When it is to ask who owns its keys: it may have been removed without hearing of it.
    pub(crate) fn asks_at(&self) -> Option<Duration> {
        // Sleepers hear nothing as long as all is well.
        let patience = if self.slumber.asleep && self.group.role().leader.is_some() { ORPHANED * 10 } else { ORPHANED };
        Some(self.group.heard_leader()?.max(self.asked) + patience)
    }

    /// Admission and sequencing.
    pub(crate) fn request(&mut self, ctx: &Ctx<'_>, token: Token, request: RangeRequest, effects: &mut Vec<Effect>) {
        if let RangeCommand::Admin(admin) = &request.command
            && !matches!(admin, Admin::Split { .. })
        {
            return self.admin(ctx, token, admin.clone(), effects);
        }
        let spans = match self.admit(ctx, &request) {
            Ok(spans) => spans,
            Err(error) => return effects.push(Effect::Reply { token, result: Err(error) }),
        };
        let deadline = ctx.mono + request.timeout;
        self.sequence(spans, Open { token, request, deadline, stamp: None, proof: None, story: Story::default() });
    }

    fn sequence(&mut self, spans: Vec<(KeySpan, Access)>, open: Open) {
        let (latch, held) = self.latches.acquire(spans);
        self.deadlines.insert((open.deadline, latch), ());
        self.open.insert(latch, open);
        if held {
            self.granted.push(latch);
        }
    }

    /// Changes of the range itself. They are answered when they were applied.
    fn admin(&mut self, ctx: &Ctx<'_>, token: Token, admin: Admin, effects: &mut Vec<Effect>) {
        let answered = match admin {
            // It waits for its latch, and does not come here.
            Admin::Split { .. } => None,
            Admin::TransferLeader { to } => self.transfer(ctx, token, to, effects),
            Admin::ChangeReplicas { generation, target } => {
                self.change_replicas(ctx, token, generation, &target, effects)
            }
            Admin::Check { check } => self.check(ctx, token, check),
        };
        if let Some(result) = answered {
            effects.push(Effect::Reply { token, result });
        }
    }

    fn admit(&self, ctx: &Ctx<'_>, request: &RangeRequest) -> Result<Vec<(KeySpan, Access)>, RangeError> {
        if let RangeCommand::Admin(admin) = &request.command {
            return self.admit_split(admin);
        }
        let Some(span) = request.command.span() else {
            return Err(RangeError::Invalid { what: "it names no keys".to_owned() });
        };
        if span.start >= span.end {
            return Err(RangeError::Invalid { what: format!("{span} is empty: its end must lie above its start") });
        }
        if !self.state.descriptor.span.covers(&span) {
            return Err(self.mismatch(span));
        }
        if self.diverged {
            return Err(RangeError::Diverged { range: self.state.descriptor.range });
        }
        self.check_breaker(ctx, matches!(request.command, RangeCommand::Read { .. }))?;
        self.check_usable()?;
        self.check_room()?;
        Ok(match &request.command {
            RangeCommand::Write { write: Write::Batch { ops }, .. } => {
                ops.iter().map(|op| (KeySpan::point(op.key().clone()), Access::Write)).collect()
            }
            RangeCommand::Write { write: Write::Whole(whole), .. } => {
                let access = |writes| if writes { Access::Write } else { Access::Read };
                whole.named().into_iter().map(|(key, writes)| (KeySpan::point(key.clone()), access(writes))).collect()
            }
            RangeCommand::Write { .. } => vec![(span, Access::Write)],
            RangeCommand::Read { .. } | RangeCommand::Admin(_) => vec![(span, Access::Read)],
            RangeCommand::Txn { .. } | RangeCommand::Record(_) | RangeCommand::Resolve(_) => {
                transact::latches(&request.command, span)
            }
        })
    }

    /// Leases 6.5. Reads need the lease and nothing of the log.
    fn check_breaker(&self, ctx: &Ctx<'_>, reads: bool) -> Result<(), RangeError> {
        let range = self.state.descriptor.range;
        let unusable = self.unusable_since.is_some_and(|since| ctx.mono.saturating_sub(since) >= BREAKS_AFTER);
        let why = if unusable {
            "its leader has had no lease that it may use for some seconds"
        } else if !reads && self.proposed.are_stuck(ctx.mono) {
            "its leader has committed nothing for some seconds: a quorum of its replicas does not answer"
        } else {
            return Ok(());
        };
        Err(RangeError::RangeUnavailable { range, why: why.to_owned() })
    }

    /// Looked at once a turn: how long a leader cannot serve.
    fn watch_usable(&mut self, ctx: &Ctx<'_>) {
        let unusable = self.group.role().role == Role::Leader && !self.group.usable();
        self.unusable_since = unusable.then(|| self.unusable_since.unwrap_or(ctx.mono));
    }

    fn check_usable(&self) -> Result<(), RangeError> {
        if self.group.usable() { Ok(()) } else { Err(self.not_leaseholder()) }
    }

    fn not_leaseholder(&self) -> RangeError {
        let term = self.group.term();
        RangeError::NotLeaseholder { range: self.state.descriptor.range, leader: self.leader_store(), term }
    }

    /// Who leads, as far as this replica knows. After a start it has not heard of the leader that it promised to.
    pub(crate) fn leader_store(&self) -> Option<StoreId> {
        let leader = self.group.role().leader.or_else(|| {
            let asleep = self.slumber.asleep;
            self.group.promise().filter(|_| asleep).map(|promise| promise.leader_replica)
        });
        self.heir.or_else(|| self.state.descriptor.replica(leader?).map(|leader| leader.store))
    }

    /// Ends the requests whose time is over: what was not proposed was not done, what was is in doubt.
    pub(crate) fn expire(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        self.watch_usable(ctx);
        for token in self.proposed.late(ctx.mono) {
            let why = "the command is in the log and was not committed in time".to_owned();
            effects.push(Effect::Reply { token, result: Err(RangeError::Ambiguous { why }) });
        }
        while let Some(entry) = self.deadlines.first_entry()
            && entry.key().0 <= ctx.mono
        {
            let ((_, latch), ()) = entry.remove_entry();
            let error = RangeError::DeadlineExceeded { range: self.state.descriptor.range };
            self.answer(latch, Err(error), effects);
        }
        self.look_at_waits(ctx, effects);
        self.look_at_lock_waits(ctx, effects);
    }

    /// Evaluates the requests that hold their latches, and proposes what they write, many in an entry. What is too much for
    /// one turn waits for the next.
    pub(crate) fn evaluate_granted(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader, effects: &mut Vec<Effect>) {
        self.propose_lease_start(ctx);
        let (mut commands, mut callers) = (Vec::new(), Vec::new());
        let (mut entry, mut turn) = (0, 0);
        let mut granted = std::mem::take(&mut self.granted).into_iter();
        while turn < TURN_BYTES
            && let Some(latch) = granted.next()
        {
            // Taken out and not copied: values are large.
            let Some(open) = self.open.remove(&latch) else { continue };
            if let RangeCommand::Admin(admin) = &open.request.command {
                let admin = admin.clone();
                self.open.insert(latch, open);
                self.split(ctx, latch, &admin, effects);
                continue;
            }
            self.deadlines.remove(&(open.deadline, latch));
            let (id, evaluated) = match &open.request.command {
                RangeCommand::Write { id, write } => (*id, self.evaluate(ctx, engine, &open, *id, write)),
                RangeCommand::Txn { header, op } => (NOBODY, self.evaluate_txn(ctx, engine, &open, header, op)),
                RangeCommand::Record(op) => (NOBODY, self.evaluate_record(ctx, engine, &open, op, effects)),
                RangeCommand::Resolve(resolve) => (NOBODY, self.evaluate_resolve(ctx, engine, &open, resolve)),
                RangeCommand::Read { .. } | RangeCommand::Admin(_) => {
                    self.read_granted(ctx, engine, latch, open, effects);
                    continue;
                }
            };
            let result = match evaluated {
                Ok(Evaluated::Propose(command, reply)) => {
                    let body = command.encode();
                    if entry > 0 && entry + body.len() > ENTRY_BYTES {
                        self.propose(ctx, std::mem::take(&mut commands), std::mem::take(&mut callers), effects);
                        entry = 0;
                    }
                    entry += body.len();
                    turn += body.len();
                    commands.push(EntryCommand { request: id, body });
                    let mut token = Some(open.token);
                    if transact::is_pipelined(&open.request.command) {
                        // Whether it comes to pass its coordinator finds out.
                        token = None;
                        let held = Held { token: open.token, reply: reply.clone(), deadline: open.deadline };
                        self.give(ctx, held, effects);
                    }
                    callers.push(Proposed { token, latch, reply, deadline: open.deadline });
                    continue;
                }
                Ok(Evaluated::Answer(reply)) => Ok(reply),
                Ok(Evaluated::Blocked(blockers)) => {
                    self.wait_for_locks(ctx, open, blockers, effects);
                    self.release(latch);
                    continue;
                }
                Ok(Evaluated::Unproven(window)) => {
                    self.wait_for_proof(ctx, window, open, effects);
                    self.release(latch);
                    continue;
                }
                Err(failed) => Err(self.failed(ctx, failed)),
            };
            match result {
                Ok(reply) => self.give(ctx, Held { token: open.token, reply, deadline: open.deadline }, effects),
                Err(error) => effects.push(Effect::Reply { token: open.token, result: Err(error) }),
            }
            self.release(latch);
        }
        // Before those whose latches came free meanwhile.
        self.granted = granted.chain(std::mem::take(&mut self.granted)).collect();
        if !commands.is_empty() {
            self.propose(ctx, commands, callers, effects);
        }
    }

    /// It waited: leadership may have moved and the range may have been cut meanwhile.
    fn check_still_here(&self, span: &KeySpan) -> Result<(), RangeError> {
        self.check_usable()?;
        if self.state.descriptor.span.covers(span) { Ok(()) } else { Err(self.mismatch(span.clone())) }
    }

    fn evaluate(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
        open: &Open,
        id: RequestId,
        write: &Write,
    ) -> Result<Evaluated, Failed> {
        let Some(span) = write.span() else {
            return Err(Failed::Answer(RangeError::Invalid { what: "nothing to do".to_owned() }));
        };
        self.check_still_here(&span).map_err(Failed::Answer)?;
        self.check_known(id).map_err(Failed::Answer)?;
        if self.may_be_locked(ctx, engine)? {
            let blockers = conflicts::of_write(engine, write)?;
            if !blockers.is_empty() {
                return Ok(Evaluated::Blocked(blockers));
            }
        }
        let floor = ctx.now.max(self.state.lease.start).max(self.cache.floor(&span, None));
        let floor = floor.max(self.state.thresholds.gc.next());
        // Versions do not tell that these were done: only a record does, and that may have been forgotten.
        let by_record = match write {
            Write::DeleteRange { .. } => true,
            Write::Whole(whole) => !whole.compares.is_empty(),
            _ => false,
        };
        if by_record {
            self.check_age(id).map_err(Failed::Answer)?;
        }
        let hiding = Hiding::new(engine);
        let evaluated = evaluate::write(&hiding, id, write, floor, ctx.now)?;
        if let (Write::Whole(whole), Evaluated::Propose(Command::Write(versions), _)) = (write, &evaluated)
            && let Some(window) = self.keep_off_read(ctx, open, whole, versions)
        {
            return Ok(Evaluated::Unproven(window));
        }
        if let Evaluated::Propose(Command::Write(versions), _) = &evaluated {
            self.note_hidden(&hiding, write, versions);
        }
        if let Evaluated::Propose(Command::Write(Versions { finished: Some(record), .. }), _) = &evaluated {
            self.remember(record).map_err(Failed::Answer)?;
        }
        if let Evaluated::Answer(reply) = evaluated {
            if self.answers_as_read(ctx, &span, &reply) {
                return Ok(Evaluated::Answer(reply));
            }
            if let Write::Whole(_) = write {
                // It told of several keys, and nobody may write any of them below.
                return Ok(Evaluated::Unproven(ReadWindow::exactly(reply.timestamp)));
            }
            // The log orders it as well as a lease does.
            let nothing = Versions { timestamp: reply.timestamp, changes: Vec::new(), finished: None };
            return Ok(Evaluated::Propose(Command::Write(nothing), reply));
        }
        Ok(evaluated)
    }

    /// What the caller is told.
    fn failed(&mut self, ctx: &Ctx<'_>, failed: Failed) -> RangeError {
        match failed {
            Failed::Answer(error) => error,
            Failed::Engine(why) => {
                self.group.lose(ctx, LossReason::Boot(why));
                self.not_leaseholder()
            }
        }
    }

    fn propose_lease_start(&mut self, ctx: &Ctx<'_>) {
        if !self.group.needs_lease_start() {
            return;
        }
        let command =
            Command::LeaseStart { replica: self.me, store: self.store, start: ctx.now.max(self.max_served.next()) };
        // Nobody asked for it, and nobody will ask again.
        let commands = vec![EntryCommand { request: NOBODY, body: command.encode() }];
        let payload = Payload { term: self.group.term(), commands };
        if let Err(refused) = self.group.propose_lease_start(ctx, payload.encode(self.state.descriptor.range)) {
            tracing::debug!(range = %self.state.descriptor.range, %refused, "LeaseStart was not taken; the next turn tries again");
        }
    }

    fn propose(
        &mut self,
        ctx: &Ctx<'_>,
        commands: Vec<EntryCommand>,
        callers: Vec<Proposed>,
        effects: &mut Vec<Effect>,
    ) {
        let payload = Payload { term: self.group.term(), commands };
        match self.group.propose(ctx, payload.encode(self.state.descriptor.range)) {
            Ok(pos) => {
                self.proposed.insert(pos.index, pos.term, ctx.mono, callers);
                effects.push(Effect::Count("flotilla_proposals_total", 1));
            }
            Err(refused) => {
                // Nothing was appended, so nothing was done.
                let error = match refused {
                    Refused::Full => RangeError::Overloaded {
                        queue: "the range's commands that wait for a quorum".into(),
                        retry_after: RETRY_AFTER,
                    },
                    _ => self.not_leaseholder(),
                };
                for caller in callers {
                    let result = Err(error.clone());
                    effects.extend(caller.token.map(|token| Effect::Reply { token, result }));
                    self.release(caller.latch);
                }
            }
        }
    }

    /// Applies committed entries into the turn's batch, up to the first that cuts the range. Replies come after the batch
    /// is written. Says how many, and what was born.
    ///
    /// # Errors
    /// An entry cannot be read: the replica is lost.
    pub(crate) fn apply_committed(
        &mut self,
        ctx: &Ctx<'_>,
        entries: &[LogEntry],
        turn: &mut Turn,
    ) -> Result<(usize, Option<Box<Born>>), String> {
        // Its own until it ends with `A`: an entry that cannot be read leaves nothing behind (durability, section 2).
        let mut own = WriteBatch::default();
        let (mut applied, mut born) = (0, None);
        for entry in entries {
            let done = self.state.apply(entry, &mut own)?;
            applied += 1;
            self.sums.applied(&self.state.applied);
            if done.lease {
                self.cache.raise_low_water(self.state.lease.start);
                self.transactions.markers.raise_low(self.state.lease.start);
                self.group.note_applied_lease(ctx, &self.state.lease);
            }
            if let Some(change) = &done.conf {
                self.apply_conf(ctx, change)?;
            }
            if let Some(raised) = done.gc {
                self.garbage.passed(raised);
                turn.acts.push(Act::PublishGc { range: self.state.descriptor.range, raised });
            }
            if let Some(check) = done.check {
                self.state.write_applied(&mut own);
                turn.batch.append(std::mem::take(&mut own));
                turn.look(self.hash(check));
            }
            self.txns_applied(ctx, &done.txns, &mut turn.replies);
            self.reply_applied(ctx, entry, done.accepted, &mut turn.replies);
            self.reply_changed(ctx, entry, done.accepted, &mut turn.replies);
            if let Some(child) = done.split {
                self.cut_off = Some(child.state.descriptor.clone());
                self.group.tell_commits_at_once(false);
                self.disturb_lock_waits(ctx, &mut turn.replies);
                born = Some(child);
                break;
            }
        }
        self.state.write_applied(&mut own);
        turn.batch.append(own);
        self.group.advance_applied(ctx, self.state.applied.pos);
        Ok((applied, born))
    }

    fn reply_applied(&mut self, ctx: &Ctx<'_>, entry: &LogEntry, accepted: bool, replies: &mut Vec<Effect>) {
        let Some((term, callers)) = self.proposed.remove(entry.pos.index) else { return };
        for Proposed { token, latch, reply, deadline } in callers {
            match token {
                Some(token) if term == entry.pos.term && accepted => {
                    self.give(ctx, Held { token, reply, deadline }, replies);
                }
                // Another entry took the place, or the term had ended: this one was not done and never will be.
                Some(token) => replies.push(Effect::Reply { token, result: Err(self.not_leaseholder()) }),
                None => {}
            }
            self.release(latch);
        }
    }

    /// Why the group was lost, once. It may happen in any call into the library, and reports no change of role.
    pub(crate) fn newly_lost(&mut self) -> Option<String> {
        let why = self.group.lost().filter(|_| !self.loss_told)?.to_string();
        self.loss_told = true;
        Some(why)
    }

    /// Leadership is gone: what is in the log has an unknown outcome, what is not was not done.
    pub(crate) fn role_changed(&mut self, ctx: &Ctx<'_>, role: RoleState, effects: &mut Vec<Effect>) {
        self.heir = None;
        self.followers.clear();
        if role.role == Role::Leader {
            self.garbage.starts(ctx.mono);
            return self.forgetting.starts(ctx.mono);
        }
        for caller in self.proposed.drain() {
            let why = "leadership moved while the command was in the log".to_owned();
            let result = Err(RangeError::Ambiguous { why });
            effects.extend(caller.token.map(|token| Effect::Reply { token, result }));
        }
        for (_, token) in std::mem::take(&mut self.changing).into_values() {
            let why = "leadership moved while the change was in the log".to_owned();
            effects.push(Effect::Reply { token, result: Err(RangeError::Ambiguous { why }) });
        }
        for open in std::mem::take(&mut self.open).into_values() {
            effects.push(Effect::Reply { token: open.token, result: Err(self.not_leaseholder()) });
        }
        self.refuse_waiting_reads(effects);
        self.transactions = Transactions::default();
        self.deadlines.clear();
        self.granted.clear();
        self.latches = Latches::default();
    }

    /// The store is suspended: what still waits for its latches is not served (leases 1.4).
    pub(crate) fn refuse_waiting(&mut self, effects: &mut Vec<Effect>) {
        let why = "its clock or its disk is not trusted at this moment".to_owned();
        for latch in self.open.keys().copied().collect::<Vec<_>>() {
            let error = RangeError::StoreNotServing { store: self.store, why: why.clone() };
            self.answer(latch, Err(error), effects);
        }
        for open in self.waits.take_reads().into_iter().chain(self.lock_waits.take()) {
            let error = RangeError::StoreNotServing { store: self.store, why: why.clone() };
            effects.push(Effect::Reply { token: open.token, result: Err(error) });
        }
        self.granted.clear();
    }

    /// Takes a request off the list of those that wait; its latches stay.
    fn close(&mut self, latch: LatchId) -> Option<Token> {
        let open = self.open.remove(&latch)?;
        self.deadlines.remove(&(open.deadline, latch));
        Some(open.token)
    }

    fn answer(&mut self, latch: LatchId, result: Result<RangeReply, RangeError>, effects: &mut Vec<Effect>) {
        if let Some(token) = self.close(latch) {
            effects.push(Effect::Reply { token, result });
        }
        self.release(latch);
    }

    fn release(&mut self, latch: LatchId) {
        self.granted.extend(self.latches.release(latch));
    }
}
