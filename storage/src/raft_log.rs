//! The Raft log on a disk: `LogStore` on raft-engine (docs/durability.md, "Log").
//!
//! One raft-engine group per range, whose raw keys hold what is not an entry: `o` owner, `b` birth, `t` truncated
//! position, `h` hard state, `p` promise. Group 0 holds the store's own facts and the sequence of synced batches. Heads
//! and facts are also kept in memory; entries are read from the engine, and a recent one hardly ever, since replicas
//! keep their unapplied entries themselves.
//!
//! raft-engine recovers a damaged tail by cutting it, whether it was synced or not. `mark` and the doctor's checks at
//! opening find out; the caller then fences the store instead of letting it vote with a shorter memory.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_types::{LogIndex, RangeId, RecordError, RecordReader, RecordWriter, ReplicaId, StoreId, StoreUuid, Term};
use raft_engine::{Command, Config, Engine, Error, LogBatch as EngineBatch, MessageExt, ReadableSize, RecoveryMode};
use raft_proto::eraftpb;

use crate::log::{
    Birth, HardState, LogBatch, LogEntry, LogFatal, LogHead, LogOp, LogPos, LogSeq, LogStore, MetaKey, Promise,
    ReadLogError,
};
use crate::{doctor, mark};

const STORE_GROUP: u64 = 0;
const SEQ: &[u8] = b"seq";
const OWNER: &[u8] = b"o";
const BIRTH: &[u8] = b"b";
const TRUNCATED: &[u8] = b"t";
const HARD: &[u8] = b"h";
const PROMISE: &[u8] = b"p";
const VERSION: u8 = 1;
/// raft-engine 0.4.2 sometimes misses a file that a purge is rewriting (its pull requests 370 and 382); a fresh look-up
/// finds the entry.
const READ_ATTEMPTS: usize = 3;

/// Tells raft-engine where an entry keeps its index.
struct Entries;

impl MessageExt for Entries {
    type Entry = eraftpb::Entry;

    fn index(entry: &eraftpb::Entry) -> u64 {
        entry.index
    }
}

/// Whether a log still has all that it ever synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// As far as this disk can tell.
    Whole,
    /// The log ends before a batch that was synced: this store may have forgotten votes and must be fenced.
    Lost {
        /// The newest batch found.
        found: LogSeq,
        /// The newest batch that was synced.
        synced: LogSeq,
    },
}

#[derive(Debug, Default)]
struct Memory {
    heads: BTreeMap<RangeId, LogHead>,
    metas: BTreeMap<MetaKey, Bytes>,
    seq: LogSeq,
}

/// The log of one store.
pub struct EngineLog {
    engine: Engine,
    memory: Mutex<Memory>,
    mark: Mutex<mark::SyncMark>,
}

impl EngineLog {
    /// Opens the log in a directory of its own, or makes a new one there.
    ///
    /// # Errors
    /// The disk failed or is full, or files are missing or damaged. A cut tail is no error: see [`Tail`].
    pub fn open(dir: &Path, store: StoreUuid) -> Result<(Self, Tail), LogFatal> {
        let io = |error: std::io::Error| LogFatal::Io(error.to_string());
        std::fs::create_dir_all(dir).map_err(io)?;
        doctor::examine(dir)?;
        let engine = guarded("open the log", || Engine::open(config(dir)))?;
        let memory = recover(&engine)?;
        let (mark, synced) = mark::SyncMark::open(&dir.join("sync.mark"), store).map_err(io)?;
        let found = memory.seq;
        let tail = if found < synced { Tail::Lost { found, synced } } else { Tail::Whole };
        Ok((Self { engine, memory: Mutex::new(memory), mark: Mutex::new(mark) }, tail))
    }

