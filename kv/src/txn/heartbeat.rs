//! Heartbeats: from its first lock on, a transaction's record is told every second that its coordinator lives. The answer may
//! be that others have aborted it.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use flotilla_types::{Command, Key, KeySpan, Outcome, RangeDescriptor, RecordOp, Reply, TxnMeta};
use futures::FutureExt;
use futures::future::{Either, select};
use futures::task::AtomicWaker;

use crate::Router;
use crate::send::{Cut, Place};

/// Between two heartbeats. A transaction that was not heard of for five of them counts as abandoned.
const EVERY: Duration = Duration::from_secs(1);
/// Spans that a record keeps of a transaction's locks.
const SPANS_MAX: usize = 64;

/// What a transaction and its heartbeats share.
#[derive(Debug, Default)]
pub(super) struct Beating {
    /// No more of them: the transaction has ended, or is about to.
    stopped: AtomicBool,
    /// The record says that it is aborted.
    aborted: AtomicBool,
    /// Woken when it does.
    told: AtomicWaker,
    locks: Mutex<BTreeSet<Key>>,
    /// Where its record lies, once that is fixed.
    anchor: OnceLock<Key>,
}

impl Beating {
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Does it, unless the record says before its end that the transaction is aborted: then nothing is worth waiting for. One may
    /// wait at a time.
    pub(super) async fn unless_aborted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let aborts = poll_fn(|context| {
            self.told.register(context.waker());
            if self.is_aborted() { Poll::Ready(()) } else { Poll::Pending }
        });
        match select(pin!(work), pin!(aborts)).await {
            Either::Left((done, _)) if !self.is_aborted() => Some(done),
            _ => None,
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// The keys that the transaction has locked.
    pub(super) fn locks(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where its record lies.
    pub(super) fn anchor(&self) -> Option<Key> {
        self.anchor.get().cloned()
    }

    pub(super) fn begin(self: &Arc<Self>, router: &Router, meta: TxnMeta) {
        self.anchor.get_or_init(|| meta.anchor.clone());
        let (shared, router_of_task) = (Arc::clone(self), router.clone());
        router.shared.tasks.spawn(async move { shared.beat(&router_of_task, &meta).await }.boxed());
    }

    async fn beat(&self, router: &Router, meta: &TxnMeta) {
        loop {
            router.shared.clock.sleep(EVERY).await;
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            let deadline = router.shared.clock.mono() + EVERY * 2;
            let lock_spans = spans(&self.locks());
            let cut = |_: &RangeDescriptor| {
                let lock_spans = lock_spans.clone();
                Cut::Ask(Command::Record(Box::new(RecordOp::Heartbeat { meta: meta.clone(), lock_spans })))
            };
            // One that is lost is followed by the next.
            let Ok((reply, _)) = router.send(&Place::Of(meta.anchor.clone()), deadline, cut).await else { continue };
            if let Reply::Ended(outcome) = reply.reply {
                if outcome == Outcome::Aborted {
                    self.aborted.store(true, Ordering::Release);
                    self.told.wake();
                }
                return;
            }
        }
    }
}

/// Where locks lie, in few spans: one for each key if there are few, else for runs of them.
pub(super) fn spans(locks: &BTreeSet<Key>) -> Vec<KeySpan> {
    let run = locks.len().div_ceil(SPANS_MAX).max(1);
    let keys: Vec<&Key> = locks.iter().collect();
    let of_run = |run: &[&Key]| Some(KeySpan { start: (*run.first()?).clone(), end: run.last()?.next() });
    keys.chunks(run).filter_map(of_run).collect()
}
