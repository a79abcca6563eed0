//! The library's view of one replica's log: a cache of recent entries before the durable log.
//!
//! Promises: every entry that is not yet durable, and every durable one that is not yet applied, unless it was there at
//! the start, is in the cache; so a read that the library may not see fail touches the disk only for entries that were
//! durable before. A leader keeps applied entries for its followers within a byte budget. Positions below the cache are
//! read in the call. The configuration and the snapshot position are those of the applied state.

use std::collections::{BTreeSet, VecDeque};

use flotilla_storage::log::{HardState, LogEntry, LogPos, ReadLogError};
use flotilla_types::{LogIndex, RangeId, ReplicaId, Term};
use raft::eraftpb::{ConfState, Entry, EntryType, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use super::types::Reader;

/// Bytes that an entry weighs beyond its proposal.
const ENTRY_OVERHEAD: usize = 96;

pub(crate) struct LogView {
    range: RangeId,
    reader: Reader,
    /// What the library starts with.
    hard: HardState,
    /// The applied configuration.
    pub(crate) conf: ConfState,
    /// Everything at or below was given up.
    pub(crate) trunc: LogPos,
    /// Last entry, durable or not.
    pub(crate) last: LogPos,
    /// Invariant: trunc.index <= applied.index <= last.index.
    pub(crate) applied: LogPos,
    /// Invariant: without gaps; ends at `last`, or is empty.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
}

fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + ENTRY_OVERHEAD
}

pub(crate) fn position(entry: &Entry) -> LogPos {
    LogPos { index: LogIndex(entry.index), term: Term(entry.term) }
}

/// The library's entry as the log keeps it.
pub(crate) fn to_log(entry: &Entry) -> LogEntry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    LogEntry { pos: position(entry), kind, data: entry.data.clone(), context: entry.context.clone() }
}

fn from_log(entry: LogEntry) -> Entry {
    let mut out = Entry::default();
    out.set_entry_type(match entry.kind {
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => EntryType::EntryNormal,
    });
    out.index = entry.pos.index.0;
    out.term = entry.pos.term.0;
    out.data = entry.data;
    out.context = entry.context;
    out
}

impl LogView {
    pub(crate) fn new(
        range: RangeId,
        reader: Reader,
        hard: HardState,
        conf: ConfState,
        trunc: LogPos,
        last: LogPos,
        applied: LogPos,
    ) -> Self {
        Self { range, reader, hard, conf, trunc, last, applied, cache: VecDeque::new(), cache_bytes: 0 }
    }

    /// Takes entries of a ready; a conflicting tail is cut first.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.trunc.index.0 && first.index <= self.last.index.0 + 1, "append leaves a gap");
        while self.cache.back().is_some_and(|entry| entry.index >= first.index) {
            self.cache_bytes -= self.cache.pop_back().map_or(0, |entry| weight(&entry));
        }
        if self.cache.back().is_some_and(|entry| entry.index + 1 != first.index) {
            self.cache.clear();
            self.cache_bytes = 0;
        }
        for entry in entries {
            self.cache_bytes += weight(entry);
            self.last = position(entry);
            self.cache.push_back(entry.clone());
        }
    }

    /// Drops entries at or below `keep_from` from memory, and more, up to `at_most`, until the budget is kept.
    pub(crate) fn evict(&mut self, keep_from: u64, at_most: u64, budget: usize) {
        while let Some(front) = self.cache.front() {
            let needless = front.index <= keep_from;
            if front.index > at_most || !(needless || self.cache_bytes > budget) {
                break;
            }
            self.cache_bytes -= self.cache.pop_front().map_or(0, |entry| weight(&entry));
        }
    }

    /// Bytes of entries in memory.
    pub(crate) const fn cached_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// The log begins anew after a snapshot.
    pub(crate) fn reset(&mut self, at: LogPos, conf: ConfState) {
        self.cache.clear();
        self.cache_bytes = 0;
        self.trunc = at;
        self.last = at;
        self.conf = conf;
    }

    /// Gives up entries; returns the position if anything was left to give up.
    pub(crate) fn truncate(&mut self, through: LogIndex) -> Option<LogPos> {
        let through = through.min(self.applied.index);
        if through <= self.trunc.index {
            return None;
        }
        let term = self.term(through.0).ok()?;
        self.trunc = LogPos { index: through, term: Term(term) };
        self.evict(through.0, through.0, usize::MAX);
        Some(self.trunc)
    }

    fn read(&self, low: u64, high: u64, bytes_max: usize) -> Result<Vec<Entry>> {
        match self.reader.entries(self.range, LogIndex(low), LogIndex(high), bytes_max) {
            Ok(entries) if entries.first().is_some_and(|first| first.pos.index.0 == low) => {
                Ok(entries.into_iter().map(from_log).collect())
            }
            Ok(_) => Err(Error::Store(StorageError::Unavailable)),
            Err(ReadLogError::Gone(_)) => Err(Error::Store(StorageError::Compacted)),
            Err(ReadLogError::Damaged(_)) => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn cached(&self, index: u64) -> Option<&Entry> {
        let first = self.cache.front()?.index;
        self.cache.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    /// The term that the log itself holds at `index`, whatever the applied state says.
    pub(crate) fn logged_term(&self, index: u64) -> Result<u64> {
        if index == self.last.index.0 {
            return Ok(self.last.term.0);
        }
        Ok(self.read(index, index + 1, 0)?[0].term)
    }

    /// All voters of both configurations.
    pub(crate) fn voters(&self) -> BTreeSet<ReplicaId> {
        self.conf.voters.iter().chain(&self.conf.voters_outgoing).map(|id| ReplicaId(*id)).collect()
    }
}

impl Storage for LogView {
    fn initial_state(&self) -> Result<RaftState> {
        let mut hard = raft::eraftpb::HardState::default();
        (hard.term, hard.vote, hard.commit) = (self.hard.term.0, self.hard.vote.0, self.hard.commit.0);
        Ok(RaftState { hard_state: hard, conf_state: self.conf.clone() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.trunc.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let first = self.cache.front().map_or(u64::MAX, |entry| entry.index);
        if low < first {
            // The rest follows in the caller's next request: fewer entries than asked for are allowed.
            return self.read(low, high.min(first), bytes_max);
        }
        let mut out = Vec::new();
        let mut bytes = 0usize;
        for index in low..high {
            let Some(entry) = self.cached(index) else { return Err(Error::Store(StorageError::Unavailable)) };
            bytes = bytes.saturating_add(weight(entry));
            if bytes > bytes_max && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> Result<u64> {
        for known in [self.trunc, self.last, self.applied] {
            if index == known.index.0 {
                return Ok(known.term.0);
            }
        }
        if index < self.trunc.index.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index > self.last.index.0 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        match self.cached(index) {
            Some(entry) => Ok(entry.term),
            None => Ok(self.read(index, index + 1, 0)?[0].term),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.trunc.index.0 + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last.index.0)
    }

    /// Names the applied state; the data travels on the bulk lane.
    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        if self.applied.index.0 < request_index.max(1) {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.applied.index.0, self.applied.term.0);
        metadata.set_conf_state(self.conf.clone());
        Ok(snapshot)
    }
}
