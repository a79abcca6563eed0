//! When a read may be served (docs/leases.md, 6.1 to 6.3), and when an answer may be given (6.4).
//!
//! A read at t with uncertainty limit ℓ is served at once if ℓ lies below U, the end of the lease. Else it waits for its
//! clock, if t lies a little ahead, and then for a read-index round, which proves that this replica still led after the
//! read came; every later leader's clock is past the round's begin, and writes above it.
//!
//! ℓ and not t has to lie below U for reads of the present, too: a successor whose clock is ahead may have acknowledged a
//! write at or above U although the clock here has not come so far.

use std::time::Duration;

use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::mvcc::ReadWindow;
use flotilla_types::{
    Command as RangeCommand, Key, KeySpan, LockRecord, LogIndex, RangeError, RangeReply, Read, ReadAt, Reply,
    Timestamp, TxnId,
};

use super::waits::{Due, Held, Proof};
use super::{OPEN_MAX, Open, RETRY_AFTER, Replica};
use crate::evaluate::{self, Failed};
use crate::event::Effect;
use crate::latches::LatchId;
use crate::raft::Ctx;
use crate::transact::conflicts::{self, Passes};
use crate::transact::{Blocker, ops};

/// How often a read of the present is redone at a version that may have been acknowledged before it began.
const REDONE_MAX: u32 = 16;

impl Replica {
    /// The window of a read of the present that came now.
    fn present_window(&self, ctx: &Ctx<'_>) -> ReadWindow {
        let at = ctx.now.max(self.state.lease.start);
        ReadWindow { at, limit: at.plus(self.group.max_offset()) }
    }

    /// Leases 6.1 step 6, or what stands in its place after a proof.
    pub(super) fn may_serve(&mut self, ctx: &Ctx<'_>, window: ReadWindow, proof: Option<Proof>) -> bool {
        let term = self.group.term();
        window.limit < self.group.lease_until(ctx)
            || proof.is_some_and(|proof| proof.term == term && window.at < proof.before)
    }

    /// Whether the lease covers reads of the present.
    pub(crate) fn covers_present(&mut self, ctx: &Ctx<'_>) -> bool {
        self.may_serve(ctx, self.present_window(ctx), None)
    }

    /// A read that holds its latch: answers it, or lets it wait without one.
    pub(super) fn read_granted(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
        latch: LatchId,
        open: Open,
        effects: &mut Vec<Effect>,
    ) {
        let (token, deadline) = (open.token, open.deadline);
        match self.read(ctx, engine, open, effects) {
            Ok(Some(reply)) => self.give(ctx, Held { token, reply, deadline }, effects),
            Ok(None) => {}
            Err(error) => effects.push(Effect::Reply { token, result: Err(error) }),
        }
        self.release(latch);
    }

