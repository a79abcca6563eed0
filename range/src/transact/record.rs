//! The record of a transaction, and what may happen to it (docs/transactions.md, "The record").
//!
//! A record stands at the anchor under the transaction's id while something is left to do, and then, shrunk, under the id of
//! the intention, so that a repetition by another transaction finds it. What was forgotten cannot come again: a record may be
//! made only by a transaction that chose its anchor after everything forgotten had ended.

use std::time::Duration;

use flotilla_storage::engine::Reader;
use flotilla_storage::{keys, locks};
use flotilla_types::{
    EndKind, EndTxn, FinishedTxn, Isolation, KeySpan, Outcome, PushKind, PushResult, PushTxn, RangeError, RangeId,
    RangeReply, RecordOp, Reply, RequestId, SeqRange, Staged, Timestamp, TxnId, TxnMeta, TxnRecord, TxnRefusal,
    TxnState, TxnStatus,
};

use super::ops::proves;
use super::resolve;
use crate::edit::Edit;
use crate::evaluate::{Evaluated, Failed};

/// A coordinator that was not heard of for so long is taken for dead. Decides nothing about a commit: a living one learns of
/// it from its record.
pub(crate) const EXPIRY: Duration = Duration::from_secs(5);

/// What is known of a transaction at its anchor.
#[derive(Debug)]
struct Known {
    open: Option<TxnRecord>,
    /// What became of it.
    own: Option<FinishedTxn>,
    /// What became of its intention, perhaps by another transaction.
    intention: Option<FinishedTxn>,
}

/// What a decision rests on besides the state.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) range: RangeId,
    pub(crate) now: Timestamp,
    /// Records that ended at or below may be forgotten (ms since 1970).
    pub(crate) floor_ms: u64,
    /// The transaction commits above.
    pub(crate) marker: Timestamp,
    /// The pushed one was chosen to give way in a deadlock.
    pub(crate) victim: bool,
}

/// What a record decides.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "as Evaluated")]
pub(crate) enum Decision {
    /// As for any operation.
    Evaluated(Evaluated),
    /// A reader may pass: the transaction must commit above `marker` from now on. An answer that is a promise up to `upto`.
    Pass { marker: Timestamp, upto: Timestamp },
    /// The pusher has to wait on.
    Wait,
}

impl Rules {
    fn floor(&self) -> Timestamp {
        Timestamp::from_wall(self.floor_ms.saturating_mul(1_000_000))
    }

    fn load(&self, reader: &dyn Reader, meta: &TxnMeta) -> Result<Known, Failed> {
        let open = reader.get(&keys::txn_record(&meta.anchor, meta.id))?;
        let open = open.map(|bytes| TxnRecord::decode(&bytes)).transpose()?;
        let finished = |id: RequestId| -> Result<Option<FinishedTxn>, Failed> {
            let bytes = reader.get(&keys::finished(&meta.anchor, id))?;
            Ok(bytes.filter(|bytes| FinishedTxn::is_one(bytes)).map(|bytes| FinishedTxn::decode(&bytes)).transpose()?)
        };
        let intention = finished(meta.commit_id)?;
        let own = if meta.is_one_shot() { finished(meta.id.into())? } else { intention.clone() };
        Ok(Known { open, own, intention })
    }

    /// Whether a record may be made: nothing of the transaction was forgotten.
    fn creatable(&self, meta: &TxnMeta) -> bool {
        meta.anchored > self.floor()
    }

    fn reply(&self, reply: Reply) -> RangeReply {
        RangeReply { timestamp: self.now, reply }
    }

    fn answer(&self, reply: Reply) -> Result<Decision, Failed> {
        Ok(Decision::Evaluated(Evaluated::Answer(self.reply(reply))))
    }

    fn propose(&self, edits: Vec<Edit>, reply: Reply) -> Result<Decision, Failed> {
        Ok(Decision::Evaluated(Evaluated::edit(edits, self.reply(reply))))
    }

    pub(crate) fn decide(&self, reader: &dyn Reader, op: &RecordOp) -> Result<Decision, Failed> {
        let known = self.load(reader, op.meta())?;
        match op {
            RecordOp::End(end) => self.end(reader, end, known),
            RecordOp::Heartbeat { meta, lock_spans } => self.heartbeat(meta, lock_spans, known),
            RecordOp::Push(push) => self.push(push, known),
            RecordOp::Query(query) => {
                let state = self.state(&query.meta, &known);
                match state {
                    Some(TxnState::Open { .. }) if query.settle => {
                        let edits = self.abort(&query.meta, &known);
                        let status = Some(TxnState::Ended { outcome: Outcome::Aborted, held: None });
                        self.propose(edits, Reply::Queried { status, edges: Vec::new() })
                    }
                    status => self.answer(Reply::Queried { status, edges: Vec::new() }),
                }
            }
            RecordOp::Recover { meta, at, proven } => self.recover(meta, *at, *proven, known),
            RecordOp::Collect { meta } => self.collect(meta, known),
        }
    }

