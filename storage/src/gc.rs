//! Which old versions may go, and who may say so (docs/durability.md, "Old versions").
//!
//! A range's log raises its threshold: reads at or below it are refused. Of a key's versions at or below, reads above see
//! only the newest, and not even that one if it says that the key is gone. What nobody can see is dropped while RocksDB
//! rewrites files anyway, by a compaction filter, each replica for itself and without a single write.
//!
//! ```text
//!  Gc applied ─► flushed ─► publish ─► incoming ─► sealed ─(no older view is open)─► active ─► filters made from now on
//! ```
//! Two things make that safe:
//! - *A threshold is published once it is flushed.* What a filter drops is gone at once and for good, while the write that
//!   raised the threshold could still be lost with the memtable: the replica would serve reads of what is not there.
//! - *No view that was open before sees it in force.* RocksDB's snapshots do not bind filters. A hash or a snapshot for
//!   another store carries the threshold of its own moment and would miss versions above it.

use std::collections::BTreeMap;
use std::ops::Bound::{Included, Unbounded};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_types::{KeySpan, Timestamp};

use crate::keys;
use crate::mvcc;

/// The thresholds that filters of one engine act on. Nothing of it is durable: a start publishes what it finds.
#[derive(Debug, Default)]
pub struct GcThresholds {
    state: Mutex<State>,
    versions: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    active: Arc<Thresholds>,
    /// Waits for the views that were opened in an epoch below its own.
    sealed: Option<(u64, Thresholds)>,
    /// Waits for the sealed ones: so that they need not wait for views of later epochs, and two maps are enough.
    incoming: Thresholds,
    epoch: u64,
    /// Open views, by the epoch in which they were opened.
    views: BTreeMap<u64, usize>,
}

impl GcThresholds {
    /// From some time on, versions in the span that no read above the threshold can see may go. A lower threshold than one
    /// that was published before changes nothing.
    ///
    /// The caller vouches that the engine would find this threshold after a crash, for the whole span, and that reads at
    /// or below are refused.
    pub fn publish(&self, span: &KeySpan, threshold: Timestamp) {
        let mut state = self.state();
        state.incoming.raise(keys::version_span(span), threshold);
        state.advance();
    }

    /// Nothing in the span goes any more because of what was published so far, except by compactions under way.
    pub fn forget(&self, span: &KeySpan) {
        let span = keys::version_span(span);
        let mut state = self.state();
        Arc::make_mut(&mut state.active).cut(&span);
        state.incoming.cut(&span);
        if let Some((_, sealed)) = &mut state.sealed {
            sealed.cut(&span);
        }
    }

    /// Whoever looks at the engine through a frozen view keeps this as long as the view, and takes it first.
    #[must_use]
    pub fn view(self: &Arc<Self>) -> ViewGuard {
        let mut state = self.state();
        let epoch = state.epoch;
        *state.views.entry(epoch).or_default() += 1;
        ViewGuard { thresholds: Arc::clone(self), epoch }
    }

    /// For one compaction. `full`: it takes in all that the engine has in files.
    #[must_use]
    pub fn collector(self: &Arc<Self>, full: bool) -> Collector {
        let active = Arc::clone(&self.state().active);
        let (thresholds, current) = (Arc::clone(self), Vec::new());
        Collector { thresholds, active, full, current, threshold: None, settled: false, versions: 0, bytes: 0 }
    }

    /// The threshold in force for a key, if there is one.
    #[must_use]
    pub fn active_for(&self, key: &flotilla_types::Key) -> Option<Timestamp> {
        self.state().active.of(&keys::version_prefix(key))
    }

    /// The least threshold that is in force anywhere.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        self.state().active.by_start.values().map(|(_, threshold)| *threshold).min()
    }

    /// Versions dropped since the engine was opened, and their bytes of keys and values.
    #[must_use]
    pub fn collected(&self) -> (u64, u64) {
        (self.versions.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// The process died: nothing is published any more.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        (state.active, state.sealed, state.incoming) = Default::default();
    }

    /// Every change of the state is whole before anything can panic, so a poisoned lock is still good.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn advance(&mut self) {
        loop {
            if self.sealed.is_none() && !self.incoming.by_start.is_empty() {
                self.epoch += 1;
                self.sealed = Some((self.epoch, std::mem::take(&mut self.incoming)));
            }
            let oldest = self.views.first_key_value().map_or(u64::MAX, |(epoch, _)| *epoch);
            let Some((_, sealed)) = self.sealed.take_if(|(epoch, _)| oldest >= *epoch) else { return };
            let active = Arc::make_mut(&mut self.active);
            for (start, (end, threshold)) in sealed.by_start {
                active.raise((start, end), threshold);
            }
        }
    }
}

