//! What the fleet wants done beside its turns: snapshots out, ingests, deletions, hashes. Each ends with an event.

use std::sync::Arc;

use flotilla_range::event::Event;
use flotilla_range::message::{SnapshotHeader, SnapshotId};
use flotilla_range::snapshot::intake::install;
use flotilla_storage::SstFile;
use flotilla_storage::engine::{Engine, EngineError, Reader};
use flotilla_types::{CheckId, KeySpan, LogIndex, RangeDescriptor, ReplicaId, StoreId};

use super::fatal::OnFailure;
use super::hasher::{HashJob, HashQueue};
use super::inbox::Inbox;
use super::intake::discard;
use super::io::IoQueue;
use super::marks::Marks;
use super::outgoing::Outgoing;
use super::reclaim::Reclaim;

/// Gives work to the IO threads. Nothing here waits.
pub(super) struct Background {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) marks: Arc<Marks>,
    pub(super) io: IoQueue,
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) reclaim: Arc<Reclaim>,
    pub(super) hashes: HashQueue,
    pub(super) on_failure: OnFailure,
}

impl Background {
    pub(super) fn send_snapshot(&self, to: StoreId, header: SnapshotHeader, snapshot: Box<dyn Reader + Send>) {
        self.outgoing.start(to, header, snapshot);
    }

    /// Flushes, then ingests: law 1 holds for an ingest only behind a flush (docs/durability.md, "Snapshots").
    pub(super) fn ingest(&self, id: SnapshotId, files: Vec<String>, cleared: Vec<SstFile>, mark: u64) {
        let (engine, inbox, marks) = (Arc::clone(&self.engine), Arc::clone(&self.inbox), Arc::clone(&self.marks));
        let on_failure = self.on_failure.clone();
        let job = move || match install(engine.as_ref(), id, &files, &cleared) {
            Ok(()) => {
                marks.ingest_ended(mark);
                inbox.rare(Event::Ingested(id));
            }
            Err(error) => on_failure.meet(error),
        };
        if self.io.run(job).is_err() {
            // The range could never go on: its raft waits for this ingest. There are never so many at once.
            self.on_failure.meet(EngineError::Io {
                action: "ingest a snapshot",
                cause: "the IO threads' queue is full".to_owned(),
            });
        }
    }

    pub(super) fn reclaim(&self, span: KeySpan) {
        self.reclaim.add(&self.io, &self.engine, span);
    }

    /// Old versions of this span may go, about so many bytes: at once, if that is worth rewriting its files.
    pub(super) fn collect(&self, span: KeySpan, garbage: u64) {
        self.reclaim.collect(&self.io, &self.engine, span, garbage);
    }

    pub(super) fn discard(&self, files: Vec<String>) {
        let engine = Arc::clone(&self.engine);
        if self.io.run(move || discard(engine.as_ref(), &files)).is_err() {
            tracing::debug!("files of a refused snapshot stay until the next start");
        }
    }

    pub(super) fn hash(
        &self,
        descriptor: RangeDescriptor,
        replica: ReplicaId,
        check: CheckId,
        applied: LogIndex,
        snapshot: Box<dyn Reader + Send>,
    ) {
        self.hashes.add(HashJob { descriptor, replica, check, applied, snapshot });
    }
}
