//! The engine on a disk: RocksDB with one column family and without its write-ahead log (docs/durability.md).
//!
//! Why one family: law 1 holds because there is one memtable sequence; two families flush apart and break it at the
//! first crash. Why no write-ahead log: the Raft log is the log. `unordered_write`, `pipelined_write` and
//! `delete_file_in_range` are never used, for the same reason.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rocksdb::compaction_filter::CompactionFilter;
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, CompactionDecision, DB, DBCompressionType,
    DBRawIterator, FlushOptions, IngestExternalFileOptions, Options, ReadOptions, ReadTier, SliceTransform, Snapshot,
    SstFileWriter, WriteBatch as RocksBatch, WriteBufferManager, WriteOptions,
};
use self_cell::self_cell;

use crate::SstFile;
use crate::engine::{Change, Cursor, Engine, EngineError, Reader, WriteBatch};
use crate::gc::{Collector, GcThresholds, ViewGuard};
use crate::keys;
use crate::keys::PhysicalSpan;

const MIB: usize = 1 << 20;

/// How to open an engine.
#[derive(Debug, Clone, Copy)]
pub struct RocksOptions {
    /// Size of the block cache.
    pub cache_bytes: usize,
    /// Threads for flush and compaction.
    pub background_jobs: i32,
}

/// An engine on a disk.
pub struct RocksEngine {
    db: Arc<DB>,
    gc: Arc<GcThresholds>,
    /// Where sorted files wait to be ingested: in the engine's own directory, so that they can be moved, not copied.
    files: PathBuf,
    options: Options,
}

impl RocksEngine {
    /// Opens the engine in a directory of its own, or makes a new one there.
    ///
    /// # Errors
    /// The disk failed, or what lies there is damaged.
    pub fn open(dir: &Path, wanted: RocksOptions) -> Result<Self, EngineError> {
        let gc = Arc::new(GcThresholds::default());
        let options = options(wanted, Arc::clone(&gc));
        let files = dir.join("snap");
        std::fs::create_dir_all(&files).map_err(|error| EngineError::Io {
            action: "make the directory for sorted files",
            cause: error.to_string(),
        })?;
        let db = DB::open(&options, dir).map_err(|error| failed("open the engine", &error))?;
        Ok(Self { db: Arc::new(db), gc, files, options })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.join(format!("{name}.sst"))
    }
}

impl Drop for RocksEngine {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
    }
}

fn options(wanted: RocksOptions, gc: Arc<GcThresholds>) -> Options {
    let mut table = BlockBasedOptions::default();
    let cache = Cache::new_hyper_clock_cache(wanted.cache_bytes, 0);
    table.set_block_cache(&cache);
    table.set_block_size(8 << 10);
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_prefix_extractor(SliceTransform::create("flotilla.key", keys::filter_prefix, None));
    options.set_memtable_prefix_bloom_ratio(0.1);
    options.set_write_buffer_size(64 * MIB);
    options.set_max_write_buffer_number(6);
    options.set_min_write_buffer_number_to_merge(1);
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(384 * MIB, false));
    options.set_level_zero_file_num_compaction_trigger(4);
    options.set_level_zero_slowdown_writes_trigger(20);
    options.set_level_zero_stop_writes_trigger(36);
    options.set_max_bytes_for_level_base(256 * MIB as u64);
    options.set_target_file_size_base(64 * MIB as u64);
    options.set_level_compaction_dynamic_level_bytes(true);
    let (none, lz4) = (DBCompressionType::None, DBCompressionType::Lz4);
    options.set_compression_per_level(&[none, none, lz4, lz4, lz4, lz4, lz4]);
    options.set_bottommost_compression_type(DBCompressionType::Zstd);
    options.set_max_open_files(-1);
    options.set_bytes_per_sync(MIB as u64);
    options.set_paranoid_checks(true);
    options.set_write_dbid_to_manifest(true);
    options.set_periodic_compaction_seconds(7 * 24 * 3600);
    options.set_max_background_jobs(wanted.background_jobs.max(2));
    options.set_keep_log_file_num(4);
    options.set_compaction_filter_factory(Filters(gc));
    // A compaction that is done in parts has a filter for each, and the parts may meet between two versions of a key.
    options.set_max_subcompactions(1);
    options
}

