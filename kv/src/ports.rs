//! What the router needs of the world: a way to the stores, and time.

use std::time::Duration;

use flotilla_types::{
    ClockError, Generation, RangeDescriptor, RangeError, RangeReply, RangeRequest, StoreId, Timestamp,
};
use futures::future::BoxFuture;
use thiserror::Error;

/// Carries requests to stores.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request to one store, the own one included, and waits for its answer. The router drops the future when
    /// it has waited long enough; what was sent may still be done then.
    fn send(&self, to: StoreId, request: RangeRequest) -> BoxFuture<'static, Result<RangeReply, SendError>>;

    /// The descriptor of the range that holds meta1: the newest one known here, or, if `stale` names the generation that
    /// the router found wanting, a newer one if peers know it.
    fn root(&self, stale: Option<Generation>) -> BoxFuture<'static, Result<RangeDescriptor, String>>;
}

/// Why there is no reply.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SendError {
    /// The range answered with an error.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The request did not leave: nothing was done.
    #[error("the request was not sent: {0}")]
    NotSent(String),
    /// The request left and no answer came: the outcome is unknown.
    #[error("no answer came: {0}")]
    Lost(String),
}

/// Who carries out what goes on after the caller was answered: heartbeats, clean-up. Every task ends by itself in bounded
/// time.
pub trait Tasks: Send + Sync + 'static {
    /// Runs a task until it ends or the node stops.
    fn spawn(&self, task: BoxFuture<'static, ()>);
}

/// The node's time.
pub trait Clock: Send + Sync + 'static {
    /// A reading of the hybrid logical clock that may leave the node.
    ///
    /// # Errors
    /// The clock may not be read at this moment: the log disk is stalled, or the store just started.
    fn now(&self) -> Result<Timestamp, ClockError>;

    /// The node's wall clock, as far as it can be read: what other nodes' clocks are compared with.
    fn physical(&self) -> Timestamp;

    /// Monotonic time since some fixed moment; deadlines are given in it.
    fn mono(&self) -> Duration;

    /// Waits.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// The largest offset between two clocks of the cluster.
    fn max_offset(&self) -> Duration;
}