    /// What the record says; `None`: nothing, and nothing can come any more.
    fn state(&self, meta: &TxnMeta, known: &Known) -> Option<TxnState> {
        let finished = known.intention.as_ref().or(known.own.as_ref());
        match (&known.open, finished) {
            (_, Some(FinishedTxn { outcome, held, .. })) => Some(TxnState::Ended { outcome: *outcome, held: *held }),
            (Some(open), None) => Some(open.status.clone().into()),
            (None, None) => self.creatable(meta).then_some(TxnState::Open { recorded: false }),
        }
    }

    /// What became of this very transaction, if it has ended.
    fn ended(&self, meta: &TxnMeta, known: &Known) -> Option<(Outcome, Vec<SeqRange>, Vec<KeySpan>)> {
        if let Some(TxnRecord { status: TxnStatus::Committed(at), ignored, lock_spans, .. }) = &known.open {
            return Some((Outcome::Committed { at: *at }, ignored.clone(), lock_spans.clone()));
        }
        let mut finished = known.own.iter().chain(&known.intention);
        let finished = finished.find(|finished| finished.txn == meta.id)?;
        Some((finished.outcome, finished.ignored.clone(), Vec::new()))
    }

    /// When another transaction has done the same intention.
    fn done_by_another(meta: &TxnMeta, known: &Known) -> Option<TxnRefusal> {
        match &known.intention {
            Some(FinishedTxn { outcome: Outcome::Committed { at }, txn, held, .. }) if *txn != meta.id => {
                Some(TxnRefusal::AlreadyCommitted { at: *at, held: *held })
            }
            _ => None,
        }
    }

    fn finish(
        &self,
        meta: &TxnMeta,
        id: RequestId,
        outcome: Outcome,
        ignored: &[SeqRange],
        held: Option<bool>,
    ) -> Edit {
        let record = FinishedTxn { outcome, txn: meta.id, end: self.now, ignored: ignored.to_vec(), held };
        Edit::Finish { anchor: meta.anchor.clone(), id, record: record.encode() }
    }

    fn abort(&self, meta: &TxnMeta, known: &Known) -> Vec<Edit> {
        let drop = Edit::DropRecord { anchor: meta.anchor.clone(), txn: meta.id };
        let drop = known.open.is_some().then_some(drop);
        drop.into_iter().chain([self.finish(meta, meta.id.into(), Outcome::Aborted, &[], None)]).collect()
    }

    fn end(&self, reader: &dyn Reader, end: &EndTxn, known: Known) -> Result<Decision, Failed> {
        let meta = &end.meta;
        if let Some((outcome, ..)) = self.ended(meta, &known) {
            return self.answer(Reply::Ended(outcome));
        }
        let creatable = known.open.is_some() || self.creatable(meta);
        let commit_at = match &end.kind {
            EndKind::Commit(at) | EndKind::Stage(Staged { at, .. }) => *at,
            // It may have been committed, and forgotten.
            EndKind::Abort if !creatable => {
                return Err(Failed::Answer(RangeError::TooOld { range: self.range, floor: self.floor() }));
            }
            EndKind::Abort => {
                let mut edits = resolve::keys(reader, meta.id, Outcome::Aborted, &[], &end.local)?;
                edits.extend(self.abort(meta, &known));
                return self.propose(edits, Reply::Ended(Outcome::Aborted));
            }
        };
        if let Some(refusal) = Self::done_by_another(meta, &known) {
            return Err(Failed::Answer(RangeError::Txn(refusal)));
        }
        let intention_known = !meta.is_one_shot() || meta.commit_id.born_ms() > self.floor_ms;
        if !creatable || !intention_known {
            return Err(Failed::Answer(RangeError::TooOld { range: self.range, floor: self.floor() }));
        }
        let staged = known.open.as_ref().and_then(|open| staged(open)).map(|staged| staged.at);
        // What was staged has passed the marker, and nobody who met it since went below.
        if commit_at <= self.marker && staged != Some(commit_at) {
            return Err(Failed::Answer(RangeError::Txn(TxnRefusal::Pushed { above: self.marker })));
        }
        for claim in &end.proofs {
            let there = locks::of_key(reader, &claim.key)?
                .into_iter()
                .any(|lock| lock.txn.id == meta.id && proves(&lock, claim.seq, commit_at));
            if !there {
                let key = claim.key.clone();
                return Err(Failed::Answer(RangeError::Txn(TxnRefusal::IntentMissing { key })));
            }
        }
        match &end.kind {
            // At most one per transaction: this is a copy.
            EndKind::Stage(_) if staged.is_some() => self.answer(Reply::Staged),
            EndKind::Stage(staged) => {
                let status = TxnStatus::Staging(staged.clone());
                let record = self.record(meta, status, &end.ignored, &end.lock_spans);
                self.propose(vec![record], Reply::Staged)
            }
            _ => self.commit(reader, end, &known, commit_at),
        }
    }

