//! When a replica may fall asleep, and what it says about it (docs/leases.md, 7.2).
//!
//! An idle leader puts its last index into its beats; a follower that holds exactly that, under an active promise, falls
//! asleep and says so; when all live ones have, the leader sleeps too. Nobody of them costs anything from then on.

use std::collections::BTreeSet;
use std::time::Duration;

use flotilla_types::{LogIndex, ReplicaId, StoreId, keys};

use super::Replica;
use crate::fleet::Member;
use crate::message::{Beat, BeatReply};
use crate::raft::{Ctx, Role};

/// What a replica knows about its sleep.
#[derive(Debug, Default)]
pub(crate) struct Slumber {
    pub(crate) asleep: bool,
    /// The index at which the leader wants to sleep, as its last beat said; 0 if it does not.
    asked: LogIndex,
    /// The leader's own offer; 0 without one. It travels in its beats.
    pub(crate) offered: LogIndex,
    /// Who fell asleep at the offer.
    said: BTreeSet<ReplicaId>,
    last: LogIndex,
    idle_since: Duration,
}

impl Replica {
    /// Whether the range is one of the users', and not of the system.
    pub(crate) fn is_users(&self) -> bool {
        self.state.descriptor.span.start >= keys::USER
    }

    /// Looked at once a turn, before the leader ticks: what its next beats offer.
    pub(crate) fn offer_sleep(&mut self, ctx: &Ctx<'_>, idle: Duration, sends_snapshot: bool) {
        let last = self.group.last().index;
        if last != self.slumber.last || !self.is_unoccupied() {
            self.slumber.last = last;
            self.slumber.idle_since = ctx.mono;
        }
        let rested = ctx.mono.saturating_sub(self.slumber.idle_since) >= idle;
        let offer = if rested && !sends_snapshot && self.may_sleep(ctx) { last } else { LogIndex(0) };
        if offer != self.slumber.offered {
            self.slumber.offered = offer;
            self.slumber.said.clear();
        }
    }

    fn is_unoccupied(&self) -> bool {
        self.open.is_empty()
            && self.waits.is_empty()
            && self.lock_waits.is_empty()
            && self.proposed.is_empty()
            && self.changing.is_empty()
            && self.heir.is_none()
            && self.transactions.unlocked
    }

    fn may_sleep(&self, ctx: &Ctx<'_>) -> bool {
        if !self.group.usable() || !self.group.at_rest() || self.group.quorum_until(ctx) <= ctx.now {
            return false;
        }
        let descriptor = &self.state.descriptor;
        let peers = self.group.peers();
        let holds_all = peers.iter().all(|peer| {
            let Some(store) = descriptor.replica(peer.replica).map(|replica| replica.store) else { return false };
            let promised = ctx.support.received_until(store, self.group.fortified(peer.replica)) > ctx.now;
            !is_live(ctx, store) || (peer.matched == self.group.last().index && promised)
        });
        holds_all && descriptor.is_quorum(|replica| replica.replica == self.me || is_live(ctx, replica.store))
    }

    /// Whether every live follower sleeps at the offer, which still stands.
    pub(crate) fn all_sleep(&self, ctx: &Ctx<'_>) -> bool {
        self.slumber.offered != LogIndex(0)
            && self.is_unoccupied()
            && self.state.descriptor.replicas.iter().all(|replica| {
                let id = replica.replica;
                id == self.me || self.slumber.said.contains(&id) || !is_live(ctx, replica.store)
            })
            && self.may_sleep(ctx)
    }

    /// A follower's answer.
    pub(crate) fn heard_asleep(&mut self, reply: &BeatReply) {
        let offer = self.slumber.offered;
        if reply.asleep && reply.applied == offer && reply.term == self.group.term() && offer != LogIndex(0) {
            self.slumber.said.insert(reply.from);
        }
    }

    /// A beat was taken: what it offers counts if it came from the leader.
    pub(crate) fn heard_offer(&mut self, beat: &Beat) {
        let role = self.group.role();
        let its = role.role == Role::Follower && role.term == beat.term && role.leader == Some(beat.from);
        self.slumber.asked = if its { beat.sleep_at } else { LogIndex(0) };
    }

    /// Whether a beat says to a sleeping follower only what it knows.
    pub(crate) fn sleeps_through(&self, ctx: &Ctx<'_>, beat: &Beat) -> bool {
        let role = self.group.role();
        role.role == Role::Follower
            && beat.sleep_at == self.slumber.asked
            && beat.sleep_at != LogIndex(0)
            && (role.term, role.leader) == (beat.term, Some(beat.from))
            && self.group.follows_by_promise(ctx)
    }

    /// Whether a follower may sleep at what its leader offers.
    pub(crate) fn may_doze(&self, ctx: &Ctx<'_>) -> bool {
        let offer = self.slumber.asked;
        offer != LogIndex(0)
            && self.group.last().index == offer
            && self.group.follows_by_promise(ctx)
            && self.group.at_rest()
            && self.open.is_empty()
            && self.waits.is_empty()
            && self.lock_waits.is_empty()
    }

    /// The crew that a sleeping leader rests on, ascending by store.
    pub(crate) fn crew(&self, ctx: &Ctx<'_>) -> Vec<Member> {
        let (peers, last) = (self.group.peers(), self.group.last().index);
        let replicas = self.state.descriptor.replicas.iter();
        let mut crew: Vec<_> = replicas
            .map(|replica| {
                let id = replica.replica;
                let behind = id != self.me && peers.iter().any(|peer| peer.replica == id && peer.matched < last);
                let boot = ctx.support.given(replica.store).map_or(0, |given| given.epoch >> 32);
                let epoch = self.group.fortified(id);
                Member { store: replica.store, votes: replica.kind.votes_incoming(), epoch, boot, behind }
            })
            .collect();
        crew.sort_unstable();
        crew
    }

    /// The stores of the voters, ascending.
    pub(crate) fn voter_stores(&self) -> Vec<StoreId> {
        let mut stores: Vec<_> = self.state.descriptor.voters_incoming().map(|voter| voter.store).collect();
        stores.sort_unstable();
        stores
    }

    /// Wakes: see `Group::wake`. `soon`: the leader offers sleep again at once, because nothing but a heartbeat is due.
    pub(crate) fn wake(&mut self, ctx: &Ctx<'_>, idle: Duration, soon: bool) {
        self.slumber.asleep = false;
        self.slumber.asked = LogIndex(0);
        self.slumber.offered = LogIndex(0);
        self.slumber.said.clear();
        self.slumber.last = self.group.last().index;
        self.slumber.idle_since = if soon { ctx.mono.saturating_sub(idle) } else { ctx.mono };
        self.group.wake(ctx);
        if let Some(promise) = self.group.promise().filter(|_| !self.group.promise_is_active(ctx)) {
            // It slept while the support was left: now it plans its election as those did who were awake.
            self.group.support_left(ctx, promise.leader_store, promise.epoch);
        }
    }
}

/// In whatever direction: a store that has no state of any common range yet supports, and does not ask for support.
fn is_live(ctx: &Ctx<'_>, store: StoreId) -> bool {
    ctx.support.is_supported_by(store) || ctx.support.given(store).is_some_and(|given| given.active)
}
