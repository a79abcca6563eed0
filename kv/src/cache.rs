//! Which ranges there are, as far as known: ordered by end key, newer generations displace older ones.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use flotilla_types::{Generation, Key, RangeDescriptor, RangeId};

/// So many descriptors are remembered, some 300 bytes each. Beyond, all are forgotten: a cluster with more ranges needs
/// a better rule, and a flood of look-ups meanwhile is still correct.
const RANGES_MAX: usize = 200_000;

/// Descriptors by end key. Invariant: no two overlap.
#[derive(Debug, Default)]
pub(crate) struct RangeCache {
    by_end: RwLock<BTreeMap<Key, Arc<RangeDescriptor>>>,
    /// Generation of the range of meta1 that was last found wanting; 0 if none was.
    stale_root: AtomicU64,
}

impl RangeCache {
    /// The owner of a key.
    pub(crate) fn owner(&self, key: &Key) -> Option<Arc<RangeDescriptor>> {
        let map = self.by_end.read().unwrap_or_else(PoisonError::into_inner);
        let (_, found) = map.range((Bound::Excluded(key), Bound::Unbounded)).next()?;
        found.span.contains(key).then(|| Arc::clone(found))
    }

    /// The owner of the keys right below `end`.
    pub(crate) fn owner_below(&self, end: &Key) -> Option<Arc<RangeDescriptor>> {
        let map = self.by_end.read().unwrap_or_else(PoisonError::into_inner);
        let (_, found) = map.range((Bound::Included(end), Bound::Unbounded)).next()?;
        (found.span.start < *end).then(|| Arc::clone(found))
    }

    /// The range with an id. Looks at all of them: for commands that people give.
    pub(crate) fn by_id(&self, range: RangeId) -> Option<Arc<RangeDescriptor>> {
        let map = self.by_end.read().unwrap_or_else(PoisonError::into_inner);
        map.values().find(|found| found.range == range).map(Arc::clone)
    }

    /// Remembers a descriptor unless a newer one overlaps it; displaces the older ones that it overlaps. Generations of
    /// ranges that ever shared a key can be compared: each split hands the parent's generation on, raised by one.
    pub(crate) fn insert(&self, descriptor: RangeDescriptor) -> Arc<RangeDescriptor> {
        let descriptor = Arc::new(descriptor);
        let mut map = self.by_end.write().unwrap_or_else(PoisonError::into_inner);
        let from = (Bound::Excluded(&descriptor.span.start), Bound::Unbounded);
        let overlapping = map.range(from).take_while(|(_, other)| other.span.start < descriptor.span.end);
        let overlapping: Vec<_> = overlapping.map(|(end, other)| (end.clone(), other.generation)).collect();
        if overlapping.iter().any(|(_, generation)| *generation > descriptor.generation) {
            return descriptor;
        }
        for (end, _) in overlapping {
            map.remove(&end);
        }
        if map.len() >= RANGES_MAX {
            map.clear();
        }
        map.insert(descriptor.span.end.clone(), Arc::clone(&descriptor));
        descriptor
    }

    /// Forgets a descriptor that turned out wrong, unless a newer one took its place.
    pub(crate) fn evict(&self, wrong: &RangeDescriptor) {
        let mut map = self.by_end.write().unwrap_or_else(PoisonError::into_inner);
        let same = |found: &Arc<RangeDescriptor>| (found.range, found.generation) == (wrong.range, wrong.generation);
        if map.get(&wrong.span.end).is_some_and(same) {
            map.remove(&wrong.span.end);
        }
        if wrong.span.start == Key::MIN {
            self.stale_root.fetch_max(wrong.generation.0, Ordering::Relaxed);
        }
    }

    /// Which generation of the first range to ask past, if one was found wanting.
    pub(crate) fn stale_root(&self) -> Option<Generation> {
        Some(Generation(self.stale_root.load(Ordering::Relaxed))).filter(|generation| generation.0 > 0)
    }

    /// Whether something newer than `generation` is known about `key`.
    pub(crate) fn knows_newer(&self, key: &Key, generation: Generation) -> bool {
        self.owner(key).is_some_and(|found| found.generation > generation)
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{KeySpan, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId, keys};
    use proptest::prelude::*;

    use super::*;

    fn range(id: u64, start: &[u8], end: &[u8], generation: u64) -> RangeDescriptor {
        let replica = ReplicaDescriptor { replica: ReplicaId(1), store: StoreId(1), kind: ReplicaKind::Voter };
        RangeDescriptor {
            range: RangeId(id),
            span: KeySpan::new(keys::user(start), keys::user(end)).unwrap(),
            generation: Generation(generation),
            replicas: [replica].into_iter().collect(),
            next_replica: ReplicaId(2),
        }
    }

    #[test]
    fn newer_generations_displace_older_ones_and_never_the_other_way_round() {
        let cache = RangeCache::default();
        cache.insert(range(1, b"a", b"z", 1));
        cache.insert(range(2, b"m", b"z", 2));
        assert!(cache.owner(&keys::user(b"b")).is_none(), "the left half is not known yet");
        cache.insert(range(1, b"a", b"z", 1));
        assert_eq!(cache.owner(&keys::user(b"n")).unwrap().range, RangeId(2));
        cache.insert(range(1, b"a", b"m", 2));
        assert_eq!(cache.owner(&keys::user(b"b")).unwrap().range, RangeId(1));
        assert_eq!(cache.owner_below(&keys::user(b"m")).unwrap().range, RangeId(1));
        assert_eq!(cache.owner(&keys::user(b"m")).unwrap().range, RangeId(2));
    }

    #[test]
    fn what_was_replaced_is_not_evicted_by_who_saw_the_old_one() {
        let cache = RangeCache::default();
        let old = cache.insert(range(1, b"a", b"z", 1));
        cache.insert(range(1, b"a", b"z", 2));
        cache.evict(&old);
        assert!(cache.owner(&keys::user(b"b")).is_some());
    }

    proptest! {
        #[test]
        fn no_two_overlap(cuts in proptest::collection::vec((0u8..20, 1u8..20, 0u64..6), 1..60)) {
            let cache = RangeCache::default();
            for (id, (start, length, generation)) in (1..).zip(cuts) {
                cache.insert(range(id, &[start], &[start + length], generation));
                let map = cache.by_end.read().unwrap();
                let all: Vec<_> = map.values().collect();
                prop_assert!(all.windows(2).all(|pair| pair[0].span.end <= pair[1].span.start));
            }
        }
    }
}
