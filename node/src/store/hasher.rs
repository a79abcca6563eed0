//! The thread that hashes replicas, one after the other and slowly: a check costs the disk a known share.

use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};
use flotilla_range::check::survey;
use flotilla_range::event::Event;
use flotilla_storage::engine::Reader;
use flotilla_types::{CheckId, LogIndex, RangeDescriptor, ReplicaId};

use super::bucket::Bucket;
use super::hashes::Hashes;
use super::inbox::Inbox;

/// Checks that wait, each with an engine snapshot; past it one is skipped, and whoever asks for it asks in vain.
const QUEUE: usize = 16;

/// One replica to be hashed, as a snapshot shows it.
pub(super) struct HashJob {
    pub(super) descriptor: RangeDescriptor,
    pub(super) replica: ReplicaId,
    pub(super) check: CheckId,
    pub(super) applied: LogIndex,
    pub(super) snapshot: Box<dyn Reader + Send>,
}

/// Gives jobs to the thread, which ends when this is gone.
pub(super) struct HashQueue(Sender<HashJob>);

impl HashQueue {
    pub(super) fn add(&self, job: HashJob) {
        if let Err(refused) = self.0.try_send(job) {
            let range = refused.into_inner().descriptor.range;
            tracing::warn!(%range, "a check was skipped: too many wait already");
        }
    }
}

/// What the thread works with.
pub(super) struct Hasher {
    jobs: Receiver<HashJob>,
    pub(super) bucket: Bucket,
    pub(super) hashes: Arc<Hashes>,
    pub(super) inbox: Arc<Inbox>,
    /// Disconnected: the store stops.
    pub(super) stop: Receiver<()>,
}

impl Hasher {
    pub(super) fn new(bucket: Bucket, hashes: Arc<Hashes>, inbox: Arc<Inbox>, stop: Receiver<()>) -> (HashQueue, Self) {
        let (queue, jobs) = bounded(QUEUE);
        (HashQueue(queue), Self { jobs, bucket, hashes, inbox, stop })
    }

    pub(super) fn run(self) {
        for job in &self.jobs {
            self.hash(&job);
        }
    }

    fn hash(&self, job: &HashJob) {
        let (range, check) = (job.descriptor.range, job.check);
        let mut pause = |bytes| {
            // A store that stops does not wait; what it hashes then is dropped with its queue.
            let _ = self.stop.recv_timeout(self.bucket.take(bytes, Instant::now()));
        };
        match survey(job.snapshot.as_ref(), &job.descriptor, job.replica, job.applied, &mut pause) {
            Ok(survey) => {
                let hash = survey.hash;
                self.hashes.put(range, check, survey);
                self.inbox.rare(Event::Hashed { range, check, hash });
            }
            Err(error) => self.inbox.rare(Event::Damaged { range, why: format!("hash it: {error}") }),
        }
    }
}
