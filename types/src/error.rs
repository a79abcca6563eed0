//! Why a range did not do what was asked. Each error says who acts on it.

use std::borrow::Cow;
use std::time::Duration;

use thiserror::Error;

use crate::{Key, KeySpan, RangeDescriptor, RangeId, StoreId, Term, Timestamp, TxnRefusal};

/// Who acts on an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The router: the request went to the wrong place, or to the right one at a bad moment. Nothing was done.
    Router,
    /// The gateway: the read must start again at a higher timestamp.
    Gateway,
    /// The caller: the request cannot be done as it stands, or its outcome is unknown.
    Caller,
}

/// What a range answers when it did not do what was asked. Unless it says `Ambiguous`, nothing was done and nothing
/// will be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RangeError {
    /// Another replica leads the range, or none does.
    #[error("{range} is not led here{}", .leader.map(|s| format!(" but on {s}")).unwrap_or_default())]
    NotLeaseholder {
        /// Which range.
        range: RangeId,
        /// Where its leader lives, if known.
        leader: Option<StoreId>,
        /// The newest term known here: a hint of an older term is worth less.
        term: Term,
    },
    /// This store holds no replica of the range.
    #[error("{range} has no replica on {store}")]
    RangeNotFound {
        /// Which range.
        range: RangeId,
        /// Which store was asked.
        store: StoreId,
    },
    /// The range does not own all the keys asked for (any more).
    #[error("{range} does not own all of {span}")]
    RangeMismatch {
        /// Which range.
        range: RangeId,
        /// The keys asked for.
        span: KeySpan,
        /// Descriptors known here that overlap them: fresher than what the router used.
        known: Vec<RangeDescriptor>,
    },
    /// The range has no quorum, or its proposals do not commit: asking again at once is no use.
    #[error("{range} is unavailable: {why}")]
    RangeUnavailable {
        /// Which range.
        range: RangeId,
        /// What is wrong.
        why: String,
    },
    /// The store does not serve for now: it just started, its clock is off, or its log disk is stalled.
    #[error("{store} is not serving: {why}")]
    StoreNotServing {
        /// Which store.
        store: StoreId,
        /// What is wrong.
        why: String,
    },
    /// A queue is full.
    #[error("too many requests in {queue}; try again in {retry_after:?}")]
    Overloaded {
        /// Which queue.
        queue: Cow<'static, str>,
        /// When to try again.
        retry_after: Duration,
    },
    /// The disk is nearly full: writes are refused, deletes and reads still pass.
    #[error("the disk of {store} is nearly full: delete data or add disk; reads still work")]
    DiskFull {
        /// Whose disk.
        store: StoreId,
    },
    /// A version above the read's timestamp may have been acknowledged before the read began.
    #[error("the read at {read} met a version of {key} at {existing}, which may be older than the read")]
    Uncertain {
        /// The key.
        key: Key,
        /// The read's timestamp.
        read: Timestamp,
        /// The version's timestamp; restart at or above it.
        existing: Timestamp,
    },
    /// The read's timestamp lies further ahead than clocks may differ.
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
    /// An admin command was decided on an old descriptor, or repeats one that was done.
    #[error("the command was decided on an older descriptor of {}", .current.range)]
    GenerationMismatch {
        /// The present descriptor.
        current: Box<RangeDescriptor>,
    },
    /// The caller's deadline passed before the command was proposed: nothing was done.
    #[error("the deadline passed before {range} could do it; nothing was done")]
    DeadlineExceeded {
        /// Which range.
        range: RangeId,
    },
    /// The command was given to consensus and its outcome is not known here.
    #[error("the outcome is unknown: {why}")]
    Ambiguous {
        /// What happened.
        why: String,
    },
    /// The request was born so long ago that the range may have forgotten whether it was done.
    #[error("the request is too old: what was born before {floor} is not known to {range} any more")]
    TooOld {
        /// Which range.
        range: RangeId,
        /// What was born below may be forgotten.
        floor: Timestamp,
    },
    /// Replicas of the range disagree and no majority says which is right.
    #[error("the replicas of {range} have diverged; a person must decide")]
    Diverged {
        /// Which range.
        range: RangeId,
    },
    /// A transaction cannot do it as it stands.
    #[error(transparent)]
    Txn(#[from] TxnRefusal),
    /// The request makes no sense; sending it again is no use.
    #[error("{what}")]
    Invalid {
        /// What is wrong, and what would be right.
        what: String,
    },
}

impl RangeError {
    /// Who acts on it.
    #[must_use]
    pub const fn actor(&self) -> Actor {
        match self {
            Self::NotLeaseholder { .. }
            | Self::RangeNotFound { .. }
            | Self::RangeMismatch { .. }
            | Self::RangeUnavailable { .. }
            | Self::StoreNotServing { .. }
            | Self::Overloaded { .. } => Actor::Router,
            Self::Uncertain { .. } | Self::Txn(_) => Actor::Gateway,
            Self::DiskFull { .. }
            | Self::FutureTimestamp { .. }
            | Self::BelowGcThreshold { .. }
            | Self::GenerationMismatch { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Ambiguous { .. }
            | Self::TooOld { .. }
            | Self::Diverged { .. }
            | Self::Invalid { .. } => Actor::Caller,
        }
    }
}
