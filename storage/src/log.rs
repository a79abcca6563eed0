//! The contract of the Raft log store ("Log" in docs/durability.md): entries, terms, votes, promises, births and the
//! store's own facts, for all replicas of one store.
//!
//! Promises: a `LogBatch` is atomic; when `write` has returned, all of it survives a power loss; an error of `write`
//! is fatal and never retried. `write` is called by the log-writer thread only, one batch at a time.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{LogIndex, RangeId, ReplicaId, StoreId, Term, Timestamp};
use thiserror::Error;

/// Position of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LogPos {
    /// Its index.
    pub index: LogIndex,
    /// The term it was proposed in.
    pub term: Term,
}

/// Raft's term, vote and commit index, as they were last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HardState {
    /// Newest term seen.
    pub term: Term,
    /// Whom this replica voted for in that term; 0 for nobody.
    pub vote: ReplicaId,
    /// A committed index; may lag.
    pub commit: LogIndex,
}

/// A replica's word that it helps nobody but the leader of `term` while its store supports the leader's store in
/// `epoch` (leases 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// The leader's term.
    pub term: Term,
    /// The leader.
    pub leader_replica: ReplicaId,
    /// Where it lives.
    pub leader_store: StoreId,
    /// The support epoch it rests on.
    pub epoch: u64,
}

/// Where a replica that was born by a split comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// The range that split.
    pub parent: RangeId,
    /// This store's replica of it.
    pub parent_replica: ReplicaId,
    /// The index of the split in the parent's log.
    pub at: LogIndex,
}

/// What the log knows of one replica without reading entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHead {
    /// Which incarnation the log belongs to.
    pub replica: ReplicaId,
    /// Set until the split that made it is flushed in KV.
    pub birth: Option<Birth>,
    /// Term, vote, commit.
    pub hard: HardState,
    /// What `hard` was written with: the last entry at that time. A log whose last entry lies below has lost a file.
    pub hard_last: LogPos,
    /// The active or stale promise.
    pub promise: Option<Promise>,
    /// Everything at or below was given up, or never existed.
    pub trunc: LogPos,
    /// Last entry; `trunc` if there is none.
    pub last: LogPos,
}

/// One entry as the log keeps it: a serialized raft `Entry` beside the fields that are needed to place it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position.
    pub pos: LogPos,
    /// 0 normal, 1 conf change, 2 conf change v2, as raft numbers them.
    pub kind: u8,
    /// The proposal.
    pub data: Bytes,
    /// The proposal's context.
    pub context: Bytes,
}

/// One store-wide fact that is not a range's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaKey {
    /// {cluster, store uuid, store id}.
    Identity,
    /// Counts starts of the store.
    Boot,
    /// The durable bound of its clock, and its support duration (leases 2.3).
    Bound,
    /// What this store gave a peer (leases `SupportRow`).
    Support(StoreId),
}

/// One change of the log store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOp {
    /// A replica begins to exist; its log is empty above `trunc`. A former log of the range is dropped first.
    Create {
        /// Range.
        range: RangeId,
        /// Incarnation.
        replica: ReplicaId,
        /// Set for a child of a split.
        birth: Option<Birth>,
        /// Where its log begins: INIT for a child, zero for an uninitialised replica.
        trunc: LogPos,
        /// Term and vote to start with (kept from an uninitialised predecessor with the same id).
        hard: HardState,
    },
    /// Appends entries; one at or below the present end cuts the tail first.
    Append {
        /// Range.
        range: RangeId,
        /// In order, without gaps.
        entries: Vec<LogEntry>,
    },
    /// Writes term, vote and commit.
    Hard {
        /// Range.
        range: RangeId,
        /// The state.
        hard: HardState,
    },
    /// Gives up entries. Only as an after-flush act.
    Truncate {
        /// Range.
        range: RangeId,
        /// Last position given up.
        through: LogPos,
    },
    /// Sets or clears the promise.
    Promise {
        /// Range.
        range: RangeId,
        /// The promise.
        promise: Option<Promise>,
    },
    /// Empties the log after a snapshot: it begins at `at`; incarnation, birth and promise stay.
    Reset {
        /// Range.
        range: RangeId,
        /// The snapshot's position.
        at: LogPos,
        /// Term, vote, commit.
        hard: HardState,
    },
    /// Forgets the birth. Only as an after-flush act.
    DropBirth {
        /// Range.
        range: RangeId,
    },
    /// Forgets the replica. Only as an after-flush act.
    Remove {
        /// Range.
        range: RangeId,
    },
    /// Sets a store-wide fact.
    Meta {
        /// Which.
        key: MetaKey,
        /// Its value, starting with a version byte.
        value: Bytes,
    },
}

/// Changes that become durable together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogBatch {
    /// In order.
    pub ops: Vec<LogOp>,
}

/// Counts synced batches of a store, over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct LogSeq(pub u64);

/// Why a range's entries cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadLogError {
    /// They were given up; the first entry still there is named.
    #[error("the log begins at {0}")]
    Gone(LogIndex),
    /// They should be there and cannot be read: the replica is lost.
    #[error("the log is damaged: {0}")]
    Damaged(String),
}

/// The log cannot be written or opened any more; the process stops (exit code 4, or 5 for a full disk).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LogFatal {
    /// Write or fsync failed.
    #[error("the raft log cannot be written: {0}")]
    Io(String),
    /// The disk is full.
    #[error("the disk of the raft log is full")]
    DiskFull,
    /// What is on the disk cannot be a log of this store.
    #[error("the raft log is damaged: {0}")]
    Damaged(String),
}

/// The log store. Shared by threads; see the module's promises.
pub trait LogStore: Send + Sync + 'static {
    /// Writes and syncs a batch. Log-writer thread only.
    ///
    /// # Errors
    /// Fatal: the store stops.
    fn write(&self, batch: &LogBatch) -> Result<LogSeq, LogFatal>;
    /// Entries in [from, to), at most `bytes_max` bytes but at least one. May read a disk.
    ///
    /// # Errors
    /// See `ReadLogError`.
    fn entries(
        &self,
        range: RangeId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError>;
    /// The head of every range's log, ascending by range.
    fn heads(&self) -> Vec<(RangeId, LogHead)>;
    /// A store-wide fact, from memory.
    fn meta(&self, key: MetaKey) -> Option<Bytes>;
    /// All store-wide facts, ascending by key.
    fn metas(&self) -> Vec<(MetaKey, Bytes)>;
    /// Sequence of the newest synced batch.
    fn seq(&self) -> LogSeq;
    /// Deletes files that hold nothing needed; names ranges whose old entries pin files. Its own thread, every 10 s.
    ///
    /// # Errors
    /// Fatal: the store stops.
    fn purge(&self) -> Result<Vec<RangeId>, LogFatal>;
    /// Bytes on disk.
    fn used_bytes(&self) -> u64;
}

/// The value of `MetaKey::Bound`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreBound {
    /// No reading above it ever left the store.
    pub bound: Timestamp,
    /// The store's support duration.
    pub support: Duration,
}
