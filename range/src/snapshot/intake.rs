//! What a shell does with the frames of a snapshot: it builds sorted files from them as they come, and later ingests
//! these. The fleet decides in between (docs/durability.md, "Snapshots"). Blocks on the disk: for an IO thread.

use flotilla_storage::SstFile;
use flotilla_storage::engine::{Engine, EngineError};
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::state::{Applied, encode_replica_id};
use flotilla_types::{RangeDescriptor, RangeId, ReplicaId};
use thiserror::Error;

use super::frames::{Collector, FrameError, Progress};
use crate::message::{SnapshotHeader, SnapshotId};

/// Why a snapshot was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IntakeError {
    /// What came is not what was announced.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The own disk failed, or is full.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What the names of a transfer's files start with, for `Engine::discard_ssts`.
#[must_use]
pub fn file_prefix(id: SnapshotId) -> String {
    format!("s{}-{:x}-", id.from.0, id.number)
}

/// A snapshot that is arriving. If it is given up, delete the files that start with `file_prefix`.
#[derive(Debug)]
pub struct Intake {
    collector: Collector,
    descriptor: RangeDescriptor,
    me: ReplicaId,
    prefix: String,
    files: Vec<String>,
    whole: bool,
    /// The applied state and the descriptor were in the frames.
    records: (bool, bool),
}

impl Intake {
    /// Waits for the first frame of an announced transfer.
    #[must_use]
    pub fn new(header: &SnapshotHeader) -> Self {
        let spans = keys::spans(header.descriptor.range, &header.descriptor.span);
        Self {
            collector: Collector::new(header.id, spans),
            descriptor: header.descriptor.clone(),
            me: header.envelope.to,
            prefix: file_prefix(header.id),
            files: Vec::new(),
            whole: false,
            records: (false, false),
        }
    }

    /// Takes the next frame and builds the files that it completes. Says whether the snapshot is whole.
    ///
    /// # Errors
    /// The transfer is over and has failed.
    pub fn accept(&mut self, engine: &dyn Engine, frame: &[u8]) -> Result<bool, IntakeError> {
        let (files, whole) = match self.collector.accept(frame)? {
            Progress::More(files) => (files, false),
            Progress::Whole(files) => (files, true),
        };
        for mut file in files {
            self.make_own(&mut file)?;
            let name = format!("{}{}", self.prefix, self.files.len());
            engine.build_sst(&name, &file)?;
            self.files.push(name);
        }
        if whole && self.records != (true, true) {
            return Err(FrameError::Malformed("it lacks the range's records").into());
        }
        self.whole |= whole;
        Ok(self.whole)
    }

    /// The names of all files, once it is whole: for `Event::SnapshotReceived`.
    #[must_use]
    pub fn finish(self) -> Option<Vec<String>> {
        self.whole.then_some(self.files)
    }

    /// Marks the applied state as come by a snapshot, and adds what the sender cannot know: this replica's own id.
    fn make_own(&mut self, file: &mut SstFile) -> Result<(), FrameError> {
        let range = self.descriptor.range;
        let (start, end) = &keys::spans(range, &self.descriptor.span)[0];
        if file.start < *start || file.end > *end {
            return Ok(());
        }
        for (key, value) in &mut file.pairs {
            match keys::decode_range_record(key) {
                Ok((of, RangeRecord::Applied)) if of == range => {
                    let applied = Applied::decode(value).map_err(|_| FrameError::Malformed("its applied state"))?;
                    *value = Applied { via_snapshot: true, ..applied }.encode();
                    self.records.0 = true;
                }
                Ok((of, RangeRecord::Descriptor)) if of == range => {
                    if *value != self.descriptor.encode() {
                        return Err(FrameError::Malformed("its descriptor is not the announced one"));
                    }
                    self.records.1 = true;
                }
                _ => {}
            }
        }
        if file.end == *end {
            // The last of all kinds: see the key map.
            file.pairs.push((keys::range_record(range, RangeRecord::ReplicaId), encode_replica_id(self.me)));
        }
        Ok(())
    }
}

/// Carries out `Effect::Ingest`: everything written before becomes durable first, then all files enter at once (law 1).
///
/// # Errors
/// The store must stop.
pub fn install(engine: &dyn Engine, id: SnapshotId, files: &[String], cleared: &[SstFile]) -> Result<(), EngineError> {
    let mut names = files.to_vec();
    for (file, number) in cleared.iter().zip(0..) {
        let name = format!("{}c{number}", file_prefix(id));
        engine.build_sst(&name, file)?;
        names.push(name);
    }
    engine.flush()?;
    engine.ingest(&names)
}

