//! What `kv` asks of one range, and what the range answers.
//!
//! A request has been cut so that all its keys lie in one range as the router knows it; the range checks that again.
//! Reads are answered by the leaseholder without the log, writes after they were applied, admin commands after the
//! descriptor changed.

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    Edge, Generation, Increment, Key, KeySpan, LogIndex, Outcome, PushResult, RangeDescriptor, RangeId, RecordOp,
    ReplicaId, RequestId, Resolve, Staged, StoreId, Timestamp, TxnAnswer, TxnHeader, TxnOp, TxnStatus, Whole,
};

/// A request to one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeRequest {
    /// The range that the router believes to own the keys.
    pub range: RangeId,
    /// How long the caller still waits. The range gives up waiting (latches, read-index) when it is over.
    pub timeout: Duration,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answered from state, without the log.
    Read {
        /// At which timestamp.
        at: ReadAt,
        /// What to read.
        read: Read,
    },
    /// Goes through the log; takes effect once per id.
    Write {
        /// The same on every retry.
        id: RequestId,
        /// What to write.
        write: Write,
    },
    /// An operation of a transaction. Answered when the locks that it lays were applied; a repetition with the same number
    /// changes nothing.
    Txn {
        /// Whose.
        header: Box<TxnHeader>,
        /// What.
        op: TxnOp,
    },
    /// A request to a transaction's record.
    Record(Box<RecordOp>),
    /// Clears locks of a transaction that has ended.
    Resolve(Box<Resolve>),
    /// Changes the range itself.
    Admin(Admin),
}

/// The timestamp of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadAt {
    /// The leaseholder's clock at admission: linearizable for one range.
    Leaseholder,
    /// A timestamp chosen by the gateway. A version in (timestamp, limit] may have been acknowledged before the read
    /// began, so meeting one is answered with `RangeError::Uncertain` and the caller restarts above it.
    Timestamp {
        /// Versions at or below are seen.
        timestamp: Timestamp,
        /// `timestamp + max_offset` for a read of the present, `timestamp` for one of the past.
        limit: Timestamp,
    },
}

/// A read of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// The value of one key.
    Get {
        /// Which.
        key: Key,
    },
    /// Rows in key order, or in reverse key order.
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
}

/// A write of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Which.
        key: Key,
        /// To what.
        value: Bytes,
    },
    /// Removes a key. Removing an absent key succeeds.
    Delete {
        /// Which.
        key: Key,
    },
    /// Sets or removes a key if its value is what the caller expects.
    CompareAndSwap {
        /// Which.
        key: Key,
        /// The value it must have; `None`: it must be absent.
        expected: Option<Bytes>,
        /// The value it gets; `None`: it is removed.
        new: Option<Bytes>,
    },
    /// Several blind writes, all or nothing, at one timestamp. Keys must differ.
    Batch {
        /// What to write.
        ops: Vec<BatchOp>,
    },
    /// Removes the keys of a span, in key order, until `keys_max` were removed.
    DeleteRange {
        /// Which keys.
        span: KeySpan,
        /// At most so many keys; at least 1.
        keys_max: u64,
    },
    /// Adds to a counter.
    Increment(Increment),
    /// A transaction that is known as a whole.
    Whole(Box<Whole>),
    /// Records a descriptor under its meta key unless a newer one is there already. Used by ranges to keep the
    /// addressing records true; idempotent.
    PutMeta {
        /// The record's key.
        key: Key,
        /// What to record.
        descriptor: RangeDescriptor,
    },
}

/// One blind write of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchOp {
    /// Sets a key.
    Put {
        /// Which.
        key: Key,
        /// To what.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// Which.
        key: Key,
    },
}

impl BatchOp {
    /// The key it writes.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Names one consistency check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckId(pub u64);

/// Which replicas a range should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfTarget {
    /// Stores that should hold voters, and all stores that should hold anything.
    pub voters: SmallVec<[StoreId; 3]>,
    /// Stores that should hold learners.
    pub learners: SmallVec<[StoreId; 3]>,
}

/// A change of the range itself. Each carries the generation it was decided on, so that a repeat is refused with the
/// present descriptor instead of being done twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    /// Cuts the range in two; the right half gets the new id.
    Split {
        /// Generation that the caller saw.
        generation: Generation,
        /// First key of the right half.
        key: Key,
        /// A fresh id for the right half.
        right: RangeId,
    },
    /// Makes another replica the leader, and so the leaseholder.
    TransferLeader {
        /// Which store's replica.
        to: StoreId,
    },
    /// One step of a membership change: adds a learner, enters a joint configuration, leaves it, removes a learner.
    /// The range proposes the single step that leads from its present configuration towards the target and answers
    /// when it was applied; call again until the descriptor matches.
    ChangeReplicas {
        /// Generation that the caller saw.
        generation: Generation,
        /// Where to go.
        target: ConfTarget,
    },
    /// Has every replica hash its state at one applied index (durability, "Checking that replicas agree").
    Check {
        /// Names the check; results are asked for by it.
        check: CheckId,
    },
}

/// One key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Logical key.
    pub key: Key,
    /// Value.
    pub value: Bytes,
    /// When it was written.
    pub timestamp: Timestamp,
}

