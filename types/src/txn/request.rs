//! What a coordinator asks of ranges, and what they answer (docs/transactions.md, "The record").

use bytes::Bytes;
use thiserror::Error;

use super::{Claim, Isolation, Outcome, Seq, SeqRange, Staged, Strength, TxnMeta, Wait};
use crate::{Key, KeySpan, Priority, Row, ScanResult, Timestamp, TxnId};

/// What goes with every operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnHeader {
    /// Whose.
    pub meta: TxnMeta,
    /// The snapshot that it reads.
    pub read: Timestamp,
    /// It writes at or above.
    pub write: Timestamp,
    /// A version in (`read`, `limit`] may have been acknowledged before it began. Invariant: not below `read`.
    pub limit: Timestamp,
    /// Numbers the operation. Reads see own writes with lower numbers.
    pub seq: Seq,
    /// Writes that were taken back.
    pub ignored: Vec<SeqRange>,
    /// Overwritten values with lower numbers are of no use any more: no savepoint and no statement looks at them.
    pub keep_from: Seq,
    /// Nothing was read yet that the operation's timestamp would have to agree with: the range may move `read` up instead of
    /// refusing.
    pub can_forward: bool,
    /// What to do at a foreign lock.
    pub wait: Wait,
    /// A write is answered before it is applied: its coordinator proves it later.
    pub pipelined: bool,
}

/// An operation of a transaction on keys of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOp {
    /// Reads a key, and locks it if asked to.
    Get {
        /// Which.
        key: Key,
        /// `Shared` or `Exclusive`; `None`: no lock.
        lock: Option<Strength>,
    },
    /// Reads rows in key order, or in reverse.
    Scan {
        /// Which keys.
        span: KeySpan,
        /// From the end to the start.
        reverse: bool,
        /// At most so many rows; 0 for no bound.
        rows_max: u64,
        /// Stops after the row that reaches this many bytes of keys and values; at least one row is returned.
        bytes_max: u64,
    },
    /// Sets or removes a key, whatever it was.
    Write {
        /// Which.
        key: Key,
        /// To what; `None`: removes it.
        value: Option<Bytes>,
        /// The transaction has read the key. If others have written it since, it cannot commit: better refused now than locked in
        /// vain.
        was_read: bool,
    },
    /// Sets or removes several keys, which differ, whatever they were.
    Batch {
        /// Keys and what they get; `None`: they are removed.
        writes: Vec<(Key, Option<Bytes>)>,
    },
    /// Sets or removes a key if its value is what the caller expects.
    CompareAndSet {
        /// Which.
        key: Key,
        /// The value it must have; `None`: it must be absent.
        expected: Option<Bytes>,
        /// The value it gets; `None`: it is removed.
        new: Option<Bytes>,
    },
    /// Adds to a counter.
    Increment(Increment),
    /// Removes the keys of a span, in key order, until `keys_max` were removed.
    DeleteRange {
        /// Which keys.
        span: KeySpan,
        /// At most so many; at least 1.
        keys_max: u64,
    },
    /// What was read up to `from` must be the same up to `to`.
    Refresh {
        /// What was read.
        span: KeySpan,
        /// At which timestamp.
        from: Timestamp,
        /// Up to where it must have stayed the same.
        to: Timestamp,
    },
    /// Whether a write of the transaction is there. If it is not, it never will be at or below the timestamp.
    Prove {
        /// Of which key.
        key: Key,
        /// Which write.
        seq: Seq,
        /// Its intent must lie at or below.
        at: Timestamp,
    },
}

/// Adds to a counter: a value of 8 bytes, signed, big-endian. An absent key counts as 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    /// Which key.
    pub key: Key,
    /// How much; may be negative.
    pub by: i64,
}

