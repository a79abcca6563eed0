//! A token bucket: how long to wait so that bytes flow at a rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may be taken at once after a rest, in time: enough to be worth a thread's wake-up.
const BURST: Duration = Duration::from_millis(100);

/// The bucket; shared by all that share the rate.
#[derive(Debug)]
pub(super) struct Bucket {
    bytes_per_second: f64,
    /// When everything taken so far will have flowed.
    paid_until: Mutex<Instant>,
}

impl Bucket {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1) as f64, paid_until: Mutex::new(Instant::now()) }
    }

    /// Takes bytes, and says how long the taker has to wait for them.
    pub(super) fn take(&self, bytes: usize, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second);
        let mut paid = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = now.checked_sub(BURST).unwrap_or(now);
        *paid = (*paid).max(rested) + cost;
        paid.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_flow_at_the_rate_after_a_burst() {
        let bucket = Bucket::new(1000);
        let start = Instant::now() + Duration::from_secs(1);
        assert_eq!(bucket.take(100, start), Duration::ZERO);
        let waits = (0..10).map(|_| bucket.take(100, start)).max().unwrap();
        assert_eq!(waits.as_millis(), 1000);
        assert_eq!(bucket.take(100, start + Duration::from_secs(60)), Duration::ZERO, "rest fills it again");
    }
}
