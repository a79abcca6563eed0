//! What is counted of transactions at their gateway. Each ends once and is counted once: under its commit's path, or here.

use std::time::Duration;

use metrics::{counter, histogram};

use crate::KvError;

/// Why a transaction ends without a commit, as far as it was told by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// It has to be begun again.
    Restart(&'static str),
    /// It does not help to begin it again at once.
    Other(&'static str),
}

impl From<&KvError> for Cause {
    fn from(error: &KvError) -> Self {
        match error {
            KvError::RetryTxn { reason, .. } => Self::Restart(reason.word()),
            KvError::TxnAborted { .. } => Self::Restart("aborted"),
            KvError::AlreadyCommitted { .. } => Self::Other("done_before"),
            KvError::TxnTooLarge { .. } => Self::Other("too_large"),
            KvError::Locked(_) => Self::Other("locked"),
            KvError::Unavailable { .. } | KvError::DeadlineExceeded { .. } | KvError::Overloaded { .. } => {
                Self::Other("unavailable")
            }
            _ => Self::Other("error"),
        }
    }
}

/// A transaction ended without a commit: because of an error, or for a reason of its client's.
pub(super) fn count_abort(cause: Option<Cause>, otherwise: &'static str) {
    let why = match cause {
        Some(Cause::Restart(why)) => {
            counter!("flotilla_txn_restarts_total", "why" => why).increment(1);
            "restart"
        }
        Some(Cause::Other(why)) => why,
        None => otherwise,
    };
    counter!("flotilla_txn_aborts_total", "why" => why).increment(1);
}

/// What was read was looked at again at a later timestamp.
pub(super) fn count_refresh(passed: bool) {
    if passed {
        counter!("flotilla_txn_refreshes_total", "outcome" => "ok").increment(1);
    } else {
        counter!("flotilla_txn_refreshes_total", "outcome" => "failed").increment(1);
    }
}

/// A commit was held back until a clock had reached it.
pub(super) fn waited_for_clock(time: Duration) {
    histogram!("flotilla_txn_commit_wait_seconds").record(time);
}