    fn record(&self, meta: &TxnMeta, status: TxnStatus, ignored: &[SeqRange], lock_spans: &[KeySpan]) -> Edit {
        let (ignored, lock_spans) = (ignored.to_vec(), lock_spans.to_vec());
        let record = TxnRecord { status, meta: meta.clone(), heartbeat: self.now, ignored, lock_spans };
        Edit::Record { anchor: meta.anchor.clone(), txn: meta.id, record: record.encode() }
    }

    fn commit(&self, reader: &dyn Reader, end: &EndTxn, known: &Known, at: Timestamp) -> Result<Decision, Failed> {
        let (meta, outcome) = (&end.meta, Outcome::Committed { at });
        let mut edits = resolve::keys(reader, meta.id, outcome, &end.ignored, &end.local)?;
        let all_local = !end.local.is_empty() || end.lock_spans.is_empty();
        if all_local {
            if known.open.is_some() {
                edits.push(Edit::DropRecord { anchor: meta.anchor.clone(), txn: meta.id });
            }
        } else {
            edits.push(self.record(meta, TxnStatus::Committed(at), &end.ignored, &end.lock_spans));
        }
        if all_local || meta.is_one_shot() {
            edits.push(self.finish(meta, meta.commit_id, outcome, &end.ignored, end.held));
        }
        self.propose(edits, Reply::Ended(outcome))
    }

    fn heartbeat(&self, meta: &TxnMeta, lock_spans: &[KeySpan], known: Known) -> Result<Decision, Failed> {
        if let Some((outcome, ..)) = self.ended(meta, &known) {
            return self.answer(Reply::Ended(outcome));
        }
        if known.open.is_none() && !self.creatable(meta) {
            return self.answer(Reply::Ended(Outcome::Aborted));
        }
        let record = match known.open {
            // What was staged stays so.
            Some(open) if staged(&open).is_some() => self.record(meta, open.status, &open.ignored, &open.lock_spans),
            _ => self.record(meta, TxnStatus::Pending, &[], lock_spans),
        };
        self.propose(vec![record], Reply::Alive)
    }

    fn push(&self, push: &PushTxn, known: Known) -> Result<Decision, Failed> {
        let pushee = &push.pushee;
        let says = |outcome, ignored, lock_spans| Reply::Pushed(PushResult::Final { outcome, ignored, lock_spans });
        if let Some((outcome, ignored, spans)) = self.ended(pushee, &known) {
            return self.answer(says(outcome, ignored, spans));
        }
        if known.open.is_none() && !self.creatable(pushee) {
            // Long over: what is met of it are stray copies, and they must go.
            return self.answer(says(Outcome::Aborted, Vec::new(), Vec::new()));
        }
        let staged = known.open.as_ref().and_then(staged);
        let heard = known.open.as_ref().map_or(Timestamp::ZERO, |record| record.heartbeat);
        let heard = heard.max(pushee.anchored).max(push.seen);
        let wins = push.priority > pushee.priority || self.victim;
        let gives_way = pushee.isolation != Isolation::Serializable || wins;
        let expired = self.now.since(heard) > EXPIRY;
        if let Some(staged) = staged {
            // It may be committed, at this timestamp or above.
            return match push.kind {
                _ if expired || wins => self.answer(Reply::Pushed(PushResult::Indeterminate(staged.clone()))),
                PushKind::Timestamp { above, limit } if staged.at > limit.max(above) => {
                    Ok(Decision::Pass { marker: Timestamp::ZERO, upto: limit.max(above) })
                }
                PushKind::Ask { limit } if staged.at > limit => {
                    Ok(Decision::Pass { marker: Timestamp::ZERO, upto: limit })
                }
                _ => Ok(Decision::Wait),
            };
        }
        match push.kind {
            _ if expired => self.abort_for(pushee, known),
            PushKind::End if wins => self.abort_for(pushee, known),
            PushKind::Timestamp { above, limit } if gives_way => {
                Ok(Decision::Pass { marker: above, upto: above.max(limit) })
            }
            // It has not ended: nothing of it was acknowledged before the asking read began.
            PushKind::Ask { limit } => Ok(Decision::Pass { marker: Timestamp::ZERO, upto: limit }),
            PushKind::End | PushKind::Timestamp { .. } => Ok(Decision::Wait),
        }
    }

