//! The stable words that say what went wrong: `google.rpc.ErrorInfo.reason`, under the domain `flotilla`.
//!
//! Programs decide by these words, never by the text of a message. Each belongs to one status code. Words are added
//! and never change their meaning; docs/errors.md tells for each who acts.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use tonic::Code;

/// The domain of every `ErrorInfo` of ours.
pub const DOMAIN: &str = "flotilla";

/// A word that this build does not know.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is not a reason that this version knows")]
pub struct UnknownReason(String);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $code:ident;)*) => {
        /// Why a request was not done, or is not known to be.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word on the wire.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The status code that it comes with.
            #[must_use]
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }
        }

        impl FromStr for Reason {
            type Err = UnknownReason;

            fn from_str(word: &str) -> Result<Self, UnknownReason> {
                match word { $($word => Ok(Self::$name),)* _ => Err(UnknownReason(word.to_owned())) }
            }
        }
    };
}

reasons! {
    /// The outcome of a write is unknown. A retry with the same request id finds it out.
    Ambiguous = "AMBIGUOUS", Unknown;
    /// The range has no quorum, or no leader was found before the deadline; nothing was done.
    RangeUnavailable = "RANGE_UNAVAILABLE", Unavailable;
    /// The answering node does not serve for now: it starts, stops, or its clock or disk is off. Ask another one.
    NodeNotServing = "NODE_NOT_SERVING", Unavailable;
    /// Replicas of the range disagree and no majority says which is right; a person must decide.
    Diverged = "DIVERGED", Unavailable;
    /// The deadline passed and nothing was done.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded;
    /// A queue is full; `RetryInfo` says when to come again.
    Overloaded = "OVERLOADED", ResourceExhausted;
    /// The disk is nearly full: writes are refused, deletes and reads pass.
    DiskFull = "DISK_FULL", ResourceExhausted;
    /// The request makes no sense, and never will.
    Invalid = "INVALID", InvalidArgument;
    /// A key, value or request is larger than the limits allow.
    TooLarge = "TOO_LARGE", InvalidArgument;
    /// A timestamp or the birth of a request id lies further ahead than clocks may differ.
    FutureTimestamp = "FUTURE_TIMESTAMP", InvalidArgument;
    /// The transaction met others in a way that it cannot go on from; nothing of it remains. Begin it again.
    RetryTxn = "RETRY_TXN", Aborted;
    /// Others aborted the transaction, or its heartbeats did not arrive; nothing of it remains. Begin it again.
    TxnAborted = "TXN_ABORTED", Aborted;
    /// Another transaction holds a lock, and the request did not want to wait, or not any longer.
    Locked = "LOCKED", FailedPrecondition;
    /// An earlier step of the transaction failed: roll back.
    TxnFailed = "TXN_FAILED", FailedPrecondition;
    /// The transaction has locked or written more than one may.
    TxnTooLarge = "TXN_TOO_LARGE", ResourceExhausted;
    /// Versions at the timestamp were collected already.
    BelowGcThreshold = "BELOW_GC_THRESHOLD", OutOfRange;
    /// The range changed meanwhile: look again and decide anew.
    RangeChanged = "RANGE_CHANGED", Aborted;
    /// No range has this id.
    RangeNotFound = "RANGE_NOT_FOUND", NotFound;
    /// The cluster has no such node or store.
    NodeNotFound = "NODE_NOT_FOUND", NotFound;
    /// The node belongs to no cluster yet: `flotilla init` makes one.
    NotInitialized = "NOT_INITIALIZED", FailedPrecondition;
    /// The node belongs to a cluster already, or is joining one.
    AlreadyInitialized = "ALREADY_INITIALIZED", AlreadyExists;
    /// A bug, or a broken invariant: a person should look.
    Internal = "INTERNAL", Internal;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.word().parse(), Ok(*reason));
        }
        assert!("HUNGRY".parse::<Reason>().is_err());
    }
    #[test]
    fn the_table_names_every_word_with_its_code() {
        let table = include_str!("../../docs/errors.md");
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>())
            .filter(|cells| cells.len() > 4)
            .collect();
        for reason in Reason::ALL {
            let row = rows.iter().find(|cells| cells[1] == reason.word());
            let code = format!("{:?}", reason.code()).to_uppercase();
            assert_eq!(row.map(|cells| cells[2].replace('_', "")), Some(code), "{reason}");
        }
        // A head, a line, and one row for each.
        assert_eq!(rows.len(), Reason::ALL.len() + 2);
    }
}