    /// Writers replace whole values, so the content is good even if one panicked.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch(&self, range: RangeId, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogEntry>, String> {
        let mut found: Vec<eraftpb::Entry> = Vec::new();
        let fetched = catch_unwind(AssertUnwindSafe(|| {
            self.engine.fetch_entries_to::<Entries>(range.0, from.0, to.0, Some(bytes_max), &mut found)
        }));
        match fetched {
            Ok(Ok(_)) => Ok(found.into_iter().map(entry_from_raft).collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the log engine panicked".to_owned()),
        }
    }
}

fn config(dir: &Path) -> Config {
    Config {
        dir: dir.to_string_lossy().into_owned(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize::mb(64),
        purge_threshold: ReadableSize::gb(2),
        enable_log_recycle: false,
        prefill_for_recycle: false,
        ..Config::default()
    }
}

/// Runs a call into raft-engine, which panics on some failures of the disk.
fn guarded<T>(action: &str, call: impl FnOnce() -> Result<T, Error>) -> Result<T, LogFatal> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(sort(action, &error)),
        Err(_) => Err(LogFatal::Io(format!("{action}: the log engine panicked"))),
    }
}

fn sort(action: &str, error: &Error) -> LogFatal {
    match error {
        Error::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => LogFatal::DiskFull,
        Error::Io(_) | Error::TryAgain(_) => LogFatal::Io(format!("{action}: {error}")),
        _ => LogFatal::Damaged(format!("{action}: {error}")),
    }
}

fn recover(engine: &Engine) -> Result<Memory, LogFatal> {
    let damaged = |range: u64, what: &str| LogFatal::Damaged(format!("the log of r{range}: {what}"));
    let mut memory = Memory::default();
    for group in engine.raft_groups() {
        if group == STORE_GROUP {
            continue;
        }
        let head = recover_head(engine, group).map_err(|error| damaged(group, &error.to_string()))?;
        memory.heads.insert(RangeId(group), head);
    }
    let scanned = engine.scan_raw_messages(STORE_GROUP, None, None, false, |key, value| {
        if key == SEQ {
            memory.seq = LogSeq(value.try_into().map_or(0, u64::from_be_bytes));
        } else if let Some(key) = decode_meta(key) {
            memory.metas.insert(key, Bytes::copy_from_slice(value));
        }
        true
    });
    scanned.map_err(|error| sort("read the store's facts", &error))?;
    Ok(memory)
}

fn recover_head(engine: &Engine, group: u64) -> Result<LogHead, RecordError> {
    let raw = |key: &[u8]| engine.get(group, key).unwrap_or_default();
    let owner = RecordReader::new("log owner", VERSION, &raw(OWNER))?.u64().map(ReplicaId)?;
    let trunc = decode_pos(&raw(TRUNCATED))?;
    let (hard, hard_last) = decode_hard(&raw(HARD))?;
    let birth = engine.get(group, BIRTH).map(|bytes| decode_birth(&bytes)).transpose()?;
    let promise = engine.get(group, PROMISE).map(|bytes| decode_promise(&bytes)).transpose()?;
    let last = engine.last_index(group).filter(|index| *index > trunc.index.0);
    let last = match last.and_then(|index| engine.get_entry::<Entries>(group, index).ok().flatten()) {
        Some(entry) => LogPos { index: LogIndex(entry.index), term: Term(entry.term) },
        None => trunc,
    };
    Ok(LogHead { replica: owner, birth, hard, hard_last, promise, trunc, last })
}

