//! One call: attempts at one node after the other until there is an answer, a refusal, or no time left.
//!
//! ```text
//!  pick a node ─► attempt ─► answer ────────────────────────────► done
//!       ▲            ├─────► refused for good ──────────────────► Refused
//!       ├─ at once ──┤ node failed, another is untried           }  or Ambiguous, if any
//!       └─ backoff ──┘ range not ready, or all nodes failed      }  attempt may have been done
//! ```
//!
//! This is the only place that tries again. What it keeps: the request id, so that a write takes effect once, and the
//! memory of attempts whose outcome is unknown. An answer to a later attempt with the same id settles them, because the
//! range remembers ids; a *refusal* does not, for a former copy of the request may still be on its way.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_types::RequestId;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::Error;
use crate::error::{Failure, Next};
use crate::options::{Options, RETRY_WINDOW};
use crate::pool::{Node, Pool};

/// What may be done about an attempt whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It only reads: ask again.
    Read,
    /// Ask again with the same id.
    SameId(RequestId),
    /// It changes something and has no id: tell the caller.
    Never,
}

/// The bounds of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) repeat: Repeat,
    pub(crate) timeout: Duration,
    /// Silence of one node beyond which another is asked.
    pub(crate) attempt_timeout: Duration,
}

/// The waits between attempts: doubling, with jitter so that clients do not come back all at once.
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) fn new(options: &Options) -> Self {
        Self { next: options.backoff_min, max: options.backoff_max }
    }

    /// The next wait, at least what the node asked for.
    pub(crate) fn pause(&mut self, asked: Option<Duration>) -> Duration {
        let pause = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.max);
        pause.max(asked.unwrap_or_default())
    }
}

/// An answer.
pub(crate) struct Answer<T> {
    pub(crate) answer: T,
    /// Whether a former attempt may have been done, or may yet be. An answer that says "done" settles that.
    pub(crate) doubtful: bool,
    /// Who gave it.
    pub(crate) node: Arc<Node>,
}

/// Attempts until the deadline.
pub(crate) async fn call<M, T, F, Fut>(
    pool: &Pool,
    options: &Options,
    bounds: Bounds,
    message: M,
    attempt: F,
) -> Result<Answer<T>, Error>
where
    M: Clone,
    F: Fn(Channel, Request<M>) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let window = if matches!(bounds.repeat, Repeat::SameId(_)) { RETRY_WINDOW } else { Duration::MAX };
    let deadline = Instant::now() + bounds.timeout.min(window).min(Duration::from_secs(86_400));
    let mut backoff = Backoff::new(options);
    let mut tried: Vec<Arc<Node>> = Vec::new();
    let (mut maybe_done, mut last) = (false, None);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A pause may take longer than it should: an attempt without time would only hide what the one before met.
        if left.is_zero()
            && let Some(error) = last.take()
        {
            return Err(settle(bounds.repeat, maybe_done, error));
        }
        let node = pool.pick(&tried);
        let failure = match one(&node, bounds.attempt_timeout.min(left), message.clone(), &attempt).await {
            Ok(answer) => {
                node.works();
                return Ok(Answer { answer, doubtful: maybe_done, node });
            }
            Err(failure) => failure,
        };
        maybe_done |= failure.maybe_done && bounds.repeat != Repeat::Read;
        let pause = match failure.next {
            Next::GiveUp => return Err(settle(bounds.repeat, maybe_done, failure.error)),
            Next::OtherNode => {
                pool.failed(&node);
                tried.push(node);
                if tried.len() < pool.len() { Duration::ZERO } else { backoff.pause(None) }
            }
            Next::Later(after) => {
                node.works();
                backoff.pause(after)
            }
        };
        let no_time = Instant::now() + pause >= deadline;
        if no_time || (maybe_done && bounds.repeat == Repeat::Never) {
            return Err(settle(bounds.repeat, maybe_done, failure.error));
        }
        last = Some(failure.error);
        if tried.len() >= pool.len() {
            tried.clear();
        }
        tokio::time::sleep(pause).await;
    }
}

/// One attempt at one node.
async fn one<M, T, F, Fut>(node: &Node, timeout: Duration, message: M, attempt: &F) -> Result<T, Failure>
where
    F: Fn(Channel, Request<M>) -> Fut,
    Fut: Future<Output = Result<Response<T>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    // A little longer than the node is given, so that its own word about the deadline arrives.
    match tokio::time::timeout(timeout + timeout / 8, attempt(node.channel(), request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Failure::of(&status, &node.address)),
        Err(_) => Err(Failure::silence(&node.address, timeout)),
    }
}

/// What the caller is told at last.
fn settle(repeat: Repeat, maybe_done: bool, error: Error) -> Error {
    if !maybe_done {
        return error;
    }
    let request_id = match repeat {
        Repeat::SameId(id) => Some(id),
        Repeat::Read | Repeat::Never => None,
    };
    Error::Ambiguous { request_id, why: error.to_string() }
}
