//! Transactions, as one node tells another of them.

use bytes::Bytes;
use flotilla_types::{
    Claim, Command, Compare, Edge, EndKind, EndTxn, Increment, Isolation, Key, KeySpan, LockedBy, OneShot, Outcome,
    Priority, PushKind, PushTxn, QueryTxn, RecordOp, RequestId, Resolve, ResolveTarget, Seq, SeqRange, Staged,
    Strength, Timestamp, TxnHeader, TxnId, TxnMeta, TxnOp, TxnRefusal, Wait, Waiter, Whole,
};

use super::request::key_in;
use super::{WireError, key_out, needed};
use crate::internal::{self as wire, range_error::Kind, range_request, txn_record_step, txn_step};
use crate::v1;

pub(super) fn id_out(id: TxnId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

pub(super) fn id_in(bytes: &[u8]) -> Result<TxnId, WireError> {
    TxnId::try_from(bytes).map_err(|error| WireError::new(error.to_string()))
}

pub(super) fn time_in(timestamp: Option<v1::Timestamp>, name: &'static str) -> Result<Timestamp, WireError> {
    needed(timestamp, name).map(Into::into)
}

impl From<Isolation> for v1::Isolation {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::ReadCommitted => Self::ReadCommitted,
            Isolation::Snapshot => Self::Snapshot,
            Isolation::Serializable => Self::Serializable,
        }
    }
}

impl From<v1::Isolation> for Isolation {
    /// Unspecified is the default.
    fn from(isolation: v1::Isolation) -> Self {
        match isolation {
            v1::Isolation::ReadCommitted => Self::ReadCommitted,
            v1::Isolation::Snapshot => Self::Snapshot,
            v1::Isolation::Serializable | v1::Isolation::Unspecified => Self::Serializable,
        }
    }
}

impl From<Priority> for v1::Priority {
    fn from(priority: Priority) -> Self {
        match priority {
            Priority::Low => Self::Low,
            Priority::Normal => Self::Normal,
            Priority::High => Self::High,
        }
    }
}

impl From<v1::Priority> for Priority {
    /// Unspecified is the default.
    fn from(priority: v1::Priority) -> Self {
        match priority {
            v1::Priority::Low => Self::Low,
            v1::Priority::Normal | v1::Priority::Unspecified => Self::Normal,
            v1::Priority::High => Self::High,
        }
    }
}

impl From<Wait> for v1::WaitPolicy {
    fn from(wait: Wait) -> Self {
        match wait {
            Wait::Block => Self::Block,
            Wait::Error => Self::Error,
            Wait::Skip => Self::Skip,
        }
    }
}

impl From<v1::WaitPolicy> for Wait {
    /// Unspecified is the default.
    fn from(wait: v1::WaitPolicy) -> Self {
        match wait {
            v1::WaitPolicy::Block | v1::WaitPolicy::Unspecified => Self::Block,
            v1::WaitPolicy::Error => Self::Error,
            v1::WaitPolicy::Skip => Self::Skip,
        }
    }
}

impl From<&TxnMeta> for wire::TxnMeta {
    fn from(meta: &TxnMeta) -> Self {
        Self {
            id: id_out(meta.id),
            anchor: key_out(&meta.anchor),
            anchored: Some(meta.anchored.into()),
            min_ts: Some(meta.min_ts.into()),
            isolation: v1::Isolation::from(meta.isolation).into(),
            priority: v1::Priority::from(meta.priority).into(),
            commit_id: Bytes::copy_from_slice(&meta.commit_id.0),
        }
    }
}

impl TryFrom<wire::TxnMeta> for TxnMeta {
    type Error = WireError;

    fn try_from(meta: wire::TxnMeta) -> Result<Self, WireError> {
        let (isolation, priority) = (meta.isolation().into(), meta.priority().into());
        let commit_id = RequestId::try_from(&meta.commit_id[..]).map_err(|error| WireError::new(error.to_string()))?;
        Ok(Self {
            id: id_in(&meta.id)?,
            anchor: key_in(meta.anchor)?,
            anchored: time_in(meta.anchored, "when a transaction was anchored")?,
            min_ts: time_in(meta.min_ts, "a transaction's birth")?,
            isolation,
            priority,
            commit_id,
        })
    }
}

