//! How a client behaves.

use std::time::Duration;

use flotilla_types::Limits;

/// How a client behaves; the defaults serve most.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// How long a call may take, its retries included. At most a minute counts for writes: the cluster may have
    /// forgotten their ids after that.
    pub timeout: Duration,
    /// How long one node may be silent before another one is asked. Below it a hung node delays calls by this much,
    /// and a slow answer is asked for twice.
    pub attempt_timeout: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// Connections to each node. One serves thousands of calls at once; more help when one core is the limit.
    pub connections_per_node: usize,
    /// First wait between attempts; it doubles, with jitter, up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest wait between attempts, unless a node asks for more.
    pub backoff_max: Duration,
    /// Whether to learn of nodes that were not given.
    pub learn_nodes: bool,
    /// How often the list of nodes is refreshed.
    pub learn_interval: Duration,
    /// Largest message sent or received; must cover the largest value, should the cluster's limits have been raised.
    pub message_bytes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            connections_per_node: 1,
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(500),
            learn_nodes: true,
            learn_interval: Duration::from_secs(30),
            message_bytes_max: Limits::default().message_bytes(),
        }
    }
}

/// Longest time in which a write is tried again: the cluster keeps ids at least so long.
pub(crate) const RETRY_WINDOW: Duration = Duration::from_secs(60);
