//! What a store needs of the world. The peer layer and the cluster implement these; a test wires stores to each other
//! with an implementation of a few lines.
//!
//! All are called on threads of the store, which drive every replica: nothing here may wait, but for the snapshot
//! outlet, which has a thread of its own.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_range::liveness::LivenessMessage;
use flotilla_range::message::{PeerMessage, SnapshotHeader};
use flotilla_types::{Key, PushTxn, RangeDescriptor, RangeId, StoreId};
use thiserror::Error;

use crate::clock::NodeClock;

/// The way to other stores. Every frame that leaves carries a reading of this store's clock (leases 1.2).
pub trait Network: Send + Sync + 'static {
    /// Sends what one turn of the fleet wants sent: one frame per peer and lane. What has no room is dropped and told
    /// through `StoreHandle::unreachable`.
    fn send(&self, turn: Vec<(StoreId, PeerMessage)>);
    /// Sends on the heartbeat lane, ahead of the heartbeats of ranges.
    fn send_liveness(&self, to: StoreId, message: LivenessMessage);
    /// Opens a transfer on the bulk lane. Called and fed on a thread that may wait.
    fn open_snapshot(&self, to: StoreId, header: SnapshotHeader) -> Box<dyn SnapshotOutlet>;
}

/// A snapshot's frames on their way out.
pub trait SnapshotOutlet: Send {
    /// Sends one frame; waits, with a deadline, while the peer is slower.
    ///
    /// # Errors
    /// The transfer ended: send no more.
    fn frame(&mut self, frame: Bytes) -> Result<(), Broken>;
    /// Waits, with a deadline, for the receiver's word; true if it verified all frames.
    fn finish(self: Box<Self>) -> bool;
}

/// A transfer ended before its time. It starts again, since a range is small.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the snapshot's transfer ended: {0}")]
pub struct Broken(pub String);

/// What has to be done about ranges outside of their log. Queues behind it are bounded, and keep the newest per range.
pub trait Keeper: Send + Sync + 'static {
    /// This store leads the range, and the descriptor is new: keep the addressing records true.
    fn lead(&self, descriptor: RangeDescriptor);
    /// Read the addressing record of the range that owns `key`, and tell `StoreHandle::confirmed`.
    fn confirm(&self, range: RangeId, key: Key);
    /// A transaction stands in the way of a request of this store: ask its record, and tell `StoreHandle::pushed`. May be
    /// dropped: the range pushes again.
    fn push(&self, push: Push);
    /// A replica of this store is out of order and waits to be replaced.
    fn lost(&self, range: RangeId, why: &str);
}

/// What `Effect::Push` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Whose request pushes.
    pub range: RangeId,
    /// Names the push.
    pub number: u64,
    /// Where the transaction stands in the way.
    pub keys: Vec<Key>,
    /// What to ask.
    pub push: Box<PushTxn>,
}

/// All of them.
#[derive(Clone)]
pub struct Ports {
    /// The way to other stores.
    pub network: Arc<dyn Network>,
    /// Who cares for what is outside of the logs.
    pub keeper: Arc<dyn Keeper>,
    /// The node's clock, which the store starts at its durable bound. Until then it gives no reading.
    pub clock: Arc<NodeClock>,
}
