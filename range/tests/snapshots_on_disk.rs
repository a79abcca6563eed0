//! A snapshot between two engines on a disk: frames, sorted files, ingest.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

use bytes::Bytes;
use flotilla_range::check;
use flotilla_range::message::{Envelope, SnapshotHeader, SnapshotId};
use flotilla_range::snapshot::frames::FrameWriter;
use flotilla_range::snapshot::intake::{Intake, file_prefix, install};
use flotilla_storage::SstFile;
use flotilla_storage::engine::{Engine, Reader, WriteBatch};
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::mvcc;
use flotilla_storage::rocks::{RocksEngine, RocksOptions};
use flotilla_storage::state::{Applied, decode_replica_id, encode_replica_id};
use flotilla_types::{
    Generation, Key, KeySpan, LogIndex, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId,
    Timestamp, keys as logical,
};

const RANGE: RangeId = RangeId(7);

fn open(dir: &Path) -> RocksEngine {
    RocksEngine::open(dir, RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 }).unwrap()
}

fn user(n: u32) -> Key {
    logical::user(format!("k{n:06}").as_bytes())
}

fn descriptor(from: u32, to: u32) -> RangeDescriptor {
    let replica = |n| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n), kind: ReplicaKind::Voter };
    RangeDescriptor {
        range: RANGE,
        span: KeySpan::new(user(from), user(to)).unwrap(),
        generation: Generation(4),
        replicas: [replica(1), replica(2)].into_iter().collect(),
        next_replica: ReplicaId(3),
    }
}

fn fill(engine: &dyn Engine, keys: std::ops::Range<u32>, value: &[u8]) {
    let mut batch = WriteBatch::default();
    for n in keys {
        mvcc::write(&mut batch, &user(n), Timestamp::from_wall(5), Some(value), None);
    }
    engine.write(&batch).unwrap();
}

#[test]
fn a_snapshot_replaces_what_was_there_survives_without_a_flush_and_leaves_neighbours_alone() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sender = open(from.path());
    let new = descriptor(1000, 3000);
    let mut records = WriteBatch::default();
    records.put(keys::range_record(RANGE, RangeRecord::Descriptor), new.encode());
    records.put(keys::range_record(RANGE, RangeRecord::Applied), Applied::default().encode());
    records.put(keys::range_record(RANGE, RangeRecord::ReplicaId), encode_replica_id(ReplicaId(1)));
    sender.write(&records).unwrap();
    fill(&sender, 0..4000, &[7; 2000]);
    let view = sender.snapshot();

    let envelope = Envelope { range: RANGE, from: ReplicaId(1), to: ReplicaId(2), promised: 0, message: Bytes::new() };
    let header = SnapshotHeader { id: SnapshotId { from: StoreId(1), number: 9 }, descriptor: new.clone(), envelope };
    let receiver = open(to.path());
    // Partly flushed and partly not, beyond the new span and around it.
    fill(&receiver, 500..2000, b"old");
    receiver.flush().unwrap();
    fill(&receiver, 1500..3500, b"old");
    fill(&receiver, 3500..3600, b"a neighbour's");

    let mut writer = FrameWriter::new(view.as_ref(), header.id, keys::spans(RANGE, &new.span));
    let mut intake = Intake::new(&header);
    while let Some(frame) = writer.next_frame().unwrap() {
        intake.accept(&receiver, &frame).unwrap();
    }
    let files = intake.finish().unwrap();
    // What the fleet would say of a replica that held [500, 3500).
    let empty = |from: u32, to: u32| {
        let (start, end) = keys::version_span(&KeySpan::new(user(from), user(to)).unwrap());
        SstFile { start, end, pairs: Vec::new() }
    };
    install(&receiver, header.id, &files, &[empty(500, 1000), empty(3000, 3500)]).unwrap();

    let count = |engine: &dyn Reader, from: u32, to: u32| {
        let (start, end) = keys::version_span(&KeySpan::new(user(from), user(to)).unwrap());
        let mut cursor = engine.cursor(&start, &end);
        let (mut count, mut there) = (0, cursor.seek(&start).unwrap());
        while there {
            count += 1;
            there = cursor.next().unwrap();
        }
        count
    };
    let hash = |engine: &dyn Reader| check::hash(engine, &new, ReplicaId(0), LogIndex(0)).unwrap();
    let holds = |engine: &RocksEngine| {
        assert_eq!(hash(engine), hash(view.as_ref()));
        assert_eq!([count(engine, 500, 1000), count(engine, 3000, 3500), count(engine, 3500, 4000)], [0, 0, 100]);
        let record = |record| engine.get(&keys::range_record(RANGE, record)).unwrap().unwrap();
        assert!(Applied::decode(&record(RangeRecord::Applied)).unwrap().via_snapshot);
        assert_eq!(decode_replica_id(&record(RangeRecord::ReplicaId)), Ok(ReplicaId(2)));
    };
    holds(&receiver);
    let key = keys::range_record(RANGE, RangeRecord::ReplicaId);
    assert!(receiver.get_flushed(&key).unwrap().is_some(), "durable without a flush");
    drop(receiver);
    holds(&open(to.path()));
}

#[test]
fn files_of_a_broken_transfer_can_be_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let id = SnapshotId { from: StoreId(1), number: 1 };
    let other = SnapshotId { from: StoreId(1), number: 17 };
    let file = SstFile { start: vec![5, 1], end: vec![5, 2], pairs: vec![(vec![5, 1, 1], Bytes::from("v"))] };
    for id in [id, other] {
        engine.build_sst(&format!("{}0", file_prefix(id)), &file).unwrap();
    }
    engine.discard_ssts(&file_prefix(id)).unwrap();
    assert!(engine.ingest(&[format!("{}0", file_prefix(id))]).is_err());
    engine.ingest(&[format!("{}0", file_prefix(other))]).unwrap();
}
