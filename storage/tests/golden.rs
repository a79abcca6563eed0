//! Stores that former versions wrote are read by this one: each directory of `golden/` is copied, opened with the real
//! code, and told in text, which must be the text that lies beside it.
//!
//! Files are only added: `write_golden` (ignored) makes the stores of a new version, in a directory that must not exist.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flotilla_storage::engine::{Engine, Reader, WriteBatch};
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::log::{Birth, HardState, LogBatch, LogEntry, LogOp, LogPos, LogStore, MetaKey, Promise};
use flotilla_storage::raft_log::{EngineLog, Tail};
use flotilla_storage::rocks::{RocksEngine, RocksOptions};
use flotilla_storage::state::{Applied, LeaseState, Thresholds, encode_replica_id};
use flotilla_storage::{flush_mark, mvcc};
use flotilla_types::{
    Generation, KeySpan, LogIndex, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind, RequestId,
    StoreId, StoreUuid, Term, Timestamp, keys as logical,
};

const VERSION: &str = "v1";
const STORE: StoreUuid = StoreUuid([7; 16]);
const OPTIONS: RocksOptions = RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 };
const CASES: [&str; 4] = ["clean", "mid-split", "mid-snapshot", "torn"];

fn golden(version: &str) -> PathBuf {
    // Tests run in the directory of their package, wherever it was when they were compiled.
    Path::new("golden").join(version)
}

fn pos(index: u64, term: u64) -> LogPos {
    LogPos { index: LogIndex(index), term: Term(term) }
}

fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: ReplicaId(vote), commit: LogIndex(commit) }
}

fn descriptor(range: u64, generation: u64, span: KeySpan) -> RangeDescriptor {
    let replica = |n, kind| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n), kind };
    RangeDescriptor {
        range: RangeId(range),
        span,
        generation: Generation(generation),
        replicas: [replica(1, ReplicaKind::Voter), replica(2, ReplicaKind::Learner)].into_iter().collect(),
        next_replica: ReplicaId(3),
    }
}

/// All that a store holds of a range, and something of every kind.
fn engine_content(batch: &mut WriteBatch, applied: Applied) {
    let record = |record| keys::range_record(RangeId(5), record);
    let span = KeySpan { start: logical::USER, end: logical::user(b"z") };
    batch.put(record(RangeRecord::Descriptor), descriptor(5, 4, span).encode());
    batch.put(record(RangeRecord::Applied), applied.encode());
    let lease = LeaseState {
        term: Term(6),
        replica: ReplicaId(1),
        store: StoreId(1),
        start: Timestamp { wall: 1_790_000_000_000_000_000, logical: 3 },
        ended: true,
        read_floor: Timestamp { wall: 1_790_000_000_000_000_001, logical: 0 },
        seq: 2,
    };
    batch.put(record(RangeRecord::Lease), lease.encode());
    let thresholds = Thresholds { gc: Timestamp::from_wall(1_780_000_000_000_000_000), dedup_floor_ms: 1_789_999 };
    batch.put(record(RangeRecord::Thresholds), thresholds.encode());
    batch.put(record(RangeRecord::ReplicaId), encode_replica_id(ReplicaId(1)));
    batch.put(keys::tombstone(RangeId(9)), encode_replica_id(ReplicaId(4)));
    let id = RequestId::new(1_790_000_000_123, 42, 7);
    let at = |wall: u64| Timestamp { wall: 1_790_000_000_000_000_000 + wall, logical: 1 };
    mvcc::write(batch, &logical::user(b"a"), at(1), Some(b"old"), Some(id));
    mvcc::write(batch, &logical::user(b"a"), at(2), Some(b"new"), None);
    mvcc::write(batch, &logical::user(b"nul\0key"), at(3), None, Some(id));
    batch.put(keys::finished(&logical::user(b"a"), id), Bytes::from_static(b"an answer"));
}

fn log_content(log: &EngineLog, birth: bool) {
    let range = RangeId(5);
    let entry = |index: u64, kind| LogEntry {
        pos: pos(index, 6),
        kind,
        data: Bytes::from(format!("entry {index}")),
        context: Bytes::from_static(b"context"),
    };
    let create = |range, birth| LogOp::Create {
        range: RangeId(range),
        replica: ReplicaId(1),
        birth,
        trunc: pos(10, 5),
        hard: hard(5, 0, 10),
    };
    let write = |ops| {
        log.write(&LogBatch { ops }).unwrap();
    };
    write(vec![
        LogOp::Meta { key: MetaKey::Identity, value: Bytes::from_static(b"who") },
        LogOp::Meta { key: MetaKey::Boot, value: Bytes::from_static(b"3") },
        LogOp::Meta { key: MetaKey::Bound, value: Bytes::from_static(b"until") },
        LogOp::Meta { key: MetaKey::Support(StoreId(2)), value: Bytes::from_static(b"row") },
        create(5, None),
    ]);
    write(vec![
        LogOp::Append { range, entries: vec![entry(11, 0), entry(12, 1), entry(13, 2)] },
        LogOp::Hard { range, hard: hard(6, 1, 12) },
    ]);
    let (term, leader) = (Term(6), ReplicaId(2));
    let promise = Promise { term, leader_replica: leader, leader_store: StoreId(2), epoch: 1 << 32 | 5 };
    write(vec![LogOp::Promise { range, promise: Some(promise) }]);
    if birth {
        let birth = Birth { parent: range, parent_replica: ReplicaId(1), at: LogIndex(13) };
        write(vec![create(7, Some(birth)), LogOp::Hard { range: RangeId(7), hard: hard(6, 1, 10) }]);
    }
}

