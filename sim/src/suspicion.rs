//! When a store distrusts its own clock (leases 1.4): its wall clock and its monotonic one parted, or most peers are far off.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_types::StoreId;

use crate::time::MAX_OFFSET;

/// Watches one store's clock.
#[derive(Debug)]
pub(crate) struct Suspicion {
    wall: Duration,
    mono: Duration,
    suspended: bool,
    /// Offsets to the peers, in milliseconds, measured since the last suspicion.
    offsets: BTreeMap<StoreId, i64>,
    /// How many peers there are.
    pub(crate) peers: usize,
}

impl Suspicion {
    pub(crate) const fn new(wall: Duration, mono: Duration) -> Self {
        Self { wall, mono, suspended: false, offsets: BTreeMap::new(), peers: 0 }
    }

    /// A round trip told how far off a peer's clock is.
    pub(crate) fn measured(&mut self, peer: StoreId, offset_ms: i64) {
        self.offsets.insert(peer, offset_ms);
    }

    /// Before each turn. Says what changed.
    pub(crate) fn look(&mut self, wall: Duration, mono: Duration) -> Option<bool> {
        let (passed, true_passed) = (wall.saturating_sub(self.wall), mono.saturating_sub(self.mono));
        let parted = passed.abs_diff(true_passed) > MAX_OFFSET / 2 || wall + MAX_OFFSET / 2 < self.wall;
        (self.wall, self.mono) = (wall, mono);
        if parted {
            self.offsets.clear();
        }
        let limit = |part: f64| i64::try_from(MAX_OFFSET.mul_f64(part).as_millis()).unwrap_or(i64::MAX);
        let most = |count: usize| (count + 1) * 2 > self.peers + 1;
        let near = self.offsets.values().filter(|offset| offset.abs() < limit(0.5)).count();
        let far = self.offsets.values().filter(|offset| offset.abs() > limit(0.8)).count();
        let suspended = match self.suspended {
            false => parted || (far > 0 && !most(self.peers.saturating_sub(far))),
            true => parted || !most(near),
        };
        (suspended != self.suspended).then(|| {
            self.suspended = suspended;
            suspended
        })
    }
}
