//! Which key comes next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rand::Rng;
use rand::distr::Distribution as _;
use rand::rngs::StdRng;
use rand_distr::Zipf;

use crate::args::Distribution;

/// YCSB's skew.
const ZIPF_EXPONENT: f64 = 0.99;

/// Chooses keys; clones share what is common to all clients.
#[derive(Clone)]
pub(crate) struct Chooser {
    keys: u64,
    distribution: Distribution,
    zipf: Option<Zipf<f64>>,
    next: Arc<AtomicU64>,
}

impl Chooser {
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn new(distribution: Distribution, keys: u64) -> Self {
        // Refuses only numbers that the arguments exclude.
        let zipf = Zipf::new(keys as f64, ZIPF_EXPONENT).ok();
        Self { keys, distribution, zipf, next: Arc::new(AtomicU64::new(0)) }
    }

    /// The number of the next key, below `keys`.
    pub(crate) fn choose(&self, random: &mut StdRng) -> u64 {
        match (self.distribution, &self.zipf) {
            (Distribution::Uniform, _) | (Distribution::Zipf, None) => random.random_range(0..self.keys),
            (Distribution::Zipf, Some(_)) => hash(self.rank(random)) % self.keys,
            (Distribution::Sequential, _) => self.next.fetch_add(1, Ordering::Relaxed) % self.keys,
            (Distribution::Hot, _) if random.random_ratio(9, 10) => {
                random.random_range(0..self.keys.div_ceil(100)) * 100 % self.keys
            }
            (Distribution::Hot, _) => random.random_range(0..self.keys),
        }
    }

    /// A rank below `keys`, of which 0 is the most frequent; a few are chosen much more often than most.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn rank(&self, random: &mut StdRng) -> u64 {
        // Samples begin with 1.
        self.zipf.map_or(0, |zipf| zipf.sample(random) as u64 - 1)
    }
}

/// Scatters numbers, so that neighbours do not lie side by side. No two numbers have the same hash.
pub(crate) const fn hash(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// The key of a number. Numbers ascend as keys do.
pub(crate) fn key(number: u64) -> Bytes {
    format!("bench/{number:012}").into()
}

/// Values that do not compress, cut from one random block.
pub(crate) struct Values {
    block: Bytes,
    size: usize,
}

impl Values {
    pub(crate) fn new(size: u32, random: &mut StdRng) -> Self {
        let size = size as usize;
        let mut block = vec![0; size + (1 << 16)];
        random.fill(&mut block[..]);
        Self { block: block.into(), size }
    }

    /// Bytes of each.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) const fn size(&self) -> u32 {
        self.size as u32
    }

    pub(crate) fn next(&self, random: &mut StdRng) -> Bytes {
        let start = random.random_range(0..1 << 16);
        self.block.slice(start..start + self.size)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn choices_stay_within_the_keys_and_are_skewed_as_asked() {
        let keys = 10_000;
        for distribution in [Distribution::Uniform, Distribution::Zipf, Distribution::Sequential, Distribution::Hot] {
            let chooser = Chooser::new(distribution, keys);
            let mut random = StdRng::seed_from_u64(1);
            let mut counts = vec![0_u32; 10_000];
            for _ in 0..100_000 {
                counts[usize::try_from(chooser.choose(&mut random)).unwrap()] += 1;
            }
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let top_percent: u32 = counts[..100].iter().sum();
            let (low, high) = match distribution {
                Distribution::Uniform | Distribution::Sequential => (1_000, 2_500),
                Distribution::Zipf => (40_000, 70_000),
                Distribution::Hot => (88_000, 92_000),
            };
            assert!((low..high).contains(&top_percent), "{distribution:?}: {top_percent}");
        }
    }
}