impl LogStore for EngineLog {
    fn write(&self, batch: &LogBatch) -> Result<LogSeq, LogFatal> {
        let mut out = EngineBatch::with_capacity(batch.ops.len() + 1);
        let (mut heads, mut metas) = (BTreeMap::new(), BTreeMap::new());
        for op in &batch.ops {
            let mut staged = Staged { log: self, heads: &mut heads, metas: &mut metas, out: &mut out };
            staged.stage(op).map_err(|error| sort("stage a log batch", &error))?;
        }
        let seq = LogSeq(self.memory().seq.0 + 1);
        out.put(STORE_GROUP, SEQ.to_vec(), seq.0.to_be_bytes().to_vec())
            .map_err(|error| sort("stage a log batch", &error))?;
        guarded("write and sync the log", || self.engine.write(&mut out, true))?;
        let marked = self.mark.lock().unwrap_or_else(PoisonError::into_inner).note(seq);
        marked.map_err(|error| LogFatal::Io(format!("write the log's mark: {error}")))?;
        let mut memory = self.memory();
        memory.seq = seq;
        memory.metas.append(&mut metas);
        for (range, head) in heads {
            match head {
                Some(head) => memory.heads.insert(range, head),
                None => memory.heads.remove(&range),
            };
        }
        Ok(seq)
    }

    fn entries(
        &self,
        range: RangeId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError> {
        let head = self.memory().heads.get(&range).copied();
        let head = head.ok_or_else(|| ReadLogError::Damaged(format!("{range} has no log here")))?;
        if from <= head.trunc.index {
            return Err(ReadLogError::Gone(head.trunc.index.next()));
        }
        let mut refused = String::new();
        for _ in 0..READ_ATTEMPTS {
            match self.fetch(range, from, to, bytes_max) {
                Ok(entries) => return Ok(entries),
                Err(error) => refused = error,
            }
        }
        Err(ReadLogError::Damaged(refused))
    }

    fn heads(&self) -> Vec<(RangeId, LogHead)> {
        self.memory().heads.iter().map(|(range, head)| (*range, *head)).collect()
    }

    fn meta(&self, key: MetaKey) -> Option<Bytes> {
        self.memory().metas.get(&key).cloned()
    }

    fn metas(&self) -> Vec<(MetaKey, Bytes)> {
        self.memory().metas.iter().map(|(key, value)| (*key, value.clone())).collect()
    }

    fn seq(&self) -> LogSeq {
        self.memory().seq
    }

    fn purge(&self) -> Result<Vec<RangeId>, LogFatal> {
        let pinning = guarded("purge the log", || self.engine.purge_expired_files())?;
        Ok(pinning.into_iter().filter(|group| *group != STORE_GROUP).map(RangeId).collect())
    }

    fn used_bytes(&self) -> u64 {
        self.engine.get_used_size() as u64
    }
}

/// Turns operations into raft-engine's, and keeps the heads as they will be.
struct Staged<'a> {
    log: &'a EngineLog,
    /// `None`: the range's log is removed.
    heads: &'a mut BTreeMap<RangeId, Option<LogHead>>,
    metas: &'a mut BTreeMap<MetaKey, Bytes>,
    out: &'a mut EngineBatch,
}