/// Holds back thresholds that are published while a view is open.
#[derive(Debug)]
pub struct ViewGuard {
    thresholds: Arc<GcThresholds>,
    epoch: u64,
}

impl Drop for ViewGuard {
    fn drop(&mut self) {
        let mut state = self.thresholds.state();
        if let Some(open) = state.views.get_mut(&self.epoch) {
            *open -= 1;
            if *open == 0 {
                state.views.remove(&self.epoch);
            }
        }
        state.advance();
    }
}

/// Thresholds by spans of physical keys. Invariant: the spans do not overlap. They cover what ranges covered at some time,
/// so there are no more of them than ranges had bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Thresholds {
    by_start: BTreeMap<Vec<u8>, (Vec<u8>, Timestamp)>,
}

impl Thresholds {
    fn of(&self, key: &[u8]) -> Option<Timestamp> {
        let (_, (end, threshold)) = self.by_start.range::<[u8], _>((Unbounded, Included(key))).next_back()?;
        (key < &end[..]).then_some(*threshold)
    }

    fn raise(&mut self, (start, end): keys::PhysicalSpan, threshold: Timestamp) {
        let before = self.cut(&(start.clone(), end.clone()));
        let mut at = start;
        for (piece, until, known) in before {
            self.add(at, piece.clone(), threshold);
            self.add(piece, until.clone(), known.max(threshold));
            at = until;
        }
        self.add(at, end, threshold);
    }

    /// Adds a span that is not covered, as part of its left neighbour if that has the same threshold.
    fn add(&mut self, start: Vec<u8>, end: Vec<u8>, threshold: Timestamp) {
        if start >= end {
            return;
        }
        match self.by_start.range_mut(..start.clone()).next_back() {
            Some((_, (until, known))) if *until == start && *known == threshold => *until = end,
            _ => {
                self.by_start.insert(start, (end, threshold));
            }
        }
    }

    /// Takes out what lies within a span.
    fn cut(&mut self, (start, end): &keys::PhysicalSpan) -> Vec<(Vec<u8>, Vec<u8>, Timestamp)> {
        let mut inside = Vec::new();
        while let Some((piece, (until, threshold))) = self.by_start.range::<Vec<u8>, _>(..end).next_back()
            && until > start
        {
            let (piece, until, threshold) = (piece.clone(), until.clone(), *threshold);
            self.by_start.remove(&piece);
            if until > *end {
                self.by_start.insert(end.clone(), (until.clone(), threshold));
            }
            inside.push((piece.clone().max(start.clone()), until.min(end.clone()), threshold));
            if piece < *start {
                self.by_start.insert(piece, (start.clone(), threshold));
                break;
            }
        }
        inside.reverse();
        inside
    }
}

/// Decides about the versions that one compaction meets. It meets them in order: of one key the newest first.
///
/// A version goes only if *this* compaction met a newer one at or below the threshold: another compaction's meeting says
/// nothing, since what it met may have gone. A delete marker that is the newest at or below the threshold goes only if the
/// compaction takes in everything, else an older version in a file that is not part of it would come back to life.
///
/// It never writes and decides by key and value alone. It does not see that a version was deleted in the engine, which
/// happens when a replica is destroyed: such a version stands for a newer one, as it is part of the key's true history.
/// HAZARD: it is not if the replica had diverged. Thresholds of a destroyed replica's span are forgotten for that reason,
/// until the next one is published there.
#[derive(Debug)]
pub struct Collector {
    thresholds: Arc<GcThresholds>,
    active: Arc<Thresholds>,
    full: bool,
    /// The key whose versions come at this moment, and its threshold.
    current: Vec<u8>,
    threshold: Option<Timestamp>,
    /// Its newest version at or below the threshold was met.
    settled: bool,
    versions: u64,
    bytes: u64,
}

