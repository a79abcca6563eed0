//! Interactive transactions.
//!
//! ```text
//!  begin ─► stream at one node ─► step, answer, step, answer, … ─► commit ─► answered ──────────────► known
//!    ▲                               │ the stream breaks              │ no answer
//!    └── run: the whole again ◄──────┴── nothing was committed        └─► Outcome, of any node ─────► known, or
//!                                                                                                    CommitUnknown
//! ```
//! A transaction is a conversation with one node over one stream, one step at a time; this file holds the conversation.
//! What can be said is in `steps.rs`, how it ends in `commit.rs`, and what is done again in `run.rs`. When the stream
//! ends without a commit, by a drop or because something between broke, the node rolls back.
//!
//! Steps are not pipelined: each costs a round trip. What can be said in one request is better said with
//! [`Client::transact`] or [`Client::batch`](crate::Client::batch).

mod commit;
mod run;
mod scan;
mod steps;

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_proto::reason::{DOMAIN, Reason};
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_proto::v1::{self, txn_request::Step, txn_response::Answer as StepAnswer};
use flotilla_types::{Isolation, Priority, Timestamp};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use crate::call::{Answer, Repeat};
use crate::error::{Conflict, Failure};
use crate::kv::wire;
use crate::pool::Node;
use crate::{Client, Error};

pub use commit::{Outcome, TxnHandle};
pub use run::Committed;
pub use scan::TxnScan;
pub use steps::{Compared, Lock};

/// How a transaction wants to be treated. The default is serializable, of normal priority, and not strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxnOptions {
    /// What it may see of others.
    pub isolation: Isolation,
    /// Who gives way where transactions meet.
    pub priority: Priority,
    /// Whoever is told of the commit, by whatever way, sees it in transactions that are begun afterwards, through any
    /// node. Costs about the bound on clock offsets per commit.
    pub strict: bool,
    /// The timestamp of an earlier answer: the transaction sees what that one saw or wrote.
    pub token: Option<Timestamp>,
    /// It reads the past, and writes nothing.
    pub past: Option<Past>,
}

/// Which past a transaction reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// At this timestamp, as an earlier answer told it.
    At(Timestamp),
    /// So long ago, in whole milliseconds.
    Ago(Duration),
}

/// What a step does at a key that another transaction has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wait {
    /// Waits as long as the step may take.
    #[default]
    Block,
    /// Waits so long at most, then fails with `LOCKED`.
    BlockFor(Duration),
    /// Fails with `LOCKED` at once.
    Error,
    /// A locking get: the key counts as absent. Other steps fail with `LOCKED`.
    Skip,
}

/// Keys that one closure locks for that reason.
const CONTENDED_MAX: usize = 64;

/// The steps of one transaction. Clones are the same transaction: steps that are asked for at once are done one after the
/// other.
///
/// A step that fails with `LOCKED` or `INVALID` leaves the transaction as it was. After any other failure only
/// [`Txn::rollback_to`] and the end are possible; [`Client::run`] knows which failures are worth another try.
///
/// A step whose future is dropped before it ended leaves the transaction of no further use: all later steps fail with
/// `TXN_FAILED`.
#[derive(Clone)]
pub struct Txn {
    conversation: Arc<Mutex<Conversation>>,
    wait: Wait,
}

/// A transaction in its owner's hands, who commits it. It is rolled back when it and all clones of its [`Txn`] are dropped
/// without a commit.
#[must_use = "a transaction that is dropped is rolled back"]
pub struct OpenTxn {
    txn: Txn,
}

impl Deref for OpenTxn {
    type Target = Txn;

    fn deref(&self) -> &Txn {
        &self.txn
    }
}

/// What is said between a transaction and its node.
struct Conversation {
    client: Client,
    node: Arc<Node>,
    steps: mpsc::Sender<v1::TxnRequest>,
    answers: Streaming<v1::TxnResponse>,
    /// What to ask with about the commit; absent as long as nothing was locked, so that there is nothing to lose.
    handle: Option<TxnHandle>,
    /// No step goes on beyond this; without it each has the client's timeout.
    deadline: Option<Instant>,
    /// A step was sent and its answer has not come.
    unanswered: bool,
    /// Why no step can be sent any more.
    over: Option<Error>,
    /// Whether what failed last may pass if the whole is done again.
    redoable: bool,
    /// Keys over which earlier runs of the same closure failed: read with a lock, so that the next one does not fail over them
    /// again.
    contended: BTreeSet<Bytes>,
}

/// A stream on which a transaction has begun.
struct Opened {
    steps: mpsc::Sender<v1::TxnRequest>,
    answers: Streaming<v1::TxnResponse>,
}

