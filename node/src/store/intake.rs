//! Snapshots on their way in: frames are verified and written to sorted files on an IO thread, and the fleet hears of a
//! snapshot only when all of it lies there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_range::event::Event;
use flotilla_range::message::SnapshotHeader;
use flotilla_range::snapshot::intake::{self, Intake, file_prefix};
use flotilla_storage::engine::Engine;
use flotilla_storage::keys;
use flotilla_types::{KeySpan, RangeError, StoreId};
use thiserror::Error;
use tokio::sync::oneshot;

use super::bucket::Bucket;
use super::inbox::Inbox;
use super::io::IoQueue;
use super::meters;

/// Transfers at once: each holds a file's worth of pairs in memory.
const INCOMING_MAX: usize = 2;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a transfer was ended. Nothing of it stays; the leader starts another.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IntakeError {
    /// A frame was refused, or a file could not be written.
    #[error(transparent)]
    Refused(#[from] intake::IntakeError),
    /// The transfer ended before its trailer.
    #[error("the snapshot ended before its last frame")]
    Short,
    /// The store stops, or its IO threads have more to do than they can.
    #[error("the store cannot take the snapshot now")]
    Busy,
}

/// Takes snapshots in. Shared by all transfers.
pub(super) struct Incoming {
    pub(super) store: StoreId,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) io: IoQueue,
    pub(super) bucket: Bucket,
    pub(super) open: AtomicUsize,
    /// The disk has no room for another replica.
    pub(super) tight: Arc<AtomicBool>,
}

impl Incoming {
    /// Admits a transfer, or says when to come again.
    pub(super) fn admit(self: Arc<Self>, header: SnapshotHeader) -> Result<SnapshotIntake, RangeError> {
        if self.tight.load(Ordering::Relaxed) {
            return Err(RangeError::DiskFull { store: self.store });
        }
        let admitted =
            self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < INCOMING_MAX).then_some(n + 1));
        if admitted.is_err() {
            return Err(RangeError::Overloaded { queue: "incoming snapshots".into(), retry_after: RETRY_AFTER });
        }
        let work = Work {
            intake: Some(Intake::new(&header)),
            prefix: file_prefix(header.id),
            engine: Arc::clone(&self.engine),
        };
        Ok(SnapshotIntake { incoming: self, header, work: Some(Box::new(work)), handed_over: false })
    }
}

impl Incoming {
    /// About how many bytes the values in each span take, told by an IO thread; dropped if there is no room for the question.
    pub(super) fn sizes(&self, spans: Vec<KeySpan>) -> oneshot::Receiver<Vec<u64>> {
        let (answer, sizes) = oneshot::channel();
        let engine = Arc::clone(&self.engine);
        let job = move || {
            let spans: Vec<_> = spans.iter().map(keys::version_span).collect();
            let _ = answer.send(engine.approximate_bytes(&spans));
        };
        if self.io.run(job).is_err() {
            tracing::debug!("sizes are not told: the IO threads are busy");
        }
        sizes
    }
}

/// One transfer. Dropping it before `finish` ends it and deletes its files.
pub struct SnapshotIntake {
    incoming: Arc<Incoming>,
    header: SnapshotHeader,
    /// Away while an IO thread works on it.
    work: Option<Box<Work>>,
    handed_over: bool,
}

struct Work {
    /// Gone once the fleet has the files.
    intake: Option<Intake>,
    prefix: String,
    engine: Arc<dyn Engine>,
}

impl SnapshotIntake {
    /// Takes the next frame. Comes back when it is written, and no faster than snapshots may flow.
    ///
    /// # Errors
    /// The transfer is over; report the failure to its sender.
    pub async fn frame(&mut self, frame: Bytes) -> Result<(), IntakeError> {
        let pause = self.incoming.bucket.take(frame.len(), Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        meters::snapshot_bytes("in").increment(frame.len() as u64);
        let mut work = self.work.take().ok_or(IntakeError::Busy)?;
        let (back, done) = oneshot::channel();
        let job = move || {
            let taken = work.take(&frame);
            // If nobody waits any more, the work is dropped here, and its files with it.
            let _ = back.send((work, taken));
        };
        self.incoming.io.run(job).map_err(|_| IntakeError::Busy)?;
        let (work, taken) = done.await.map_err(|_| IntakeError::Busy)?;
        self.work = Some(work);
        taken
    }

    /// Hands the snapshot over to the fleet.
    ///
    /// # Errors
    /// Frames are missing.
    pub fn finish(mut self) -> Result<(), IntakeError> {
        let work = self.work.as_mut().ok_or(IntakeError::Busy)?;
        let Some(files) = work.intake.take().and_then(Intake::finish) else {
            // Dropped with a part of the files: they go, too.
            work.intake = Some(Intake::new(&self.header));
            return Err(IntakeError::Short);
        };
        self.handed_over = true;
        self.incoming.inbox.rare(Event::SnapshotReceived { header: self.header.clone(), files });
        Ok(())
    }
}

impl Drop for SnapshotIntake {
    fn drop(&mut self) {
        self.incoming.open.fetch_sub(1, Ordering::AcqRel);
        meters::snapshots("in", if self.handed_over { "delivered" } else { "broken" }).increment(1);
        // Deleting files waits for a disk, and this may be a runtime's thread.
        if let Some(work) = self.work.take() {
            let _ = self.incoming.io.run(move || drop(work));
        }
    }
}

impl Work {
    fn take(&mut self, frame: &Bytes) -> Result<(), IntakeError> {
        let intake = self.intake.as_mut().ok_or(IntakeError::Busy)?;
        intake.accept(self.engine.as_ref(), frame)?;
        Ok(())
    }
}

/// What was not handed over is deleted; what a crash leaves, the next boot deletes.
impl Drop for Work {
    fn drop(&mut self) {
        if self.intake.is_some()
            && let Err(error) = self.engine.discard_ssts(&self.prefix)
        {
            tracing::warn!(%error, "files of a snapshot were not deleted; the next start does it");
        }
    }
}

/// Deletes sorted files that nobody needs.
pub(super) fn discard(engine: &dyn Engine, files: &[String]) {
    for file in files {
        if let Err(error) = engine.discard_ssts(&format!("{file}.sst")) {
            tracing::warn!(%error, file, "a file of a snapshot was not deleted; the next start does it");
        }
    }
}
