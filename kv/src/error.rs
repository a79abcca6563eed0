//! What the router tells its caller when it could not do what was asked.

use std::borrow::Cow;
use std::time::Duration;

use flotilla_types::{ClockError, Key, LockedBy, RangeDescriptor, RangeId, StoreId, Timestamp, TxnId};
use thiserror::Error;

use crate::TxnHandle;

/// What a transaction met that it cannot go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryReason {
    /// It can commit only later than it read, and what it read was written meanwhile.
    RefreshFailed,
    /// It met values that may have been there before it began, again and again.
    Uncertain,
    /// Others had written what it locks or writes after its snapshot.
    WriteTooOld,
    /// Others read what it writes at ever later timestamps.
    Pushed,
    /// The answer to one of its steps was lost.
    AnswerLost,
    /// A write that was answered early did not come to pass.
    WriteLost,
}

impl RetryReason {
    /// Its name in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::RefreshFailed => "refresh_failed",
            Self::Uncertain => "uncertain",
            Self::WriteTooOld => "write_too_old",
            Self::Pushed => "pushed",
            Self::AnswerLost => "answer_lost",
            Self::WriteLost => "write_lost",
        }
    }
}

/// Why a request was not answered. Unless it is `Ambiguous`, nothing was done and nothing will be; of a `delete_range`,
/// which is done piece by piece, this holds for the piece that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KvError {
    /// It may have been done or may yet be, or not. A retry with the same request id finds out and does it at most once.
    #[error("the outcome is unknown: {why}")]
    Ambiguous {
        /// What happened.
        why: String,
    },
    /// No replica could serve it: the range has no quorum, or nobody who knows of it can be reached. Try again later.
    #[error("unavailable: {why}")]
    Unavailable {
        /// Which range, if it came so far.
        range: Option<RangeId>,
        /// What the last attempt met.
        why: String,
    },
    /// The caller's deadline passed; nothing was done.
    #[error("the deadline passed and nothing was done: {why}")]
    DeadlineExceeded {
        /// What it was waiting for.
        why: String,
    },
    /// A queue stayed full. Try again later.
    #[error("overloaded: too many requests in {queue}; try again in {retry_after:?}")]
    Overloaded {
        /// Which queue.
        queue: Cow<'static, str>,
        /// When to try again.
        retry_after: Duration,
    },
    /// The request makes no sense; sending it again is no use.
    #[error("{what}")]
    Invalid {
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A batch has keys in more than one range.
    #[error(
        "the batch has keys on both sides of {boundary}, where one range ends and another begins: a batch is atomic only \
         within one range"
    )]
    CrossesRanges {
        /// First key of the next range.
        boundary: Key,
    },
    /// The disk of a store is nearly full: deletes and reads still pass.
    #[error("the disk of {store} is nearly full: delete data or add disk; reads and deletes still work")]
    DiskFull {
        /// Whose disk.
        store: StoreId,
    },
    /// The read's timestamp lies ahead of the cluster's clocks.
    #[error("the timestamp {timestamp} lies in the future")]
    FutureTimestamp {
        /// The timestamp.
        timestamp: Timestamp,
    },
    /// The read's timestamp lies below what garbage collection left.
    #[error("versions at {timestamp} were already collected; the oldest readable timestamp is {threshold}")]
    BelowGcThreshold {
        /// The timestamp.
        timestamp: Timestamp,
        /// The oldest timestamp that can be read.
        threshold: Timestamp,
    },
    /// The range changed under an admin command, again and again.
    #[error("{} changed meanwhile", .current.range)]
    GenerationMismatch {
        /// The present descriptor.
        current: Box<RangeDescriptor>,
    },
    /// Replicas of the range disagree and no majority says which is right.
    #[error("the replicas of {range} have diverged; a person must decide")]
    Diverged {
        /// Which range.
        range: RangeId,
    },
    /// The transaction met others in a way that it cannot go on from; nothing of it remains. Begin it again.
    #[error("the transaction must be tried again: {why}")]
    RetryTxn {
        /// What it met, as a word.
        reason: RetryReason,
        /// What it met.
        why: String,
        /// On which key, if on one.
        key: Option<Key>,
        /// Which transaction, if it is known.
        other: Option<TxnId>,
    },
    /// The transaction was aborted by others, or its coordinator was not heard of for too long. Begin it again.
    #[error("the transaction was aborted: {why}")]
    TxnAborted {
        /// What happened.
        why: String,
    },
    /// A lock is held by another transaction, and the request did not want to wait, or not any longer. Nothing was done.
    #[error("{} is locked by transaction {}", .0.key, .0.holder)]
    Locked(LockedBy),
    /// Another transaction has done the same intention.
    #[error("it was done already, at {at}")]
    AlreadyCommitted {
        /// When.
        at: Timestamp,
        /// Of a conditional transaction, where that is known: whether its comparisons held.
        held: Option<bool>,
    },
    /// An earlier step of the transaction failed: only a rollback is possible.
    #[error("an earlier step of the transaction failed: roll back, to a savepoint or wholly")]
    TxnFailed,
    /// The transaction holds more than one may.
    #[error("the transaction is too large: {what}")]
    TxnTooLarge {
        /// Which bound was passed, and which setting moves it.
        what: String,
    },
    /// Whether the transaction was committed is not known here; the handle finds out.
    #[error("whether transaction {} was committed is not known: {why}", .handle.id)]
    CommitUnknown {
        /// What to ask with.
        handle: Box<TxnHandle>,
        /// What happened.
        why: String,
    },
    /// No range has the id.
    #[error("there is no range {range}")]
    NoSuchRange {
        /// Which id.
        range: RangeId,
    },
    /// This node's clock may not be read at this moment.
    #[error("this node's clock cannot be used now: {0}")]
    Clock(#[from] ClockError),
}
