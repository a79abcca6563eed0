//! Transactions at a replica: evaluates what is granted, lets wait what meets a lock, and follows what was applied.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_storage::engine::Reader;
use flotilla_storage::locks;
use flotilla_storage::mvcc::ReadWindow;
use flotilla_types::{
    Command as RangeCommand, EndKind, EndTxn, Isolation, Key, KeySpan, LockedBy, Outcome, PushResult, PushTxn,
    RangeError, RangeReply, RecordOp, Reply, Resolve, ResolveTarget, Timestamp, TxnAnswer, TxnHeader, TxnId, TxnOp,
    TxnRefusal, Wait, Waiter, Whole,
};

use super::gc::Hiding;
use super::lock_waits::Released;
use super::{Open, Replica};
use crate::apply::TxnEffects;
use crate::command::{Command, Versions};
use crate::edit::Edit;
use crate::evaluate::{Evaluated, Failed, check_birth};
use crate::event::Effect;
use crate::latches::Access;
use crate::raft::{Ctx, Role};
use crate::transact::ops::Evaluation;
use crate::transact::record::{Decision, Markers, Rules};
use crate::transact::{deadlock, resolve};

/// How often an operation that may move its snapshot is redone at once.
const FORWARDED_MAX: u32 = 4;
/// Aborted transactions that a range remembers. Who is forgotten learns of it from its next heartbeat.
const ABORTED_MAX: usize = 4096;
/// How often it is looked whether a range has lost its last lock.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// What a leader remembers of transactions. All of it may be lost with the lease.
#[derive(Debug, Default)]
pub(super) struct Transactions {
    pub(super) markers: Markers,
    pub(super) edges: deadlock::Edges,
    /// Transactions whose locks were cleared here because they were aborted: they may not have heard of it, and would not see what
    /// they wrote.
    aborted: Aborted,
    /// When the last look found no lock in the range, and none was laid since.
    pub(super) unlocked: bool,
    probe_at: Duration,
}

/// The last ones.
#[derive(Debug, Default)]
struct Aborted(BTreeSet<TxnId>);

impl Aborted {
    fn insert(&mut self, txn: TxnId) {
        self.0.insert(txn);
        if self.0.len() > ABORTED_MAX {
            // Ids begin with their birth: the oldest goes.
            self.0.pop_first();
        }
    }
}

/// Latched beside the keys, above all of them: the record of a transaction, or of an intention.
fn record_latch(id: [u8; 16]) -> KeySpan {
    KeySpan::point(Key::new([&[0xff][..], &id].concat()))
}

/// All records of a range.
pub(super) fn all_records() -> KeySpan {
    KeySpan { start: Key::new(vec![0xff]), end: Key::new(vec![0xff; 18]) }
}

/// Whether a request is answered as soon as it is proposed.
pub(super) fn is_pipelined(command: &RangeCommand) -> bool {
    matches!(command, RangeCommand::Txn { header, op: TxnOp::Write { .. } } if header.pipelined)
}

/// What a request of a transaction latches.
pub(super) fn latches(command: &RangeCommand, span: KeySpan) -> Vec<(KeySpan, Access)> {
    match command {
        RangeCommand::Txn { op, .. } => {
            if let TxnOp::Batch { writes } = op {
                return writes.iter().map(|(key, _)| (KeySpan::point(key.clone()), Access::Write)).collect();
            }
            vec![(span, if op.locks() { Access::Write } else { Access::Read })]
        }
        RangeCommand::Record(op) => {
            let meta = op.meta();
            let mut spans = vec![(record_latch(meta.id.0), Access::Write)];
            if meta.is_one_shot() {
                spans.push((record_latch(meta.commit_id.0), Access::Write));
            }
            if let RecordOp::End(EndTxn { local, proofs, .. }) = &**op {
                let proofs = proofs.iter().map(|claim| &claim.key).filter(|key| !local.contains(key));
                spans.extend(local.iter().chain(proofs).map(|key| (KeySpan::point(key.clone()), Access::Write)));
            }
            spans
        }
        RangeCommand::Resolve(resolve) => match &resolve.target {
            ResolveTarget::Keys(keys) => keys.iter().map(|key| (KeySpan::point(key.clone()), Access::Write)).collect(),
            // The locks themselves keep everybody but readers away, and those meet the locks.
            ResolveTarget::Span(_) => vec![(span, Access::Read)],
        },
        RangeCommand::Read { .. } | RangeCommand::Write { .. } | RangeCommand::Admin(_) => Vec::new(),
    }
}

