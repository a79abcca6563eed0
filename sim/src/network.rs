//! The network: links are cut one way or both, messages are lost, doubled, late and out of order.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use flotilla_range::liveness::LivenessMessage;
use flotilla_range::message::{PeerMessage, SnapshotHeader};
use flotilla_types::{RangeError, RangeReply, RangeRequest, StoreId};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Names a request that a gateway waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallId(pub(crate) u64);

/// What travels between two stores.
#[derive(Debug, Clone)]
pub(crate) enum Post {
    Range(PeerMessage),
    Liveness(LivenessMessage),
    Snapshot(SnapshotHeader, Vec<Bytes>),
    Request(CallId, RangeRequest),
    Reply(CallId, Result<RangeReply, RangeError>),
}

impl Post {
    /// Whether a second copy may arrive. Snapshots and requests travel on streams that deliver once or break.
    const fn may_double(&self) -> bool {
        matches!(self, Self::Range(_) | Self::Liveness(_))
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives after this time, and perhaps once more.
    Arrives(Duration, Option<Duration>),
    /// It does not arrive.
    Lost,
}

/// The state of all links.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// Nothing passes from the one to the other.
    pub(crate) cut: BTreeSet<(StoreId, StoreId)>,
    pub(crate) loss: f64,
    pub(crate) doubling: f64,
    /// The longest way of a message that is not late.
    pub(crate) delay_max: Duration,
    /// Every message between two stores takes exactly this long instead, as between datacenters.
    pub(crate) fixed: Option<Duration>,
    /// How many come much later than that.
    pub(crate) lateness: f64,
}

impl Default for Network {
    fn default() -> Self {
        let (loss, doubling, lateness) = (0.0, 0.0, 0.0);
        Self { cut: BTreeSet::new(), loss, doubling, delay_max: Duration::from_millis(3), fixed: None, lateness }
    }
}

impl Network {
    /// Decides on one message.
    pub(crate) fn fate(&self, from: StoreId, to: StoreId, post: &Post, random: &mut ChaCha8Rng) -> Fate {
        if from == to {
            return Fate::Arrives(Duration::from_micros(random.random_range(5..50)), None);
        }
        if self.cut.contains(&(from, to)) || (self.loss > 0.0 && random.random_bool(self.loss)) {
            return Fate::Lost;
        }
        let first = self.delay(random);
        let doubled = post.may_double() && self.doubling > 0.0 && random.random_bool(self.doubling);
        Fate::Arrives(first, doubled.then(|| self.delay(random) * 3))
    }

    fn delay(&self, random: &mut ChaCha8Rng) -> Duration {
        if let Some(fixed) = self.fixed {
            return fixed;
        }
        let longest = u64::try_from(self.delay_max.as_micros()).unwrap_or(u64::MAX).max(201);
        let delay = Duration::from_micros(random.random_range(200..longest));
        if self.lateness > 0.0 && random.random_bool(self.lateness) {
            return delay + Duration::from_millis(random.random_range(50..1500));
        }
        delay
    }

    pub(crate) fn cut_off(&mut self, from: StoreId, to: StoreId) {
        self.cut.insert((from, to));
    }

    /// All links work again. Stores that stand far apart still do.
    pub(crate) fn heal(&mut self) {
        *self = Self { fixed: self.fixed, ..Self::default() };
    }
}
