//! The demo's work: writers that put one new key after the other into each range, and remember what was acknowledged
//! when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_client::{Client, ScanOptions, Span};
use tokio::task::JoinSet;

use super::{DemoError, PAUSE, failed, only};

/// Writers per range: one that waits for an answer shows a gap at once.
const WRITERS: usize = 2;

/// First part of all keys of a range.
pub(super) fn prefix(range: usize) -> String {
    format!("demo/{}/", (b'a' + u8::try_from(range % 26).unwrap_or(0)) as char)
}

/// How long a range acknowledged nothing.
#[derive(Debug, Clone)]
pub(super) struct Gap {
    /// First part of its keys.
    pub(super) prefix: String,
    /// The longest time between two acknowledgements around the kill.
    pub(super) longest: Duration,
}

/// What was written.
pub(super) struct Written {
    /// Every acknowledged key and its value.
    pub(super) acknowledged: BTreeMap<Bytes, Bytes>,
    /// Writes whose outcome stayed unknown.
    pub(super) doubtful: usize,
}

/// One range's acknowledgements.
#[derive(Default)]
struct Lane {
    at: Vec<Instant>,
    acknowledged: BTreeMap<Bytes, Bytes>,
}

struct Shared {
    lanes: Vec<Mutex<Lane>>,
    doubtful: AtomicUsize,
    next: AtomicUsize,
    stop: AtomicBool,
}

/// The writers at work. Dropping it ends them.
pub(super) struct Work {
    shared: Arc<Shared>,
    writers: tokio::sync::Mutex<JoinSet<()>>,
}

impl Work {
    pub(super) fn start(client: Client, ranges: usize) -> Self {
        let shared = Arc::new(Shared {
            lanes: (0..ranges).map(|_| Mutex::default()).collect(),
            doubtful: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut writers = JoinSet::new();
        for writer in 0..ranges * WRITERS {
            writers.spawn(write(Arc::clone(&shared), client.clone(), writer % ranges));
        }
        Self { shared, writers: tokio::sync::Mutex::new(writers) }
    }

    pub(super) fn acknowledged(&self) -> usize {
        (0..self.shared.lanes.len()).map(|range| self.shared.lane(range).at.len()).sum()
    }

    /// Waits until so many writes were acknowledged.
    pub(super) async fn wait_for(&self, count: usize, patience: Duration) -> Result<(), DemoError> {
        let started = Instant::now();
        while self.acknowledged() < count {
            if started.elapsed() > patience {
                return Err(DemoError::Slow(format!("{count} writes are acknowledged ({} are)", self.acknowledged())));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until every range has acknowledged something that was written well after the kill.
    pub(super) async fn recovered(&self, killed: Instant, patience: Duration) -> Result<(), DemoError> {
        // Answers that were under way at the kill are no sign of life.
        let alive = killed + Duration::from_millis(500);
        loop {
            let silent = (0..self.shared.lanes.len())
                .find(|range| self.shared.lane(*range).at.last().is_none_or(|last| *last < alive));
            let Some(silent) = silent else { return Ok(()) };
            if killed.elapsed() > patience {
                return Err(DemoError::Slow(format!("writes to {} succeed again", prefix(silent))));
            }
            tokio::time::sleep(PAUSE / 10).await;
        }
    }

    /// Each range's longest silence since shortly before the kill.
    pub(super) fn gaps(&self, killed: Instant) -> Vec<Gap> {
        let gap = |range| {
            let lane = self.shared.lane(range);
            let before = lane.at.partition_point(|at| *at <= killed).saturating_sub(1);
            let longest = lane.at[before..].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
            Gap { prefix: prefix(range), longest }
        };
        (0..self.shared.lanes.len()).map(gap).collect()
    }

    /// Lets every writer finish what it has begun.
    pub(super) async fn stop(&self) -> Written {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut writers = self.writers.lock().await;
        while writers.join_next().await.is_some() {}
        let mut acknowledged = BTreeMap::new();
        for range in 0..self.shared.lanes.len() {
            acknowledged.append(&mut self.shared.lane(range).acknowledged);
        }
        Written { acknowledged, doubtful: self.shared.doubtful.load(Ordering::Relaxed) }
    }
}

impl Shared {
    fn lane(&self, range: usize) -> MutexGuard<'_, Lane> {
        self.lanes[range].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write(shared: Arc<Shared>, client: Client, range: usize) {
    while !shared.stop.load(Ordering::Relaxed) {
        let n = shared.next.fetch_add(1, Ordering::Relaxed);
        let key = Bytes::from(format!("{}{n:08}", prefix(range)));
        let value = Bytes::from(format!("value {n} of {}", prefix(range)));
        match client.put(key.clone(), value.clone()).await {
            Ok(_) => {
                let mut lane = shared.lane(range);
                lane.at.push(Instant::now());
                lane.acknowledged.insert(key, value);
            }
            Err(error) => {
                if error.is_ambiguous() {
                    shared.doubtful.fetch_add(1, Ordering::Relaxed);
                }
                tracing::info!(%error, "a write of the demo was not acknowledged");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Reads everything through one node; how many acknowledged writes are missing or different.
pub(super) async fn verify(address: &str, acknowledged: &BTreeMap<Bytes, Bytes>) -> Result<usize, DemoError> {
    let client = only(address).await?;
    let mut rows = client.scan(Span::prefix("demo/"), ScanOptions::default());
    let mut found = 0;
    while let Some(row) = rows.next().await.map_err(failed("read everything back"))? {
        found += usize::from(acknowledged.get(&row.key).is_some_and(|value| *value == row.value));
    }
    Ok(acknowledged.len() - found)
}
