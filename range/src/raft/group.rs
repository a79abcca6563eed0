//! The group's public face: one replica of one range.

use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::{LogOp, LogPos, Promise};
use flotilla_storage::state::LeaseState;
use flotilla_types::{LogIndex, RangeDescriptor, ReplicaId, StoreId, Term, Timestamp};
use raft::eraftpb::{ConfChangeV2, ConfState};

use super::support::Ctx;
use super::types::{AfterEnd, GroupBoot, GroupConfig, GroupReady, LossReason, Peer, Reader, Refused, RoleState, Sends};
use crate::message::{Beat, BeatReply, Envelope};

/// One replica's Raft group.
pub struct Group {
    lost: Option<LossReason>,
}

#[allow(unused_variables)]
impl Group {
    /// Starts the group from durable state (durability section 2, start of a RawNode).
    ///
    /// # Errors
    /// Log and state contradict each other: the replica is lost.
    pub fn start(boot: &GroupBoot<'_>, config: &GroupConfig, reader: Reader) -> Result<Self, LossReason> {
        Ok(Self { lost: None })
    }
    /// Takes a message of the raft lane, and MsgSnapshot once all its frames were verified.
    pub fn receive(&mut self, ctx: &Ctx<'_>, from: StoreId, envelope: &Envelope) {}
    /// Takes a leader's heartbeat.
    pub fn receive_beat(&mut self, ctx: &Ctx<'_>, from: StoreId, beat: &Beat) {}
    /// Takes a follower's answer.
    pub fn receive_beat_reply(&mut self, ctx: &Ctx<'_>, from: StoreId, reply: &BeatReply) {}
    /// Takes a former leader's word that it is over (leases section 9).
    pub fn receive_release(&mut self, ctx: &Ctx<'_>, replica: ReplicaId, term: Term) {}
    /// Does what is due: leader ticks, elections, holds, transfers. Call at `next_wake`; calling early is harmless.
    pub fn tick(&mut self, ctx: &Ctx<'_>) {}
    /// When to call `tick` next, in monotonic time.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        None
    }
    /// This store durably left its support of a peer's epoch.
    pub fn support_left(&mut self, ctx: &Ctx<'_>, peer: StoreId, epoch: u64) {}
    /// Epochs or hints changed: an election may have become possible.
    pub fn support_changed(&mut self, ctx: &Ctx<'_>) {}
    /// Messages to a store were lost.
    pub fn unreachable(&mut self, store: StoreId) {}
    /// Campaign at the next `tick` if it is allowed: a split's child on the store of its parent's leader (leases 5.7).
    pub fn campaign_soon(&mut self, ctx: &Ctx<'_>) {}
    /// The leader observed its election and has not proposed LeaseStart in this term: do it before anything else.
    #[must_use]
    pub fn needs_lease_start(&self) -> bool {
        false
    }
    /// Proposes the LeaseStart of this term, once (leases I8).
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose_lease_start(&mut self, ctx: &Ctx<'_>, data: Bytes) -> Result<LogPos, Refused> {
        Err(Refused::NotLeader)
    }
    /// Proposes an ordinary command. Needs a usable lease.
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose(&mut self, ctx: &Ctx<'_>, data: Bytes) -> Result<LogPos, Refused> {
        Err(Refused::NotLeader)
    }
    /// Whether a replica is fit to take over, as this leader knows (leases 5.3).
    ///
    /// # Errors
    /// It is not.
    pub fn can_transfer(&self, ctx: &Ctx<'_>, to: ReplicaId) -> Result<(), Refused> {
        Err(Refused::NotLeader)
    }
    /// Proposes EndLease: from its success on the term serves nothing more, and U stands still. When it was applied
    /// here (`note_applied_lease`) the group does what `then` says (leases 5.3, 5.4).
    ///
    /// # Errors
    /// Nothing was appended, the term goes on.
    pub fn propose_end(&mut self, ctx: &Ctx<'_>, data: Bytes, then: AfterEnd) -> Result<LogPos, Refused> {
        Err(Refused::NotLeader)
    }
    /// Proposes a membership change; `data` goes into the entry's context. If the entry at the returned position is
    /// later committed as something else, the change was not taken.
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose_conf_change(
        &mut self,
        ctx: &Ctx<'_>,
        change: &ConfChangeV2,
        data: Bytes,
    ) -> Result<LogPos, Refused> {
        Err(Refused::NotLeader)
    }
    /// Starts a read-index round (leases 6.3). `id` must be fresh. May be dropped silently: retry with another id.
    ///
    /// # Errors
    /// Not a usable leader.
    pub fn read_index(&mut self, ctx: &Ctx<'_>, id: u64) -> Result<(), Refused> {
        Err(Refused::NotLeader)
    }
    /// What is to be done now; `None` if nothing. Carry it out before the next call.
    pub fn ready(&mut self, ctx: &Ctx<'_>) -> Option<GroupReady> {
        None
    }
    /// The log ops of this ready, and of all before, are durable. Returns what waited for it; then ask `ready` again.
    pub fn persisted(&mut self, ctx: &Ctx<'_>, number: u64) -> Sends {
        Sends::default()
    }
    /// The snapshot of the last ready was ingested, with this lease in it. Returns the log ops that follow.
    pub fn restored(&mut self, ctx: &Ctx<'_>, descriptor: &RangeDescriptor, lease: &LeaseState) -> GroupReady {
        GroupReady::default()
    }
    /// Applies a committed change to the library. Call in order with the other entries, before `advance_applied`.
    ///
    /// # Errors
    /// It does not fit the configuration: the same on every replica, a no-op.
    pub fn apply_conf_change(&mut self, change: &ConfChangeV2) -> Result<ConfState, String> {
        Err(String::new())
    }
    /// The applied descriptor is new: who lives where.
    pub fn set_descriptor(&mut self, descriptor: &RangeDescriptor) {}
    /// A LeaseStart or EndLease was applied.
    pub fn note_applied_lease(&mut self, ctx: &Ctx<'_>, lease: &LeaseState) {}
    /// Entries up to here are in the engine's memory.
    pub fn advance_applied(&mut self, to: LogPos) {}
    /// The envelope that goes ahead of a snapshot of the present applied state; `None` if it is not wanted any more.
    #[must_use]
    pub fn snapshot_envelope(&self, to: ReplicaId) -> Option<(LogPos, Envelope)> {
        None
    }
    /// A wanted snapshot was sent or given up.
    pub fn report_snapshot(&mut self, to: ReplicaId, delivered: bool) {}
    /// Gives up entries at or below `through`. Only as an after-flush act.
    pub fn truncate(&mut self, through: LogIndex) -> Option<LogOp> {
        None
    }
    /// The replica is waking from sleep (leases 7.3).
    pub fn wake(&mut self, ctx: &Ctx<'_>) {}
    /// Why it is lost, if it is. A lost group answers nothing, proposes nothing; it only sends `Release`.
    #[must_use]
    pub fn lost(&self) -> Option<&LossReason> {
        self.lost.as_ref()
    }
    /// Declares the replica lost.
    pub fn lose(&mut self, ctx: &Ctx<'_>, why: LossReason) {}
    /// Role, term, leader.
    #[must_use]
    pub fn role(&self) -> RoleState {
        RoleState::default()
    }
    /// Leads, and its LeaseStart is applied here, and it is not ending (leases 3.6).
    #[must_use]
    pub fn usable(&self) -> bool {
        false
    }
    /// U: a usable leader may serve below it (leases 3.4). Zero if it does not lead.
    pub fn lease_until(&mut self, ctx: &Ctx<'_>) -> Timestamp {
        Timestamp::ZERO
    }
    /// The hold of a former leader: its term, and U (leases 3.7).
    #[must_use]
    pub fn hold(&self) -> Option<(Term, Timestamp)> {
        None
    }
    /// The stored promise.
    #[must_use]
    pub fn promise(&self) -> Option<Promise> {
        None
    }
    /// Whether the promise stands and binds to the present leader in the present term (leases 7.2).
    #[must_use]
    pub fn follows_by_promise(&self, ctx: &Ctx<'_>) -> bool {
        false
    }
    /// Last entry.
    #[must_use]
    pub fn last(&self) -> LogPos {
        LogPos::default()
    }
    /// Committed index.
    #[must_use]
    pub fn committed(&self) -> LogIndex {
        LogIndex(0)
    }
    /// Durable index.
    #[must_use]
    pub fn persisted_index(&self) -> LogIndex {
        LogIndex(0)
    }
    /// Applied position.
    #[must_use]
    pub fn applied(&self) -> LogPos {
        LogPos::default()
    }
    /// Truncated position.
    #[must_use]
    pub fn truncated(&self) -> LogPos {
        LogPos::default()
    }
    /// A replica that has state, votes and may lead; not a learner, not uninitialised.
    #[must_use]
    pub fn promotable(&self) -> bool {
        false
    }
    /// A configuration change is appended and not applied.
    #[must_use]
    pub fn has_pending_conf(&self) -> bool {
        false
    }
    /// What the leader knows of the others, by replica. Empty if it does not lead.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        Vec::new()
    }
    /// Whether a replica's promise counts in this term (leases 3.3).
    #[must_use]
    pub fn is_fortified(&self, replica: ReplicaId) -> bool {
        false
    }
    /// Whether the promises reach a quorum at `at` without raising U: for sleep and conf changes.
    #[must_use]
    pub fn quorum_until(&self, ctx: &Ctx<'_>) -> Timestamp {
        Timestamp::ZERO
    }
}