impl Staged<'_> {
    fn stage(&mut self, op: &LogOp) -> Result<(), Error> {
        match op {
            LogOp::Create { range, replica, birth, trunc, hard } => {
                let head = LogHead {
                    replica: *replica,
                    birth: *birth,
                    hard: *hard,
                    hard_last: *trunc,
                    promise: None,
                    trunc: *trunc,
                    last: *trunc,
                };
                self.rewrite(*range, head)
            }
            LogOp::Reset { range, at, hard } => {
                let head = self.head(*range)?;
                self.rewrite(*range, LogHead { hard: *hard, hard_last: *at, trunc: *at, last: *at, ..head })
            }
            LogOp::Append { range, entries } => self.append(*range, entries),
            LogOp::Hard { range, hard } => {
                let head = self.head(*range)?;
                self.put_hard(*range, LogHead { hard: *hard, hard_last: head.last, ..head })
            }
            LogOp::Truncate { range, through } => {
                let head = self.head(*range)?;
                self.out.add_command(range.0, Command::Compact { index: through.index.0 + 1 });
                self.out.put(range.0, TRUNCATED.to_vec(), encode_pos(*through))?;
                self.keep(*range, LogHead { trunc: *through, last: head.last.max(*through), ..head });
                Ok(())
            }
            LogOp::Promise { range, promise } => {
                let head = self.head(*range)?;
                self.put_optional(*range, PROMISE, promise.map(|promise| encode_promise(&promise)))?;
                self.keep(*range, LogHead { promise: *promise, ..head });
                Ok(())
            }
            LogOp::DropBirth { range } => {
                let head = self.head(*range)?;
                self.out.delete(range.0, BIRTH.to_vec());
                self.keep(*range, LogHead { birth: None, ..head });
                Ok(())
            }
            LogOp::Remove { range } => {
                self.out.add_command(range.0, Command::Clean);
                self.heads.insert(*range, None);
                Ok(())
            }
            LogOp::Meta { key, value } => {
                self.out.put(STORE_GROUP, encode_meta(*key), value.to_vec())?;
                self.metas.insert(*key, value.clone());
                Ok(())
            }
        }
    }

    /// Drops whatever the range's log held and writes everything but entries anew.
    fn rewrite(&mut self, range: RangeId, head: LogHead) -> Result<(), Error> {
        self.out.add_command(range.0, Command::Clean);
        self.out.put(range.0, OWNER.to_vec(), RecordWriter::new(VERSION).u64(head.replica.0).finish())?;
        self.out.put(range.0, TRUNCATED.to_vec(), encode_pos(head.trunc))?;
        // The Clean before took the optional ones away.
        for (key, value) in
            [(BIRTH, head.birth.map(|b| encode_birth(&b))), (PROMISE, head.promise.map(|p| encode_promise(&p)))]
        {
            if let Some(value) = value {
                self.out.put(range.0, key.to_vec(), value)?;
            }
        }
        self.put_hard(range, head)
    }

    fn append(&mut self, range: RangeId, entries: &[LogEntry]) -> Result<(), Error> {
        let head = self.head(range)?;
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let gap = first.pos.index <= head.trunc.index || first.pos.index > head.last.index.next();
        if gap {
            let what = format!(
                "{range}: append at {} to a log of ({}, {}]",
                first.pos.index, head.trunc.index, head.last.index
            );
            return Err(Error::InvalidArgument(what));
        }
        let entries: Vec<_> = entries.iter().map(entry_to_raft).collect();
        self.out.add_entries::<Entries>(range.0, &entries)?;
        self.keep(range, LogHead { last: last.pos, ..head });
        Ok(())
    }

    fn put_hard(&mut self, range: RangeId, head: LogHead) -> Result<(), Error> {
        self.out.put(range.0, HARD.to_vec(), encode_hard(&head.hard, head.hard_last))?;
        self.keep(range, head);
        Ok(())
    }

    fn put_optional(&mut self, range: RangeId, key: &[u8], value: Option<Vec<u8>>) -> Result<(), Error> {
        match value {
            Some(value) => self.out.put(range.0, key.to_vec(), value),
            None => {
                self.out.delete(range.0, key.to_vec());
                Ok(())
            }
        }
    }

    fn head(&self, range: RangeId) -> Result<LogHead, Error> {
        let staged = self.heads.get(&range).copied();
        let head = staged.unwrap_or_else(|| self.log.memory().heads.get(&range).copied());
        head.ok_or_else(|| Error::InvalidArgument(format!("{range} has no log here: create it first")))
    }

    fn keep(&mut self, range: RangeId, head: LogHead) {
        self.heads.insert(range, Some(head));
    }
}

fn entry_to_raft(entry: &LogEntry) -> eraftpb::Entry {
    let mut raft = eraftpb::Entry { index: entry.pos.index.0, term: entry.pos.term.0, ..Default::default() };
    raft.set_entry_type(match entry.kind {
        1 => eraftpb::EntryType::EntryConfChange,
        2 => eraftpb::EntryType::EntryConfChangeV2,
        _ => eraftpb::EntryType::EntryNormal,
    });
    raft.data = entry.data.clone();
    raft.context = entry.context.clone();
    raft
}