fn meta_in(meta: Option<wire::TxnMeta>) -> Result<TxnMeta, WireError> {
    needed(meta, "a transaction")?.try_into()
}

pub(super) fn ignored_out(ignored: &[SeqRange]) -> Vec<wire::SeqRange> {
    ignored.iter().map(|range| wire::SeqRange { from: range.from.0, to: range.to.0 }).collect()
}

pub(super) fn ignored_in(ignored: Vec<wire::SeqRange>) -> Vec<SeqRange> {
    ignored.into_iter().map(|range| SeqRange { from: Seq(range.from), to: Seq(range.to) }).collect()
}

pub(super) fn spans_out(spans: &[KeySpan]) -> Vec<wire::KeySpan> {
    spans.iter().map(Into::into).collect()
}

pub(super) fn spans_in(spans: Vec<wire::KeySpan>) -> Result<Vec<KeySpan>, WireError> {
    spans.into_iter().map(TryInto::try_into).collect()
}

impl From<&TxnHeader> for wire::TxnHeader {
    fn from(header: &TxnHeader) -> Self {
        Self {
            meta: Some((&header.meta).into()),
            read: Some(header.read.into()),
            write: Some(header.write.into()),
            limit: Some(header.limit.into()),
            seq: header.seq.0,
            ignored: ignored_out(&header.ignored),
            keep_from: header.keep_from.0,
            can_forward: header.can_forward,
            wait: v1::WaitPolicy::from(header.wait).into(),
            pipelined: header.pipelined,
        }
    }
}

impl TryFrom<wire::TxnHeader> for TxnHeader {
    type Error = WireError;

    fn try_from(header: wire::TxnHeader) -> Result<Self, WireError> {
        let wait = header.wait().into();
        let read = time_in(header.read, "a transaction's read timestamp")?;
        let limit = time_in(header.limit, "a transaction's limit")?;
        if limit < read {
            return Err(WireError::new("a transaction's limit lies below its read timestamp"));
        }
        Ok(Self {
            meta: meta_in(header.meta)?,
            read,
            write: time_in(header.write, "a transaction's write timestamp")?,
            limit,
            seq: Seq(header.seq),
            ignored: ignored_in(header.ignored),
            keep_from: Seq(header.keep_from),
            can_forward: header.can_forward,
            wait,
            pipelined: header.pipelined,
        })
    }
}

pub(super) fn step_out(header: &TxnHeader, op: &TxnOp) -> range_request::Command {
    use txn_step::Op;
    let was_read = matches!(op, TxnOp::Write { was_read: true, .. });
    let op = match op {
        TxnOp::Get { key, lock } => {
            let lock = match lock {
                None => v1::LockStrength::Unspecified,
                Some(Strength::Shared) => v1::LockStrength::Share,
                Some(Strength::Exclusive | Strength::Intent) => v1::LockStrength::Update,
            };
            Op::Get(wire::TxnGet { key: key_out(key), lock: lock.into() })
        }
        TxnOp::Scan { span, reverse, rows_max, bytes_max } => Op::Scan(wire::Scan {
            at: None,
            span: Some(span.into()),
            reverse: *reverse,
            rows_max: *rows_max,
            bytes_max: *bytes_max,
        }),
        TxnOp::Write { key, value, .. } => Op::Write(wire::KeyValue { key: key_out(key), value: value.clone() }),
        TxnOp::Batch { writes } => {
            let ops = writes.iter().map(|(key, value)| wire::KeyValue { key: key_out(key), value: value.clone() });
            Op::Batch(wire::Batch { ops: ops.collect() })
        }
        TxnOp::Prove { key, seq, at } => {
            Op::Prove(wire::Prove { key: key_out(key), seq: seq.0, at: Some((*at).into()) })
        }
        TxnOp::CompareAndSet { key, expected, new } => {
            let (expected, new) = (expected.clone(), new.clone());
            Op::CompareAndSet(wire::CompareAndSwap { key: key_out(key), expected, new })
        }
        TxnOp::Increment(increment) => Op::Increment(increment.into()),
        TxnOp::DeleteRange { span, keys_max } => {
            Op::DeleteRange(wire::DeleteRange { span: Some(span.into()), keys_max: *keys_max })
        }
        TxnOp::Refresh { span, from, to } => {
            let (from, to) = (Some((*from).into()), Some((*to).into()));
            Op::Refresh(wire::Refresh { span: Some(span.into()), from, to })
        }
    };
    range_request::Command::Txn(wire::TxnStep { header: Some(header.into()), op: Some(op), was_read })
}

