//! The log on a disk gives the same answers as its twin in memory, over restarts; what a disk may do to it is noticed;
//! and the writer merges what waits into one sync.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use bytes::Bytes;
use flotilla_storage::log::{
    Birth, HardState, LogBatch, LogEntry, LogFatal, LogHead, LogOp, LogPos, LogSeq, LogStore, MetaKey, Promise,
    ReadLogError,
};
use flotilla_storage::memory_log::MemoryLog;
use flotilla_storage::raft_log::{EngineLog, Tail};
use flotilla_storage::writer::{LogObserver, LogPriority, LogWriter, Submission};
use flotilla_types::{LogIndex, RangeId, ReplicaId, StoreId, StoreUuid, Term};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const STORE: StoreUuid = StoreUuid([7; 16]);

fn open(dir: &Path) -> EngineLog {
    let (log, tail) = EngineLog::open(dir, STORE).unwrap();
    assert_eq!(tail, Tail::Whole);
    log
}

fn pos(index: u64, term: u64) -> LogPos {
    LogPos { index: LogIndex(index), term: Term(term) }
}

fn entry(index: u64, term: u64, data: &[u8]) -> LogEntry {
    LogEntry {
        pos: pos(index, term),
        kind: (index % 3) as u8,
        data: Bytes::copy_from_slice(data),
        context: Bytes::new(),
    }
}

fn hard(term: u64, commit: u64) -> HardState {
    HardState { term: Term(term), vote: ReplicaId(term % 3), commit: LogIndex(commit) }
}

fn create(range: u64) -> LogOp {
    let trunc = pos(10, 5);
    LogOp::Create { range: RangeId(range), replica: ReplicaId(range), birth: None, trunc, hard: hard(5, 10) }
}

fn batch(ops: Vec<LogOp>) -> LogBatch {
    LogBatch { ops }
}

/// An operation that makes sense on a log with this head.
fn random_op(random: &mut StdRng, range: RangeId, head: LogHead, term: u64) -> LogOp {
    let within = |random: &mut StdRng| random.random_range(head.trunc.index.0..=head.last.index.0);
    match random.random_range(0..12) {
        0 => LogOp::Hard { range, hard: hard(term, head.last.index.0) },
        1 => {
            let index = within(random);
            LogOp::Truncate { range, through: pos(index, term) }
        }
        2 => {
            let promise =
                Promise { term: Term(term), leader_replica: ReplicaId(1), leader_store: StoreId(2), epoch: 3 };
            LogOp::Promise { range, promise: random.random::<bool>().then_some(promise) }
        }
        3 => LogOp::Reset { range, at: pos(head.last.index.0 + 5, term), hard: hard(term, head.last.index.0 + 5) },
        4 => LogOp::DropBirth { range },
        5 => {
            let birth = Birth { parent: RangeId(99), parent_replica: ReplicaId(4), at: LogIndex(12) };
            let trunc = pos(10, 5);
            LogOp::Create { range, replica: head.replica.next(), birth: Some(birth), trunc, hard: hard(term, 10) }
        }
        6 => LogOp::Meta { key: MetaKey::Support(StoreId(term % 3)), value: Bytes::from(term.to_string()) },
        _ => {
            // Sometimes over the tail that is there already.
            let first = if random.random_bool(0.3) { within(random) + 1 } else { head.last.index.0 + 1 };
            let count = random.random_range(1..5);
            let data = vec![term as u8; random.random_range(0..300)];
            LogOp::Append { range, entries: (first..first + count).map(|index| entry(index, term, &data)).collect() }
        }
    }
}

fn compare(disk: &EngineLog, memory: &MemoryLog) {
    assert_eq!(disk.heads(), memory.heads());
    assert_eq!(disk.metas(), memory.metas());
    assert_eq!(disk.seq(), memory.seq());
    for (range, head) in memory.heads() {
        let (from, to) = (head.trunc.index.next(), head.last.index.next());
        if from < to {
            assert_eq!(disk.entries(range, from, to, usize::MAX), memory.entries(range, from, to, usize::MAX));
        }
        let gone = Err(ReadLogError::Gone(from));
        assert_eq!(disk.entries(range, head.trunc.index, to, 1), gone);
    }
}

