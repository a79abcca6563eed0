//! From an error to what the caller sees: status code, `google.rpc.ErrorInfo` with a stable reason, and `RetryInfo` where
//! coming again helps. docs/errors.md is this table in words; a test holds the two together.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_kv::KvError;
use flotilla_proto::reason::{DOMAIN, Reason};
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// When a caller may come again after a range was unavailable: some part of an election.
const UNAVAILABLE_RETRY: Duration = Duration::from_millis(500);

/// A refusal with a reason.
pub(crate) fn refusal(reason: Reason, what: &str) -> Status {
    with(reason, what, None)
}

/// A queue is full.
pub(crate) fn overloaded(queue: &str, retry_after: Duration) -> Status {
    let what = format!("too many requests in {queue}; try again in {retry_after:?}");
    with(Reason::Overloaded, &what, Some(retry_after))
}

/// The router's error.
pub(crate) fn of_kv(error: &KvError) -> Status {
    with(reason(error), &error.to_string(), retry_after(error))
}

/// A bug here: a person should look.
pub(crate) fn internal(what: &str) -> Status {
    tracing::error!(what, "a request met a broken invariant");
    refusal(Reason::Internal, what)
}

fn with(reason: Reason, what: &str, retry_after: Option<Duration>) -> Status {
    metrics::counter!("flotilla_refusals_total", "reason" => reason.word()).increment(1);
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.word(), DOMAIN, HashMap::new());
    if let Some(retry_after) = retry_after {
        details.set_retry_info(Some(retry_after));
    }
    Status::with_error_details(reason.code(), what, details)
}

pub(super) const fn reason(error: &KvError) -> Reason {
    match error {
        KvError::Ambiguous { .. } => Reason::Ambiguous,
        KvError::Unavailable { .. } => Reason::RangeUnavailable,
        KvError::DeadlineExceeded { .. } => Reason::DeadlineExceeded,
        KvError::Overloaded { .. } => Reason::Overloaded,
        KvError::Invalid { .. } => Reason::Invalid,
        // Batches over several ranges become transactions; nothing else is told this.
        KvError::CrossesRanges { .. } => Reason::Internal,
        KvError::RetryTxn { .. } | KvError::AlreadyCommitted { .. } => Reason::RetryTxn,
        KvError::TxnAborted { .. } => Reason::TxnAborted,
        KvError::Locked(_) => Reason::Locked,
        KvError::TxnFailed => Reason::TxnFailed,
        KvError::TxnTooLarge { .. } => Reason::TxnTooLarge,
        KvError::CommitUnknown { .. } => Reason::Ambiguous,
        KvError::DiskFull { .. } => Reason::DiskFull,
        KvError::FutureTimestamp { .. } => Reason::FutureTimestamp,
        KvError::BelowGcThreshold { .. } => Reason::BelowGcThreshold,
        KvError::GenerationMismatch { .. } => Reason::RangeChanged,
        KvError::Diverged { .. } => Reason::Diverged,
        KvError::NoSuchRange { .. } => Reason::RangeNotFound,
        KvError::Clock(_) => Reason::NodeNotServing,
    }
}

const fn retry_after(error: &KvError) -> Option<Duration> {
    match error {
        KvError::Overloaded { retry_after, .. } => Some(*retry_after),
        KvError::Unavailable { .. } | KvError::Clock(_) => Some(UNAVAILABLE_RETRY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn a_refusal_carries_reason_and_retry() {
        let status = of_kv(&KvError::Overloaded { queue: "x".into(), retry_after: Duration::from_millis(50) });
        assert_eq!(status.code(), Code::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("OVERLOADED"));
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), Some(Duration::from_millis(50)));
    }
}