pub(super) fn step_in(step: wire::TxnStep) -> Result<Command, WireError> {
    use txn_step::Op;
    let header = Box::new(needed(step.header, "a transaction's header")?.try_into()?);
    let op = match needed(step.op, "a transaction's operation")? {
        Op::Get(get) => {
            let lock = match get.lock() {
                v1::LockStrength::Unspecified => None,
                v1::LockStrength::Share => Some(Strength::Shared),
                v1::LockStrength::Update => Some(Strength::Exclusive),
            };
            TxnOp::Get { key: key_in(get.key)?, lock }
        }
        Op::Scan(scan) => TxnOp::Scan {
            span: needed(scan.span, "a scan's span")?.try_into()?,
            reverse: scan.reverse,
            rows_max: scan.rows_max,
            bytes_max: scan.bytes_max,
        },
        Op::Write(write) => TxnOp::Write { key: key_in(write.key)?, value: write.value, was_read: step.was_read },
        Op::Batch(batch) => {
            let writes = batch.ops.into_iter().map(|op| Ok((key_in(op.key)?, op.value)));
            let writes: Vec<_> = writes.collect::<Result<_, WireError>>()?;
            if writes.is_empty() {
                return Err(WireError::new("a batch is empty"));
            }
            TxnOp::Batch { writes }
        }
        Op::Prove(prove) => {
            TxnOp::Prove { key: key_in(prove.key)?, seq: Seq(prove.seq), at: time_in(prove.at, "a proof's timestamp")? }
        }
        Op::CompareAndSet(swap) => {
            TxnOp::CompareAndSet { key: key_in(swap.key)?, expected: swap.expected, new: swap.new }
        }
        Op::Increment(increment) => TxnOp::Increment(increment.try_into()?),
        Op::DeleteRange(delete) => TxnOp::DeleteRange {
            span: needed(delete.span, "a range delete's span")?.try_into()?,
            keys_max: delete.keys_max,
        },
        Op::Refresh(refresh) => TxnOp::Refresh {
            span: needed(refresh.span, "a refresh's span")?.try_into()?,
            from: time_in(refresh.from, "a refresh's begin")?,
            to: time_in(refresh.to, "a refresh's end")?,
        },
    };
    Ok(Command::Txn { header, op })
}

impl From<&Increment> for wire::Increment {
    fn from(increment: &Increment) -> Self {
        Self { key: key_out(&increment.key), by: increment.by }
    }
}

impl TryFrom<wire::Increment> for Increment {
    type Error = WireError;

    fn try_from(increment: wire::Increment) -> Result<Self, WireError> {
        Ok(Self { key: key_in(increment.key)?, by: increment.by })
    }
}

pub(super) fn record_out(op: &RecordOp) -> range_request::Command {
    use txn_record_step::Op;
    let op = match op {
        RecordOp::End(end) => Op::End(wire::EndTxn {
            meta: Some((&end.meta).into()),
            commit_at: if let EndKind::Commit(at) = end.kind { Some(at.into()) } else { None },
            stage: if let EndKind::Stage(staged) = &end.kind { Some(staged_out(staged)) } else { None },
            held: end.held,
            proofs: end.proofs.iter().map(claim_out).collect(),
            lock_spans: spans_out(&end.lock_spans),
            ignored: ignored_out(&end.ignored),
            local: end.local.iter().map(key_out).collect(),
        }),
        RecordOp::Heartbeat { meta, lock_spans } => {
            Op::Heartbeat(wire::Heartbeat { meta: Some(meta.into()), lock_spans: spans_out(lock_spans) })
        }
        RecordOp::Push(push) => Op::Push(push_out(push)),
        RecordOp::Query(query) => Op::Query(wire::QueryTxn { meta: Some((&query.meta).into()), settle: query.settle }),
        RecordOp::Recover { meta, at, proven } => {
            Op::Recover(wire::Recover { meta: Some(meta.into()), at: Some((*at).into()), proven: *proven })
        }
        RecordOp::Collect { meta } => Op::Collect(meta.into()),
    };
    range_request::Command::Record(wire::TxnRecordStep { op: Some(op) })
}

