//! What a Raft group asks of store liveness, and the time of one step.
//!
//! The group never sees liveness messages. It reads an immutable view (the protocol pages, leases 2.8): an old view is
//! safe, because it shows less received and more given support than there is.

use std::time::Duration;

use flotilla_types::{StoreId, Timestamp};

/// Support that this store gives a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// In which epoch.
    pub epoch: u64,
    /// Whether it still stands. Invariant: shown `false` only after leaving was durable (leases 2.5).
    pub active: bool,
    /// The peer counts as alive until then; zero if not active.
    pub until: Timestamp,
}

/// Store liveness as a group reads it.
pub trait Support {
    /// What this store gives `peer`; `None` if it never gave anything.
    fn given(&self, peer: StoreId) -> Option<Given>;
    /// Until when `peer` supports this store in `epoch`; zero if its present epoch is another one (leases 3.4).
    fn received_until(&self, peer: StoreId, epoch: u64) -> Timestamp;
    /// Whether `peer` supports this store at all at this moment, in whatever epoch.
    fn is_supported_by(&self, peer: StoreId) -> bool;
    /// The durable bound of this store's clock.
    fn own_bound(&self) -> Timestamp;
    /// Whether `witness` says that it gives `of` nothing in `epoch` any more (leases 2.9). A hint paces elections and
    /// decides nothing.
    fn hinted_free(&self, witness: StoreId, of: StoreId, epoch: u64) -> bool;
}

/// The world of one call into a group, as values.
#[derive(Clone, Copy)]
pub struct Ctx<'a> {
    /// A fresh reading of the store's HLC.
    pub now: Timestamp,
    /// Monotonic time; paces, decides nothing about safety (leases 1.5).
    pub mono: Duration,
    /// Store liveness.
    pub support: &'a dyn Support,
    /// The store may campaign: serving, past its boot wait, log disk healthy (leases 4, campaigning).
    pub may_campaign: bool,
}
