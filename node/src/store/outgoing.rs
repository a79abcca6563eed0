//! Snapshots on their way out: each has a thread while it runs, since it waits for its peer most of the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flotilla_range::event::Event;
use flotilla_range::message::{SnapshotHeader, SnapshotId};
use flotilla_range::snapshot::frames::FrameWriter;
use flotilla_storage::engine::Reader;
use flotilla_storage::keys;
use flotilla_types::StoreId;

use super::bucket::Bucket;
use super::inbox::Inbox;
use super::meters;
use crate::ports::Network;

/// Transfers at once: more would only share the same rate, and each holds an engine snapshot.
const OUTGOING_MAX: usize = 4;
/// A transfer that takes longer pins too much of the engine, and starts again.
const TRANSFER_MAX: Duration = Duration::from_secs(600);

/// Sends snapshots. Shared by the fleet's thread and the transfers.
pub(super) struct Outgoing {
    network: Arc<dyn Network>,
    inbox: Arc<Inbox>,
    bucket: Bucket,
    stopping: AtomicBool,
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    threads: Vec<JoinHandle<()>>,
}

impl Outgoing {
    pub(super) fn new(network: Arc<dyn Network>, inbox: Arc<Inbox>, bytes_per_second: u64) -> Self {
        Self {
            network,
            inbox,
            bucket: Bucket::new(bytes_per_second),
            stopping: AtomicBool::new(false),
            state: Mutex::default(),
            stopped: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a transfer of what `snapshot` shows; the fleet hears of its end whatever happens.
    pub(super) fn start(self: &Arc<Self>, to: StoreId, header: SnapshotHeader, snapshot: Box<dyn Reader + Send>) {
        let id = header.id;
        let mut state = self.state();
        state.threads.retain(|thread| !thread.is_finished());
        if state.running >= OUTGOING_MAX || self.stopping.load(Ordering::Relaxed) {
            drop(state);
            return self.ended(id, false);
        }
        let outgoing = Arc::clone(self);
        let run = move || {
            let delivered = outgoing.transfer(to, header, snapshot.as_ref());
            drop(snapshot);
            outgoing.state().running -= 1;
            outgoing.ended(id, delivered);
        };
        match std::thread::Builder::new().name("snapshot-out".to_owned()).spawn(run) {
            Ok(thread) => {
                state.running += 1;
                state.threads.push(thread);
            }
            Err(error) => {
                drop(state);
                tracing::warn!(%error, "a snapshot was not sent: no thread could be started");
                self.ended(id, false);
            }
        }
    }

    fn ended(&self, id: SnapshotId, delivered: bool) {
        meters::snapshots("out", if delivered { "delivered" } else { "broken" }).increment(1);
        self.inbox.rare(Event::SnapshotSent { id, delivered });
    }

    fn transfer(&self, to: StoreId, header: SnapshotHeader, snapshot: &dyn Reader) -> bool {
        let started = Instant::now();
        let range = header.descriptor.range;
        let spans = keys::spans(range, &header.descriptor.span);
        let mut frames = FrameWriter::new(snapshot, header.id, spans);
        let sent = meters::snapshot_bytes("out");
        let mut outlet = self.network.open_snapshot(to, header);
        loop {
            let frame = match frames.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return outlet.finish(),
                Err(error) => {
                    self.inbox.rare(Event::Damaged { range, why: format!("send a snapshot of it: {error}") });
                    return false;
                }
            };
            if started.elapsed() > TRANSFER_MAX || !self.rest(self.bucket.take(frame.len(), Instant::now())) {
                return false;
            }
            sent.increment(frame.len() as u64);
            if let Err(broken) = outlet.frame(frame) {
                tracing::info!(%range, %to, %broken, "a snapshot was not delivered");
                return false;
            }
        }
    }

    /// Waits for the bucket; false if the store stops.
    fn rest(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.stopping.load(Ordering::Relaxed) || left.is_zero() {
                return !self.stopping.load(Ordering::Relaxed);
            }
            state = self.stopped.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends all transfers and waits for them; an outlet's own deadline bounds the wait.
    pub(super) fn close(&self) {
        let threads = {
            let mut state = self.state();
            self.stopping.store(true, Ordering::Relaxed);
            std::mem::take(&mut state.threads)
        };
        self.stopped.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a snapshot's thread panicked");
            }
        }
    }
}
