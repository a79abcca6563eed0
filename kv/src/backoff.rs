//! Pauses between attempts: exponential, with jitter, from a seed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A seeded source of jitter that many tasks may share.
#[derive(Debug)]
pub(crate) struct Dice(AtomicU64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number: splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    fn roll(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between a half and the whole of `time`: enough spread that callers who failed together do not return together.
    pub(crate) fn jitter(&self, time: Duration) -> Duration {
        let half = time / 2;
        let spread = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(self.roll() % spread)
    }
}

/// The pauses of one caller.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    next: Duration,
    max: Duration,
}

impl Backoff {
    pub(crate) const fn new(min: Duration, max: Duration) -> Self {
        Self { next: min, max }
    }

    /// How long to wait this time.
    pub(crate) fn pause(&mut self, dice: &Dice) -> Duration {
        let pause = dice.jitter(self.next);
        self.next = (self.next * 2).min(self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_a_seed_replays() {
        let run = |seed| {
            let (dice, mut backoff) =
                (Dice::new(seed), Backoff::new(Duration::from_millis(10), Duration::from_millis(80)));
            (0..8).map(|_| backoff.pause(&dice)).collect::<Vec<_>>()
        };
        let pauses = run(7);
        assert_eq!(pauses, run(7));
        assert_ne!(pauses, run(8));
        assert!(pauses[0] >= Duration::from_millis(5) && pauses[0] <= Duration::from_millis(10));
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(80)));
        assert!(pauses[7] >= Duration::from_millis(40));
    }
}
