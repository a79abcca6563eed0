//! The router's parts and settings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use flotilla_types::RequestId;

use crate::backoff::Dice;
use crate::cache::RangeCache;
use crate::replicas::Replicas;
use crate::txn::registry::{Registry, Waits};
use crate::{Clock, KvError, Tasks, Transport, TxnConfig};

/// Settings of a router. The defaults suit a cluster over several datacenters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// How long one replica may take to answer before the next is asked. Grows with each silence.
    pub attempt_timeout: Duration,
    /// The same for commands that change a range and may wait for a snapshot.
    pub admin_timeout: Duration,
    /// First pause after all replicas of a range were asked in vain; doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause. Bounds how late a newly elected leader is found.
    pub backoff_max: Duration,
    /// How long a range may answer that it is unavailable before the caller is told so. An election takes less.
    pub patience: Duration,
    /// Seeds jitter and the instance part of request ids. Must differ between the starts of all nodes of a cluster.
    pub seed: u64,
    /// How transactions are carried out.
    pub txn: TxnConfig,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_millis(1500),
            admin_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(200),
            patience: Duration::from_secs(8),
            seed: 0,
            txn: TxnConfig::default(),
        }
    }
}

/// Finds the range of a key and the replica that serves it. Cheap to clone; clones share what they learn.
#[derive(Clone)]
pub struct Router {
    pub(crate) shared: Arc<Shared>,
}

/// What clones share.
pub(crate) struct Shared {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Arc<dyn Tasks>,
    pub(crate) config: RouterConfig,
    pub(crate) cache: RangeCache,
    pub(crate) replicas: Replicas,
    pub(crate) dice: Dice,
    /// Transactions that are open here.
    pub(crate) registry: Registry,
    /// Transactions that wait in ranges that are led here.
    pub(crate) waits: Waits,
    /// Counts the request ids made here.
    made: AtomicU32,
}

impl Router {
    /// A router that knows nothing yet.
    #[must_use]
    pub fn new(
        transport: Arc<dyn Transport>,
        clock: Arc<dyn Clock>,
        tasks: Arc<dyn Tasks>,
        config: RouterConfig,
    ) -> Self {
        let dice = Dice::new(config.seed);
        let replicas = Replicas::default();
        let cache = RangeCache::default();
        let made = AtomicU32::new(0);
        let (registry, waits) = (Registry::default(), Waits::default());
        let shared = Shared { transport, clock, tasks, config, cache, replicas, dice, registry, waits, made };
        Self { shared: Arc::new(shared) }
    }

    /// A fresh request id, born now.
    ///
    /// # Errors
    /// The clock may not be read.
    pub fn request_id(&self) -> Result<RequestId, KvError> {
        let born_ms = self.shared.clock.now()?.wall / 1_000_000;
        let counter = self.shared.made.fetch_add(1, Ordering::Relaxed);
        Ok(RequestId::new(born_ms, self.shared.config.seed, counter))
    }

    /// The clock that deadlines are given in.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }
}