pub(super) fn record_in(step: wire::TxnRecordStep) -> Result<Command, WireError> {
    use txn_record_step::Op;
    let op = match needed(step.op, "what is asked of a record")? {
        Op::End(end) => RecordOp::End(EndTxn {
            meta: meta_in(end.meta)?,
            kind: match (end.commit_at, end.stage) {
                (_, Some(staged)) => EndKind::Stage(staged_in(staged)?),
                (Some(at), None) => EndKind::Commit(at.into()),
                (None, None) => EndKind::Abort,
            },
            held: end.held,
            proofs: end.proofs.into_iter().map(claim_in).collect::<Result<_, _>>()?,
            lock_spans: spans_in(end.lock_spans)?,
            ignored: ignored_in(end.ignored),
            local: end.local.into_iter().map(key_in).collect::<Result<_, _>>()?,
        }),
        Op::Heartbeat(beat) => {
            RecordOp::Heartbeat { meta: meta_in(beat.meta)?, lock_spans: spans_in(beat.lock_spans)? }
        }
        Op::Push(push) => RecordOp::Push(push_in(push)?),
        Op::Query(query) => RecordOp::Query(QueryTxn { meta: meta_in(query.meta)?, settle: query.settle }),
        Op::Recover(recover) => RecordOp::Recover {
            meta: meta_in(recover.meta)?,
            at: time_in(recover.at, "when a transaction would commit")?,
            proven: recover.proven,
        },
        Op::Collect(meta) => RecordOp::Collect { meta: meta.try_into()? },
    };
    Ok(Command::Record(Box::new(op)))
}

fn claim_out(claim: &Claim) -> wire::Claim {
    wire::Claim { key: key_out(&claim.key), seq: claim.seq.0 }
}

fn claim_in(claim: wire::Claim) -> Result<Claim, WireError> {
    Ok(Claim { key: key_in(claim.key)?, seq: Seq(claim.seq) })
}

pub(super) fn staged_out(staged: &Staged) -> wire::Staged {
    wire::Staged { at: Some(staged.at.into()), in_flight: staged.in_flight.iter().map(claim_out).collect() }
}

pub(super) fn staged_in(staged: wire::Staged) -> Result<Staged, WireError> {
    let in_flight = staged.in_flight.into_iter().map(claim_in).collect::<Result<_, _>>()?;
    Ok(Staged { at: time_in(staged.at, "when a transaction would commit")?, in_flight })
}

pub(super) fn whole_out(whole: &Whole) -> wire::Whole {
    let compare = |compare: &Compare| v1::Compare { key: key_out(&compare.key), expected: compare.expected.clone() };
    wire::Whole {
        compare: whole.compares.iter().map(compare).collect(),
        then: whole.then.iter().map(one_shot_out).collect(),
        otherwise: whole.otherwise.iter().map(one_shot_out).collect(),
    }
}

fn one_shot_out(step: &OneShot) -> v1::TransactOp {
    use v1::transact_op::Op;
    let op = match step {
        OneShot::Get(key) => Op::Get(key_out(key)),
        OneShot::Write(key, Some(value)) => Op::Put(v1::BatchPut { key: key_out(key), value: value.clone() }),
        OneShot::Write(key, None) => Op::Delete(key_out(key)),
        OneShot::Increment(key, by) => Op::Increment(v1::TransactIncrement { key: key_out(key), by: *by }),
    };
    v1::TransactOp { op: Some(op) }
}

pub(super) fn whole_in(whole: wire::Whole) -> Result<Whole, WireError> {
    let compare = |compare: v1::Compare| Ok(Compare { key: key_in(compare.key)?, expected: compare.expected });
    Ok(Whole {
        compares: whole.compare.into_iter().map(compare).collect::<Result<_, WireError>>()?,
        then: whole.then.into_iter().map(one_shot_in).collect::<Result<_, _>>()?,
        otherwise: whole.otherwise.into_iter().map(one_shot_in).collect::<Result<_, _>>()?,
    })
}

