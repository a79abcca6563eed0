//! The timestamp cache: up to when each key was read, so that nobody writes at or below a read that was answered without
//! having seen that write (docs/leases.md, 3.8 and 6.4).
//!
//! Every read is entered, failing ones too, before it is answered. What is forgotten is forgotten upwards: the low-water
//! mark rises to the highest timestamp that was dropped, so that forgetting costs a write some of its time and never
//! its correctness. The mark starts at the lease's start, which lies above all reads of earlier leaseholders.
//!
//! Spans are kept cut at each other's bounds, as a map from the start of a piece to its timestamp; a piece reaches to
//! the next start.

use std::collections::BTreeMap;

use flotilla_types::{Key, KeySpan, Timestamp};

/// Read timestamps of one range, by key.
#[derive(Debug)]
pub struct TimestampCache {
    low_water: Timestamp,
    /// Start of a piece to the highest read in it, zero where nothing above the mark was read.
    pieces: BTreeMap<Key, Timestamp>,
    pieces_max: usize,
}

impl TimestampCache {
    /// An empty cache: all keys count as read at `low_water`. Holds about `pieces_max` pieces.
    #[must_use]
    pub const fn new(low_water: Timestamp, pieces_max: usize) -> Self {
        Self { low_water, pieces: BTreeMap::new(), pieces_max }
    }

    /// Enters a read of a span.
    pub fn read(&mut self, span: &KeySpan, at: Timestamp) {
        if at <= self.low_water {
            return;
        }
        self.cut(&span.start);
        self.cut(&span.end);
        for (_, read) in self.pieces.range_mut(span.start.clone()..span.end.clone()) {
            *read = at.max(*read);
        }
        if self.pieces.len() > self.pieces_max {
            self.forget();
        }
    }

    /// The highest timestamp at which some key of the span may have been read: write above it.
    #[must_use]
    pub fn highest(&self, span: &KeySpan) -> Timestamp {
        let first = self.pieces.range(..=span.start.clone()).next_back();
        let inside = self.pieces.range(span.start.clone()..span.end.clone());
        first.into_iter().chain(inside).map(|(_, read)| *read).fold(self.low_water, Timestamp::max)
    }

    /// Counts all keys as read at this timestamp.
    pub fn raise_low_water(&mut self, to: Timestamp) {
        self.low_water = self.low_water.max(to);
    }

    /// Makes a piece begin at this key.
    fn cut(&mut self, key: &Key) {
        let before = self.pieces.range(..=key.clone()).next_back();
        let read = before.map_or(Timestamp::ZERO, |(_, read)| *read);
        self.pieces.entry(key.clone()).or_insert(read);
    }

    /// Drops the older half of the reads and joins what is equal then.
    fn forget(&mut self) {
        let mut reads: Vec<_> = self.pieces.values().copied().collect();
        reads.sort_unstable();
        self.low_water = self.low_water.max(reads[reads.len() / 2]);
        let mut before = Timestamp::ZERO;
        let mark = self.low_water;
        self.pieces.retain(|_, read| {
            *read = if *read <= mark { Timestamp::ZERO } else { *read };
            let keep = *read != before;
            before = *read;
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::keys;
    use proptest::prelude::*;

    use super::*;

    fn span(start: u8, end: u8) -> KeySpan {
        KeySpan::new(keys::user(&[start]), keys::user(&[end])).unwrap()
    }

    fn at(wall: u64) -> Timestamp {
        Timestamp::from_wall(wall)
    }

    #[test]
    fn a_read_protects_its_span_and_nothing_else() {
        let mut cache = TimestampCache::new(at(10), 100);
        cache.read(&span(3, 6), at(20));
        cache.read(&span(5, 8), at(15));
        assert_eq!(cache.highest(&span(2, 3)), at(10));
        assert_eq!(cache.highest(&span(5, 6)), at(20));
        assert_eq!(cache.highest(&span(6, 7)), at(15));
        assert_eq!(cache.highest(&span(8, 9)), at(10));
        cache.raise_low_water(at(17));
        assert_eq!(cache.highest(&span(6, 7)), at(17));
    }

    proptest! {
        /// The dumb twin keeps one timestamp per key and forgets nothing. With room enough both agree; without, the
        /// cache may only say more.
        #[test]
        fn it_never_says_less_than_was_read(
            reads in prop::collection::vec((0u8..30, 1u8..8, 1u64..200), 1..80),
            room in prop::sample::select(vec![4usize, 1000]),
        ) {
            let mut cache = TimestampCache::new(at(5), room);
            let mut twin = [at(5); 40];
            for (start, length, wall) in reads {
                cache.read(&span(start, start + length), at(wall));
                for read in &mut twin[usize::from(start)..usize::from(start + length)] {
                    *read = at(wall).max(*read);
                }
                for key in 0..39u8 {
                    let (said, was) = (cache.highest(&span(key, key + 1)), twin[usize::from(key)]);
                    prop_assert!(said >= was);
                    prop_assert!(room < 1000 || said == was);
                }
                prop_assert!(cache.pieces.len() <= room.max(4) + 2);
            }
        }
    }
}