impl Replica {
    /// Whether there may be a lock in the range. Most ranges have none, most of the time.
    pub(super) fn may_be_locked(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader) -> Result<bool, Failed> {
        let txns = &mut self.transactions;
        if !txns.unlocked && ctx.mono >= txns.probe_at {
            txns.probe_at = ctx.mono + PROBE_EVERY;
            txns.unlocked = !locks::any(engine, &self.state.descriptor.span)?;
        }
        Ok(!txns.unlocked)
    }

    /// An operation of a transaction.
    pub(super) fn evaluate_txn(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
        open: &Open,
        header: &TxnHeader,
        op: &TxnOp,
    ) -> Result<Evaluated, Failed> {
        let span = op.span();
        self.check_still_here(&span).map_err(Failed::Answer)?;
        if self.transactions.aborted.0.contains(&header.meta.id) && !matches!(op, TxnOp::Prove { .. }) {
            return Err(Failed::Answer(RangeError::Txn(TxnRefusal::Aborted)));
        }
        let ahead = ctx.now.plus(self.group.max_offset()).max(self.state.lease.start);
        let (oldest, latest) = match op {
            TxnOp::Refresh { from, to, .. } => (*from, *to),
            // Looks at no version.
            TxnOp::Prove { at, .. } => (Timestamp::MAX, *at),
            _ => (header.read, header.read),
        };
        self.check_threshold(oldest).map_err(Failed::Answer)?;
        if op.locks() && header.meta.is_one_shot() {
            check_birth(header.meta.commit_id, header.write.min(ctx.now))?;
            self.check_known(header.meta.commit_id).map_err(Failed::Answer)?;
        }
        if latest > ahead {
            return Err(Failed::Answer(RangeError::FutureTimestamp { timestamp: latest }));
        }
        let (me, mut header) = (header.meta.id, header.clone());
        let floor = self.state.lease.start.max(self.read_floor(op, &span, me)).max(self.lock_floor(ctx));
        let hiding = Hiding::new(engine);
        let locked = self.may_be_locked(ctx, engine)?;
        for redone in 0.. {
            let window = match op {
                TxnOp::Refresh { to: at, .. } | TxnOp::Prove { at, .. } => ReadWindow::exactly(*at),
                _ => ReadWindow { at: header.read, limit: header.limit.max(header.read) },
            };
            let tells = op.reads() || !header.is_serializable();
            if tells && !self.may_serve(ctx, window, open.proof) {
                return Ok(Evaluated::Unproven(window));
            }
            let (now, passes) = (ctx.now, &open.story.passes);
            let evaluation = Evaluation { reader: &hiding, header: &header, now, floor, passes, locked };
            let result = evaluation.run(op);
            let newer = match &result {
                Err(Failed::Answer(
                    RangeError::Uncertain { existing, .. } | RangeError::Txn(TxnRefusal::WriteTooOld { existing, .. }),
                )) => Some(*existing),
                _ => None,
            };
            if let Some(newer) = newer.filter(|_| header.can_forward && redone < FORWARDED_MAX) {
                header.read = newer;
                continue;
            }
            if tells && !matches!(result, Ok(Evaluated::Blocked(_))) {
                // Entered before it is answered, and also if it fails: an error tells something too. A write that is missing
                // must not come any more, not even from its own transaction.
                let owner = if matches!(op, TxnOp::Prove { .. }) { None } else { Some(me) };
                self.entered(&span, window.at, owner);
            }
            if let Ok(Evaluated::Propose(Command::Edit(edits), _)) = &result {
                self.note_laid(&hiding, edits, now);
            }
            return result;
        }
        Err(Failed::Answer(self.not_leaseholder()))
    }

    /// The operation's keys were read by others below.
    fn read_floor(&self, op: &TxnOp, span: &KeySpan, me: TxnId) -> Timestamp {
        let TxnOp::Batch { writes } = op else { return self.cache.floor(span, Some(me)) };
        let floors = writes.iter().map(|(key, _)| self.cache.floor(&KeySpan::point(key.clone()), Some(me)));
        floors.max().unwrap_or_default()
    }

