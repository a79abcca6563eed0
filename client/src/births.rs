//! Request ids, and the cluster's time that they are born at.
//!
//! A range remembers what it did for an id by looking at what was written since the id's birth, so the birth has to be
//! cluster time, whatever the clock of this machine says. It is learnt from the timestamps of answers and carried forward
//! by the monotonic clock. An answer is some way old when it arrives, so births are early rather than late, which only
//! makes the range look a little further back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use flotilla_proto::v1;
use flotilla_types::RequestId;

/// Makes the request ids of one client.
pub(crate) struct Births {
    instance: u64,
    counter: AtomicU64,
    started: Instant,
    /// Cluster time in ms at `started`; 0 until it was learnt.
    base_ms: AtomicU64,
}

impl Births {
    pub(crate) fn new() -> Self {
        Self {
            instance: rand::random(),
            counter: AtomicU64::new(0),
            started: Instant::now(),
            base_ms: AtomicU64::new(0),
        }
    }

    /// Takes in the timestamp of an answer.
    pub(crate) fn learn(&self, timestamp: Option<&v1::Timestamp>) {
        let Some(timestamp) = timestamp else { return };
        let base = (timestamp.wall / 1_000_000).saturating_sub(self.elapsed_ms());
        // Relaxed: an older reading that wins is as good, it differs by the nodes' clock offset.
        self.base_ms.store(base, Ordering::Relaxed);
    }

    /// A fresh id; `None` until cluster time was learnt.
    pub(crate) fn next(&self) -> Option<RequestId> {
        let base = self.base_ms.load(Ordering::Relaxed);
        if base == 0 {
            return None;
        }
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        // The counter has 32 bits: when it wraps, another instance goes on, so that no id is made twice.
        let instance = self.instance.wrapping_add(count >> 32);
        #[allow(clippy::cast_possible_truncation)]
        Some(RequestId::new(base + self.elapsed_ms(), instance, count as u32))
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn births_are_cluster_time_and_ids_differ() {
        let births = Births::new();
        assert_eq!(births.next(), None);
        births.learn(None);
        assert_eq!(births.next(), None);
        let cluster_ms = 4_000_000_000_000;
        births.learn(Some(&v1::Timestamp { wall: cluster_ms * 1_000_000, logical: 3 }));
        let (first, second) = (births.next().unwrap(), births.next().unwrap());
        assert_ne!(first, second);
        assert!(first.born_ms().abs_diff(cluster_ms) < 5_000, "born at {}", first.born_ms());
    }
}
