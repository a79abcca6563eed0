//! The values that cross a group's boundary: how it starts, what it wants, why it refuses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::{LogEntry, LogHead, LogOp, LogPos, ReadLogError};
use flotilla_storage::state::LeaseState;
use flotilla_types::{LogIndex, RangeDescriptor, RangeId, ReplicaId, StoreId, Term};
use raft::eraftpb::ConfState;
use thiserror::Error;

use crate::message::{Beat, BeatReply, Envelope};

/// Reads entries that are not in the group's cache.
pub trait LogRead: Send + Sync {
    /// Entries in [from, to), at most `bytes_max` bytes but at least one. Asked only for durable entries.
    ///
    /// # Errors
    /// See `ReadLogError`.
    fn entries(
        &self,
        range: RangeId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError>;
}

/// Settings of a group; the same for all groups of a store.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// H. The leader ticks raft each half of it.
    pub heartbeat_interval: Duration,
    /// D.
    pub support_duration: Duration,
    /// ε: by how much the clocks of two stores may differ.
    pub max_offset: Duration,
    /// How long the second-ranked voter waits for the first (leases 8).
    pub rank_delay: Duration,
    /// Seeds the chance in election delays, together with range and replica.
    pub seed: u64,
    /// Whether the checksums of entries are checked before they are appended. Off only in tests of the group alone.
    pub verify_entries: bool,
    /// Largest serialized message that is parsed. Larger than any append that a leader sends.
    pub message_bytes_max: usize,
    /// Bytes of entries in one append.
    pub append_bytes_max: u64,
    /// Appends under way to one follower.
    pub inflight_max: usize,
    /// Bytes of committed entries in one ready.
    pub committed_bytes_max: u64,
    /// Bytes of proposals that wait for commit at a leader.
    pub uncommitted_bytes_max: u64,
    /// Bytes of applied entries that a leader keeps in memory for its followers.
    pub cache_bytes_max: usize,
}

impl Default for GroupConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(500),
            support_duration: Duration::from_millis(2500),
            max_offset: Duration::from_millis(250),
            rank_delay: Duration::from_millis(100),
            seed: 0,
            verify_entries: true,
            // The largest command (16 MiB of request) in one entry, with as much again for its envelope and batch.
            message_bytes_max: 48 << 20,
            append_bytes_max: 512 << 10,
            inflight_max: 128,
            committed_bytes_max: 4 << 20,
            uncommitted_bytes_max: 32 << 20,
            cache_bytes_max: 4 << 20,
        }
    }
}

/// What a group starts from.
pub struct GroupBoot<'a> {
    /// Range.
    pub range: RangeId,
    /// This replica.
    pub me: ReplicaId,
    /// This store.
    pub store: StoreId,
    /// The applied descriptor; `None` for an uninitialised replica, which votes and does nothing else.
    pub descriptor: Option<&'a RangeDescriptor>,
    /// What the log knows.
    pub head: LogHead,
    /// What KV holds; the zero position if uninitialised.
    pub applied: LogPos,
    /// The applied lease.
    pub lease: LeaseState,
    /// Proven committed by other means: the index of every open birth whose parent this is (durability section 2).
    pub commit_at_least: LogIndex,
    /// Monotonic time of the start.
    pub mono: Duration,
}

/// Why a replica is out of order. It then helps nobody and waits to be replaced under a new id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LossReason {
    /// The log and the state contradict each other.
    #[error("log and state do not fit: {0}")]
    Boot(String),
    /// The leader relies on entries that this log does not hold any more.
    #[error("the leader knows {commit} as committed and held here, the log ends at {last}")]
    LostTail {
        /// The heartbeat's commit index.
        commit: LogIndex,
        /// Our last index.
        last: LogIndex,
    },
    /// The engine cannot read its content.
    #[error("its content is damaged: {0}")]
    Damaged(String),
    /// It was removed from the range.
    #[error("it was removed from its range")]
    Removed,
    /// The library panicked; its memory is not to be trusted.
    #[error("the raft library panicked: {0}")]
    Panic(String),
}