impl Client {
    /// Begins a transaction at some node. Each of its steps may take as long as a call may; the node rolls back when this
    /// client is gone.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn begin(&self, options: TxnOptions) -> Result<OpenTxn, Error> {
        Ok(OpenTxn { txn: self.begin_until(options, None, BTreeSet::new()).await? })
    }

    /// Begins a transaction whose steps together may take until `deadline`.
    async fn begin_until(
        &self,
        options: TxnOptions,
        deadline: Option<Instant>,
        contended: BTreeSet<Bytes>,
    ) -> Result<Txn, Error> {
        let begin = v1::TxnBegin {
            isolation: v1::Isolation::from(options.isolation).into(),
            priority: v1::Priority::from(options.priority).into(),
            strict: options.strict,
            token: options.token.map(wire),
            at: if let Some(Past::At(at)) = options.past { Some(wire(at)) } else { None },
            staleness_ms: match options.past {
                // At least one: none would mean the present.
                Some(Past::Ago(ago)) => u64::try_from(ago.as_millis()).unwrap_or(u64::MAX).max(1),
                _ => 0,
            },
        };
        let first = v1::TxnRequest { step: Some(Step::Begin(begin)), ..v1::TxnRequest::default() };
        let bounded = self.with_timeout(self.time_left(deadline));
        let attempt = |kv, request: tonic::Request<_>| open(kv, request.into_inner());
        // Nothing is done by a begin, so that it may be asked of one node after the other.
        let Answer { answer: Opened { steps, answers }, node, .. } =
            bounded.kv_answer(Repeat::Read, first, attempt).await?;
        let conversation = Conversation {
            client: self.clone(),
            node,
            steps,
            answers,
            handle: None,
            deadline,
            unanswered: false,
            over: None,
            redoable: false,
            contended,
        };
        Ok(Txn { conversation: Arc::new(Mutex::new(conversation)), wait: Wait::default() })
    }

    /// What a step may take, in all.
    fn time_left(&self, deadline: Option<Instant>) -> Duration {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        left.map_or(self.timeout(), |left| left.min(self.timeout()))
    }
}

/// Opens a stream and begins on it.
async fn open(mut kv: KvClient<Channel>, first: v1::TxnRequest) -> Result<Response<Opened>, Status> {
    // One step at a time is under way.
    let (steps, requests) = mpsc::channel(1);
    steps.try_send(first).map_err(|error| Status::internal(error.to_string()))?;
    let mut answers = kv.txn(ReceiverStream::new(requests)).await?.into_inner();
    match answers.message().await?.and_then(|response| response.answer) {
        Some(StepAnswer::Begun(_)) => Ok(Response::new(Opened { steps, answers })),
        Some(StepAnswer::Failure(failure)) => Err(status(&failure)),
        Some(_) => Err(Status::unimplemented("a begin was answered by something else")),
        None => Err(Status::unavailable("the stream of the transaction ended at its begin")),
    }
}

/// A step's failure as a status, so that it is judged as that of any other call.
fn status(failure: &v1::TxnFailure) -> Status {
    let code = failure.reason.parse::<Reason>().map_or(Code::Unimplemented, Reason::code);
    let details = ErrorDetails::with_error_info(&failure.reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, &failure.message, details)
}

impl Txn {
    /// The same transaction, whose steps do this at keys that another transaction has locked. Without it they wait.
    ///
    /// ```no_run
    /// # async fn example(txn: flotilla_client::Txn) -> Result<(), flotilla_client::Error> {
    /// use flotilla_client::Wait;
    /// let seat = txn.with_wait(Wait::Skip).get_for_update("seat/12").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_wait(&self, wait: Wait) -> Self {
        Self { conversation: Arc::clone(&self.conversation), wait }
    }

    /// What [`Client::outcome`] can be asked with, for programs that want to find out about the commit even if they
    /// crash meanwhile; `None` as long as the transaction has locked nothing.
    pub async fn handle(&self) -> Option<TxnHandle> {
        self.conversation.lock().await.handle.clone()
    }

    /// Sends a step, waits for its answer and takes from it what belongs to the step.
    async fn ask<T>(&self, step: Step, take: impl FnOnce(StepAnswer) -> Option<T>) -> Result<T, Error> {
        let mut conversation = self.conversation.lock().await;
        let time = conversation.time_left();
        let answer = conversation.ask(step, self.wait, time).await?;
        take(answer).ok_or_else(|| conversation.strange())
    }
}

impl Conversation {
    fn time_left(&self) -> Duration {
        self.client.time_left(self.deadline)
    }

