//! The end of a transaction, and how to find out about one whose end was not told.
//!
//! The rule: a commit that may have been done is never taken for one that was not. When its answer is lost, the
//! transaction's record is asked, through any node; only what it says is told. The question settles the matter: a
//! transaction that has not ended when it is asked about is rolled back, so that a commit that is still on its way comes
//! too late.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::reason::Reason;
use flotilla_proto::v1::{self, outcome_response, txn_request::Step, txn_response::Answer};
use flotilla_types::Timestamp;

use super::{Conversation, OpenTxn, Wait};
use crate::call::Repeat;
use crate::kv::timestamp;
use crate::{Client, Error};

/// How long the question what became of a commit may take at least, even if the deadline comes or has passed: to know is
/// worth a moment.
const SETTLE_MIN: Duration = Duration::from_secs(1);

/// Names a transaction, for [`Client::outcome`]. It may be stored, and asked with by another process.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TxnHandle(Bytes);

impl TxnHandle {
    /// The handle of these bytes, as [`TxnHandle::as_bytes`] gave them.
    #[must_use]
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The handle in bytes, which mean nothing to anybody but the cluster.
    #[must_use]
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Debug for TxnHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TxnHandle({:x})", self.0)
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All that it wrote is there, since this timestamp.
    Committed(Timestamp),
    /// Nothing of it is there, and never will be.
    Aborted,
    /// It ended so long ago that the cluster does not know any more.
    Forgotten,
}

impl Client {
    /// What became of a transaction. One that has not ended is rolled back, so that the answer is final.
    ///
    /// # Errors
    /// See [`Error`]; asking again does no harm.
    pub async fn outcome(&self, handle: &TxnHandle) -> Result<Outcome, Error> {
        let request = v1::OutcomeRequest { handle: handle.0.clone() };
        let answer = self.kv(Repeat::Read, request, |mut kv, r| async move { kv.outcome(r).await }).await?;
        match answer.outcome() {
            outcome_response::Outcome::Committed => Ok(Outcome::Committed(timestamp(answer.timestamp.as_ref()))),
            outcome_response::Outcome::Aborted => Ok(Outcome::Aborted),
            outcome_response::Outcome::Forgotten => Ok(Outcome::Forgotten),
            outcome_response::Outcome::Unspecified => Err(Error::BadAnswer { what: "an outcome that says nothing" }),
        }
    }
}

impl OpenTxn {
    /// Commits, and says when: all its writes have this timestamp. If the answer is lost, the cluster is asked what became
    /// of the transaction, which may take a second beyond the deadline.
    ///
    /// # Errors
    /// `CommitUnknown` if that could not be found out. All others mean that nothing of it was done: `RETRY_TXN` and
    /// `TXN_ABORTED` if the whole has to be done again, and what [`Error`] says.
    pub async fn commit(self) -> Result<Timestamp, Error> {
        self.txn.conversation.lock().await.commit().await
    }

    /// Rolls back. Locks are free soon after. To drop the transaction does the same, without a word.
    ///
    /// # Errors
    /// The node did not answer: it rolls back when it finds that the stream is gone.
    pub async fn rollback(self) -> Result<(), Error> {
        self.txn.just(Step::Rollback(v1::TxnRollback {})).await
    }
}

impl Conversation {
    /// Commits, and finds out about it if no answer comes.
    pub(super) async fn commit(&mut self) -> Result<Timestamp, Error> {
        // What ended before is not in doubt: no commit is sent.
        let open = self.over.is_none() && !self.unanswered;
        // A commit waits for nobody's locks: a node that is silent for so long is more likely gone than busy.
        let time = self.time_left().min(self.client.shared.options.attempt_timeout);
        let (error, lost) = match self.ask(Step::Commit(v1::TxnCommit {}), Wait::Block, time).await {
            Ok(Answer::Committed(committed)) => {
                let message = "the transaction has been committed".to_owned();
                self.over = Some(self.refusal(Reason::TxnFailed, message));
                return Ok(self.client.learnt(committed.timestamp.as_ref()));
            }
            Ok(_) => (self.strange(), true),
            Err(error) => (error, open && self.unanswered),
        };
        let unknown = error.reason() == Some(Reason::Ambiguous);
        match self.handle.clone() {
            Some(handle) if lost || unknown => self.settle(handle, &error).await,
            None if unknown => {
                self.redoable = false;
                Err(Error::Ambiguous { request_id: None, why: error.to_string() })
            }
            // Without a handle nothing was locked, so that there was nothing to commit.
            _ => Err(error),
        }
    }

    /// Finds out about a commit that was not answered.
    async fn settle(&mut self, handle: TxnHandle, lost: &Error) -> Result<Timestamp, Error> {
        let time = self.time_left().max(SETTLE_MIN);
        self.redoable = false;
        match self.client.with_timeout(time).outcome(&handle).await {
            Ok(Outcome::Committed(at)) => Ok(at),
            Ok(Outcome::Aborted) => {
                self.redoable = true;
                let message = format!("the commit was not answered ({lost}), and the transaction was rolled back");
                Err(self.refusal(Reason::TxnAborted, message))
            }
            Ok(Outcome::Forgotten) => {
                Err(Error::CommitUnknown { handle, why: format!("{lost}; the cluster does not know any more") })
            }
            Err(error) => Err(Error::CommitUnknown { handle, why: format!("{lost}; then: {error}") }),
        }
    }
}