    /// The answer, or nothing if the read waits from now on.
    fn read(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
        mut open: Open,
        effects: &mut Vec<Effect>,
    ) -> Result<Option<RangeReply>, RangeError> {
        let (RangeCommand::Read { at, read }, Some(span)) = (open.request.command.clone(), open.request.command.span())
        else {
            return Err(RangeError::Invalid { what: "a change of the range was taken for a read".to_owned() });
        };
        self.check_still_here(&span)?;
        let mut window = match (at, open.stamp) {
            (ReadAt::Timestamp { timestamp, limit }, _) => ReadWindow { at: timestamp, limit: limit.max(timestamp) },
            (ReadAt::Leaseholder, Some(stamp)) => stamp,
            (ReadAt::Leaseholder, None) => self.present_window(ctx),
        };
        if window.at > ctx.now.plus(self.group.max_offset()).max(self.state.lease.start) {
            return Err(RangeError::FutureTimestamp { timestamp: window.at });
        }
        self.check_threshold(window.at)?;
        let locked = self.may_be_locked(ctx, engine).map_err(|failed| self.failed(ctx, failed))?;
        let mut redone = 0;
        loop {
            if !self.may_serve(ctx, window, open.proof) {
                open.stamp = Some(window);
                self.wait_for_proof(ctx, window, open, effects);
                return Ok(None);
            }
            let result = evaluate::read(engine, &read, window);
            if locked {
                let blockers = blockers(engine, &read, result.as_ref().ok(), window, &open.story.passes);
                let blockers = blockers.map_err(|failed| self.failed(ctx, failed.into()))?;
                if !blockers.is_empty() {
                    open.stamp = Some(window);
                    self.wait_for_locks(ctx, open, blockers, effects);
                    return Ok(None);
                }
            }
            // Entered before it is answered, and also if it fails: an error tells something too.
            self.entered(&span, window.at, None);
            match result {
                Err(Failed::Answer(RangeError::Uncertain { existing, .. }))
                    if matches!(at, ReadAt::Leaseholder) && redone < REDONE_MAX =>
                {
                    // It may have been acknowledged before this read began, by a leader whose clock was ahead.
                    redone += 1;
                    window.at = existing;
                }
                Err(failed) => return Err(self.failed(ctx, failed)),
                Ok(reply) => return Ok(Some(reply)),
            }
        }
    }

    /// It waits for its clock, or for a proof of leadership.
    pub(super) fn wait_for_proof(&mut self, ctx: &Ctx<'_>, window: ReadWindow, open: Open, effects: &mut Vec<Effect>) {
        if window.at > ctx.now {
            effects.push(Effect::Count("flotilla_reads_awaiting_clock_total", 1));
            self.waits.until(window.at, open);
        } else {
            effects.push(Effect::Count("flotilla_reads_by_index_total", 1));
            self.waits.unproven(open);
        }
    }

    /// A read of a span at a timestamp is answered now: nobody writes at or below it any more (leases 3.8).
    pub(super) fn entered(&mut self, span: &KeySpan, at: Timestamp, owner: Option<TxnId>) {
        self.cache.read(span, at, owner);
        self.max_served = self.max_served.max(at);
    }

    /// Whether the answer to a write that has nothing to write may be given without the log: it is a read of the present
    /// then. If not, an empty command takes it through the log, which needs no lease.
    pub(super) fn answers_as_read(&mut self, ctx: &Ctx<'_>, span: &KeySpan, reply: &RangeReply) -> bool {
        let at = self.present_window(ctx).at.max(reply.timestamp);
        let window = ReadWindow { at, limit: at.plus(self.group.max_offset()) };
        let served = self.may_serve(ctx, window, None);
        if served {
            self.entered(span, at, None);
        }
        served
    }

    /// Gives an answer once the clock has reached its timestamp (leases 6.4).
    pub(super) fn give(&mut self, ctx: &Ctx<'_>, held: Held, out: &mut Vec<Effect>) {
        if held.reply.timestamp <= ctx.now {
            return out.push(Effect::Reply { token: held.token, result: Ok(held.reply) });
        }
        out.push(Effect::Count("flotilla_commit_waits_total", 1));
        self.waits.hold(held);
    }

    /// Looked at once a turn: what has waited long enough.
    pub(super) fn look_at_waits(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        if self.waits.is_empty() {
            return;
        }
        let Due { reads, answers, late_reads, late_answers } = self.waits.due(ctx);
        for held in answers {
            effects.push(Effect::Reply { token: held.token, result: Ok(held.reply) });
        }
        for open in reads {
            self.again(ctx, open, effects);
        }
        self.refuse_reads(late_reads, effects);
        doubt(late_answers, effects);
    }