impl Collector {
    /// Whether what the compaction meets may go.
    pub fn drops(&mut self, key: &[u8], value: &[u8]) -> bool {
        if self.active.by_start.is_empty() {
            return false;
        }
        let Some((prefix, timestamp)) = keys::split_version(key) else { return false };
        if prefix != self.current {
            self.current.clear();
            self.current.extend_from_slice(prefix);
            self.threshold = self.active.of(prefix);
            self.settled = false;
        }
        if self.threshold.is_none_or(|threshold| timestamp > threshold) {
            return false;
        }
        let goes = if self.settled { true } else { self.full && mvcc::is_deletion(value).unwrap_or(false) };
        self.settled = true;
        if goes {
            self.versions += 1;
            self.bytes += (key.len() + value.len()) as u64;
        }
        goes
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.thresholds.versions.fetch_add(self.versions, Ordering::Relaxed);
        self.thresholds.bytes.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::Key;
    use proptest::prelude::*;

    use super::*;

    const fn at(wall: u64) -> Timestamp {
        Timestamp::from_wall(wall)
    }

    fn key(n: u8) -> Key {
        Key::new(vec![0x10, n])
    }

    fn span(start: u8, end: u8) -> KeySpan {
        KeySpan { start: key(start), end: key(end) }
    }

    proptest! {
        #[test]
        fn each_key_has_the_highest_threshold_that_was_published_for_it(
            steps in prop::collection::vec((0u8..12, 1u8..12, 1u64..6, any::<bool>()), 1..24)
        ) {
            let thresholds = Arc::new(GcThresholds::default());
            let mut twin = [None; 24];
            for (start, length, threshold, forgets) in steps {
                let span = span(start, start + length);
                let covered = &mut twin[usize::from(start)..usize::from(start + length)];
                if forgets && threshold == 1 {
                    thresholds.forget(&span);
                    covered.fill(None);
                } else {
                    thresholds.publish(&span, at(threshold));
                    covered.iter_mut().for_each(|known| *known = (*known).max(Some(at(threshold))));
                }
                for (n, known) in (0..).zip(twin) {
                    prop_assert_eq!(thresholds.active_for(&key(n)), known);
                }
            }
        }
    }

    #[test]
    fn a_threshold_waits_for_the_views_that_were_open_and_not_for_later_ones() {
        let thresholds = Arc::new(GcThresholds::default());
        let in_force = |n| thresholds.active_for(&key(n));
        let first = thresholds.view();
        thresholds.publish(&span(0, 9), at(1));
        assert_eq!(in_force(1), None);
        let second = thresholds.view();
        thresholds.publish(&span(0, 9), at(2));
        drop(first);
        assert_eq!(in_force(1), Some(at(1)), "the second view was opened after it");
        let third = thresholds.view();
        thresholds.publish(&span(0, 5), at(3));
        drop(second);
        assert_eq!(in_force(1), Some(at(2)));
        drop(third);
        assert_eq!((in_force(1), in_force(7)), (Some(at(3)), Some(at(2))));
        assert_eq!(thresholds.oldest(), Some(at(2)));
    }

    fn decided(full: bool, versions: &[(u8, u64, bool)]) -> Vec<(u8, u64)> {
        let thresholds = Arc::new(GcThresholds::default());
        thresholds.publish(&span(0, 4), at(10));
        let mut collector = thresholds.collector(full);
        let goes = |(n, wall, deleted): &&(u8, u64, bool)| {
            collector.drops(&keys::version(&key(*n), at(*wall)), &[u8::from(*deleted)])
        };
        versions.iter().filter(goes).map(|(n, wall, _)| (*n, *wall)).collect()
    }

    #[test]
    fn only_what_a_newer_version_at_the_threshold_hides_goes() {
        let met = [(1, 12, false), (1, 11, false), (1, 10, false), (1, 9, false), (1, 8, true), (2, 9, false)];
        assert_eq!(decided(false, &met), [(1, 9), (1, 8)]);
        assert_eq!(decided(true, &met), [(1, 9), (1, 8)]);
        assert_eq!(decided(true, &[(7, 9, false), (7, 8, false)]), [], "no threshold there");
        assert_eq!(decided(true, &[(1, 9, false), (2, 8, false), (1, 7, false)]), [], "met by others only");
    }

    #[test]
    fn a_delete_marker_goes_only_if_nothing_older_can_be_elsewhere() {
        let met = [(1, 11, true), (1, 10, true), (1, 9, false), (2, 3, true), (3, 3, false)];
        assert_eq!(decided(false, &met), [(1, 9)]);
        assert_eq!(decided(true, &met), [(1, 10), (1, 9), (2, 3)]);
    }

    #[test]
    fn other_regions_are_never_touched() {
        let thresholds = Arc::new(GcThresholds::default());
        thresholds.publish(&KeySpan::ALL, Timestamp::MAX);
        let mut collector = thresholds.collector(true);
        for region in 0..=u8::MAX {
            let mut physical = keys::version(&key(1), at(1));
            physical[0] = region;
            assert_eq!(collector.drops(&physical, &[1]), region == 5, "region {region}");
        }
        assert!(!collector.drops(&[5], &[1]) && !collector.drops(&[], &[]), "no key of a version");
    }
}