/// Why a group did not take a proposal. Nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refused {
    /// Not the leader.
    #[error("this replica does not lead")]
    NotLeader,
    /// The leader has not applied its `LeaseStart`, or is ending its term.
    #[error("the lease is not usable")]
    NotUsable,
    /// Too many bytes wait for commit.
    #[error("too much is in flight")]
    Full,
    /// A configuration change is under way.
    #[error("a configuration change is pending")]
    PendingConf,
    /// The change would remove or demote the leader, or does not fit the configuration.
    #[error("the configuration change does not fit")]
    BadConf,
    /// The promises that back the lease do not reach a quorum of the configuration (leases 5.5).
    #[error("support does not cover the lease")]
    Unsupported,
    /// The target of a transfer is not fit (leases 5.3).
    #[error("the target is not fit to lead")]
    UnfitTarget,
    /// The replica is lost.
    #[error("the replica is lost")]
    Lost,
}

/// What to do when an `EndLease` was applied here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterEnd {
    /// Hand leadership to this replica; take the next term itself if it does not take over (leases 5.3).
    Transfer(ReplicaId),
    /// Take the next term itself (leases 5.4).
    SelfTransfer,
}

/// Role in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Follows, or knows no leader.
    #[default]
    Follower,
    /// Asks for votes or pre-votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Role, term and leader, as the fleet last saw them change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoleState {
    /// What it is.
    pub role: Role,
    /// In which term.
    pub term: Term,
    /// The leader, if one is known.
    pub leader: Option<ReplicaId>,
}

/// A snapshot to install. See `GroupReady::snapshot`.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotIn {
    /// The position it shows.
    pub pos: LogPos,
    /// The configuration at that position.
    pub conf: ConfState,
    /// What the sender put in.
    pub data: Bytes,
}

/// What may leave the store now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sends {
    /// On the raft lane.
    pub messages: Vec<(StoreId, Envelope)>,
    /// To pack, one message per store (leases 7.1). `sleep_at` and `keep_from` are zero: the fleet fills them in.
    pub beats: Vec<(StoreId, Beat)>,
    /// To pack likewise. `sum` and `asleep` are the fleet's to fill in.
    pub beat_replies: Vec<(StoreId, BeatReply)>,
    /// These replicas need a snapshot: build one from applied state, its envelope by `Group::snapshot_envelope`, and
    /// call `Group::report_snapshot` whatever happens.
    pub wants_snapshot: Vec<(ReplicaId, StoreId)>,
}

impl Sends {
    /// Nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.beats.is_empty()
            && self.beat_replies.is_empty()
            && self.wants_snapshot.is_empty()
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.messages.append(&mut other.messages);
        self.beats.append(&mut other.beats);
        self.beat_replies.append(&mut other.beat_replies);
        self.wants_snapshot.append(&mut other.wants_snapshot);
    }
}

/// What a group wants done after a turn. Ordered as the fleet has to carry it out.
#[derive(Debug, Default)]
pub struct GroupReady {
    /// `Some` if `log_ops` must be told durable by `Group::persisted` with this number. `None`: nothing waits.
    pub number: Option<u64>,
    /// What to write to the log, in one batch.
    pub log_ops: Vec<LogOp>,
    /// To send at once.
    pub sends: Sends,
    /// `PeerMessage::Release` of the named term to these stores (leases 5.2).
    pub releases: Vec<(StoreId, Term)>,
    /// To apply, in order. After each configuration change call `Group::apply_conf_change`, at the end
    /// `Group::advance_applied`.
    pub committed: Vec<LogEntry>,
    /// To install, after `log_ops` were given to the log writer. Until `Group::restored` was called the group gives no
    /// further ready. Never together with `committed`.
    pub snapshot: Option<SnapshotIn>,
    /// Read-index rounds that were confirmed: serve when `applied` has reached the index (leases 6.3).
    pub reads: Vec<(u64, LogIndex)>,
    /// Role, term or leader changed.
    pub role: Option<RoleState>,
    /// The fleet should end the lease with `AfterEnd::SelfTransfer`: a peer is stranded at a higher term (leases 5.4).
    pub wants_catch_up: bool,
}

impl GroupReady {
    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.number.is_none()
            && self.log_ops.is_empty()
            && self.sends.is_empty()
            && self.releases.is_empty()
            && self.committed.is_empty()
            && self.snapshot.is_none()
            && self.reads.is_empty()
            && self.role.is_none()
            && !self.wants_catch_up
    }
}

/// What a leader knows of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub replica: ReplicaId,
    /// Known to hold the log up to here.
    pub matched: LogIndex,
    /// Receives appends in a stream.
    pub replicating: bool,
    /// Waits for a snapshot.
    pub in_snapshot: bool,
}

/// Shared handle of the entries reader.
pub type Reader = Arc<dyn LogRead>;
