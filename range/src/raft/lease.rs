//! Promises, fortification, U, hold, and the lease they add up to (leases 3).

use std::time::Duration;

use flotilla_storage::log::Promise;
use flotilla_storage::state::LeaseState;
use flotilla_types::{ReplicaId, StoreId, Term, Timestamp};
use raft::{INVALID_ID, StateRole};

use super::group::{Group, Tenure};
use super::support::Ctx;
use super::types::AfterEnd;

/// How long the target of a transfer has before the old leader takes the next term itself (leases 5.4).
const TAKE_OVER: Duration = Duration::from_millis(500);

/// The largest x such that a majority of the values is at or above it.
pub(crate) fn majority_value(mut values: Vec<Timestamp>) -> Timestamp {
    values.sort_unstable_by(|a, b| b.cmp(a));
    values.get(values.len() / 2).copied().unwrap_or(Timestamp::MAX)
}

impl Group {
    /// Whether the promise, durable or not, binds still.
    #[must_use]
    pub fn promise_is_active(&self, ctx: &Ctx<'_>) -> bool {
        self.promise.is_some_and(|promise| {
            let given = ctx.support.given(promise.leader_store);
            given.is_some_and(|given| given.active && given.epoch == promise.epoch)
        })
    }

    pub(super) fn set_promise(&mut self, promise: Option<Promise>) {
        if self.promise == promise {
            return;
        }
        self.promise = promise;
        self.promise_dirty = true;
        // What is durable is superseded already: it must not be told any more.
        self.promise_durable = None;
    }

    /// Leases 3.2: after a leader's message was accepted.
    pub(super) fn promise_to_leader(&mut self, ctx: &Ctx<'_>, from_store: StoreId) {
        let raft = &self.node.raft;
        let (term, leader) = (Term(raft.term), ReplicaId(raft.leader_id));
        if !self.initialised {
            return;
        }
        let ended = self.lease.ended && self.lease.term == term;
        let given = ctx.support.given(from_store).filter(|given| given.active && !ended);
        if let Some(given) = given {
            self.suspect = None;
            let epoch = given.epoch;
            self.set_promise(Some(Promise { term, leader_replica: leader, leader_store: from_store, epoch }));
        } else if self.promise.is_some_and(|promise| promise.term < term) {
            // Its election proves the older lease dead.
            self.set_promise(None);
        }
    }

    /// The epoch that may be told to `to` in a response of `term`: durable, and of this very leader (leases 3.3, I4).
    pub(super) fn promised_to(&self, to: ReplicaId, term: u64) -> u64 {
        let durable = self.promise_durable.filter(|p| p.leader_replica == to && p.term.0 == term);
        durable.map_or(0, |promise| promise.epoch)
    }

    /// A response of the leader's own term told a promise.
    pub(super) fn fortify(&mut self, replica: ReplicaId, term: u64, epoch: u64) {
        if epoch != 0 && self.is_leader() && term == self.node.raft.term {
            let known = self.tenure.fortified.entry(replica).or_insert(0);
            *known = epoch.max(*known);
        }
    }

    /// Until when a quorum of the applied configuration keeps its promise to this leader (leases 3.4). Learners do not
    /// count. Raises nothing.
    #[must_use]
    pub fn quorum_until(&self, ctx: &Ctx<'_>) -> Timestamp {
        if !self.is_leader() {
            return Timestamp::ZERO;
        }
        let value = |id: &u64| {
            let replica = ReplicaId(*id);
            if replica == self.me {
                return ctx.support.own_bound();
            }
            match (self.stores.get(&replica), self.tenure.fortified.get(&replica)) {
                (Some(store), Some(epoch)) => ctx.support.received_until(*store, *epoch),
                _ => Timestamp::ZERO,
            }
        };
        let conf = self.conf();
        let incoming = majority_value(conf.voters.iter().map(value).collect());
        let outgoing = majority_value(conf.voters_outgoing.iter().map(value).collect());
        // After both supporters restarted they may echo more than was asked: the own bound caps U, because only it is
        // covered by the boot wait.
        incoming.min(outgoing).min(ctx.support.own_bound())
    }

    /// U: a usable leader may serve below it (leases 3.4). Zero if it does not lead.
    pub fn lease_until(&mut self, ctx: &Ctx<'_>) -> Timestamp {
        if !self.is_leader() {
            return Timestamp::ZERO;
        }
        if !self.tenure.frozen {
            self.tenure.until = self.tenure.until.max(self.quorum_until(ctx));
        }
        self.tenure.until
    }

    /// Leads, and its LeaseStart is applied here, and it is not ending (leases 3.6).
    #[must_use]
    pub fn usable(&self) -> bool {
        self.is_leader()
            && self.lease.term == self.term_now()
            && self.lease.replica == self.me
            && !self.lease.ended
            && !self.tenure.ending
    }

    /// The hold of a former leader: its term, and U (leases 3.7).
    #[must_use]
    pub const fn hold(&self) -> Option<(Term, Timestamp)> {
        self.hold
    }

    /// The promise, durable or on its way to the log.
    #[must_use]
    pub const fn promise(&self) -> Option<Promise> {
        self.promise
    }

    /// Whether the durable promise is active and binds to the present leader in the present term (leases 7.2).
    #[must_use]
    pub fn follows_by_promise(&self, ctx: &Ctx<'_>) -> bool {
        let raft = &self.node.raft;
        let leader = ReplicaId(raft.leader_id);
        self.lost.is_none()
            && raft.state == StateRole::Follower
            && leader.0 != INVALID_ID
            && self.promised_to(leader, raft.term) != 0
            && self.promise_is_active(ctx)
    }

