//! The memory of all entry caches of a store together: when it is over its budget, the largest caches give up what they
//! keep only to serve followers faster (docs/durability.md, "Log").

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::RangeId;

/// Bytes of entries that all groups of a store keep.
const BUDGET: usize = 256 << 20;

/// How much each group keeps.
#[derive(Debug, Default)]
pub(crate) struct CacheBudget {
    total: usize,
    sizes: BTreeSet<(usize, RangeId)>,
    of: BTreeMap<RangeId, usize>,
}

impl CacheBudget {
    /// A group keeps so much now; 0 when it is gone.
    pub(crate) fn note(&mut self, range: RangeId, bytes: usize) {
        let before = if bytes == 0 { self.of.remove(&range) } else { self.of.insert(range, bytes) };
        if before == Some(bytes) {
            return;
        }
        self.sizes.remove(&(before.unwrap_or(0), range));
        self.total = self.total + bytes - before.unwrap_or(0);
        if bytes > 0 {
            self.sizes.insert((bytes, range));
        }
    }

    /// Who must give something up, if all together keep too much.
    pub(crate) fn largest_if_over(&self) -> Option<RangeId> {
        self.sizes.last().filter(|_| self.total > BUDGET).map(|(_, range)| *range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gives_up_first() {
        let mut budget = CacheBudget::default();
        budget.note(RangeId(1), BUDGET / 2);
        budget.note(RangeId(2), BUDGET / 4);
        assert_eq!(budget.largest_if_over(), None);
        budget.note(RangeId(2), BUDGET / 2 + 1);
        assert_eq!(budget.largest_if_over(), Some(RangeId(2)));
        budget.note(RangeId(2), 0);
        assert_eq!(budget.largest_if_over(), None);
        assert_eq!(budget.total, BUDGET / 2);
    }
}