    /// Begins a read-index round for the reads that wait for one, all of them in one.
    pub(crate) fn prove_leadership(&mut self, ctx: &Ctx<'_>) {
        if !self.waits.wants_round(ctx.mono, self.round_patience()) {
            return;
        }
        // Every message that leaves from now on carries a later reading, and whoever answers has taken it in.
        let proof = Proof { term: self.group.term(), before: ctx.now.next() };
        let id = self.waits.round_id();
        match self.group.read_index(ctx, id) {
            Ok(()) => self.waits.began(id, proof, ctx.mono),
            Err(refused) => {
                tracing::debug!(range = %self.state.descriptor.range, %refused, "no read-index round now; the next tick tries again");
            }
        }
    }

    /// A quorum confirmed these rounds.
    pub(crate) fn proven(&mut self, reads: &[(u64, LogIndex)]) {
        for (id, index) in reads {
            self.waits.confirmed(*id, *index);
        }
    }

    /// Admits the reads of a confirmed round once more, if the state shows its index.
    pub(crate) fn admit_proven(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        for open in self.waits.proven(self.state.applied.pos.index) {
            self.again(ctx, open, effects);
        }
    }

    /// Starts again at admission: the range may have been cut, and latches may have appeared.
    pub(super) fn again(&mut self, ctx: &Ctx<'_>, open: Open, effects: &mut Vec<Effect>) {
        match self.admit(ctx, &open.request) {
            Ok(spans) => self.sequence(spans, open),
            Err(error) => effects.push(Effect::Reply { token: open.token, result: Err(error) }),
        }
    }

    /// Reads that wait are not served here any more, and neither is who waits for locks.
    pub(super) fn refuse_waiting_reads(&mut self, effects: &mut Vec<Effect>) {
        let mut reads = self.waits.take_reads();
        reads.extend(self.lock_waits.take());
        self.refuse_reads(reads, effects);
    }

    fn refuse_reads(&self, reads: Vec<Open>, effects: &mut Vec<Effect>) {
        let refused =
            reads.into_iter().map(|open| Effect::Reply { token: open.token, result: Err(self.not_leaseholder()) });
        effects.extend(refused);
    }

    /// The replica goes: nobody will look at its clock any more.
    pub(crate) fn give_up_waits(&mut self, effects: &mut Vec<Effect>) {
        self.refuse_waiting_reads(effects);
        doubt(self.waits.take_held(), effects);
    }

    /// How long a read-index round may take before it counts as dropped.
    pub(super) fn round_patience(&self) -> Duration {
        self.group.heartbeat_interval() / 2
    }

    /// Whether another read may wait.
    pub(super) fn check_room(&self) -> Result<(), RangeError> {
        if self.latches.len() + self.waits.len() + self.lock_waits.len() >= OPEN_MAX {
            return Err(RangeError::Overloaded { queue: "the range's latches".into(), retry_after: RETRY_AFTER });
        }
        Ok(())
    }
}

/// The locks in the way of a read without a transaction; of a scan, within what it has seen.
fn blockers(
    engine: &dyn Reader,
    read: &Read,
    reply: Option<&RangeReply>,
    window: ReadWindow,
    passes: &Passes,
) -> Result<Vec<Blocker>, EngineError> {
    let judge = |key: &Key, lock: &LockRecord| conflicts::of_read(key, lock, window, None, passes);
    match (read, reply.map(|reply| &reply.reply)) {
        (Read::Get { key }, _) => conflicts::on_key(engine, key, judge),
        (Read::Scan { span, reverse, .. }, Some(Reply::Scan(result))) => {
            conflicts::in_span(engine, &ops::covered(span, *reverse, result.resume.as_ref()), judge)
        }
        (Read::Scan { .. }, _) => Ok(Vec::new()),
    }
}

/// Answers whose time was over before the clock had reached their timestamps. What they tell has happened; a caller who
/// may have written must not take it for undone.
fn doubt(late: Vec<Held>, effects: &mut Vec<Effect>) {
    for Held { token, reply, .. } in late {
        let why = format!("done at {}, and this store's clock has not come so far in time", reply.timestamp);
        effects.push(Effect::Reply { token, result: Err(RangeError::Ambiguous { why }) });
    }
}