    /// A request to a transaction's record.
    pub(super) fn evaluate_record(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
        open: &Open,
        op: &RecordOp,
        effects: &mut Vec<Effect>,
    ) -> Result<Evaluated, Failed> {
        self.check_still_here(&op.span()).map_err(Failed::Answer)?;
        let meta = op.meta();
        let rules = Rules {
            range: self.state.descriptor.range,
            now: ctx.now,
            floor_ms: self.state.thresholds.dedup_floor_ms,
            marker: self.transactions.markers.of(meta.id),
            victim: if let RecordOp::Push(push) = op { gives_way(push) } else { false },
        };
        let evaluated = match rules.decide(engine, op)? {
            Decision::Evaluated(evaluated) => evaluated,
            Decision::Pass { marker, upto } => {
                let window = ReadWindow { at: marker, limit: upto.max(marker) };
                if !self.may_serve(ctx, window, open.proof) {
                    return Ok(Evaluated::Unproven(window));
                }
                self.transactions.markers.raise(meta.id, marker);
                self.max_served = self.max_served.max(marker);
                told(ctx, PushResult::Passed)
            }
            Decision::Wait => {
                if let RecordOp::Push(PushTxn { pusher: Some(pusher), edges, .. }) = op {
                    self.transactions.edges.insert(meta.id, pusher, edges.clone(), ctx.mono);
                }
                told(ctx, PushResult::Waiting)
            }
        };
        Ok(match evaluated {
            Evaluated::Answer(RangeReply { timestamp, reply: Reply::Queried { status, .. } }) => {
                let edges = self.transactions.edges.towards(meta.id, ctx.mono);
                Evaluated::Answer(RangeReply { timestamp, reply: Reply::Queried { status, edges } })
            }
            Evaluated::Propose(Command::Edit(edits), reply) => {
                if let RecordOp::End(EndTxn { kind: EndKind::Commit(at), .. }) = op
                    && let Some(window) = self.keep_off(ctx, open, meta.isolation, *at, &edits)
                {
                    return Ok(Evaluated::Unproven(window));
                }
                if rules.victim {
                    effects.push(Effect::Count("flotilla_txn_deadlocks_total", 1));
                }
                Evaluated::Propose(Command::Edit(edits), reply)
            }
            evaluated => evaluated,
        })
    }

    /// Clears locks.
    pub(super) fn evaluate_resolve(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
        open: &Open,
        resolve: &Resolve,
    ) -> Result<Evaluated, Failed> {
        if let Some(span) = resolve.span() {
            self.check_still_here(&span).map_err(Failed::Answer)?;
        }
        if resolve.outcome == Outcome::Aborted {
            self.transactions.aborted.insert(resolve.meta.id);
        }
        let evaluated = resolve::evaluate(engine, resolve, ctx.now)?;
        if let (Evaluated::Propose(Command::Edit(edits), _), Outcome::Committed { at }) = (&evaluated, resolve.outcome)
            && let Some(window) = self.keep_off(ctx, open, resolve.meta.isolation, at, edits)
        {
            return Ok(Evaluated::Unproven(window));
        }
        Ok(evaluated)
    }

    /// A committed lock without a value goes: under the weak levels somebody relied on it up to the commit, so nobody may write
    /// below. That is a promise, and may need a proof first.
    fn keep_off(
        &mut self,
        ctx: &Ctx<'_>,
        open: &Open,
        isolation: Isolation,
        at: Timestamp,
        edits: &[Edit],
    ) -> Option<ReadWindow> {
        if isolation == Isolation::Serializable {
            return None;
        }
        let mut released: Vec<&Key> = edits
            .iter()
            .filter_map(|edit| if let Edit::Release { key, .. } = edit { Some(key) } else { None })
            .collect();
        released.retain(|key| {
            !edits.iter().any(|edit| matches!(edit, Edit::Version { key: written, .. } if written == *key))
        });
        if released.is_empty() {
            return None;
        }
        let window = ReadWindow::exactly(at);
        if !self.may_serve(ctx, window, open.proof) {
            return Some(window);
        }
        for key in released {
            self.entered(&KeySpan::point(key.clone()), at, None);
        }
        None
    }

    /// A transaction of one step also rests on keys that it does not write: nobody may write them below. That is a promise, and
    /// may need a proof first.
    pub(super) fn keep_off_read(
        &mut self,
        ctx: &Ctx<'_>,
        open: &Open,
        whole: &Whole,
        written: &Versions,
    ) -> Option<ReadWindow> {
        let at = written.timestamp;
        let writes: BTreeSet<&Key> = written.changes.iter().map(|(key, _)| key).collect();
        let read: Vec<&Key> = whole.named().into_keys().filter(|key| !writes.contains(key)).collect();
        if read.is_empty() {
            return None;
        }
        let window = ReadWindow::exactly(at);
        if !self.may_serve(ctx, window, open.proof) {
            return Some(window);
        }
        for key in read {
            self.entered(&KeySpan::point(key.clone()), at, None);
        }
        None
    }

