//! When a range's old versions may go: the settings, how high the threshold may be, and what there is to gain.
//!
//! The leader alone decides (`replica/gc`), by its clock and by an estimate of the garbage; the threshold is in force
//! where and when the command was applied. What became of it on a disk is each store's own business
//! (`flotilla_storage::gc`).

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_types::{Timestamp, nanoseconds};

/// Steps in which garbage ripens, and how many are told apart at most.
const STEPS_PER_TTL: u64 = 32;
const STEPS_MAX: usize = 128;

/// When old versions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcConfig {
    /// For how long a version can be read after it was overwritten or deleted. Longer than clocks differ, and at least
    /// four times as long as a client may send a request again: its version is the record that it was done.
    pub ttl: Duration,
    /// Between two looks of a leader at whether raising the threshold is worth it.
    pub every: Duration,
    /// So many bytes of garbage are worth it.
    pub worth_bytes: u64,
    /// So many delete markers are worth a walk over the range by each of its replicas.
    pub worth_markers: u64,
}

impl GcConfig {
    /// How long versions can be read, unless said otherwise.
    pub const TTL: Duration = Duration::from_secs(4 * 3600);
}

impl Default for GcConfig {
    fn default() -> Self {
        Self { ttl: Self::TTL, every: Duration::from_secs(600), worth_bytes: 1 << 20, worth_markers: 4096 }
    }
}

/// How high a range's threshold may be (docs/durability.md, "Old versions"). `protected`: the least timestamp that somebody protects in the
/// range. `lock`: the oldest lock of the range: its transaction may still commit there, and read.
pub(crate) fn highest(
    now: Timestamp,
    ttl: Duration,
    protected: Option<Timestamp>,
    lock: Option<Timestamp>,
) -> Timestamp {
    let below = [protected, lock].into_iter().flatten().map(before);
    below.fold(now.minus(ttl), Timestamp::min)
}

/// The highest timestamp below this one; zero has none.
fn before(timestamp: Timestamp) -> Timestamp {
    match (timestamp.logical.checked_sub(1), timestamp.wall.checked_sub(1)) {
        (Some(logical), _) => Timestamp { wall: timestamp.wall, logical },
        (None, Some(wall)) => Timestamp { wall, logical: u32::MAX },
        (None, None) => Timestamp::ZERO,
    }
}

/// Garbage, in bytes or in markers, by when it became garbage: when what hides it was written. An estimate, and of bounded size.
#[derive(Debug, Default)]
pub(crate) struct Ages(BTreeMap<u64, u64>);

impl Ages {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So much became garbage at a time. It counts as a little younger than it is.
    pub(crate) fn add(&mut self, ttl: Duration, at: Timestamp, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let step = (nanoseconds(ttl) / STEPS_PER_TTL).max(1);
        *self.0.entry((at.wall / step).saturating_add(1).saturating_mul(step)).or_default() += bytes;
        while self.0.len() > STEPS_MAX
            && let Some((_, oldest)) = self.0.pop_first()
            && let Some(mut next) = self.0.first_entry()
        {
            *next.get_mut() += oldest;
        }
    }

    /// What a threshold would let go.
    pub(crate) fn up_to(&self, threshold: Timestamp) -> u64 {
        self.0.range(..=threshold.wall).map(|(_, bytes)| bytes).sum()
    }

    /// That went.
    pub(crate) fn forget(&mut self, threshold: Timestamp) {
        self.0 = self.0.split_off(&threshold.wall.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(wall: u64) -> Timestamp {
        Timestamp::from_wall(wall)
    }

    #[test]
    fn a_threshold_stays_below_what_somebody_needs() {
        let (now, ttl) = (at(1000), Duration::from_nanos(100));
        assert_eq!(highest(now, ttl, None, None), at(900));
        assert_eq!(highest(now, ttl, Some(at(950)), Some(at(990))), at(900));
        assert_eq!(highest(now, ttl, None, Some(at(900))), Timestamp { wall: 899, logical: u32::MAX });
        assert_eq!(
            highest(now, ttl, Some(Timestamp { wall: 7, logical: 3 }), Some(at(900))),
            Timestamp { wall: 7, logical: 2 }
        );
        assert_eq!(highest(now, ttl, Some(Timestamp::ZERO), None), Timestamp::ZERO);
        assert_eq!(highest(at(5), ttl, None, None), Timestamp::ZERO);
    }

    #[test]
    fn garbage_counts_once_it_is_old_enough_and_until_it_went() {
        let ttl = Duration::from_nanos(320);
        let mut ages = Ages::default();
        ages.add(ttl, at(1005), 7);
        ages.add(ttl, at(1007), 1);
        ages.add(ttl, at(1100), 2);
        assert_eq!((ages.up_to(at(1009)), ages.up_to(at(1010)), ages.up_to(at(1200))), (0, 8, 10));
        ages.forget(at(1050));
        assert_eq!((ages.up_to(at(1050)), ages.up_to(at(2000))), (0, 2));
        ages.forget(at(2000));
        assert!(ages.is_empty());
    }

    #[test]
    fn however_long_it_ripens_the_estimate_stays_small_and_whole() {
        let ttl = Duration::from_nanos(320);
        let mut ages = Ages::default();
        (0..10_000).for_each(|n| ages.add(ttl, at(n * 10), 1));
        assert!(ages.0.len() <= STEPS_MAX);
        assert_eq!(ages.up_to(Timestamp::MAX), 10_000);
    }
}
