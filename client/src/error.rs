//! What a call may end with when it was not answered.
//!
//! The question that matters to a caller is what became of a write. Every variant but [`Error::Ambiguous`] and, for
//! transactions, [`Error::CommitUnknown`] says that nothing was done and nothing will be.

use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::reason::{DOMAIN, Reason};
use flotilla_types::RequestId;
use thiserror::Error;
use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt;

use crate::txn::TxnHandle;

/// Why a call was not answered.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Error {
    /// A write may have been done or may yet be, or not. Calling it again with [`crate::Client::resuming`] and the same
    /// id finds out, and does it at most once; after a minute the cluster may have forgotten the id.
    #[error("the outcome is unknown: {why}")]
    Ambiguous {
        /// The id to ask with; none for commands that change ranges, whose effect can be looked at.
        request_id: Option<RequestId>,
        /// What the last attempt met.
        why: String,
    },
    /// A node refused, with a reason that programs can rely on.
    #[error("{message}")]
    Refused {
        /// Why.
        reason: Reason,
        /// The same for people.
        message: String,
        /// Which node said so.
        node: String,
        /// What stood in the way of a step of a transaction, if the node told.
        conflict: Option<Box<Conflict>>,
    },
    /// A transaction's commit was sent, and whether it was done could not be found out. [`crate::Client::outcome`] asks
    /// again. To begin it anew before the answer is known may do it twice.
    #[error("whether the transaction was committed is not known: {why}")]
    CommitUnknown {
        /// What to ask with.
        handle: TxnHandle,
        /// What was met.
        why: String,
    },
    /// No node could be reached before the deadline.
    #[error("no node answered: {why}")]
    Unreachable {
        /// What the last attempt met.
        why: String,
    },
    /// A node failed without a reason of ours: another service listens there, or another version.
    #[error("{node} answered {code:?}: {message}")]
    Failed {
        /// Which node.
        node: String,
        /// gRPC's code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// An answer that makes no sense: another version, or a bug.
    #[error("an answer makes no sense: {what}")]
    BadAnswer {
        /// What is wrong with it.
        what: &'static str,
    },
    /// An address that is none.
    #[error("'{endpoint}' is not an address: write host:port, as in 127.0.0.1:26257")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
    },
}

/// What stood in the way of a step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// On which key.
    pub key: Option<Bytes>,
    /// The other transaction's id, 16 bytes.
    pub other: Option<Bytes>,
}

impl Error {
    /// The stable reason, if a node gave one or the outcome is unknown.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Ambiguous { .. } | Self::CommitUnknown { .. } => Some(Reason::Ambiguous),
            Self::Refused { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// Whether a write may have been done, or may yet be.
    #[must_use]
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Ambiguous { .. } | Self::CommitUnknown { .. })
    }
}

/// What one attempt met, and what that means for the next.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What the call ends with if there is no other attempt.
    pub(crate) error: Error,
    /// Whether the attempt may have been done, or may yet be.
    pub(crate) maybe_done: bool,
    /// What to do next.
    pub(crate) next: Next,
}

/// What to do after an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// No other attempt would fare better.
    GiveUp,
    /// The node is not to be asked for a while; another may answer at once.
    OtherNode,
    /// The node works, the range does not yet.
    Later(Option<Duration>),
}

impl Failure {
    /// Judges a status.
    pub(crate) fn of(status: &Status, node: &str) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == DOMAIN);
        let reason = info.and_then(|info| info.reason.parse::<Reason>().ok());
        match reason {
            Some(reason) => Self::refused(reason, status, node),
            None => Self::without_reason(status, node),
        }
    }

    /// No answer came in time.
    pub(crate) fn silence(node: &str, after: Duration) -> Self {
        let why = format!("{node} did not answer within {after:?}");
        Self { error: Error::Unreachable { why }, maybe_done: true, next: Next::OtherNode }
    }

    fn refused(reason: Reason, status: &Status, node: &str) -> Self {
        let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let next = match reason {
            Reason::Ambiguous | Reason::RangeUnavailable | Reason::DeadlineExceeded | Reason::Overloaded => {
                Next::Later(after)
            }
            Reason::NodeNotServing | Reason::NotInitialized => Next::OtherNode,
            _ => Next::GiveUp,
        };
        let (message, node) = (status.message().to_owned(), node.to_owned());
        let error = Error::Refused { reason, message, node, conflict: None };
        Self { error, maybe_done: reason == Reason::Ambiguous, next }
    }

    /// The library's own statuses, or a foreign service's.
    fn without_reason(status: &Status, node: &str) -> Self {
        let message = cause(status);
        let lost = matches!(
            status.code(),
            Code::Unavailable
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Unknown
                | Code::Internal
                | Code::Aborted
        );
        if lost {
            let why = format!("{node}: {message}");
            return Self { error: Error::Unreachable { why }, maybe_done: !never_sent(status), next: Next::OtherNode };
        }
        let error = Error::Failed { node: node.to_owned(), code: status.code(), message };
        Self { error, maybe_done: false, next: Next::GiveUp }
    }
}

/// Whether no connection was ever made for the request.
fn never_sent(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<ConnectError>())
}

/// The innermost cause says most: "connection refused" rather than "transport error".
fn cause(status: &Status) -> String {
    match causes(status).last() {
        Some(innermost) if !status.message().contains(&innermost.to_string()) => {
            format!("{}: {innermost}", status.message())
        }
        _ => status.message().to_owned(),
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |error| error.source())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refusal(reason: Reason) -> Status {
        let details = ErrorDetails::with_error_info(reason.word(), DOMAIN, HashMap::new());
        Status::with_error_details(reason.code(), "as it is", details)
    }

    #[test]
    fn only_unknown_outcomes_may_have_been_done() {
        for reason in Reason::ALL {
            let failure = Failure::of(&refusal(*reason), "n1");
            assert_eq!(failure.maybe_done, *reason == Reason::Ambiguous, "{reason}");
            assert_eq!(failure.error.reason(), Some(*reason));
        }
        assert!(Failure::of(&Status::unavailable("broken pipe"), "n1").maybe_done);
        assert!(Failure::silence("n1", Duration::from_secs(1)).maybe_done);
        assert!(!Failure::of(&Status::unimplemented("who?"), "n1").maybe_done);
    }

    #[test]
    fn the_hint_of_an_overloaded_node_is_heeded() {
        let mut details = ErrorDetails::with_error_info("OVERLOADED", DOMAIN, HashMap::new());
        details.set_retry_info(Some(Duration::from_millis(250)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        assert_eq!(Failure::of(&status, "n1").next, Next::Later(Some(Duration::from_millis(250))));
    }

    #[test]
    fn reasons_of_other_domains_mean_nothing() {
        let details = ErrorDetails::with_error_info("INVALID", "elsewhere", HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "proxy", details);
        assert_eq!(Failure::of(&status, "n1").next, Next::OtherNode);
    }
}