/// Makes the filter of each compaction. HAZARD: the crate hands out `&mut self` to several compactions at a time, so
/// nothing here may be changed but behind a lock. Flushes have no filter.
struct Filters(Arc<GcThresholds>);

impl CompactionFilterFactory for Filters {
    type Filter = Filter;

    fn create(&mut self, context: CompactionFilterContext) -> Filter {
        Filter(self.0.collector(context.is_full_compaction))
    }

    fn name(&self) -> &CStr {
        c"flotilla.gc"
    }
}

/// See `gc`. A panic here would end the process, so there is none.
struct Filter(Collector);

impl CompactionFilter for Filter {
    fn filter(&mut self, _: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        if self.0.drops(key, value) { CompactionDecision::Remove } else { CompactionDecision::Keep }
    }

    fn name(&self) -> &CStr {
        c"flotilla.gc"
    }
}

/// Sorts RocksDB's errors into ours.
fn failed(action: &'static str, error: &rocksdb::Error) -> EngineError {
    let cause = error.to_string();
    if cause.contains("No space left") {
        EngineError::DiskFull
    } else if error.kind() == rocksdb::ErrorKind::Corruption {
        EngineError::Corrupt { action, cause }
    } else {
        EngineError::Io { action, cause }
    }
}

/// Options of a walk over [lower, upper) that may cross prefixes.
fn walk(lower: &[u8], upper: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(lower);
    options.set_iterate_upper_bound(upper);
    options.set_total_order_seek(true);
    options
}

/// Options of a look at the keys of one prefix.
fn within_prefix(upper: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(upper);
    options.set_prefix_same_as_start(true);
    options
}

fn first_of(mut found: DBRawIterator<'_>, seek: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
    found.seek(seek);
    found.status().map_err(|error| failed("read a version", &error))?;
    Ok(found.item().map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))))
}

impl Reader for RocksEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = self.db.get(key).map_err(|error| failed("read a key", &error))?;
        Ok(found.map(Bytes::from))
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        Box::new(RocksCursor { iterator: self.db.raw_iterator_opt(walk(lower, upper)) })
    }

    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        first_of(self.db.raw_iterator_opt(within_prefix(upper)), seek)
    }
}

impl Engine for RocksEngine {
    fn snapshot(&self) -> Box<dyn Reader + Send> {
        let held = self.gc.view();
        Box::new(RocksSnapshot(SnapshotCell::new(Arc::clone(&self.db), |db| db.snapshot()), held))
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let mut changes = RocksBatch::default();
        for change in &batch.changes {
            match change {
                Change::Put(key, value) => changes.put(key, value),
                Change::Delete(key) => changes.delete(key),
                Change::DeleteRange(start, end) if start < end => changes.delete_range(start, end),
                Change::DeleteRange(..) => {}
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(changes, &options).map_err(|error| failed("write a batch", &error))
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_opt(&options).map_err(|error| failed("flush", &error))
    }

    fn get_flushed(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::Persisted);
        let found = self.db.get_opt(key, &options).map_err(|error| failed("read a flushed key", &error))?;
        Ok(found.map(Bytes::from))
    }

    fn reclaim(&self, (start, end): &PhysicalSpan) {
        let mut options = CompactOptions::default();
        // Beside the automatic ones, and down to where the deleted lies.
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Skip);
        self.db.compact_range_opt(Some(start), Some(end), &options);
    }

    fn gc(&self) -> &Arc<GcThresholds> {
        &self.gc
    }

