//! What happened in a run: counted, hashed, and its last lines kept. The same seed gives the same hash.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How many lines are shown of a failing run.
const TAIL: usize = 120;

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    tail: VecDeque<String>,
    /// How often each fault and each rare branch occurred.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Every line goes to standard error at once.
    pub(crate) loud: bool,
}

impl Trace {
    /// Something frequent: only hashed.
    pub(crate) fn mix(&mut self, time: Duration, numbers: &[u64]) {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        for number in std::iter::once(&time).chain(numbers) {
            // FNV-1a over words: collisions do not matter, only that a difference shows.
            self.hash = (self.hash ^ number).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        }
    }

    /// Something rare: a line.
    pub(crate) fn note(&mut self, time: Duration, line: &str) {
        let bytes = line.as_bytes().chunks(8);
        let words: Vec<u64> =
            bytes.map(|chunk| chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte))).collect();
        self.mix(time, &words);
        let line = format!("{:>12.6} {line}", time.as_secs_f64());
        if self.loud {
            eprintln!("{line}");
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&mut self, what: &'static str, by: u64) {
        *self.counts.entry(what).or_default() += by;
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}