fn one_shot_in(step: v1::TransactOp) -> Result<OneShot, WireError> {
    use v1::transact_op::Op;
    Ok(match needed(step.op, "a step of a transaction")? {
        Op::Get(key) => OneShot::Get(key_in(key)?),
        Op::Put(put) => OneShot::Write(key_in(put.key)?, Some(put.value)),
        Op::Delete(key) => OneShot::Write(key_in(key)?, None),
        Op::Increment(increment) => OneShot::Increment(key_in(increment.key)?, increment.by),
    })
}

fn push_out(push: &PushTxn) -> wire::PushTxn {
    use wire::push_txn::Kind;
    let kind = match push.kind {
        PushKind::Timestamp { above, limit } => {
            Kind::Timestamp(wire::PushTimestamp { above: Some(above.into()), limit: Some(limit.into()) })
        }
        PushKind::Ask { limit } => Kind::Ask(limit.into()),
        PushKind::End => Kind::End(wire::Nothing {}),
    };
    wire::PushTxn {
        pushee: Some((&push.pushee).into()),
        kind: Some(kind),
        pusher: push.pusher.as_ref().map(Into::into),
        priority: v1::Priority::from(push.priority).into(),
        seen: Some(push.seen.into()),
        edges: edges_out(&push.edges),
    }
}

fn push_in(push: wire::PushTxn) -> Result<PushTxn, WireError> {
    use wire::push_txn::Kind;
    let priority = push.priority().into();
    let kind = match needed(push.kind, "what a push wants")? {
        Kind::Timestamp(wanted) => PushKind::Timestamp {
            above: time_in(wanted.above, "a push's timestamp")?,
            limit: time_in(wanted.limit, "a push's limit")?,
        },
        Kind::Ask(limit) => PushKind::Ask { limit: limit.into() },
        Kind::End(wire::Nothing {}) => PushKind::End,
    };
    Ok(PushTxn {
        pushee: meta_in(push.pushee)?,
        kind,
        pusher: push.pusher.map(TryInto::try_into).transpose()?,
        priority,
        seen: time_in(push.seen, "when a lock was laid")?,
        edges: edges_in(push.edges)?,
    })
}

impl From<&Waiter> for wire::Waiter {
    fn from(waiter: &Waiter) -> Self {
        Self {
            id: id_out(waiter.id),
            anchor: key_out(&waiter.anchor),
            priority: v1::Priority::from(waiter.priority).into(),
            min_ts: Some(waiter.min_ts.into()),
        }
    }
}

impl TryFrom<wire::Waiter> for Waiter {
    type Error = WireError;

    fn try_from(waiter: wire::Waiter) -> Result<Self, WireError> {
        let priority = waiter.priority().into();
        let min_ts = time_in(waiter.min_ts, "a waiter's birth")?;
        Ok(Self { id: id_in(&waiter.id)?, anchor: key_in(waiter.anchor)?, priority, min_ts })
    }
}

pub(super) fn edges_out(edges: &[Edge]) -> Vec<wire::Edge> {
    let edge = |edge: &Edge| wire::Edge { waiter: Some((&edge.waiter).into()), holder: id_out(edge.holder) };
    edges.iter().map(edge).collect()
}

pub(super) fn edges_in(edges: Vec<wire::Edge>) -> Result<Vec<Edge>, WireError> {
    let edge = |edge: wire::Edge| {
        Ok(Edge { waiter: needed(edge.waiter, "an edge's waiter")?.try_into()?, holder: id_in(&edge.holder)? })
    };
    edges.into_iter().map(edge).collect()
}

pub(super) fn outcome_out(outcome: Outcome) -> wire::TxnOutcome {
    let committed_at = match outcome {
        Outcome::Committed { at } => Some(at.into()),
        Outcome::Aborted => None,
    };
    wire::TxnOutcome { committed_at }
}

pub(super) fn outcome_in(outcome: Option<wire::TxnOutcome>) -> Result<Outcome, WireError> {
    let outcome = needed(outcome, "a transaction's outcome")?;
    Ok(outcome.committed_at.map_or(Outcome::Aborted, |at| Outcome::Committed { at: at.into() }))
}

