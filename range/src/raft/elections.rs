//! When a replica asks for votes (leases 4, "When"). The library's own random timeout plays no part.
//!
//! ```text
//!  support left, quorum hinted free ─► rank × delay + 0..50 ms
//!  no promise, last leader message  ─► D + 0..D/2
//!  failed try k                     ─► 500 ms × 2^k (≤ 4 s) × 0.5..1.5
//!  the same, of a split's child     ─► 15 ms × 2^k × 0.5..1.5, while k < 6
//! ```

use std::time::Duration;

/// A small generator (splitmix64): a hundred thousand groups should not each carry a cipher's state.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) const fn new(seed: u64, range: u64, replica: u64) -> Self {
        Self(seed ^ range.rotate_left(32) ^ replica.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration below `max`.
    fn below(&mut self, max: Duration) -> Duration {
        let nanoseconds = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.next() % nanoseconds)
    }
}

const RANK_JITTER: Duration = Duration::from_millis(50);
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// A child asks before its siblings were born perhaps: they drop the first request, and hear of the cut a moment later.
const EAGER_FIRST: Duration = Duration::from_millis(15);
const EAGER_TRIES: u32 = 6;
/// 500 ms × 2^3 = 4 s.
const RETRY_DOUBLINGS: u32 = 3;
/// After so many failed tries a candidate no longer asks whether its own store is supported.
pub(crate) const TRIES_WITH_SUPPORT: u32 = 4;

#[derive(Debug)]
pub(crate) struct Elections {
    pub(crate) campaign_at: Option<Duration>,
    /// Failed tries since a leader was last heard.
    pub(crate) tries: u32,
    /// The last accepted leader message.
    pub(crate) heard: Duration,
    /// How many more tries follow each other fast.
    eager: u32,
    /// It was accepted without an active promise.
    pub(crate) heard_unpromised: bool,
    chance: Chance,
}

impl Elections {
    pub(crate) const fn new(chance: Chance, mono: Duration) -> Self {
        Self { campaign_at: None, tries: 0, heard: mono, eager: 0, heard_unpromised: false, chance }
    }

    /// A leader spoke.
    pub(crate) fn leader_spoke(&mut self, mono: Duration, support: Duration, promised: bool) {
        self.heard = mono;
        self.eager = 0;
        self.heard_unpromised = !promised;
        self.tries = 0;
        self.campaign_at = None;
        if !promised {
            self.after_silence(mono, support);
        }
    }

    /// Without a promise: D and a bit after the last leader message.
    pub(crate) fn after_silence(&mut self, mono: Duration, support: Duration) {
        self.campaign_at = Some(mono + support + self.chance.below(support / 2));
    }

    /// The leader's store is gone and an election can be won. Never later than what was planned.
    pub(crate) fn ranked(&mut self, mono: Duration, rank: u32, delay: Duration) {
        let at = mono + delay * rank + self.chance.below(RANK_JITTER);
        self.campaign_at = Some(self.campaign_at.map_or(at, |planned| planned.min(at)));
    }

    /// Nobody else campaigns, and the others are about to come to be: try at once, and again soon.
    pub(crate) fn eagerly(&mut self, mono: Duration) {
        self.eager = EAGER_TRIES;
        self.campaign_at = Some(mono);
    }

    /// A try was begun; unless it succeeds there will be another.
    pub(crate) fn tried(&mut self, mono: Duration) {
        if let Some(left) = self.eager.checked_sub(1) {
            let base = EAGER_FIRST * (1 << (EAGER_TRIES - self.eager));
            self.eager = left;
            self.campaign_at = Some(mono + base / 2 + self.chance.below(base));
            return;
        }
        let base = RETRY_FIRST * (1 << self.tries.min(RETRY_DOUBLINGS));
        self.tries = self.tries.saturating_add(1);
        self.campaign_at = Some(mono + base / 2 + self.chance.below(base));
    }

    pub(crate) fn leads(&mut self) {
        self.campaign_at = None;
        self.tries = 0;
        self.eager = 0;
        self.heard_unpromised = false;
    }
}