/// The answer to a `TxnOp`. `RangeReply::timestamp` is the read timestamp that it holds for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnAnswer {
    /// To `Get`.
    Row(Option<Row>),
    /// To `Scan`.
    Rows(ScanResult),
    /// To `Write` and `Batch`.
    Written,
    /// To `CompareAndSet`: whether it was written, and what was met if not.
    Compared {
        /// Whether it was written.
        swapped: bool,
        /// What was met if not.
        actual: Option<Bytes>,
    },
    /// To `Increment`: the counter's value now.
    Number(i64),
    /// To `DeleteRange`.
    Deleted {
        /// The keys that were removed: their locks are the transaction's.
        keys: Vec<Key>,
        /// Where to go on, unless at the end of the span.
        resume: Option<Key>,
    },
    /// To `Refresh`.
    Refreshed,
    /// To `Prove`: whether it is there.
    Proven(bool),
}

/// A request to the record of a transaction, at the range of its anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordOp {
    /// Its coordinator commits it or gives it up.
    End(EndTxn),
    /// Its coordinator lives.
    Heartbeat {
        /// Whose.
        meta: TxnMeta,
        /// Where its locks lie, as far as is known.
        lock_spans: Vec<KeySpan>,
    },
    /// It stands in somebody's way.
    Push(PushTxn),
    /// What became of it, and who waits for it.
    Query(QueryTxn),
    /// Somebody has looked whether the writes of a staged transaction are there.
    Recover {
        /// Whose.
        meta: TxnMeta,
        /// When it would commit, as the record said.
        at: Timestamp,
        /// Whether all its writes are there.
        proven: bool,
    },
    /// All its locks are resolved: the record shrinks to what retries may ask for.
    Collect {
        /// Whose.
        meta: TxnMeta,
    },
}

/// Ends a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndTxn {
    /// Whose.
    pub meta: TxnMeta,
    /// How.
    pub kind: EndKind,
    /// Where its locks lie.
    pub lock_spans: Vec<KeySpan>,
    /// Writes that were taken back.
    pub ignored: Vec<SeqRange>,
    /// All its locks, if all lie in the anchor's range: they are resolved in the same step. Else empty.
    pub local: Vec<Key>,
    /// Writes that nobody has proven yet, all in the anchor's range: it commits only if they are there.
    pub proofs: Vec<Claim>,
    /// Of a conditional transaction: whether its comparisons held.
    pub held: Option<bool>,
}

/// How a transaction ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndKind {
    /// All its writes become versions at this timestamp.
    Commit(Timestamp),
    /// It is committed if all its writes are there.
    Stage(Staged),
    /// Nothing of it remains.
    Abort,
}

/// What a pusher wants of the transaction in its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushKind {
    /// A reader at `above` wants it to commit above; nothing that it writes may have been acknowledged up to `limit`.
    Timestamp {
        /// The reader's timestamp.
        above: Timestamp,
        /// The reader's uncertainty limit.
        limit: Timestamp,
    },
    /// A reader met a write of it in its uncertainty window: was it acknowledged before the reader began?
    Ask {
        /// The reader's uncertainty limit.
        limit: Timestamp,
    },
    /// A writer wants it to end.
    End,
}

/// A transaction stands in somebody's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushTxn {
    /// Who stands in the way.
    pub pushee: TxnMeta,
    /// What is wanted.
    pub kind: PushKind,
    /// Who waits; `None` for requests without a transaction, which hold nothing.
    pub pusher: Option<Waiter>,
    /// How urgent the pusher is.
    pub priority: Priority,
    /// The `local_ts` of the lock that was met: its owner lived then.
    pub seen: Timestamp,
    /// Who waits for the pusher, as far as it knows.
    pub edges: Vec<Edge>,
}

/// A transaction that waits, as the search for deadlocks knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Waiter {
    /// Who.
    pub id: TxnId,
    /// Where its record lies, and who waits for it is known.
    pub anchor: Key,
    /// How urgent.
    pub priority: Priority,
    /// When it was born.
    pub min_ts: Timestamp,
}

impl From<&TxnMeta> for Waiter {
    fn from(meta: &TxnMeta) -> Self {
        Self { id: meta.id, anchor: meta.anchor.clone(), priority: meta.priority, min_ts: meta.min_ts }
    }
}

