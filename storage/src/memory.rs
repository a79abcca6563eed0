//! The engine's twin in memory: for tests, and for the simulator, whose crashes lose what was not flushed.
//!
//! It keeps two images, the live one and the flushed one, and a crash drops the difference. Images are shared and
//! copied only when written to while a snapshot or a flushed image still needs the old one.
//!
//! The flushed image stands for RocksDB's files: that is what a compaction sees. It never compacts by itself.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::SstFile;
use crate::engine::{Change, Cursor, Engine, EngineError, Reader, WriteBatch};
use crate::gc::{GcThresholds, ViewGuard};
use crate::keys::{self, PhysicalSpan};

type Image = BTreeMap<Vec<u8>, Bytes>;

#[derive(Debug, Default)]
struct Inner {
    live: Arc<Image>,
    flushed: Arc<Image>,
    /// Files that were built and not yet ingested. Durable, as files are.
    files: HashMap<String, SstFile>,
}

/// An engine in memory. Clones share the content.
#[derive(Debug, Clone, Default)]
pub struct MemoryEngine {
    inner: Arc<Mutex<Inner>>,
    gc: Arc<GcThresholds>,
}

impl MemoryEngine {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses everything that was not flushed, as a crash does.
    pub fn crash(&self) {
        let mut inner = self.lock();
        inner.live = Arc::clone(&inner.flushed);
        self.gc.crash();
    }

    /// A compaction of everything that was flushed.
    pub fn compact_all(&self) {
        self.compact(true, &mut |_| true);
    }

    /// A compaction of what is chosen by physical key, as RocksDB chooses by files.
    pub fn compact_part(&self, takes: &mut dyn FnMut(&[u8]) -> bool) {
        self.compact(false, takes);
    }

    fn compact(&self, full: bool, takes: &mut dyn FnMut(&[u8]) -> bool) {
        let mut collector = self.gc.collector(full);
        let mut inner = self.lock();
        let goes = |(key, value): &(&Vec<u8>, &Bytes)| takes(key) && collector.drops(key, value);
        let doomed: Vec<_> = inner.flushed.iter().filter(goes).map(|(key, _)| key.clone()).collect();
        if doomed.is_empty() {
            return;
        }
        let Inner { live, flushed, .. } = &mut *inner;
        for image in [live, flushed] {
            let image = Arc::make_mut(image);
            doomed.iter().for_each(|key| drop(image.remove(key)));
        }
    }

    /// A panic of a writer leaves whole images behind, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self) -> MemoryView {
        MemoryView(Arc::clone(&self.lock().live))
    }
}

/// A frozen view.
#[derive(Debug, Clone)]
struct MemoryView(Arc<Image>);

impl Reader for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.0.get(key).cloned())
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        Box::new(MemoryCursor::new(Arc::clone(&self.0), lower, upper))
    }

    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        // RocksDB's filters would not show it.
        let found =
            first(&self.0, seek, upper).filter(|(key, _)| keys::filter_prefix(key) == keys::filter_prefix(seek));
        Ok(found.map(|(key, value)| (Bytes::copy_from_slice(key), value.clone())))
    }
}

/// A view with what it holds back.
struct MemorySnapshot {
    view: MemoryView,
    _held: ViewGuard,
}

impl Reader for MemorySnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.view.get(key)
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        self.view.cursor(lower, upper)
    }

    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        self.view.first_in_prefix(seek, upper)
    }
}

impl Reader for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.lock().live.get(key).cloned())
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        Box::new(MemoryCursor::new(self.image().0, lower, upper))
    }

    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        self.image().first_in_prefix(seek, upper)
    }
}

impl Engine for MemoryEngine {
    fn snapshot(&self) -> Box<dyn Reader + Send> {
        let held = self.gc.view();
        Box::new(MemorySnapshot { view: self.image(), _held: held })
    }

    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let mut inner = self.lock();
        let live = Arc::make_mut(&mut inner.live);
        for change in &batch.changes {
            apply(live, change);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), EngineError> {
        let mut inner = self.lock();
        inner.flushed = Arc::clone(&inner.live);
        Ok(())
    }

