//! What only a leader does: proposals, membership changes, the end of its term, reads by index, snapshots for others.

use bytes::Bytes;
use flotilla_storage::log::LogPos;
use flotilla_types::{LogIndex, ReplicaId, StoreId, Term};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{Changer, INVALID_ID, ProgressState, SnapshotStatus, StateRole, Storage as _};

use super::group::Group;
use super::support::Ctx;
use super::types::{AfterEnd, Refused};
use super::wire;
use crate::message::Envelope;

/// How far the target of a transfer may be behind (leases 5.3).
const TRANSFER_LAG: u64 = 64;

impl Group {
    /// Appends one entry; its position is known at once, because nothing else runs in between.
    fn append(&mut self, ctx: &Ctx<'_>, kind: EntryType, data: Bytes, context: Bytes) -> Result<LogPos, Refused> {
        let appended = self.guard(ctx, |group| {
            let before = group.node.raft.raft_log.last_index();
            let mut entry = Entry::default();
            entry.set_entry_type(kind);
            (entry.data, entry.context) = (data, context);
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgPropose);
            message.from = group.me.0;
            message.set_entries(vec![entry].into());
            // Refused while a transfer runs, or above the bound on uncommitted bytes.
            let result = group.node.raft.step(message);
            group.observe(ctx);
            let after = group.node.raft.raft_log.last_index();
            (result.is_ok() && after == before + 1).then(|| LogPos { index: LogIndex(after), term: group.term_now() })
        });
        appended.ok_or(if self.lost.is_some() { Refused::Lost } else { Refused::Full })
    }

    fn check_leads(&self) -> Result<(), Refused> {
        match (&self.lost, self.node.raft.state) {
            (Some(_), _) => Err(Refused::Lost),
            // The library would forward to the leader (lessons section 3, forwarding).
            (None, role) if role != StateRole::Leader => Err(Refused::NotLeader),
            _ => Ok(()),
        }
    }

    fn check_usable(&self) -> Result<(), Refused> {
        self.check_leads()?;
        if self.usable() { Ok(()) } else { Err(Refused::NotUsable) }
    }

    /// The leader observed its election and has not proposed LeaseStart in this term: do it before anything else.
    #[must_use]
    pub fn needs_lease_start(&self) -> bool {
        self.is_leader() && !self.tenure.start_proposed
    }

    /// Proposes the LeaseStart of this term, once (leases I8).
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose_lease_start(&mut self, ctx: &Ctx<'_>, data: Bytes) -> Result<LogPos, Refused> {
        self.check_leads()?;
        if self.tenure.start_proposed {
            return Err(Refused::NotUsable);
        }
        let at = self.append(ctx, EntryType::EntryNormal, data, Bytes::new())?;
        self.tenure.start_proposed = true;
        Ok(at)
    }

    /// Tells followers of a commit when it happens, instead of with the next append.
    pub fn tell_commits_at_once(&mut self, at_once: bool) {
        self.node.skip_bcast_commit(!at_once);
    }

    /// Proposes an ordinary command. Needs a usable lease.
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose(&mut self, ctx: &Ctx<'_>, data: Bytes) -> Result<LogPos, Refused> {
        self.check_usable()?;
        self.append(ctx, EntryType::EntryNormal, data, Bytes::new())
    }

    /// Whether a replica is fit to take over, as this leader knows (leases 5.3). How far it has applied, the fleet
    /// knows from its beat replies.
    ///
    /// # Errors
    /// It is not.
    pub fn can_transfer(&self, ctx: &Ctx<'_>, to: ReplicaId) -> Result<(), Refused> {
        self.check_usable()?;
        if self.has_pending_conf() {
            return Err(Refused::PendingConf);
        }
        let conf = self.conf();
        let last = self.last().index.0;
        let voter = conf.voters.contains(&to.0) && conf.voters_outgoing.is_empty() && to != self.me;
        let near = self.node.raft.prs().get(to.0).is_some_and(|progress| {
            progress.state == ProgressState::Replicate && progress.matched + TRANSFER_LAG >= last
        });
        let alive = self.stores.get(&to).is_some_and(|store| {
            ctx.support.is_supported_by(*store) && ctx.support.given(*store).is_some_and(|given| given.active)
        });
        if voter && near && alive { Ok(()) } else { Err(Refused::UnfitTarget) }
    }

    /// Proposes EndLease: from its success on the term serves nothing more, and U stands still. When it was applied
    /// here (`note_applied_lease`) the group does what `then` says (leases 5.3, 5.4). Fail pending read-index reads, and
    /// put U's floor into the command, before this call: `lease_until` no longer moves after it.
    ///
    /// # Errors
    /// Nothing was appended, the term goes on.
    pub fn propose_end(&mut self, ctx: &Ctx<'_>, data: Bytes, then: AfterEnd) -> Result<LogPos, Refused> {
        self.check_usable()?;
        if let AfterEnd::Transfer(to) = then {
            self.can_transfer(ctx, to)?;
        }
        let at = self.append(ctx, EntryType::EntryNormal, data, Bytes::new())?;
        self.tenure.ending = true;
        self.tenure.frozen = true;
        self.tenure.after_end = Some(then);
        self.wants_catch_up = false;
        Ok(at)
    }

    /// The configuration that a change leads to, if it fits and keeps this leader a voter.
    fn check_change(&self, change: &ConfChangeV2) -> Result<(), Refused> {
        let mut changer = Changer::new(self.node.raft.prs());
        let next = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            // An automatic leave may be missed when leadership moves (etcd#12136).
            if auto_leave {
                return Err(Refused::BadConf);
            }
            changer.enter_joint(false, &change.changes)
        } else {
            changer.simple(&change.changes)
        };
        let (next, _) = next.map_err(|_| Refused::BadConf)?;
        // A removed leader would not step down (raft-rs#584): it hands over first (leases 5.6).
        if next.to_conf_state().voters.contains(&self.me.0) { Ok(()) } else { Err(Refused::BadConf) }
    }

    /// Proposes a membership change; `data` goes into the entry's context. The library replaces a change it does not
    /// like by an empty entry and says Ok, so the checks stand here; if the entry committed at the returned position is
    /// not this change all the same, it was not taken.
    ///
    /// # Errors
    /// Nothing was appended.
    pub fn propose_conf_change(
        &mut self,
        ctx: &Ctx<'_>,
        change: &ConfChangeV2,
        data: Bytes,
    ) -> Result<LogPos, Refused> {
        self.check_usable()?;
        if self.has_pending_conf() {
            return Err(Refused::PendingConf);
        }
        self.check_change(change)?;
        // Configurations two steps apart need not share a quorum (leases 5.5).
        if self.quorum_until(ctx) < self.lease_until(ctx) {
            return Err(Refused::Unsupported);
        }
        let bytes = change.write_to_bytes().map_err(|_| Refused::BadConf)?;
        self.append(ctx, EntryType::EntryConfChangeV2, bytes.into(), data)
    }

    /// Applies a committed change to the library. Call in order with the other entries, before `advance_applied`.
    ///
    /// # Errors
    /// It does not fit the configuration: the same on every replica, a no-op.
    pub fn apply_conf_change(&mut self, ctx: &Ctx<'_>, change: &ConfChangeV2) -> Result<ConfState, String> {
        let applied = self.guard(ctx, |group| {
            let result = group.node.apply_conf_change(change).map_err(|e| e.to_string());
            if let Ok(conf) = &result {
                group.node.raft.raft_log.store.conf = conf.clone();
            }
            if group.is_leader() && !group.node.raft.promotable() {
                // raft-rs#584: it would lead for ever and commit nothing (leases 5.6).
                let term = group.node.raft.term;
                group.node.raft.become_follower(term, INVALID_ID);
            }
            group.observe(ctx);
            Some(result)
        });
        applied.unwrap_or_else(|| Err("the replica is lost".to_owned()))
    }

    /// Starts a read-index round (leases 6.3). `id` must be fresh. May be dropped silently: retry with another id.
    ///
    /// # Errors
    /// Not a usable leader.
    pub fn read_index(&mut self, ctx: &Ctx<'_>, id: u64) -> Result<(), Refused> {
        self.check_usable()?;
        // The library drops a read silently before its term has committed (raft-rs#569).
        if !self.node.raft.commit_to_current_term() {
            return Err(Refused::NotUsable);
        }
        self.guard(ctx, |group| {
            group.node.read_index(id.to_be_bytes().to_vec());
            group.observe(ctx);
        });
        Ok(())
    }

    /// The envelope that goes ahead of a snapshot of the present applied state, and its position; `None` if it is not
    /// wanted any more. The engine snapshot must show exactly that applied position.
    #[must_use]
    pub fn snapshot_envelope(&self, to: ReplicaId) -> Option<(LogPos, Envelope)> {
        if !self.is_leader() || self.node.raft.prs().get(to.0)?.state != ProgressState::Snapshot {
            return None;
        }
        let snapshot: Snapshot = self.view().snapshot(0, to.0).ok()?;
        let at = self.applied();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (self.me.0, to.0, self.node.raft.term);
        message.set_snapshot(snapshot);
        let message = wire::write(&message);
        Some((at, Envelope { range: self.range, from: self.me, to, promised: 0, message }))
    }

    /// A wanted snapshot was sent or given up. Must follow every entry of `wants_snapshot`.
    pub fn report_snapshot(&mut self, ctx: &Ctx<'_>, to: ReplicaId, delivered: bool) {
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.guard(ctx, |group| {
            group.node.report_snapshot(to.0, status);
            group.observe(ctx);
        });
    }

    /// Messages to a store were lost.
    pub fn unreachable(&mut self, ctx: &Ctx<'_>, store: StoreId) {
        self.guard(ctx, |group| {
            let there = group.stores.iter().filter(|(_, at)| **at == store).map(|(replica, _)| replica.0);
            for replica in there.collect::<Vec<_>>() {
                group.node.report_unreachable(replica);
            }
            group.observe(ctx);
        });
    }

    /// The term of a replica's lease start, for commands: evaluated in this term (leases 3.5).
    #[must_use]
    pub fn term(&self) -> Term {
        self.role().term
    }
}