/// What there is, in text.
fn tell(dir: &Path) -> String {
    let mut told = String::new();
    let engine = RocksEngine::open(&dir.join("kv"), OPTIONS).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut cursor = engine.cursor(&[], &[0xff]);
    let mut there = cursor.seek(&[]).unwrap();
    while there {
        writeln!(told, "kv {} = {}", hex(cursor.key()), hex(cursor.value())).unwrap();
        there = cursor.next().unwrap();
    }
    let range_record = |record| engine.get(&keys::range_record(RangeId(5), record)).unwrap().unwrap();
    let applied = Applied::decode(&range_record(RangeRecord::Applied)).unwrap();
    let lease = LeaseState::decode(&range_record(RangeRecord::Lease)).unwrap();
    let thresholds = Thresholds::decode(&range_record(RangeRecord::Thresholds)).unwrap();
    let descriptor = RangeDescriptor::decode(&range_record(RangeRecord::Descriptor)).unwrap();
    writeln!(
        told,
        "applied {} {} sum {} via snapshot {}",
        applied.pos.index, applied.pos.term, applied.sum, applied.via_snapshot
    )
    .unwrap();
    writeln!(told, "lease {} start {} ended {} floor {}", lease.term, lease.start, lease.ended, lease.read_floor)
        .unwrap();
    writeln!(told, "gc {} floor {}", thresholds.gc, thresholds.dedup_floor_ms).unwrap();
    writeln!(told, "descriptor {} {} {} replicas", descriptor.range, descriptor.span, descriptor.replicas.len())
        .unwrap();
    let newest = mvcc::newest(&engine, &logical::user(b"a")).unwrap().unwrap();
    writeln!(told, "newest of a: {:?} at {}", newest.value.unwrap(), newest.timestamp).unwrap();

    let (log, tail) = EngineLog::open(&dir.join("log"), STORE).unwrap();
    writeln!(told, "log {} batches, tail whole {}", log.seq().0, tail == Tail::Whole).unwrap();
    for (range, head) in log.heads() {
        let birth = head.birth.map(|birth| format!("{} {} {}", birth.parent, birth.parent_replica, birth.at));
        let promise = head.promise.map(|p| format!("{} {} {} {}", p.term, p.leader_replica, p.leader_store, p.epoch));
        writeln!(
            told,
            "head {range} {} from {} to {} hard {} {} {} birth {birth:?} promise {promise:?}",
            head.replica, head.trunc.index, head.last.index, head.hard.term, head.hard.vote, head.hard.commit
        )
        .unwrap();
        let entries = log.entries(range, head.trunc.index.next(), head.last.index.next(), usize::MAX).unwrap();
        for entry in entries {
            writeln!(told, "  {} {} kind {} {:?}", entry.pos.index, entry.pos.term, entry.kind, entry.data).unwrap();
        }
    }
    for (key, value) in log.metas() {
        writeln!(told, "meta {key:?} = {value:?}").unwrap();
    }
    told
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn stores_of_former_versions_are_read() {
    let mut read = 0;
    for version in fs::read_dir(golden("")).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        for case in fs::read_dir(&version).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
            let dir = tempfile::tempdir().unwrap();
            copy(&case, dir.path());
            let expected = fs::read_to_string(case.with_extension("txt")).unwrap();
            assert_eq!(tell(dir.path()), expected, "{}", case.display());
            read += 1;
        }
    }
    assert!(read >= CASES.len());
}

#[test]
#[ignore = "writes the stores of a new version"]
fn write_golden() {
    let version = golden(VERSION);
    assert!(!version.exists(), "{} is there: former stores are never changed", version.display());
    for case in CASES {
        let dir = version.join(case);
        fs::create_dir_all(&dir).unwrap();
        let engine = RocksEngine::open(&dir.join("kv"), OPTIONS).unwrap();
        let via_snapshot = case == "mid-snapshot";
        // In the midst of a snapshot the state is ahead of the log, which will be reset to it.
        let at = if via_snapshot { pos(40, 6) } else { pos(12, 6) };
        let mut batch = WriteBatch::default();
        let applied = Applied { pos: at, closed: Timestamp::ZERO, sum: 77, via_snapshot };
        engine_content(&mut batch, applied);
        engine.write(&batch).unwrap();
        flush_mark::put(&engine, 3, 9).unwrap();
        engine.flush().unwrap();
        drop(engine);
        let (log, _) = EngineLog::open(&dir.join("log"), STORE).unwrap();
        log_content(&log, case == "mid-split");
        drop(log);
        if case == "torn" {
            // A batch that was being written when the machine died.
            let newest = fs::read_dir(dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
            let newest = newest.filter(|path| path.extension().is_some_and(|e| e == "raftlog")).max().unwrap();
            let mut bytes = fs::read(&newest).unwrap();
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
            bytes.extend_from_slice(b"\0\0\0\0\0\0\x40\x01half of a ba");
            fs::write(newest, bytes).unwrap();
        }
        for litter in fs::read_dir(dir.join("kv")).unwrap().map(|entry| entry.unwrap().path()) {
            let name = litter.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with("LOG") || name == "LOCK" || name.starts_with("OPTIONS") {
                fs::remove_file(litter).unwrap();
            }
        }
        let told = dir.with_extension("txt");
        let scratch = tempfile::tempdir().unwrap();
        copy(&dir, scratch.path());
        fs::write(told, tell(scratch.path())).unwrap();
    }
}
