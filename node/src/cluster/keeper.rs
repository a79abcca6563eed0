//! What ranges want done outside of their own log: addressing records kept true, owners confirmed. Queues hold one entry
//! per range, the newest: so they are bounded by the ranges of the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_kv::{KvError, Router};
use flotilla_types::{Key, RangeDescriptor, RangeId};
use futures::{StreamExt, stream};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::peer::directory::Directory;
use crate::ports::{Keeper, Push};
use crate::store::StoreHandle;

/// Records written at once.
const PARALLEL: usize = 8;
/// Pushes that wait, and how many are carried out at once.
const PUSHES_MAX: usize = 4096;
const PUSHES_AT_ONCE: usize = 256;
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
/// The range of meta1 has no record: its descriptor is handed from node to node.
const ROOT: RangeId = RangeId(1);

/// See the module's page.
pub struct RangeKeeper {
    wanted: Mutex<Wanted>,
    /// Told when something is wanted.
    filled: Notify,
    /// Pushes to be carried out, until `run` takes the other end.
    pushes: mpsc::Sender<Push>,
    to_push: Mutex<Option<mpsc::Receiver<Push>>>,
    /// Told when a descriptor changed, for the driver.
    pub(super) moved: Notify,
    directory: Arc<Directory>,
}

#[derive(Default)]
struct Wanted {
    lead: BTreeMap<RangeId, RangeDescriptor>,
    confirm: BTreeMap<RangeId, Key>,
}

impl RangeKeeper {
    pub(super) fn new(directory: Arc<Directory>) -> Arc<Self> {
        let (pushes, to_push) = mpsc::channel(PUSHES_MAX);
        Arc::new(Self {
            wanted: Mutex::default(),
            filled: Notify::new(),
            pushes,
            to_push: Mutex::new(Some(to_push)),
            moved: Notify::new(),
            directory,
        })
    }

    /// Asks the records of transactions that stand in the way of requests, until it is dropped.
    pub(super) async fn push_all(self: Arc<Self>, router: Router, store: StoreHandle) {
        let taken = self.to_push.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(pushes) = taken else { return };
        let pushed = ReceiverStream::new(pushes).for_each_concurrent(PUSHES_AT_ONCE, |push| {
            let (router, store) = (router.clone(), store.clone());
            async move {
                let Push { range, number, keys, push } = push;
                let result = router.push(*push, keys).await;
                if let Err(error) = &result {
                    tracing::debug!(%range, %error, "a transaction's record was not asked; the range asks again");
                }
                store.pushed(range, number, result.ok());
            }
        });
        pushed.await;
    }

    /// Does what is wanted, until it is dropped.
    pub(super) async fn run(self: Arc<Self>, router: Router, store: StoreHandle) {
        loop {
            self.filled.notified().await;
            loop {
                let Wanted { lead, confirm } = std::mem::take(&mut *self.wanted());
                if lead.is_empty() && confirm.is_empty() {
                    break;
                }
                let failed = self.keep_all(&router, lead).await;
                self.confirm_all(&router, &store, confirm).await;
                if failed {
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Puts records where routers look for them; those that failed go back, unless a newer one came. Whether any did.
    async fn keep_all(&self, router: &Router, lead: BTreeMap<RangeId, RangeDescriptor>) -> bool {
        let kept = stream::iter(lead.into_values()).map(|descriptor| async {
            let deadline = router.clock().mono() + DEADLINE;
            (router.keep_meta(descriptor.clone(), deadline).await, descriptor)
        });
        let kept: Vec<(Result<(), KvError>, RangeDescriptor)> = kept.buffer_unordered(PARALLEL).collect().await;
        let mut failed = false;
        for (result, descriptor) in kept {
            if let Err(error) = result {
                tracing::info!(range = %descriptor.range, %error, "its addressing record is not written yet");
                failed = true;
                self.wanted().lead.entry(descriptor.range).or_insert(descriptor);
            }
        }
        self.moved.notify_one();
        failed
    }

    async fn confirm_all(&self, router: &Router, store: &StoreHandle, confirm: BTreeMap<RangeId, Key>) {
        let asked = stream::iter(confirm).map(|(range, key)| async move {
            let deadline = router.clock().mono() + DEADLINE;
            // What fails is asked for again by the range itself.
            if let Ok(current) = router.owner(&key, deadline).await {
                store.confirmed(range, current);
            }
        });
        asked.buffer_unordered(PARALLEL).collect::<Vec<()>>().await;
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for RangeKeeper {
    fn lead(&self, descriptor: RangeDescriptor) {
        if descriptor.range == ROOT {
            self.directory.learn_root(descriptor);
            return self.moved.notify_one();
        }
        self.wanted().lead.insert(descriptor.range, descriptor);
        self.filled.notify_one();
    }

    fn confirm(&self, range: RangeId, key: Key) {
        self.wanted().confirm.insert(range, key);
        self.filled.notify_one();
    }

    fn push(&self, push: Push) {
        if self.pushes.try_send(push).is_err() {
            metrics::counter!("flotilla_txn_pushes_dropped_total").increment(1);
        }
    }

    fn lost(&self, range: RangeId, why: &str) {
        tracing::error!(%range, why, "a replica is out of order and waits to be replaced");
        metrics::counter!("flotilla_replicas_lost_total").increment(1);
        self.moved.notify_one();
    }
}