    /// The epoch that a replica's promise of this term names (leases 3.3); 0 without one.
    #[must_use]
    pub fn fortified(&self, replica: ReplicaId) -> u64 {
        let known = self.tenure.fortified.get(&replica).filter(|_| self.is_leader());
        known.copied().unwrap_or_default()
    }

    /// Whether a replica's promise counts in this term.
    #[must_use]
    pub fn is_fortified(&self, replica: ReplicaId) -> bool {
        self.fortified(replica) != 0
    }

    /// Keeps term and vote, and clears the library's own vote refusal, which on an unticked follower would last for
    /// ever (leases 4, forget).
    pub(super) fn forget(&mut self, ctx: &Ctx<'_>) {
        if self.node.raft.state == StateRole::Leader || self.node.raft.leader_id == INVALID_ID {
            return;
        }
        let term = self.node.raft.term;
        self.node.raft.become_follower(term, INVALID_ID);
        self.elections.heard_unpromised = false;
        self.observe(ctx);
    }

    /// Compares with what was last seen, after every call into the library, and acts on changes.
    pub(super) fn observe(&mut self, ctx: &Ctx<'_>) {
        let raft = &mut self.node.raft;
        let now = (raft.state, raft.term, raft.leader_id, raft.vote);
        if now == self.seen {
            return;
        }
        let before = std::mem::replace(&mut self.seen, now);
        // The library drew from the thread's generator (lessons #59); nothing may depend on that.
        raft.set_randomized_election_timeout(Self::fixed_timeout());
        if now.2 != INVALID_ID {
            self.term_leader = (now.1, now.2);
        }
        let voted = now.3 != INVALID_ID && (before.1, before.3) != (now.1, now.3);
        if voted {
            // A real vote, the self-vote included, clears the promise in its own batch.
            self.set_promise(None);
        }
        if now.0 == StateRole::Candidate && self.elections.campaign_at.is_none() {
            // The target of a hand-over was told to campaign; if nobody answers there is another try.
            self.elections.tried(ctx.mono);
        }
        let (led, leads) = (before.0 == StateRole::Leader, now.0 == StateRole::Leader);
        if led && (!leads || before.1 != now.1) {
            self.left_leadership(ctx, now.1);
        }
        if leads && (!led || before.1 != now.1) {
            self.took_leadership(ctx);
        }
    }

    fn took_leadership(&mut self, ctx: &Ctx<'_>) {
        self.tenure = Tenure { term: self.term_now(), tick_at: ctx.mono, ..Tenure::default() };
        self.hold = None;
        self.release = None;
        self.suspect = None;
        self.wants_catch_up = false;
        self.elections.leads();
    }

    fn left_leadership(&mut self, ctx: &Ctx<'_>, term: u64) {
        let tenure = std::mem::take(&mut self.tenure);
        let ended = self.lease.ended && self.lease.term == tenure.term;
        if !ended && tenure.until > Timestamp::ZERO {
            self.hold = Some((tenure.term, tenure.until));
        }
        if !ended && term == tenure.term.0 {
            self.release = Some((tenure.term, tenure.until, ctx.mono));
        }
        self.elections.after_silence(ctx.mono, self.config.support_duration);
    }

    /// A LeaseStart or EndLease was applied. An applied end clears the hold and every promise of its term and below,
    /// and starts the transfer it was proposed for.
    pub fn note_applied_lease(&mut self, ctx: &Ctx<'_>, lease: &LeaseState) {
        self.guard(ctx, |group| {
            group.lease = *lease;
            if lease.ended {
                group.ended(ctx, lease.term);
            }
        });
    }

    fn ended(&mut self, ctx: &Ctx<'_>, term: Term) {
        if self.hold.is_some_and(|(held, _)| held <= term) {
            self.hold = None;
            self.release = None;
        }
        if self.promise.is_some_and(|promise| promise.term <= term) {
            self.set_promise(None);
        }
        if self.term_now() != term {
            return;
        }
        if !self.is_leader() {
            self.forget(ctx);
            self.elections.after_silence(ctx.mono, self.config.support_duration);
            return;
        }
        self.tenure.ending = true;
        self.tenure.frozen = true;
        match self.tenure.after_end.take() {
            Some(AfterEnd::Transfer(to)) => {
                self.tenure.take_over_at = Some(ctx.mono + TAKE_OVER);
                self.node.transfer_leader(to.0);
            }
            Some(AfterEnd::SelfTransfer) | None => self.tenure.take_over_at = Some(ctx.mono),
        }
    }

    /// Leases 5.4: with EndLease applied, the leader takes the next term itself.
    pub(super) fn self_transfer(&mut self, ctx: &Ctx<'_>) {
        if self.persisted_index() != self.last().index || !self.promotable() || self.has_unapplied_conf() {
            return;
        }
        let term = self.node.raft.term;
        self.node.raft.become_follower(term, INVALID_ID);
        self.observe(ctx);
        self.node.raft.campaign(raft::CAMPAIGN_TRANSFER);
        self.elections.tried(ctx.mono);
        self.observe(ctx);
    }

    /// Conservative: the library knows only an upper bound of pending changes.
    pub(super) fn has_unapplied_conf(&self) -> bool {
        self.node.raft.has_pending_conf()
    }
}