    fn collect(&self, (start, end): &PhysicalSpan) {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        // The lowest level, too, since most of the garbage lies there; but not what this compaction just wrote.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        self.db.compact_range_opt(Some(start), Some(end), &options);
    }

    fn approximate_bytes(&self, spans: &[PhysicalSpan]) -> Vec<u64> {
        let ranges: Vec<_> = spans.iter().map(|(start, end)| rocksdb::Range::new(start, end)).collect();
        self.db.get_approximate_sizes(&ranges)
    }

    fn build_sst(&self, name: &str, file: &SstFile) -> Result<(), EngineError> {
        let build = || -> Result<(), rocksdb::Error> {
            let mut writer = SstFileWriter::create(&self.options);
            writer.open(self.path(name))?;
            // At equal sequence numbers the range delete hides only what is older than the file.
            writer.delete_range(&file.start, &file.end)?;
            file.pairs.iter().try_for_each(|(key, value)| writer.put(key, value))?;
            writer.finish()
        };
        build().map_err(|error| failed("build a sorted file", &error))
    }

    fn ingest(&self, names: &[String]) -> Result<(), EngineError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        // The caller has flushed. An ingest that needs another flush means that the caller did not.
        options.set_allow_blocking_flush(false);
        let paths: Vec<_> = names.iter().map(|name| self.path(name)).collect();
        let ingested = self.db.ingest_external_file_opts(&options, paths);
        ingested.map_err(|error| failed("ingest sorted files", &error))
    }

    fn discard_ssts(&self, prefix: &str) -> Result<(), EngineError> {
        let io = |error: std::io::Error| EngineError::Io { action: "delete sorted files", cause: error.to_string() };
        for entry in std::fs::read_dir(&self.files).map_err(io)? {
            let entry = entry.map_err(io)?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                std::fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let property = |name: &str| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        property("rocksdb.live-sst-files-size") + property("rocksdb.cur-size-all-mem-tables")
    }
}

self_cell!(
    struct SnapshotCell {
        owner: Arc<DB>,
        #[not_covariant]
        dependent: Snapshot,
    }
);

/// A frozen view that keeps its engine open, with what it holds back.
struct RocksSnapshot(SnapshotCell, #[allow(dead_code, reason = "held, not read")] ViewGuard);

impl Reader for RocksSnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = self.0.with_dependent(|_, snapshot| snapshot.get(key));
        Ok(found.map_err(|error| failed("read a key", &error))?.map(Bytes::from))
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        let options = walk(lower, upper);
        self.0.with_dependent(|_, snapshot| -> Box<dyn Cursor + 'a> {
            Box::new(RocksCursor { iterator: snapshot.raw_iterator_opt(options) })
        })
    }

    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        self.0.with_dependent(|_, snapshot| first_of(snapshot.raw_iterator_opt(within_prefix(upper)), seek))
    }
}

struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
}

impl RocksCursor<'_> {
    /// An iterator that ends may have ended early on a damaged block: only its status tells.
    fn stands(&self) -> Result<bool, EngineError> {
        if self.iterator.valid() {
            return Ok(true);
        }
        self.iterator.status().map_err(|error| failed("walk over keys", &error))?;
        Ok(false)
    }
}

impl Cursor for RocksCursor<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.iterator.seek(key);
        self.stands()
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.iterator.seek_for_prev(key);
        // `seek_for_prev` also stops at the key itself.
        if self.iterator.valid() && self.iterator.key() == Some(key) {
            self.iterator.prev();
        }
        self.stands()
    }

    fn next(&mut self) -> Result<bool, EngineError> {
        if self.iterator.valid() {
            self.iterator.next();
        }
        self.stands()
    }

    fn prev(&mut self) -> Result<bool, EngineError> {
        if self.iterator.valid() {
            self.iterator.prev();
        }
        self.stands()
    }

    fn key(&self) -> &[u8] {
        self.iterator.key().unwrap_or_default()
    }

    fn value(&self) -> &[u8] {
        self.iterator.value().unwrap_or_default()
    }
}
