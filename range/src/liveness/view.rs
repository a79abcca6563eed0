//! What the fleets know of store liveness: an immutable picture.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_types::{StoreId, Timestamp};

use super::state::GivenHint;
use crate::raft::{Given, Support};

/// A picture of store liveness (leases 2.8). An old one is safe: it shows less received and more given support than
/// there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SupportView {
    /// The reading at which the picture was taken.
    pub(super) as_of: Timestamp,
    pub(super) bound: Timestamp,
    pub(super) given: BTreeMap<StoreId, Given>,
    /// Epoch and end of the support that each peer gives.
    pub(super) received: BTreeMap<StoreId, (u64, Timestamp)>,
    /// What each peer last said that it gives, and when.
    pub(super) hints: BTreeMap<StoreId, (Timestamp, Vec<GivenHint>)>,
    /// Hints older than this count for nothing.
    pub(super) hint_age_max: Duration,
}

impl SupportView {
    /// Peers that this store heard of, and until when each supports it: for people who look.
    pub fn received(&self) -> impl Iterator<Item = (StoreId, Timestamp)> {
        self.received.iter().map(|(store, (_, until))| (*store, *until))
    }

    /// Whether a fleet need not look again: the other picture differs at most in how long support stands that stood
    /// already. That changes with every heartbeat, and a look costs as much as there are ranges.
    #[must_use]
    pub fn tells_the_same(&self, other: &Self) -> bool {
        let given = |view: &Self| -> Vec<_> {
            view.given.iter().map(|(store, given)| (*store, given.epoch, given.active)).collect()
        };
        let received = |view: &Self| -> Vec<_> {
            view.received.iter().map(|(store, (epoch, until))| (*store, *epoch, *until > view.as_of)).collect()
        };
        let hints = |view: &Self| -> Vec<_> {
            view.hints
                .iter()
                .map(|(store, (when, given))| (*store, view.as_of.since(*when) <= view.hint_age_max, given.clone()))
                .collect()
        };
        given(self) == given(other) && received(self) == received(other) && hints(self) == hints(other)
    }
}

impl Support for SupportView {
    fn given(&self, peer: StoreId) -> Option<Given> {
        self.given.get(&peer).copied()
    }

    fn received_until(&self, peer: StoreId, epoch: u64) -> Timestamp {
        self.received.get(&peer).filter(|(held, _)| *held == epoch).map_or(Timestamp::ZERO, |(_, until)| *until)
    }

    fn is_supported_by(&self, peer: StoreId) -> bool {
        self.received.get(&peer).is_some_and(|(_, until)| *until > self.as_of)
    }

    fn own_bound(&self) -> Timestamp {
        self.bound
    }

    fn hinted_free(&self, witness: StoreId, of: StoreId, epoch: u64) -> bool {
        let Some((when, given)) = self.hints.get(&witness) else { return false };
        let fresh = self.as_of.since(*when) <= self.hint_age_max;
        let boot = u32::try_from(epoch >> 32).unwrap_or(u32::MAX);
        fresh && given.iter().all(|hint| hint.store != of || !hint.active || hint.boot > boot)
    }
}