    /// Sends a step and waits so long for its answer.
    async fn ask(&mut self, step: Step, wait: Wait, time: Duration) -> Result<StepAnswer, Error> {
        if let Some(error) = &self.over {
            return Err(error.clone());
        }
        if self.unanswered {
            let message = "a step was abandoned before it was answered: roll back".to_owned();
            return Err(self.end(self.refusal(Reason::TxnFailed, message)));
        }
        if time.is_zero() {
            let why = format!("no time is left for a step at {}", self.node.address);
            return Err(self.end(Error::Unreachable { why }));
        }
        let request = request(step, wait, time);
        self.unanswered = true;
        let answered = tokio::time::timeout(time, exchange(&self.steps, &mut self.answers, request)).await;
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => return Err(self.lose(Failure::of(&status, &self.node.address))),
            Err(_) => return Err(self.lose(Failure::silence(&self.node.address, time))),
        };
        if let Some(handle) = response.handle {
            self.handle = Some(TxnHandle::new(handle));
        }
        let Some(answer) = response.answer else { return Err(self.strange()) };
        self.unanswered = false;
        match answer {
            StepAnswer::Failure(failure) => Err(self.failed(failure)),
            answer => Ok(answer),
        }
    }

    /// The step was not done, says the node.
    fn failed(&mut self, failure: v1::TxnFailure) -> Error {
        let judged = Failure::of(&status(&failure), &self.node.address).error;
        match judged.reason() {
            // These leave the transaction as it was.
            Some(Reason::Locked | Reason::Invalid) => {}
            // Whoever goes on after a failed step as if nothing was is told this; the first failure counts.
            Some(Reason::TxnFailed) => {}
            reason => self.redoable = reason.is_some_and(passes_if_redone),
        }
        match judged {
            Error::Refused { reason, message, node, .. } if failure.key.is_some() || failure.other.is_some() => {
                if self.contended.len() < CONTENDED_MAX && self.redoable {
                    self.contended.extend(failure.key.clone());
                }
                let conflict = Some(Box::new(Conflict { key: failure.key, other: failure.other }));
                Error::Refused { reason, message, node, conflict }
            }
            other => other,
        }
    }

    /// The stream broke, or was silent for too long: the node rolls back, unless a commit was under way.
    fn lose(&mut self, failure: Failure) -> Error {
        self.client.shared.pool.failed(&self.node);
        self.redoable = true;
        self.end(failure.error)
    }

    /// An answer that does not belong to the step.
    fn strange(&mut self) -> Error {
        self.end(Error::BadAnswer { what: "a step of a transaction was answered by something else" })
    }

    fn end(&mut self, error: Error) -> Error {
        self.over.insert(error).clone()
    }

    fn refusal(&self, reason: Reason, message: String) -> Error {
        Error::Refused { reason, message, node: self.node.address.clone(), conflict: None }
    }
}

/// The request of a step. The node is given less time than the client waits, so that its own word about the deadline
/// arrives.
fn request(step: Step, wait: Wait, time: Duration) -> v1::TxnRequest {
    let policy = match wait {
        Wait::Block | Wait::BlockFor(_) => v1::WaitPolicy::Block,
        Wait::Error => v1::WaitPolicy::Error,
        Wait::Skip => v1::WaitPolicy::Skip,
    };
    let for_node = time - time / 8;
    let for_node = if let Wait::BlockFor(longest) = wait { for_node.min(longest) } else { for_node };
    // 0 would stand for the node's default.
    let timeout_ms = u64::try_from(for_node.as_millis()).unwrap_or(u64::MAX).max(1);
    v1::TxnRequest { step: Some(step), wait: policy.into(), timeout_ms }
}

async fn exchange(
    steps: &mpsc::Sender<v1::TxnRequest>,
    answers: &mut Streaming<v1::TxnResponse>,
    request: v1::TxnRequest,
) -> Result<v1::TxnResponse, Status> {
    // If nobody takes the step any more, the stream's end says why.
    let sent = steps.send(request).await;
    match answers.message().await? {
        Some(response) if sent.is_ok() => Ok(response),
        _ => Err(Status::unavailable("the stream of the transaction ended")),
    }
}

/// Whether a transaction of which a step failed so may pass if the whole is done again.
const fn passes_if_redone(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RetryTxn
            | Reason::TxnAborted
            | Reason::RangeUnavailable
            | Reason::NodeNotServing
            | Reason::Overloaded
            | Reason::DeadlineExceeded
            // Of a step: what it may have locked goes with the transaction.
            | Reason::Ambiguous
    )
}