pub(super) fn resolve_out(resolve: &Resolve) -> range_request::Command {
    let (span, keys) = match &resolve.target {
        ResolveTarget::Span(span) => (Some(span.into()), Vec::new()),
        ResolveTarget::Keys(keys) => (None, keys.iter().map(key_out).collect()),
    };
    range_request::Command::Resolve(wire::Resolve {
        meta: Some((&resolve.meta).into()),
        outcome: Some(outcome_out(resolve.outcome)),
        ignored: ignored_out(&resolve.ignored),
        span,
        keys,
    })
}

pub(super) fn resolve_in(resolve: wire::Resolve) -> Result<Command, WireError> {
    let target = match resolve.span {
        Some(span) => ResolveTarget::Span(span.try_into()?),
        None => ResolveTarget::Keys(resolve.keys.into_iter().map(key_in).collect::<Result<_, _>>()?),
    };
    Ok(Command::Resolve(Box::new(Resolve {
        meta: meta_in(resolve.meta)?,
        outcome: outcome_in(resolve.outcome)?,
        ignored: ignored_in(resolve.ignored),
        target,
    })))
}

pub(super) fn refusal_out(refusal: TxnRefusal) -> wire::RangeError {
    let of = |kind: Kind| wire::RangeError { kind: kind.into(), ..wire::RangeError::default() };
    let about = |kind: Kind, key: &Key| wire::RangeError { key: key_out(key), ..of(kind) };
    let at = |kind: Kind, timestamp: Timestamp| wire::RangeError { timestamp: Some(timestamp.into()), ..of(kind) };
    let by = |kind: Kind, by: &LockedBy| wire::RangeError { txn_id: Some(id_out(by.holder)), ..about(kind, &by.key) };
    match refusal {
        TxnRefusal::WriteTooOld { key, existing, other } => wire::RangeError {
            timestamp: Some(existing.into()),
            txn_id: other.map(id_out),
            ..about(Kind::WriteTooOld, &key)
        },
        TxnRefusal::Pushed { above } => at(Kind::TxnPushed, above),
        TxnRefusal::RefreshFailed { key, other } => {
            wire::RangeError { txn_id: other.map(id_out), ..about(Kind::RefreshFailed, &key) }
        }
        TxnRefusal::Aborted => of(Kind::TxnAborted),
        TxnRefusal::LockHeld(locked) => by(Kind::LockHeld, &locked),
        TxnRefusal::LockTimeout(locked) => by(Kind::LockTimeout, &locked),
        TxnRefusal::IntentMissing { key } => about(Kind::IntentMissing, &key),
        TxnRefusal::StaleWrite { key } => about(Kind::StaleWrite, &key),
        TxnRefusal::AlreadyCommitted { at: committed, held } => {
            wire::RangeError { held, ..at(Kind::AlreadyCommitted, committed) }
        }
    }
}

/// `None`: the error is none of a transaction's.
pub(super) fn refusal_in(error: &wire::RangeError) -> Result<Option<TxnRefusal>, WireError> {
    let key = || key_in(error.key.clone());
    let timestamp = || time_in(error.timestamp, "an error's timestamp");
    let other = || error.txn_id.as_deref().map(id_in).transpose();
    let by = || Ok::<_, WireError>(LockedBy { key: key()?, holder: needed(other()?, "who holds a lock")? });
    Ok(Some(match error.kind() {
        Kind::WriteTooOld => TxnRefusal::WriteTooOld { key: key()?, existing: timestamp()?, other: other()? },
        Kind::TxnPushed => TxnRefusal::Pushed { above: timestamp()? },
        Kind::RefreshFailed => TxnRefusal::RefreshFailed { key: key()?, other: other()? },
        Kind::TxnAborted => TxnRefusal::Aborted,
        Kind::LockHeld => TxnRefusal::LockHeld(by()?),
        Kind::LockTimeout => TxnRefusal::LockTimeout(by()?),
        Kind::IntentMissing => TxnRefusal::IntentMissing { key: key()? },
        Kind::StaleWrite => TxnRefusal::StaleWrite { key: key()? },
        Kind::AlreadyCommitted => TxnRefusal::AlreadyCommitted { at: timestamp()?, held: error.held },
        _ => return Ok(None),
    }))
}