#[test]
fn both_logs_answer_alike_over_restarts() {
    for seed in 0..3 {
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let (mut disk, memory) = (open(dir.path()), MemoryLog::new());
        let first = batch((1..4).map(create).collect());
        disk.write(&first).unwrap();
        memory.write(&first).unwrap();
        for step in 0..200 {
            let heads = memory.heads();
            let (range, head) = heads[random.random_range(0..heads.len())];
            let op = random_op(&mut random, range, head, 5 + step);
            // Two ranges in one batch, so that batches are more than their parts.
            let ops = batch(vec![op, LogOp::Meta { key: MetaKey::Boot, value: Bytes::from(step.to_string()) }]);
            disk.write(&ops).unwrap();
            memory.write(&ops).unwrap();
            if random.random_bool(0.05) {
                drop(disk);
                disk = open(dir.path());
                compare(&disk, &memory);
            }
        }
        compare(&disk, &memory);
        let remove = batch(vec![LogOp::Remove { range: RangeId(1) }]);
        disk.write(&remove).unwrap();
        memory.write(&remove).unwrap();
        drop(disk);
        compare(&open(dir.path()), &memory);
    }
}

fn newest_file(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "raftlog")).max().unwrap()
}

/// A log of one range with some batches, and what its only file held after each of them.
fn written(dir: &Path, batches: u64) -> Vec<usize> {
    let log = open(dir);
    log.write(&batch(vec![create(1)])).unwrap();
    let used = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count()
    };
    (0..batches)
        .map(|n| {
            log.write(&batch(vec![LogOp::Append { range: RangeId(1), entries: vec![entry(11 + n, 5, b"payload")] }]))
                .unwrap();
            used(&newest_file(dir))
        })
        .collect()
}

#[test]
fn a_synced_tail_that_is_gone_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let ends = written(dir.path(), 5);
    let file = newest_file(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    // A flipped bit in the header of a batch in the middle: the engine cuts off all that follows.
    bytes[ends[2] + 1] ^= 0xff;
    fs::write(&file, bytes).unwrap();
    let (log, tail) = EngineLog::open(dir.path(), STORE).unwrap();
    assert_eq!(log.heads()[0].1.last, pos(13, 5));
    assert_eq!(tail, Tail::Lost { found: LogSeq(4), synced: LogSeq(6) });
}

#[test]
fn a_file_missing_between_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 1);
    let file = newest_file(dir.path());
    fs::copy(&file, file.with_file_name("0000000000000003.raftlog")).unwrap();
    assert!(matches!(EngineLog::open(dir.path(), STORE), Err(LogFatal::Damaged(_))));
}

#[test]
fn an_entry_that_is_damaged_is_reported_not_returned() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), 3);
    let file = newest_file(dir.path());
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(7).position(|window| window == b"payload").unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let (log, tail) = EngineLog::open(dir.path(), STORE).unwrap();
    assert_eq!(tail, Tail::Whole);
    let read = log.entries(RangeId(1), LogIndex(11), LogIndex(12), usize::MAX);
    assert!(matches!(read, Err(ReadLogError::Damaged(_))), "{read:?}");
}

#[test]
fn an_append_that_would_leave_a_gap_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let logs: [Box<dyn LogStore>; 2] = [Box::new(open(dir.path())), Box::new(MemoryLog::new())];
    for log in logs {
        log.write(&batch(vec![create(1)])).unwrap();
        let gap = batch(vec![LogOp::Append { range: RangeId(1), entries: vec![entry(13, 5, b"")] }]);
        assert!(log.write(&gap).is_err());
        let nowhere = batch(vec![LogOp::Hard { range: RangeId(2), hard: hard(5, 10) }]);
        assert!(log.write(&nowhere).is_err());
    }
}