/// Files without pairs that hide what a replica held of `old` beyond `new`.
pub(crate) fn cleared(range: RangeId, old: &RangeDescriptor, new: &RangeDescriptor) -> Vec<SstFile> {
    let (before, after) = (keys::spans(range, &old.span), keys::spans(range, &new.span));
    let mut files = Vec::new();
    // The first span goes by the range's id: it is the same.
    for ((from, to), (start, end)) in before.into_iter().zip(after).skip(1) {
        let left = (from.clone(), to.clone().min(start));
        let right = (from.max(end), to);
        let parts = [left, right].into_iter().filter(|(from, to)| from < to);
        files.extend(parts.map(|(start, end)| SstFile { start, end, pairs: Vec::new() }));
    }
    files
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_storage::engine::{Reader, WriteBatch};
    use flotilla_storage::memory::MemoryEngine;
    use flotilla_storage::mvcc;
    use flotilla_types::{Generation, Key, KeySpan, ReplicaDescriptor, ReplicaKind, StoreId, Timestamp};

    use super::*;
    use crate::message::Envelope;
    use crate::snapshot::frames::FrameWriter;

    const RANGE: RangeId = RangeId(7);

    fn descriptor(start: &str, end: &str) -> RangeDescriptor {
        let key = |key: &str| flotilla_types::keys::user(key.as_bytes());
        let replica = ReplicaDescriptor { replica: ReplicaId(4), store: StoreId(2), kind: ReplicaKind::Voter };
        RangeDescriptor {
            range: RANGE,
            span: KeySpan { start: key(start), end: key(end) },
            generation: Generation(3),
            replicas: [replica].into_iter().collect(),
            next_replica: ReplicaId(5),
        }
    }

    fn header(descriptor: RangeDescriptor) -> SnapshotHeader {
        let envelope =
            Envelope { range: RANGE, from: ReplicaId(1), to: ReplicaId(4), promised: 0, message: Bytes::new() };
        SnapshotHeader { id: SnapshotId { from: StoreId(1), number: 1 << 32 | 1 }, descriptor, envelope }
    }

    fn user(key: &str) -> Key {
        flotilla_types::keys::user(key.as_bytes())
    }

    fn sender(descriptor: &RangeDescriptor) -> MemoryEngine {
        let engine = MemoryEngine::new();
        let mut batch = WriteBatch::default();
        let record = |record| keys::range_record(RANGE, record);
        batch.put(record(RangeRecord::Descriptor), descriptor.encode());
        batch.put(record(RangeRecord::Applied), Applied::default().encode());
        batch.put(record(RangeRecord::ReplicaId), encode_replica_id(ReplicaId(1)));
        mvcc::write(&mut batch, &user("c"), Timestamp::from_wall(1), Some(b"new"), None);
        engine.write(&batch).unwrap();
        engine
    }

    fn transfer(from: &MemoryEngine, to: &MemoryEngine, header: &SnapshotHeader) -> Result<Vec<String>, IntakeError> {
        let view = from.snapshot();
        let spans = keys::spans(RANGE, &header.descriptor.span);
        let mut writer = FrameWriter::new(view.as_ref(), header.id, spans);
        let mut intake = Intake::new(header);
        while let Some(frame) = writer.next_frame().unwrap() {
            intake.accept(to, &frame)?;
        }
        Ok(intake.finish().unwrap())
    }

    #[test]
    fn a_receiver_ends_with_the_senders_content_its_own_id_and_nothing_of_its_former_span() {
        let (old, new) = (descriptor("a", "z"), descriptor("b", "m"));
        let (from, to) = (sender(&new), MemoryEngine::new());
        let mut before = WriteBatch::default();
        for key in ["a", "b", "c", "m", "y", "z"] {
            mvcc::write(&mut before, &user(key), Timestamp::from_wall(9), Some(b"old"), None);
        }
        to.write(&before).unwrap();
        let header = header(new.clone());
        let files = transfer(&from, &to, &header).unwrap();
        install(&to, header.id, &files, &cleared(RANGE, &old, &new)).unwrap();
        to.crash();
        let value = |key: &str| mvcc::newest(&to, &user(key)).unwrap().and_then(|version| version.value);
        assert_eq!(["a", "b", "m", "y"].map(value), [None, None, None, None]);
        assert_eq!(value("c"), Some(Bytes::from("new")));
        assert_eq!(value("z"), Some(Bytes::from("old")), "a neighbour's");
        let record = |record| to.get(&keys::range_record(RANGE, record)).unwrap().unwrap();
        assert!(Applied::decode(&record(RangeRecord::Applied)).unwrap().via_snapshot);
        assert_eq!(record(RangeRecord::ReplicaId), encode_replica_id(ReplicaId(4)));
    }

    #[test]
    fn a_snapshot_without_records_or_of_another_descriptor_is_refused() {
        let good = descriptor("b", "m");
        let to = MemoryEngine::new();
        let refused = |from: &MemoryEngine, header: &SnapshotHeader| {
            matches!(transfer(from, &to, header), Err(IntakeError::Frame(FrameError::Malformed(_))))
        };
        assert!(refused(&MemoryEngine::new(), &header(good.clone())));
        assert!(refused(&sender(&good), &header(descriptor("b", "n"))));
        let header = header(good.clone());
        assert!(transfer(&sender(&good), &to, &header).is_ok());
        to.discard_ssts(&file_prefix(header.id)).unwrap();
        assert!(to.ingest(&[format!("{}0", file_prefix(header.id))]).is_err(), "given up");
    }
}
