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

use flotilla_types::{Key, KeySpan, Timestamp, TxnId};

/// A read timestamp, and who read there if it was one transaction alone: it may write at the very timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Piece {
    at: Timestamp,
    owner: Option<TxnId>,
}

impl Piece {
    fn raise(&mut self, at: Timestamp, owner: Option<TxnId>) {
        if at > self.at {
            *self = Self { at, owner };
        } else if at == self.at && owner != self.owner {
            self.owner = None;
        }
    }

    /// The lowest timestamp at which `writer` may write.
    fn floor(&self, writer: Option<TxnId>) -> Timestamp {
        if self.owner.is_some() && self.owner == writer { self.at } else { self.at.next() }
    }
}

/// Read timestamps of one range, by key.
#[derive(Debug)]
pub struct TimestampCache {
    low_water: Timestamp,
    /// Start of a piece to the highest read in it, zero where nothing above the mark was read.
    pieces: BTreeMap<Key, Piece>,
    pieces_max: usize,
}

impl TimestampCache {
    /// An empty cache: all keys count as read at `low_water`. Holds about `pieces_max` pieces.
    #[must_use]
    pub const fn new(low_water: Timestamp, pieces_max: usize) -> Self {
        Self { low_water, pieces: BTreeMap::new(), pieces_max }
    }

    /// Enters a read of a span, by a transaction or by nobody in particular.
    pub fn read(&mut self, span: &KeySpan, at: Timestamp, owner: Option<TxnId>) {
        if at <= self.low_water {
            return;
        }
        self.cut(&span.start);
        self.cut(&span.end);
        for (_, read) in self.pieces.range_mut(span.start.clone()..span.end.clone()) {
            read.raise(at, owner);
        }
        if self.pieces.len() > self.pieces_max {
            self.forget();
        }
    }

    /// The lowest timestamp at which `writer` may write the keys of a span: above all reads of others, and not below its own.
    #[must_use]
    pub fn floor(&self, span: &KeySpan, writer: Option<TxnId>) -> Timestamp {
        let first = self.pieces.range(..=span.start.clone()).next_back();
        let inside = self.pieces.range(span.start.clone()..span.end.clone());
        let floors = first.into_iter().chain(inside).map(|(_, read)| read.floor(writer));
        floors.fold(self.low_water.next(), Timestamp::max)
    }

    /// Counts all keys as read at this timestamp.
    pub fn raise_low_water(&mut self, to: Timestamp) {
        self.low_water = self.low_water.max(to);
    }

    /// Makes a piece begin at this key.
    fn cut(&mut self, key: &Key) {
        let before = self.pieces.range(..=key.clone()).next_back();
        let read = before.map_or_else(Piece::default, |(_, read)| *read);
        self.pieces.entry(key.clone()).or_insert(read);
    }

    /// Drops the older half of the reads and joins what is equal then.
    fn forget(&mut self) {
        let mut reads: Vec<_> = self.pieces.values().map(|read| read.at).collect();
        reads.sort_unstable();
        self.low_water = self.low_water.max(reads[reads.len() / 2]);
        let mut before = Piece::default();
        let mark = self.low_water;
        self.pieces.retain(|_, read| {
            *read = if read.at <= mark { Piece::default() } else { *read };
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
        cache.read(&span(3, 6), at(20), None);
        cache.read(&span(5, 8), at(15), None);
        assert_eq!(cache.floor(&span(2, 3), None), at(10).next());
        assert_eq!(cache.floor(&span(5, 6), None), at(20).next());
        assert_eq!(cache.floor(&span(6, 7), None), at(15).next());
        assert_eq!(cache.floor(&span(8, 9), None), at(10).next());
        cache.raise_low_water(at(17));
        assert_eq!(cache.floor(&span(6, 7), None), at(17).next());
    }

    #[test]
    fn an_own_read_exempts_from_itself_and_from_nothing_that_it_covers() {
        let (mine, other) = (Some(TxnId([1; 16])), Some(TxnId([2; 16])));
        let mut cache = TimestampCache::new(at(10), 100);
        cache.read(&span(3, 6), at(20), mine);
        assert_eq!(cache.floor(&span(3, 6), mine), at(20));
        assert_eq!(cache.floor(&span(3, 6), other), at(20).next());
        cache.read(&span(5, 6), at(20), other);
        assert_eq!(cache.floor(&span(4, 5), mine), at(20));
        assert_eq!(cache.floor(&span(4, 6), mine), at(20).next());
        cache.read(&span(3, 4), at(30), other);
        cache.read(&span(3, 4), at(25), mine);
        assert_eq!(cache.floor(&span(3, 4), mine), at(30).next());
    }

    proptest! {
        /// The dumb twin keeps all reads of each key and forgets nothing. With room enough both agree; without, the
        /// cache may only say more.
        #[test]
        fn it_never_says_less_than_was_read(
            reads in prop::collection::vec((0u8..30, 1u8..8, 1u64..60, 0u8..3), 1..80),
            room in prop::sample::select(vec![4usize, 1000]),
        ) {
            let mut cache = TimestampCache::new(at(5), room);
            let mut twin: Vec<Vec<(Timestamp, Option<TxnId>)>> = vec![vec![(at(5), None)]; 40];
            for (start, length, wall, owner) in reads {
                let owner = (owner > 0).then_some(TxnId([owner; 16]));
                cache.read(&span(start, start + length), at(wall), owner);
                for reads in &mut twin[usize::from(start)..usize::from(start + length)] {
                    reads.push((at(wall), owner));
                }
                for (key, writer) in (0..39u8).zip([None, Some(TxnId([1; 16])), Some(TxnId([2; 16]))].into_iter().cycle()) {
                    let newest = twin[usize::from(key)].iter().map(|(at, _)| *at).max().unwrap();
                    let mut owners = twin[usize::from(key)].iter().filter(|(at, _)| *at == newest).map(|(_, owner)| *owner);
                    let alone = writer.is_some() && owners.all(|owner| owner == writer);
                    let (said, may) = (cache.floor(&span(key, key + 1), writer), if alone { newest } else { newest.next() });
                    prop_assert!(said >= may);
                    prop_assert!(room < 1000 || said == may);
                }
                prop_assert!(cache.pieces.len() <= room.max(4) + 2);
            }
        }
    }
}