/// Somebody waits for somebody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// Who waits.
    pub waiter: Waiter,
    /// For whom.
    pub holder: TxnId,
}

/// The answer to a `PushTxn`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushResult {
    /// It will commit above the pusher's timestamp, or was not acknowledged up to its limit: for this pusher it is out of the
    /// way.
    Passed,
    /// It has ended.
    Final {
        /// How.
        outcome: Outcome,
        /// Writes that were taken back.
        ignored: Vec<SeqRange>,
        /// Where locks of it may be left.
        lock_spans: Vec<KeySpan>,
    },
    /// It lives, and the pusher has to wait on.
    Waiting,
    /// Whoever pushes was itself aborted meanwhile, and waits for nothing any more.
    PusherAborted,
    /// Its coordinator was not heard of since it sent everything: whoever proves its writes knows what became of it, and has to
    /// say so to the record.
    Indeterminate(Staged),
}

/// Asks what became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryTxn {
    /// Who. Only id, anchor, anchored and commit id matter.
    pub meta: TxnMeta,
    /// Whether a transaction that has not ended is given up, so that the answer is final.
    pub settle: bool,
}

/// What is to be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveTarget {
    /// These keys.
    Keys(Vec<Key>),
    /// Whatever of the transaction lies in a span, so many keys at a time.
    Span(KeySpan),
}

/// Turns locks of an ended transaction into versions, or removes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolve {
    /// Whose locks.
    pub meta: TxnMeta,
    /// What its record said.
    pub outcome: Outcome,
    /// Writes that were taken back.
    pub ignored: Vec<SeqRange>,
    /// Where.
    pub target: ResolveTarget,
}

/// Who has a key locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedBy {
    /// Which key.
    pub key: Key,
    /// Who.
    pub holder: TxnId,
}

/// Why an operation of a transaction was refused. Nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TxnRefusal {
    /// The key has a version above the transaction's snapshot.
    #[error("{key} was written at {existing}, after this transaction's snapshot")]
    WriteTooOld {
        /// Which key.
        key: Key,
        /// The version's timestamp.
        existing: Timestamp,
        /// Who wrote it, where that is known: the transaction, or the request by whose id it is known.
        other: Option<TxnId>,
    },
    /// The transaction can commit only above this timestamp.
    #[error("it can commit only above {above}")]
    Pushed {
        /// Refresh to a timestamp above.
        above: Timestamp,
    },
    /// What was read has changed.
    #[error("{key} has changed since this transaction read it")]
    RefreshFailed {
        /// Which key.
        key: Key,
        /// Who changed it, where that is known: the transaction, or the request by whose id it is known.
        other: Option<TxnId>,
    },
    /// The transaction's record says that it was aborted.
    #[error(
        "the transaction was aborted: another one needed its locks, or its coordinator was not heard of for too long"
    )]
    Aborted,
    /// The lock is held and the request does not wait.
    #[error("{} is locked by transaction {}", .0.key, .0.holder)]
    LockHeld(LockedBy),
    /// The lock was held until the deadline.
    #[error("{} was locked by transaction {} until the deadline", .0.key, .0.holder)]
    LockTimeout(LockedBy),
    /// A write that was answered before it was applied is not there.
    #[error("the transaction's write of {key} was lost")]
    IntentMissing {
        /// Which key.
        key: Key,
    },
    /// A late copy: the transaction has written the key since. Nobody waits for the answer.
    #[error("{key} was written by a later step of the same transaction")]
    StaleWrite {
        /// Which key.
        key: Key,
    },
    /// The same intention was done before, by another transaction.
    #[error("the request was done already, at {at}")]
    AlreadyCommitted {
        /// When.
        at: Timestamp,
        /// Of a conditional transaction, where that is known: whether its comparisons held.
        held: Option<bool>,
    },
}