    fn get_flushed(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.lock().flushed.get(key).cloned())
    }

    fn reclaim(&self, _: &PhysicalSpan) {}

    fn gc(&self) -> &Arc<GcThresholds> {
        &self.gc
    }

    fn collect(&self, (start, end): &PhysicalSpan) {
        self.compact_part(&mut |key| &start[..] <= key && key < &end[..]);
    }

    fn approximate_bytes(&self, spans: &[PhysicalSpan]) -> Vec<u64> {
        let live = Arc::clone(&self.lock().live);
        let weigh = |(start, end): &PhysicalSpan| {
            let pairs = live.range(start.clone()..end.clone());
            pairs.map(|(key, value)| (key.len() + value.len()) as u64).sum()
        };
        spans.iter().map(weigh).collect()
    }

    fn build_sst(&self, name: &str, file: &SstFile) -> Result<(), EngineError> {
        let ascending = file.pairs.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let inside = file.pairs.iter().all(|(key, _)| file.start <= *key && *key < file.end);
        if !ascending || !inside {
            let cause = "its keys are not ascending inside its span".to_owned();
            return Err(EngineError::Corrupt { action: "build a sorted file", cause });
        }
        self.lock().files.insert(name.to_owned(), file.clone());
        Ok(())
    }

    fn ingest(&self, names: &[String]) -> Result<(), EngineError> {
        let mut inner = self.lock();
        let mut files = Vec::new();
        for name in names {
            let missing = || EngineError::Io { action: "ingest a sorted file", cause: format!("{name} is not there") };
            files.push(inner.files.get(name).ok_or_else(missing)?.clone());
        }
        let Inner { live, flushed, .. } = &mut *inner;
        // Durable at once, beside a memtable that is not: both images take the files in.
        for image in [live, flushed] {
            let image = Arc::make_mut(image);
            for file in &files {
                apply(image, &Change::DeleteRange(file.start.clone(), file.end.clone()));
                image.extend(file.pairs.iter().cloned());
            }
        }
        inner.files.retain(|name, _| !names.contains(name));
        Ok(())
    }

    fn discard_ssts(&self, prefix: &str) -> Result<(), EngineError> {
        self.lock().files.retain(|name, _| !name.starts_with(prefix));
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        self.lock().flushed.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

fn apply(image: &mut Image, change: &Change) {
    match change {
        Change::Put(key, value) => {
            image.insert(key.clone(), value.clone());
        }
        Change::Delete(key) => {
            image.remove(key);
        }
        Change::DeleteRange(start, end) if start < end => {
            let doomed: Vec<_> = image.range(start.clone()..end.clone()).map(|(key, _)| key.clone()).collect();
            for key in doomed {
                image.remove(&key);
            }
        }
        Change::DeleteRange(..) => {}
    }
}

/// The first pair in [from, to); `BTreeMap::range` would panic on a reversed pair of bounds.
fn first<'a>(image: &'a Image, from: &[u8], to: &[u8]) -> Option<(&'a Vec<u8>, &'a Bytes)> {
    if from >= to {
        return None;
    }
    image.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).next()
}

fn last<'a>(image: &'a Image, from: &[u8], to: &[u8]) -> Option<(&'a Vec<u8>, &'a Bytes)> {
    if from >= to {
        return None;
    }
    image.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).next_back()
}

struct MemoryCursor {
    image: Arc<Image>,
    lower: Vec<u8>,
    upper: Vec<u8>,
    here: Option<(Vec<u8>, Bytes)>,
}

impl MemoryCursor {
    fn new(image: Arc<Image>, lower: &[u8], upper: &[u8]) -> Self {
        Self { image, lower: lower.to_vec(), upper: upper.to_vec(), here: None }
    }

    fn stand(&mut self, at: Option<(Vec<u8>, Bytes)>) -> bool {
        self.here = at;
        self.here.is_some()
    }
}

fn owned((key, value): (&Vec<u8>, &Bytes)) -> (Vec<u8>, Bytes) {
    (key.clone(), value.clone())
}

impl Cursor for MemoryCursor {
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let found = first(&self.image, key.max(&self.lower), &self.upper).map(owned);
        Ok(self.stand(found))
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        let found = last(&self.image, &self.lower, key.min(&self.upper)).map(owned);
        Ok(self.stand(found))
    }

    fn next(&mut self) -> Result<bool, EngineError> {
        let Some((mut key, _)) = self.here.take() else { return Ok(false) };
        key.push(0);
        self.seek(&key)
    }

    fn prev(&mut self) -> Result<bool, EngineError> {
        let Some((key, _)) = self.here.take() else { return Ok(false) };
        self.seek_before(&key)
    }

    fn key(&self) -> &[u8] {
        self.here.as_ref().map_or(&[], |(key, _)| key)
    }

    fn value(&self) -> &[u8] {
        self.here.as_ref().map_or(&[], |(_, value)| value)
    }
}