fn entry_from_raft(raft: eraftpb::Entry) -> LogEntry {
    let kind = match raft.get_entry_type() {
        eraftpb::EntryType::EntryNormal => 0,
        eraftpb::EntryType::EntryConfChange => 1,
        eraftpb::EntryType::EntryConfChangeV2 => 2,
    };
    let pos = LogPos { index: LogIndex(raft.index), term: Term(raft.term) };
    LogEntry { pos, kind, data: raft.data, context: raft.context }
}

fn encode_pos(pos: LogPos) -> Vec<u8> {
    RecordWriter::new(VERSION).u64(pos.index.0).u64(pos.term.0).finish()
}

fn decode_pos(bytes: &[u8]) -> Result<LogPos, RecordError> {
    let mut record = RecordReader::new("truncated position", VERSION, bytes)?;
    let pos = LogPos { index: LogIndex(record.u64()?), term: Term(record.u64()?) };
    record.end()?;
    Ok(pos)
}

fn encode_hard(hard: &HardState, last: LogPos) -> Vec<u8> {
    let record = RecordWriter::new(VERSION).u64(hard.term.0).u64(hard.vote.0).u64(hard.commit.0);
    record.u64(last.index.0).u64(last.term.0).finish()
}

fn decode_hard(bytes: &[u8]) -> Result<(HardState, LogPos), RecordError> {
    let mut record = RecordReader::new("hard state", VERSION, bytes)?;
    let hard = HardState { term: Term(record.u64()?), vote: ReplicaId(record.u64()?), commit: LogIndex(record.u64()?) };
    let last = LogPos { index: LogIndex(record.u64()?), term: Term(record.u64()?) };
    record.end()?;
    Ok((hard, last))
}

fn encode_birth(birth: &Birth) -> Vec<u8> {
    RecordWriter::new(VERSION).u64(birth.parent.0).u64(birth.parent_replica.0).u64(birth.at.0).finish()
}

fn decode_birth(bytes: &[u8]) -> Result<Birth, RecordError> {
    let mut record = RecordReader::new("birth", VERSION, bytes)?;
    let (parent, parent_replica) = (RangeId(record.u64()?), ReplicaId(record.u64()?));
    let birth = Birth { parent, parent_replica, at: LogIndex(record.u64()?) };
    record.end()?;
    Ok(birth)
}

fn encode_promise(promise: &Promise) -> Vec<u8> {
    let record = RecordWriter::new(VERSION).u64(promise.term.0).u64(promise.leader_replica.0);
    record.u64(promise.leader_store.0).u64(promise.epoch).finish()
}

fn decode_promise(bytes: &[u8]) -> Result<Promise, RecordError> {
    let mut record = RecordReader::new("promise", VERSION, bytes)?;
    let (term, leader_replica) = (Term(record.u64()?), ReplicaId(record.u64()?));
    let promise = Promise { term, leader_replica, leader_store: StoreId(record.u64()?), epoch: record.u64()? };
    record.end()?;
    Ok(promise)
}

fn encode_meta(key: MetaKey) -> Vec<u8> {
    match key {
        MetaKey::Identity => b"identity".to_vec(),
        MetaKey::Boot => b"boot".to_vec(),
        MetaKey::Bound => b"bound".to_vec(),
        MetaKey::Support(store) => [&b"S"[..], &store.0.to_be_bytes()].concat(),
    }
}

fn decode_meta(key: &[u8]) -> Option<MetaKey> {
    match key {
        b"identity" => Some(MetaKey::Identity),
        b"boot" => Some(MetaKey::Boot),
        b"bound" => Some(MetaKey::Bound),
        [b'S', store @ ..] => Some(MetaKey::Support(StoreId(u64::from_be_bytes(store.try_into().ok()?)))),
        _ => None,
    }
}
