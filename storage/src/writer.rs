//! The log writer: the one thread of a store that writes and syncs its log.
//!
//! It takes everything that was submitted while the last sync ran, makes one batch of it, writes and syncs once, and
//! tells the submitters in order. There is no timer: under load batches grow by themselves. There are never two
//! unsynced batches, since recovery checks the entries of the last one only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use crate::log::{LogBatch, LogFatal, LogOp, LogSeq, LogStore};

/// Submissions that may wait. A fleet makes one per turn, so that this is far more than a healthy disk lets gather.
const QUEUE: usize = 1024;
/// A batch is closed once it holds this much: reading one entry later reads its whole block.
const BATCH_BYTES: usize = 256 << 10;

/// What becomes durable together, and who wants to know.
pub struct Submission {
    /// What to write.
    pub ops: Vec<LogOp>,
    /// Called on the writer's thread once it is durable. Must not block.
    pub done: Box<dyn FnOnce(LogSeq) + Send>,
}

/// Why a submission was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: the disk is stalled.
    #[error("the log writer's queue is full")]
    Full,
    /// The writer ended, after a fatal error or because it was stopped.
    #[error("the log writer has ended")]
    Ended,
}

/// How urgent the writer's thread is to the scheduler. On busy cores a sync at normal priority takes a whole time slice
/// instead of a fraction of a millisecond (docs/durability.md, "Log").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogPriority {
    /// Above all other threads of the process; a warning if the system does not allow it.
    #[default]
    Raised,
    /// Like every other thread.
    Normal,
}

/// The nice value of a raised writer.
const RAISED_NICE: i32 = -15;

/// Hears of every batch; called on the writer's thread.
pub trait LogObserver: Send + 'static {
    /// A batch was synced.
    fn synced(&mut self, submissions: usize, started: Instant);
    /// The log cannot be written any more. Nothing is completed from now on: the process must stop.
    fn failed(&mut self, error: LogFatal);
}

/// When the write under way began, for the rule that a stalled disk supports nobody (leases 2.4).
#[derive(Debug)]
struct Progress {
    origin: Instant,
    /// Nanoseconds since `origin`, plus one; 0 when nothing is being written.
    writing_since: AtomicU64,
    /// Nanoseconds since `origin`.
    last_sync: AtomicU64,
}

impl Progress {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX - 1)
    }
}

/// The handle of the writer's thread. Dropping it ends the thread after what was submitted is written.
pub struct LogWriter {
    queue: Option<Sender<Submission>>,
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

impl LogWriter {
    /// Starts the writer of a log.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn spawn(log: Arc<dyn LogStore>, priority: LogPriority, observer: impl LogObserver) -> std::io::Result<Self> {
        let (queue, submissions) = bounded(QUEUE);
        let progress = Arc::new(Progress {
            origin: Instant::now(),
            writing_since: AtomicU64::new(0),
            last_sync: AtomicU64::new(0),
        });
        let shared = Arc::clone(&progress);
        let run = move || {
            if priority == LogPriority::Raised {
                raise_priority();
            }
            run(log.as_ref(), &submissions, observer, &shared);
        };
        let thread = std::thread::Builder::new().name("log-writer".to_owned()).spawn(run)?;
        Ok(Self { queue: Some(queue), progress, thread: Some(thread) })
    }

    /// Submits without waiting.
    ///
    /// # Errors
    /// The queue is full, or the writer ended; the submission was dropped.
    pub fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        let queue = self.queue.as_ref().ok_or(SubmitError::Ended)?;
        queue.try_send(submission).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Full,
            TrySendError::Disconnected(_) => SubmitError::Ended,
        })
    }

    /// How long the write under way has been running, if one is.
    #[must_use]
    pub fn writing_for(&self) -> Option<std::time::Duration> {
        let since = self.progress.writing_since.load(Ordering::Acquire).checked_sub(1)?;
        Some(std::time::Duration::from_nanos(self.progress.now().saturating_sub(since)))
    }

    /// How long ago the newest sync ended.
    #[must_use]
    pub fn since_last_sync(&self) -> std::time::Duration {
        let last = self.progress.last_sync.load(Ordering::Acquire);
        std::time::Duration::from_nanos(self.progress.now().saturating_sub(last))
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log writer panicked");
        }
    }
}

/// On Linux a nice value belongs to one thread, and "the caller" names this one.
fn raise_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, RAISED_NICE) {
        tracing::warn!(
            %error,
            "the log writer runs at normal priority, so that writes wait longer on busy cores: allow it to raise its \
             priority (CAP_SYS_NICE, or LimitNICE={RAISED_NICE} in the unit), or say --log-priority normal"
        );
    }
}

fn run(log: &dyn LogStore, submissions: &Receiver<Submission>, mut observer: impl LogObserver, progress: &Progress) {
    let mut left_over = None;
    while let Some(first) = left_over.take().or_else(|| submissions.recv().ok()) {
        let (batch, done);
        (batch, done, left_over) = gather(first, submissions);
        let started = Instant::now();
        progress.writing_since.store(progress.now() + 1, Ordering::Release);
        let written = log.write(&batch);
        progress.writing_since.store(0, Ordering::Release);
        match written {
            Ok(seq) => {
                progress.last_sync.store(progress.now(), Ordering::Release);
                observer.synced(done.len(), started);
                done.into_iter().for_each(|done| done(seq));
            }
            Err(error) => return observer.failed(error),
        }
    }
}

type Done = Vec<Box<dyn FnOnce(LogSeq) + Send>>;

/// Makes one batch of what waits; what would make it too large is left over.
fn gather(first: Submission, submissions: &Receiver<Submission>) -> (LogBatch, Done, Option<Submission>) {
    let mut bytes = weight(&first.ops);
    let mut batch = LogBatch { ops: first.ops };
    let mut done = vec![first.done];
    while let Ok(next) = submissions.try_recv() {
        bytes += weight(&next.ops);
        if bytes > BATCH_BYTES {
            return (batch, done, Some(next));
        }
        batch.ops.extend(next.ops);
        done.push(next.done);
    }
    (batch, done, None)
}

fn weight(ops: &[LogOp]) -> usize {
    let of_entries = |op: &LogOp| match op {
        LogOp::Append { entries, .. } => entries.iter().map(|entry| entry.data.len() + entry.context.len() + 32).sum(),
        _ => 64,
    };
    ops.iter().map(of_entries).sum()
}
