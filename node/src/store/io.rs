//! The IO threads: work that may wait for a disk for long and must not hold up a turn.

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use crossbeam::select;

/// Threads: one more than what a flush before an ingest can block.
pub(super) const THREADS: [&str; 2] = ["io-1", "io-2"];
/// Jobs that wait. Ingests and frames are bounded by the number of incoming snapshots, so that deletions alone can fill it.
const QUEUE: usize = 64;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Gives jobs to the IO threads.
#[derive(Clone)]
pub(super) struct IoQueue(Sender<Job>);

/// There was no room, or the threads ended.
#[derive(Debug)]
pub(super) struct NoRoom;

impl IoQueue {
    /// Gives a job without waiting.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), NoRoom> {
        self.0.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => NoRoom,
        })
    }
}

/// The jobs' two ends, for one [`run`] per name in [`THREADS`].
pub(super) fn queue() -> (IoQueue, Receiver<Job>) {
    let (queue, jobs) = bounded(QUEUE);
    (IoQueue(queue), jobs)
}

/// Runs jobs until the sender of `stop` is gone, whoever still holds a queue.
pub(super) fn run(jobs: &Receiver<Job>, stop: &Receiver<()>) {
    loop {
        select! {
            recv(jobs) -> job => match job {
                Ok(job) => job(),
                Err(_) => return,
            },
            recv(stop) -> _ => return,
        }
    }
}