    /// A request met foreign locks.
    pub(super) fn wait_for_locks(
        &mut self,
        ctx: &Ctx<'_>,
        open: Open,
        blockers: Vec<crate::transact::Blocker>,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::Count("flotilla_txn_lock_waits_total", 1));
        self.lock_waits.wait(open, blockers, ctx.mono);
    }

    /// What an applied entry did to transactions.
    pub(super) fn txns_applied(&mut self, ctx: &Ctx<'_>, txns: &TxnEffects, effects: &mut Vec<Effect>) {
        if txns.laid {
            self.transactions.unlocked = false;
        }
        if txns.recorded {
            self.forgetting.comes(FINISHED_BYTES);
        }
        if self.group.role().role != Role::Leader {
            return;
        }
        for txn in &txns.finished {
            self.transactions.edges.forget(*txn);
            self.transactions.markers.forget(*txn);
            self.forgetting.comes(FINISHED_BYTES);
        }
        for open in self.lock_waits.released(&txns.released) {
            effects.push(waited(ctx, &open));
            self.again(ctx, open, effects);
        }
    }

    /// A push was answered, or given up.
    pub(crate) fn pushed(
        &mut self,
        ctx: &Ctx<'_>,
        number: u64,
        result: Option<&PushResult>,
        effects: &mut Vec<Effect>,
    ) {
        match self.lock_waits.pushed(number, result) {
            Some(Released::Again(open)) => {
                effects.push(waited(ctx, &open));
                self.again(ctx, open, effects);
            }
            Some(Released::Aborted(open)) => {
                effects.push(waited(ctx, &open));
                let result = Err(RangeError::Txn(TxnRefusal::Aborted));
                effects.push(Effect::Reply { token: open.token, result });
            }
            Some(Released::Unwilling(open, by)) => {
                effects.push(waited(ctx, &open));
                let result = unwilling(ctx, &open, by);
                effects.push(Effect::Reply { token: open.token, result });
            }
            None => {}
        }
    }

    /// Looked at once a turn: whose time is over, and who pushes.
    pub(super) fn look_at_lock_waits(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        if self.lock_waits.is_empty() {
            return;
        }
        for (open, by) in self.lock_waits.late(ctx.mono) {
            effects.push(waited(ctx, &open));
            let error = RangeError::Txn(TxnRefusal::LockTimeout(by));
            effects.push(Effect::Reply { token: open.token, result: Err(error) });
        }
        let range = self.state.descriptor.range;
        for due in self.lock_waits.due(ctx.mono) {
            effects.push(Effect::Count("flotilla_txn_pushes_total", 1));
            effects.push(Effect::Push { range, number: due.number, keys: due.keys, push: Box::new(due.push) });
        }
    }

    /// All who wait for locks start again: they may have to wait elsewhere.
    pub(super) fn disturb_lock_waits(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        for open in self.lock_waits.take() {
            effects.push(waited(ctx, &open));
            self.again(ctx, open, effects);
        }
    }
}

/// About what a finished record weighs.
const FINISHED_BYTES: usize = 128;

/// It does not wait any longer for the locks that it met: one that meets others waits anew.
fn waited(ctx: &Ctx<'_>, open: &Open) -> Effect {
    Effect::Took("flotilla_txn_lock_wait_seconds", open.story.waited(ctx.mono))
}

fn told(ctx: &Ctx<'_>, result: PushResult) -> Evaluated {
    Evaluated::Answer(RangeReply { timestamp: ctx.now, reply: Reply::Pushed(result) })
}

/// The answer to a request that does not wait: a key that is to be skipped counts as absent.
fn unwilling(ctx: &Ctx<'_>, open: &Open, by: LockedBy) -> Result<RangeReply, RangeError> {
    match &open.request.command {
        RangeCommand::Txn { header, op: TxnOp::Get { lock: Some(_), .. } } if header.wait == Wait::Skip => {
            let reply = Reply::Txn { answer: TxnAnswer::Row(None), locked: None };
            Ok(RangeReply { timestamp: header.read.min(ctx.now), reply })
        }
        _ => Err(RangeError::Txn(TxnRefusal::LockHeld(by))),
    }
}

/// Whether the pushed transaction is the one to give way in a circle.
fn gives_way(push: &PushTxn) -> bool {
    let Some(pusher) = &push.pusher else { return false };
    deadlock::victim(pusher, &Waiter::from(&push.pushee), &push.edges) == Some(push.pushee.id)
}
