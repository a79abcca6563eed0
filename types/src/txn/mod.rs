//! What a transaction is made of (docs/transactions.md): who it is, what it locks, what its record says.

mod lock;
mod record;
mod request;
mod whole;

pub use lock::{HISTORY_MAX, LockRecord, OwnValue, Strength};
pub use record::{Claim, FinishedTxn, Staged, TxnRecord, TxnStatus};
pub use request::{
    Edge, EndKind, EndTxn, Increment, LockedBy, PushKind, PushResult, PushTxn, QueryTxn, RecordOp, Resolve,
    ResolveTarget, TxnAnswer, TxnHeader, TxnOp, TxnRefusal, Waiter,
};
pub use whole::{Compare, OneShot, Whole};

use crate::{Key, RecordError, RecordReader, RecordWriter, RequestId, Timestamp, TxnId};

/// Counts what one transaction does. Ascends; never used twice under one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// The next one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a rollback to a savepoint took back: the writes with these numbers, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqRange {
    /// The first that is ignored.
    pub from: Seq,
    /// The last that is ignored.
    pub to: Seq,
}

/// Whether a write was taken back.
#[must_use]
pub fn is_ignored(ignored: &[SeqRange], seq: Seq) -> bool {
    ignored.iter().any(|range| range.from <= seq && seq <= range.to)
}

/// What a transaction may see of others (Adya 1999; docs/transactions.md, "Isolation").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// Each statement sees what was committed before it began.
    ReadCommitted,
    /// All statements see what was committed before the first; writes collide.
    Snapshot,
    /// As if all transactions ran one after the other.
    #[default]
    Serializable,
}

/// Who gives way where two transactions meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Gives way to all others.
    Low,
    /// Waits for its equals.
    #[default]
    Normal,
    /// Aborts whom it meets. For administrative work.
    High,
}

/// What a request does that meets a foreign lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Wait {
    /// Waits its turn.
    #[default]
    Block,
    /// Fails at once (`NOWAIT`).
    Error,
    /// Leaves the key out (`SKIP LOCKED`).
    Skip,
}

/// What every lock and record of a transaction says about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TxnMeta {
    /// Who it is.
    pub id: TxnId,
    /// The first key that it locked, where its record lies; for one-shots the least key that is named.
    pub anchor: Key,
    /// The coordinator's clock when it chose the anchor: no message about the record is older.
    pub anchored: Timestamp,
    /// When it was born.
    pub min_ts: Timestamp,
    /// What it may see.
    pub isolation: Isolation,
    /// Who gives way.
    pub priority: Priority,
    /// Names the intention: the own id, or for one-shots the client's request id, which commits at most once.
    pub commit_id: RequestId,
}

impl TxnMeta {
    /// Whether a client may send the same intention again under another id.
    #[must_use]
    pub fn is_one_shot(&self) -> bool {
        RequestId::from(self.id) != self.commit_id
    }

    pub(crate) fn write(&self, record: RecordWriter) -> RecordWriter {
        let isolation = match self.isolation {
            Isolation::ReadCommitted => 1,
            Isolation::Snapshot => 2,
            Isolation::Serializable => 3,
        };
        let priority = match self.priority {
            Priority::Low => 1,
            Priority::Normal => 2,
            Priority::High => 3,
        };
        let record = record.bytes(&self.id.0).bytes(self.anchor.as_bytes());
        let record = record.timestamp(self.anchored).timestamp(self.min_ts);
        record.u8(isolation).u8(priority).bytes(&self.commit_id.0)
    }

    pub(crate) fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        let id = read_id(record)?;
        let anchor = Key::new(record.bytes()?.to_vec());
        let (anchored, min_ts) = (record.timestamp()?, record.timestamp()?);
        let isolation = match record.u8()? {
            1 => Isolation::ReadCommitted,
            2 => Isolation::Snapshot,
            3 => Isolation::Serializable,
            _ => return record.refuse("its isolation level is unknown"),
        };
        let priority = match record.u8()? {
            1 => Priority::Low,
            2 => Priority::Normal,
            3 => Priority::High,
            _ => return record.refuse("its priority is unknown"),
        };
        let commit_id = RequestId(read_id(record)?.0);
        Ok(Self { id, anchor, anchored, min_ts, isolation, priority, commit_id })
    }
}

fn read_id(record: &mut RecordReader<'_>) -> Result<TxnId, RecordError> {
    match record.bytes()?.try_into() {
        Ok(id) => Ok(TxnId(id)),
        Err(_) => record.refuse("an id has another length"),
    }
}

fn write_ignored(record: RecordWriter, ignored: &[SeqRange]) -> RecordWriter {
    let record = record.u32(ignored.len() as u32);
    ignored.iter().fold(record, |record, range| record.u32(range.from.0).u32(range.to.0))
}

fn read_ignored(record: &mut RecordReader<'_>) -> Result<Vec<SeqRange>, RecordError> {
    let count = record.u32()?;
    (0..count).map(|_| Ok(SeqRange { from: Seq(record.u32()?), to: Seq(record.u32()?) })).collect()
}

/// What became of a transaction. Never changes once it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// All that it wrote is there.
    Committed {
        /// At this timestamp.
        at: Timestamp,
    },
    /// Nothing of it is there, and never will be.
    Aborted,
}