    fn abort_for(&self, pushee: &TxnMeta, known: Known) -> Result<Decision, Failed> {
        let edits = self.abort(pushee, &known);
        let lock_spans = known.open.map(|record| record.lock_spans).unwrap_or_default();
        let result = PushResult::Final { outcome: Outcome::Aborted, ignored: Vec::new(), lock_spans };
        self.propose(edits, Reply::Pushed(result))
    }

    /// Somebody has looked at the writes of a staged transaction.
    fn recover(&self, meta: &TxnMeta, at: Timestamp, proven: bool, known: Known) -> Result<Decision, Failed> {
        if let Some((outcome, ..)) = self.ended(meta, &known) {
            return self.answer(Reply::Ended(outcome));
        }
        let Some(open) = known.open.as_ref().filter(|open| staged(open).is_some_and(|staged| staged.at == at)) else {
            return if known.open.is_none() && !self.creatable(meta) {
                self.answer(Reply::Ended(Outcome::Aborted))
            } else {
                // It is not staged: nothing that was looked at decides anything.
                self.answer(Reply::Alive)
            };
        };
        // Its intention was done by another transaction: this one must not be.
        if !proven || Self::done_by_another(meta, &known).is_some() {
            return self.propose(self.abort(meta, &known), Reply::Ended(Outcome::Aborted));
        }
        let outcome = Outcome::Committed { at };
        let mut edits = vec![self.record(meta, TxnStatus::Committed(at), &open.ignored, &open.lock_spans)];
        if meta.is_one_shot() {
            edits.push(self.finish(meta, meta.commit_id, outcome, &open.ignored, None));
        }
        self.propose(edits, Reply::Ended(outcome))
    }

    fn collect(&self, meta: &TxnMeta, known: Known) -> Result<Decision, Failed> {
        let Some(TxnRecord { status: TxnStatus::Committed(at), ignored, .. }) = known.open else {
            return self.answer(Reply::Collected);
        };
        let drop = Edit::DropRecord { anchor: meta.anchor.clone(), txn: meta.id };
        // That of an intention was written with the commit.
        let finish =
            (!meta.is_one_shot()).then(|| self.finish(meta, meta.commit_id, Outcome::Committed { at }, &ignored, None));
        self.propose(finish.into_iter().chain([drop]).collect(), Reply::Collected)
    }
}

fn staged(record: &TxnRecord) -> Option<&Staged> {
    if let TxnStatus::Staging(staged) = &record.status { Some(staged) } else { None }
}

/// Lower bounds of commit timestamps, by transaction, at the leader of their anchor. What is forgotten is forgotten upwards, as
/// in the timestamp cache; a new lease begins above all promises of earlier ones.
#[derive(Debug, Default)]
pub(crate) struct Markers {
    low: Timestamp,
    by_txn: std::collections::BTreeMap<TxnId, Timestamp>,
}

/// Markers that a range remembers.
const MARKERS_MAX: usize = 16 << 10;

impl Markers {
    pub(crate) fn of(&self, txn: TxnId) -> Timestamp {
        self.by_txn.get(&txn).copied().unwrap_or_default().max(self.low)
    }

    pub(crate) fn raise(&mut self, txn: TxnId, to: Timestamp) {
        if to <= self.low {
            return;
        }
        if self.by_txn.len() >= MARKERS_MAX {
            // Ids begin with their birth: the oldest goes.
            if let Some((_, forgotten)) = self.by_txn.pop_first() {
                self.low = self.low.max(forgotten);
            }
        }
        let marker = self.by_txn.entry(txn).or_default();
        *marker = to.max(*marker);
    }

    /// Nothing commits at or below.
    pub(crate) fn raise_low(&mut self, to: Timestamp) {
        self.low = self.low.max(to);
    }

    /// The transaction has ended.
    pub(crate) fn forget(&mut self, txn: TxnId) {
        self.by_txn.remove(&txn);
    }
}
