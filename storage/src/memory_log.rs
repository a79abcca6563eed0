//! The log store's twin in memory, for tests and the simulator. What was written survives every crash, since `write`
//! returns only after the sync; stalls and losses are the simulator's matter.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_types::{LogIndex, RangeId};

use crate::log::{LogBatch, LogEntry, LogFatal, LogHead, LogOp, LogPos, LogSeq, LogStore, MetaKey, ReadLogError};

#[derive(Debug, Clone)]
struct RangeLog {
    head: LogHead,
    entries: BTreeMap<LogIndex, LogEntry>,
    /// Reading these finds damage.
    damaged: Option<LogIndex>,
}

#[derive(Debug, Clone, Default)]
struct Inner {
    ranges: BTreeMap<RangeId, RangeLog>,
    metas: BTreeMap<MetaKey, Bytes>,
    seq: LogSeq,
}

/// A log in memory.
#[derive(Debug, Default)]
pub struct MemoryLog {
    inner: Mutex<Inner>,
}

impl MemoryLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of the disk as it is now.
    #[must_use]
    pub fn image(&self) -> Self {
        Self { inner: Mutex::new(self.lock().clone()) }
    }

    /// A flipped bit: this entry cannot be read any more. Says whether it is there.
    pub fn damage(&self, range: RangeId, index: LogIndex) -> bool {
        let mut inner = self.lock();
        let Some(log) = inner.ranges.get_mut(&range).filter(|log| log.entries.contains_key(&index)) else {
            return false;
        };
        log.damaged = Some(index);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn range(&mut self, range: RangeId) -> Result<&mut RangeLog, LogFatal> {
        let missing = || LogFatal::Damaged(format!("{range} has no log here: create it first"));
        self.ranges.get_mut(&range).ok_or_else(missing)
    }

    fn apply(&mut self, op: &LogOp) -> Result<(), LogFatal> {
        match op {
            LogOp::Create { range, replica, birth, trunc, hard } => {
                let (replica, birth, hard) = (*replica, *birth, *hard);
                let head =
                    LogHead { replica, birth, hard, hard_last: *trunc, promise: None, trunc: *trunc, last: *trunc };
                self.ranges.insert(*range, RangeLog { head, entries: BTreeMap::new(), damaged: None });
            }
            LogOp::Append { range, entries } => return self.range(*range)?.append(*range, entries),
            LogOp::Hard { range, hard } => {
                let head = &mut self.range(*range)?.head;
                (head.hard, head.hard_last) = (*hard, head.last);
            }
            LogOp::Truncate { range, through } => self.range(*range)?.truncate(*through),
            LogOp::Promise { range, promise } => self.range(*range)?.head.promise = *promise,
            LogOp::Reset { range, at, hard } => {
                let log = self.range(*range)?;
                log.entries.clear();
                log.head = LogHead { hard: *hard, hard_last: *at, trunc: *at, last: *at, ..log.head };
            }
            LogOp::DropBirth { range } => self.range(*range)?.head.birth = None,
            LogOp::Remove { range } => {
                self.ranges.remove(range);
            }
            LogOp::Meta { key, value } => {
                self.metas.insert(*key, value.clone());
            }
        }
        Ok(())
    }
}

impl RangeLog {
    fn append(&mut self, range: RangeId, entries: &[LogEntry]) -> Result<(), LogFatal> {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(()) };
        let (trunc, end) = (self.head.trunc.index, self.head.last.index);
        if first.pos.index <= trunc || first.pos.index > end.next() {
            return Err(LogFatal::Damaged(format!(
                "{range}: append at {} to a log of ({trunc}, {end}]",
                first.pos.index
            )));
        }
        self.entries.split_off(&first.pos.index);
        self.entries.extend(entries.iter().map(|entry| (entry.pos.index, entry.clone())));
        self.head.last = last.pos;
        Ok(())
    }

    fn truncate(&mut self, through: LogPos) {
        self.entries = self.entries.split_off(&through.index.next());
        self.head.trunc = through;
        self.head.last = self.head.last.max(through);
    }
}

impl LogStore for MemoryLog {
    fn write(&self, batch: &LogBatch) -> Result<LogSeq, LogFatal> {
        let mut inner = self.lock();
        batch.ops.iter().try_for_each(|op| inner.apply(op))?;
        inner.seq.0 += 1;
        Ok(inner.seq)
    }

    fn entries(
        &self,
        range: RangeId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError> {
        let inner = self.lock();
        let missing = || ReadLogError::Damaged(format!("{range} has no log here"));
        let log = inner.ranges.get(&range).ok_or_else(missing)?;
        if from <= log.head.trunc.index {
            return Err(ReadLogError::Gone(log.head.trunc.index.next()));
        }
        if to > log.head.last.index.next() {
            return Err(ReadLogError::Damaged(format!(
                "{range}: entries up to {to} of a log that ends at {}",
                log.head.last.index
            )));
        }
        if let Some(index) =
            log.damaged.filter(|index| from <= *index && *index < to && log.entries.contains_key(index))
        {
            return Err(ReadLogError::Damaged(format!("{range}: the checksum of entry {index} does not match")));
        }
        let mut bytes = 0;
        let fits = |entry: &&LogEntry| {
            let first = bytes == 0;
            bytes += entry.data.len() + 32;
            first || bytes <= bytes_max
        };
        Ok(log.entries.range(from..to.max(from)).map(|(_, entry)| entry).take_while(fits).cloned().collect())
    }

    fn heads(&self) -> Vec<(RangeId, LogHead)> {
        self.lock().ranges.iter().map(|(range, log)| (*range, log.head)).collect()
    }

    fn meta(&self, key: MetaKey) -> Option<Bytes> {
        self.lock().metas.get(&key).cloned()
    }

    fn metas(&self) -> Vec<(MetaKey, Bytes)> {
        self.lock().metas.iter().map(|(key, value)| (*key, value.clone())).collect()
    }

    fn seq(&self) -> LogSeq {
        self.lock().seq
    }

    fn purge(&self) -> Result<Vec<RangeId>, LogFatal> {
        Ok(Vec::new())
    }

    fn used_bytes(&self) -> u64 {
        let inner = self.lock();
        inner.ranges.values().flat_map(|log| log.entries.values()).map(|entry| entry.data.len() as u64).sum()
    }
}