/// A scan's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanResult {
    /// Rows in the order asked for.
    pub rows: Vec<Row>,
    /// Where to go on if the scan stopped before the end of its span: the start of the rest, or for a reverse scan
    /// its end (excluded).
    pub resume: Option<Key>,
}

/// A write's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteResult {
    /// It was written.
    Done,
    /// A compare-and-swap met another value, and nothing was written.
    ConditionFailed {
        /// The value it met.
        actual: Option<Bytes>,
    },
    /// A counter's value after the addition.
    Number(i64),
    /// A transaction that is known as a whole.
    Whole {
        /// Whether all comparisons held, and so which branch was done; `None` if it had none, or if nobody knows any more.
        held: Option<bool>,
        /// What its steps returned; `None` if an earlier try of the same request had done it.
        rows: Option<Vec<Option<Row>>>,
    },
    /// A piece of a range delete.
    Deleted {
        /// How many keys were removed.
        keys: u64,
        /// Where to go on, unless at the end of the span: `keys_max` stopped it, or it repeats a piece that was longer.
        resume: Option<Key>,
    },
}

/// One replica's hash of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaHash {
    /// Which replica.
    pub replica: ReplicaId,
    /// The applied index at which the state was hashed.
    pub applied: LogIndex,
    /// The hash over the replicated state.
    pub hash: u64,
    /// How many key-value pairs were hashed.
    pub pairs: u64,
}

/// What a range answers when it did what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeReply {
    /// The timestamp of the read or write.
    pub timestamp: Timestamp,
    /// The answer.
    pub reply: Reply,
}

/// The answer proper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To `Read::Get`.
    Get(Option<Row>),
    /// To `Read::Scan`.
    Scan(ScanResult),
    /// To `Command::Write`.
    Write(WriteResult),
    /// To `Command::Txn`.
    Txn {
        /// What was read or done.
        answer: TxnAnswer,
        /// The transaction commits at or above, if it laid locks.
        locked: Option<Timestamp>,
    },
    /// To `RecordOp::End` and `RecordOp::Recover`, and to a repetition of one that is past: the record's word.
    Ended(Outcome),
    /// To `EndKind::Stage`: the record is there.
    Staged,
    /// To `RecordOp::Heartbeat`: the transaction may go on.
    Alive,
    /// To `RecordOp::Push`.
    Pushed(PushResult),
    /// To `RecordOp::Query`.
    Queried {
        /// `None`: no record, and none can come any more, so that what became of it is not known here.
        status: Option<TxnState>,
        /// Who waits for it, as far as is known here.
        edges: Vec<Edge>,
    },
    /// To `RecordOp::Collect`.
    Collected,
    /// To `Command::Resolve`: where to go on, if the span holds more.
    Resolved {
        /// The first key that was not looked at.
        resume: Option<Key>,
    },
    /// To `Command::Admin`: the descriptors that resulted, left before right after a split.
    Admin(Vec<RangeDescriptor>),
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnState {
    /// It has not ended. `recorded`: there is a record already.
    Open {
        /// Whether there is a record.
        recorded: bool,
    },
    /// It is committed if its writes are there.
    Staging(Staged),
    /// It has ended.
    Ended {
        /// How.
        outcome: Outcome,
        /// Of a conditional transaction, where that is known: whether its comparisons held.
        held: Option<bool>,
    },
}

impl From<TxnStatus> for TxnState {
    fn from(status: TxnStatus) -> Self {
        match status {
            TxnStatus::Pending => Self::Open { recorded: true },
            TxnStatus::Staging(staged) => Self::Staging(staged),
            TxnStatus::Committed(at) => Self::Ended { outcome: Outcome::Committed { at }, held: None },
        }
    }
}

impl Command {
    /// The keys it touches; `None` for admin commands, which concern the whole range.
    #[must_use]
    pub fn span(&self) -> Option<KeySpan> {
        match self {
            Self::Read { read: Read::Get { key }, .. } => Some(KeySpan::point(key.clone())),
            Self::Read { read: Read::Scan { span, .. }, .. } => Some(span.clone()),
            Self::Write { write, .. } => write.span(),
            Self::Txn { op, .. } => Some(op.span()),
            Self::Record(op) => Some(op.span()),
            Self::Resolve(resolve) => resolve.span(),
            Self::Admin(_) => None,
        }
    }
}

impl Write {
    /// The smallest span over all keys it touches; `None` for an empty batch.
    #[must_use]
    pub fn span(&self) -> Option<KeySpan> {
        match self {
            Self::Put { key, .. }
            | Self::Delete { key }
            | Self::CompareAndSwap { key, .. }
            | Self::Increment(Increment { key, .. })
            | Self::PutMeta { key, .. } => Some(KeySpan::point(key.clone())),
            Self::DeleteRange { span, .. } => Some(span.clone()),
            Self::Batch { ops } => hull(ops.iter().map(BatchOp::key)),
            Self::Whole(whole) => hull(whole.keys()),
        }
    }
}

/// The smallest span over some keys; `None` without any.
fn hull<'a>(keys: impl Iterator<Item = &'a Key> + Clone) -> Option<KeySpan> {
    let (first, last) = (keys.clone().min()?, keys.max()?);
    Some(KeySpan { start: first.clone(), end: last.next() })
}
