//! The flusher: makes engine changes durable, tells the fleet up to which one, and lets the log give up what that allows.
//!
//! Once a second a mark is written; when the flushed tier shows it, RocksDB has flushed by itself. A flush of our own
//! comes when something waits for one, when the log grows, or when changes have been dirty for half a minute, so that a
//! restart has little to replay.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use flotilla_range::event::{Event, FlushMark};
use flotilla_storage::engine::{Engine, EngineError};
use flotilla_storage::flush_mark;
use flotilla_storage::log::LogStore;

use super::fatal::{Failure, OnFailure};
use super::inbox::Inbox;
use super::marks::Marks;
use super::meters::FlushMeters;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const DIRTY_MAX: Duration = Duration::from_secs(30);
const PURGE_EVERY: Duration = Duration::from_secs(10);
/// Half of what the log may hold before raft-engine rewrites it: entries cannot go before the state is flushed.
const LOG_BYTES_MAX: u64 = 1 << 30;
/// Requested flushes that come closer together than this become one: each makes a file.
const FLUSH_GAP: Duration = Duration::from_millis(50);

/// Asks for a flush. Requests coalesce.
#[derive(Clone)]
pub(super) struct FlushRequests(Sender<()>);

impl FlushRequests {
    pub(super) fn soon(&self) {
        // Full: one is asked for already. Disconnected: the flusher flushes as it stops.
        let _ = self.0.try_send(());
    }
}

/// The requests' two ends. The flusher stops when the last sender is gone.
pub(super) fn requests() -> (FlushRequests, Receiver<()>) {
    let (sender, receiver) = bounded(1);
    (FlushRequests(sender), receiver)
}

/// What the flusher's thread works with.
pub(super) struct Flusher {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) log: Arc<dyn LogStore>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) marks: Arc<Marks>,
    pub(super) boot: u32,
    pub(super) on_failure: OnFailure,
    pub(super) meters: FlushMeters,
    pub(super) requests: Receiver<()>,
}

/// What it knows.
struct Progress {
    /// Count of the newest mark written.
    marked: u64,
    /// Count told to the fleet as durable.
    told: u64,
    /// Since when there are changes that are not known to be durable.
    dirty_since: Option<Instant>,
    purged_at: Instant,
    flushed_at: Instant,
}

impl Flusher {
    /// Runs until nobody can ask any more, and flushes once more then.
    pub(super) fn run(self) {
        let now = Instant::now();
        let mut progress =
            Progress { marked: 0, told: 0, dirty_since: None, purged_at: now, flushed_at: now - FLUSH_GAP };
        loop {
            let asked = match self.requests.recv_timeout(LOOK_EVERY) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Err(failure) = self.look(&mut progress, asked) {
                return self.on_failure.meet(failure);
            }
        }
        if let Err(error) = self.engine.flush() {
            self.on_failure.meet(error);
        }
    }

    fn look(&self, progress: &mut Progress, asked: bool) -> Result<(), Failure> {
        let done = self.marks.done();
        if done == progress.told {
            progress.dirty_since = None;
        } else {
            progress.dirty_since.get_or_insert_with(Instant::now);
        }
        let dirty_for = progress.dirty_since.map(|since| since.elapsed());
        let log_grows = dirty_for.is_some() && self.log.used_bytes() > LOG_BYTES_MAX;
        if asked || log_grows || dirty_for.is_some_and(|time| time >= DIRTY_MAX) {
            self.flush(progress)?;
        } else if done > progress.marked {
            flush_mark::put(self.engine.as_ref(), self.boot, done)?;
            progress.marked = done;
        }
        if progress.marked > progress.told {
            self.tell(progress, flush_mark::flushed(self.engine.as_ref(), self.boot)?);
        }
        if progress.purged_at.elapsed() >= PURGE_EVERY {
            self.purge(progress)?;
        }
        Ok(())
    }

    fn flush(&self, progress: &mut Progress) -> Result<(), EngineError> {
        std::thread::sleep(FLUSH_GAP.saturating_sub(progress.flushed_at.elapsed()));
        // Counted before the flush begins: what comes later may miss it.
        let done = self.marks.done();
        let started = Instant::now();
        self.engine.flush()?;
        self.meters.flush.record(started.elapsed());
        progress.flushed_at = Instant::now();
        self.tell(progress, done);
        Ok(())
    }

    fn tell(&self, progress: &mut Progress, durable: u64) {
        if durable > progress.told {
            progress.told = durable;
            progress.dirty_since = None;
            self.inbox.flushed(FlushMark(durable));
        }
    }

    fn purge(&self, progress: &mut Progress) -> Result<(), Failure> {
        progress.purged_at = Instant::now();
        let pinned = self.log.purge()?;
        self.meters.log_bytes.set(self.log.used_bytes() as f64);
        self.meters.engine_bytes.set(self.engine.used_bytes() as f64);
        if !pinned.is_empty() {
            self.flush(progress)?;
            self.inbox.rare(Event::Pinned(pinned));
        }
        Ok(())
    }
}
