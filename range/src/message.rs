//! What stores say to each other about their ranges. The node's transport carries these; the simulator's network too.
//!
//! Every frame on every lane also carries the sender's HLC reading, and the receiver forwards its clock before it looks
//! at the content (leases 1.2). That is the transport's duty, not repeated here.

use bytes::Bytes;
use flotilla_types::{LogIndex, RangeDescriptor, RangeId, ReplicaId, StoreId, Term};

/// Which connection a message travels on. Lanes fail apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Raft messages, and requests forwarded between nodes.
    Raft,
    /// Store liveness and the coalesced heartbeats of ranges.
    Heartbeats,
    /// Snapshots.
    Bulk,
}

/// One Raft message of one range, on the raft lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Range.
    pub range: RangeId,
    /// Sending replica.
    pub from: ReplicaId,
    /// Receiving replica. A store that holds another incarnation drops the message.
    pub to: ReplicaId,
    /// Support epoch of the sender's durable promise to the receiver in this term; 0 for none (leases 3.3).
    pub promised: u64,
    /// A serialized `eraftpb::Message`: checked for size and nesting before it is parsed.
    pub message: Bytes,
}

/// A leader's heartbeat to one follower, packed with others (leases 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Range.
    pub range: RangeId,
    /// The leader.
    pub from: ReplicaId,
    /// The follower.
    pub to: ReplicaId,
    /// The leader's term.
    pub term: Term,
    /// min(matched, committed) as the leader knows it; never raised in the packing.
    pub commit: LogIndex,
    /// The leader wants to fall asleep at this last index; 0 if not (leases 7.2).
    pub sleep_at: LogIndex,
    /// Entries below are needed by no live replica: followers may truncate up to here once flushed.
    pub keep_from: LogIndex,
}

/// A follower's answer to a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeatReply {
    /// Range.
    pub range: RangeId,
    /// The follower.
    pub from: ReplicaId,
    /// The leader.
    pub to: ReplicaId,
    /// The follower's term.
    pub term: Term,
    /// The follower's committed index.
    pub commit: LogIndex,
    /// The follower's applied index.
    pub applied: LogIndex,
    /// Running checksum of applied commands at `applied` (durability section 7).
    pub sum: u64,
    /// As in `Envelope`.
    pub promised: u64,
    /// The follower fell asleep.
    pub asleep: bool,
}

/// Everything that ranges say to ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerMessage {
    /// Raft lane.
    Raft(Envelope),
    /// Heartbeat lane: all beats of one turn between two stores.
    Beats(Vec<Beat>),
    /// Heartbeat lane.
    BeatReplies(Vec<BeatReply>),
    /// Raft lane: the former leader `replica` of `term` frees its followers from their promise (leases section 9).
    Release {
        /// Range.
        range: RangeId,
        /// The former leader.
        replica: ReplicaId,
        /// Its term.
        term: Term,
    },
    /// Raft lane: the receiver's replica of the range is removed, if its id is below `next`. Said only by who applied that.
    Removed {
        /// Range.
        range: RangeId,
        /// The id after the removed one.
        next: ReplicaId,
    },
}

impl PeerMessage {
    /// Which lane it takes.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Beats(_) | Self::BeatReplies(_) => Lane::Heartbeats,
            Self::Raft(_) | Self::Release { .. } | Self::Removed { .. } => Lane::Raft,
        }
    }
}

/// Names one transfer of a snapshot: unique per sending store and boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId {
    /// Who sends.
    pub from: StoreId,
    /// Its counter (boot in the upper half).
    pub number: u64,
}

/// What goes ahead of a snapshot's frames on the bulk lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Names the transfer.
    pub id: SnapshotId,
    /// The descriptor at the snapshot's applied index: which spans the frames cover.
    pub descriptor: RangeDescriptor,
    /// The envelope with raft's MsgSnapshot, to be stepped after all frames were verified.
    pub envelope: Envelope,
}
