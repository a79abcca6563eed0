//! The contract of the ordered store that holds the state of all replicas of one store ("KV" in docs/durability.md).
//!
//! Promises, held alike by RocksDB (`rocks`) and by the twin in memory (`memory`):
//! - One memtable sequence: a `WriteBatch` is atomic, and after a crash the content equals what it was at some earlier
//!   instant (law 1). No write is durable by itself; `flush` makes everything written before it durable.
//! - `get_flushed` sees only what a crash would keep.
//! - `ingest` is atomic and durable when it returns; the caller has flushed before (law 1).
//!
//! All calls may block on a disk: never call them on a tokio thread.

use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::SstFile;
use crate::gc::GcThresholds;
use crate::keys::PhysicalSpan;

/// An engine failure. None of these is retried: the replica or the store stops.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EngineError {
    /// The disk reported an error, or refuses writes after one.
    #[error("{action}: {cause}")]
    Io {
        /// What was being done, as verb and object.
        action: &'static str,
        /// The engine's own words.
        cause: String,
    },
    /// A checksum does not match, or a record cannot be decoded.
    #[error("corrupt data while trying to {action}: {cause}")]
    Corrupt {
        /// What was being done.
        action: &'static str,
        /// What was found.
        cause: String,
    },
    /// The disk is full.
    #[error("the disk is full")]
    DiskFull,
}

/// One change of a batch. Keys are physical (see `keys`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets a key.
    Put(Vec<u8>, Bytes),
    /// Removes a key.
    Delete(Vec<u8>),
    /// Removes all keys in [start, end).
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Changes that are applied all together or not at all, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteBatch {
    /// In the order in which they take effect.
    pub changes: Vec<Change>,
    /// Bytes of all keys and values, for budgets.
    pub bytes: usize,
}

impl WriteBatch {
    /// Sets a key.
    pub fn put(&mut self, key: Vec<u8>, value: impl Into<Bytes>) {
        let value = value.into();
        self.bytes += key.len() + value.len();
        self.changes.push(Change::Put(key, value));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.push(Change::Delete(key));
    }

    /// Removes all keys in [start, end).
    pub fn delete_range(&mut self, start: Vec<u8>, end: Vec<u8>) {
        self.bytes += start.len() + end.len();
        self.changes.push(Change::DeleteRange(start, end));
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Appends another batch's changes after this one's.
    pub fn append(&mut self, mut other: Self) {
        self.bytes += other.bytes;
        self.changes.append(&mut other.changes);
    }
}

/// Which way a cursor walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Towards larger keys.
    Forward,
    /// Towards smaller keys.
    Backward,
}

/// A position in an ordered view, bounded to [lower, upper) of the call that made it.
///
/// `key` and `value` are valid after a positioning call returned `Ok(true)`, until the next one.
pub trait Cursor {
    /// Goes to the first key at or above `key` (clamped to the bounds).
    ///
    /// # Errors
    /// A read error; the cursor must not be used any more.
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError>;
    /// Goes to the last key strictly below `key` (clamped to the bounds).
    ///
    /// # Errors
    /// A read error; the cursor must not be used any more.
    fn seek_before(&mut self, key: &[u8]) -> Result<bool, EngineError>;
    /// Goes to the next key.
    ///
    /// # Errors
    /// A read error; the cursor must not be used any more.
    fn next(&mut self) -> Result<bool, EngineError>;
    /// Goes to the previous key.
    ///
    /// # Errors
    /// A read error; the cursor must not be used any more.
    fn prev(&mut self) -> Result<bool, EngineError>;
    /// The key here.
    fn key(&self) -> &[u8];
    /// The value here.
    fn value(&self) -> &[u8];
}

/// An ordered view of the engine: the live state, or a snapshot.
pub trait Reader {
    /// The value of a key.
    ///
    /// # Errors
    /// A read error.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// A cursor over [lower, upper), positioned nowhere.
    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a>;
    /// The first key in [seek, upper) that has what `keys::filter_prefix` says of `seek`, as the newest version of a key at or
    /// below a timestamp, or its first lock. Asks the filters, and those tell by that prefix: `seek` must have the form of what is
    /// looked for, a bare prefix finds nothing.
    ///
    /// # Errors
    /// A read error.
    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError>;
}

/// The engine proper. Shared by threads.
pub trait Engine: Reader + Send + Sync + 'static {
    /// A frozen view; holds the files it needs until dropped, and holds back thresholds that are published meanwhile.
    fn snapshot(&self) -> Box<dyn Reader + Send>;
    /// Applies a batch atomically to the live state. Not durable until a flush.
    ///
    /// # Errors
    /// The disk failed or is full: nothing was applied.
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError>;
    /// Makes everything written before the call durable.
    ///
    /// # Errors
    /// The disk failed; the engine refuses all writes from then on.
    fn flush(&self) -> Result<(), EngineError>;
    /// The value of a key as a crash right now would leave it.
    ///
    /// # Errors
    /// A read error.
    fn get_flushed(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;
    /// Builds a sorted file for a later `ingest`: deletes [start, end), then sets the pairs, which lie inside it
    /// and come in ascending order.
    ///
    /// # Errors
    /// The disk failed or is full, or the pairs are not ascending.
    fn build_sst(&self, name: &str, file: &SstFile) -> Result<(), EngineError>;
    /// Takes files built by `build_sst` into the live state, all or none, durable on return.
    /// The caller has flushed all that they overlap.
    ///
    /// # Errors
    /// The disk failed, or a flush would have been needed.
    fn ingest(&self, names: &[String]) -> Result<(), EngineError>;
    /// Removes files built by `build_sst` that were not ingested: all whose name starts with `prefix`.
    ///
    /// # Errors
    /// The disk failed.
    fn discard_ssts(&self, prefix: &str) -> Result<(), EngineError>;
    /// Gives back the room of what was deleted within a span, by rewriting the files that hold it. Takes long; changes nothing
    /// that a reader sees.
    fn reclaim(&self, span: &PhysicalSpan);
    /// The thresholds that old versions go by.
    fn gc(&self) -> &Arc<GcThresholds>;
    /// Rewrites the files that hold versions of a span, without those that no read above the thresholds in force sees.
    /// Takes long. May keep some: it is a compaction like those that the engine does by itself.
    fn collect(&self, span: &PhysicalSpan);
    /// About how many bytes of keys and values lie in each span. What was written since the last flush may be missing, and
    /// what was deleted may still count.
    fn approximate_bytes(&self, spans: &[PhysicalSpan]) -> Vec<u64>;
    /// Bytes on disk, for placement and admission.
    fn used_bytes(&self) -> u64;
}