/// A log whose writes wait until they are let through.
#[derive(Default)]
struct Gate {
    log: MemoryLog,
    open: Mutex<bool>,
    opened: Condvar,
    entered: Condvar,
    waiting: Mutex<usize>,
    batches: Mutex<Vec<usize>>,
}

impl Gate {
    fn wait_until_writing(&self) {
        let waiting = self.waiting.lock().unwrap();
        drop(self.entered.wait_while(waiting, |waiting| *waiting == 0).unwrap());
    }

    fn let_through(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl LogStore for Gate {
    fn write(&self, batch: &LogBatch) -> Result<LogSeq, LogFatal> {
        *self.waiting.lock().unwrap() += 1;
        self.entered.notify_all();
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
        self.batches.lock().unwrap().push(batch.ops.len());
        self.log.write(batch)
    }

    fn entries(&self, range: RangeId, from: LogIndex, to: LogIndex, max: usize) -> Result<Vec<LogEntry>, ReadLogError> {
        self.log.entries(range, from, to, max)
    }

    fn heads(&self) -> Vec<(RangeId, LogHead)> {
        self.log.heads()
    }

    fn meta(&self, key: MetaKey) -> Option<Bytes> {
        self.log.meta(key)
    }

    fn metas(&self) -> Vec<(MetaKey, Bytes)> {
        self.log.metas()
    }

    fn seq(&self) -> LogSeq {
        self.log.seq()
    }

    fn purge(&self) -> Result<Vec<RangeId>, LogFatal> {
        self.log.purge()
    }

    fn used_bytes(&self) -> u64 {
        self.log.used_bytes()
    }
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl LogObserver for Heard {
    fn synced(&mut self, submissions: usize, _: Instant) {
        self.0.lock().unwrap().push(format!("synced {submissions}"));
    }

    fn failed(&mut self, error: LogFatal) {
        self.0.lock().unwrap().push(format!("failed: {error}"));
    }
}

fn submission(op: LogOp, done: &Arc<Mutex<Vec<LogSeq>>>) -> Submission {
    let done = Arc::clone(done);
    Submission { ops: vec![op], done: Box::new(move |seq| done.lock().unwrap().push(seq)) }
}

#[test]
fn what_waits_during_a_sync_is_written_in_one_batch() {
    let (gate, heard, done) = (Arc::new(Gate::default()), Heard::default(), Arc::default());
    let writer = LogWriter::spawn(Arc::clone(&gate) as Arc<dyn LogStore>, LogPriority::Raised, heard.clone()).unwrap();
    writer.submit(submission(create(1), &done)).unwrap();
    gate.wait_until_writing();
    assert!(writer.writing_for().is_some());
    for range in 2..6 {
        writer.submit(submission(create(range), &done)).unwrap();
    }
    assert!(done.lock().unwrap().is_empty(), "nothing is told before it is durable");
    gate.let_through();
    drop(writer);
    assert_eq!(*gate.batches.lock().unwrap(), [1, 4]);
    assert_eq!(*done.lock().unwrap(), [1, 2, 2, 2, 2].map(LogSeq));
    assert_eq!(*heard.0.lock().unwrap(), ["synced 1", "synced 4"]);
}

#[test]
fn after_a_failed_write_nothing_is_told_durable() {
    let (log, heard, done) = (Arc::new(MemoryLog::new()), Heard::default(), Arc::default());
    let writer = LogWriter::spawn(log, LogPriority::Normal, heard.clone()).unwrap();
    writer.submit(submission(LogOp::DropBirth { range: RangeId(1) }, &done)).unwrap();
    drop(writer);
    assert!(done.lock().unwrap().is_empty());
    assert_eq!(heard.0.lock().unwrap().len(), 1);
}