impl TxnRefusal {
    /// The key that it is about.
    #[must_use]
    pub const fn key(&self) -> Option<&Key> {
        match self {
            Self::WriteTooOld { key, .. }
            | Self::RefreshFailed { key, .. }
            | Self::IntentMissing { key }
            | Self::StaleWrite { key } => Some(key),
            Self::LockHeld(by) | Self::LockTimeout(by) => Some(&by.key),
            Self::Pushed { .. } | Self::Aborted | Self::AlreadyCommitted { .. } => None,
        }
    }

    /// The other transaction that it is about.
    #[must_use]
    pub const fn other(&self) -> Option<TxnId> {
        match self {
            Self::WriteTooOld { other, .. } | Self::RefreshFailed { other, .. } => *other,
            Self::LockHeld(by) | Self::LockTimeout(by) => Some(by.holder),
            _ => None,
        }
    }
}

impl TxnHeader {
    /// Whether everything it read must still hold at the commit timestamp.
    #[must_use]
    pub fn is_serializable(&self) -> bool {
        self.meta.isolation == Isolation::Serializable
    }
}

impl TxnOp {
    /// The keys it touches.
    #[must_use]
    pub fn span(&self) -> KeySpan {
        match self {
            Self::Get { key, .. }
            | Self::Write { key, .. }
            | Self::CompareAndSet { key, .. }
            | Self::Increment(Increment { key, .. })
            | Self::Prove { key, .. } => KeySpan::point(key.clone()),
            Self::Batch { writes } => {
                let (first, last) = (writes.iter().map(|(key, _)| key).min(), writes.iter().map(|(key, _)| key).max());
                let (first, last) = (first.cloned().unwrap_or_default(), last.map(Key::next).unwrap_or_default());
                KeySpan { start: first, end: last }
            }
            Self::Scan { span, .. } | Self::DeleteRange { span, .. } | Self::Refresh { span, .. } => span.clone(),
        }
    }

    /// Whether it lays locks.
    #[must_use]
    pub const fn locks(&self) -> bool {
        match self {
            Self::Get { lock, .. } => lock.is_some(),
            Self::Scan { .. } | Self::Refresh { .. } | Self::Prove { .. } => false,
            Self::Write { .. }
            | Self::Batch { .. }
            | Self::CompareAndSet { .. }
            | Self::Increment(_)
            | Self::DeleteRange { .. } => true,
        }
    }

    /// Whether its answer depends on what is there.
    #[must_use]
    pub const fn reads(&self) -> bool {
        !matches!(self, Self::Write { was_read: false, .. } | Self::Batch { .. })
    }
}

impl RecordOp {
    /// Whose record.
    #[must_use]
    pub const fn meta(&self) -> &TxnMeta {
        match self {
            Self::End(end) => &end.meta,
            Self::Heartbeat { meta, .. } | Self::Recover { meta, .. } | Self::Collect { meta } => meta,
            Self::Push(push) => &push.pushee,
            Self::Query(query) => &query.meta,
        }
    }
}

impl RecordOp {
    /// The keys it touches: the anchor, and what is resolved with it.
    #[must_use]
    pub fn span(&self) -> KeySpan {
        let anchor = &self.meta().anchor;
        let (local, proofs) =
            if let Self::End(end) = self { (&end.local[..], &end.proofs[..]) } else { (&[][..], &[][..]) };
        let keys = || local.iter().chain(proofs.iter().map(|claim| &claim.key)).chain([anchor]);
        let (first, last) = (keys().min().unwrap_or(anchor), keys().max().unwrap_or(anchor));
        KeySpan { start: first.clone(), end: last.next() }
    }
}

impl Resolve {
    /// The keys it touches; `None` if it names none.
    #[must_use]
    pub fn span(&self) -> Option<KeySpan> {
        match &self.target {
            ResolveTarget::Span(span) => Some(span.clone()),
            ResolveTarget::Keys(keys) => {
                Some(KeySpan { start: keys.iter().min()?.clone(), end: keys.iter().max()?.next() })
            }
        }
    }
}
