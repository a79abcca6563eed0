//! What time brings: leader ticks, elections, holds that end, transfers that were not taken, a stuck leader.

use std::time::Duration;

use flotilla_storage::log::Promise;
use flotilla_types::{ReplicaId, StoreId, Term};
use raft::{INVALID_ID, StateRole};

use super::elections::TRIES_WITH_SUPPORT;
use super::group::Group;
use super::support::Ctx;

/// A leader that commits nothing gives up at most so often (leases 5.8).
const STUCK_PAUSE: Duration = Duration::from_secs(60);

impl Group {
    /// At the start: a replica without an active promise waits as if it had just heard a leader; a single voter waits
    /// for nobody.
    pub(super) fn plan_first_election(&mut self) {
        if !self.promotable() {
            return;
        }
        if self.view().voters().len() == 1 {
            self.elections.campaign_at = Some(self.mono);
        } else {
            self.elections.after_silence(self.mono, self.config.support_duration);
        }
    }

    /// Does what is due. Call at `next_wake`; calling early is harmless.
    pub fn tick(&mut self, ctx: &Ctx<'_>) {
        self.release_if_due(ctx);
        self.guard(ctx, |group| {
            if group.is_leader() {
                group.tick_leader(ctx);
            } else {
                group.tick_follower(ctx);
            }
        });
    }

    /// When to call `tick` next, in monotonic time. A sleeping replica need not be ticked.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        let release = self.release.map(|(_, _, at)| at);
        if self.lost.is_some() {
            return release;
        }
        let own = if self.is_leader() {
            let take_over = self.tenure.take_over_at.unwrap_or(Duration::MAX);
            Some(self.tenure.tick_at.min(take_over))
        } else {
            self.elections.campaign_at
        };
        match (own, release) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn tick_leader(&mut self, ctx: &Ctx<'_>) {
        if ctx.mono >= self.tenure.tick_at {
            self.tenure.tick_at = ctx.mono + self.config.heartbeat_interval / 2;
            self.node.tick();
            self.observe(ctx);
            self.watch_progress(ctx);
        }
        if self.is_leader() && self.tenure.take_over_at.is_some_and(|at| ctx.mono >= at) {
            // A transfer in the library blocks proposals only; the next term is taken beside it.
            self.tenure.take_over_at = Some(ctx.mono + self.config.heartbeat_interval / 2);
            self.self_transfer(ctx);
        }
    }

    /// Leases 5.8: a leader whose oldest proposal does not commit for 2D freezes U, waits for it, and steps down.
    fn watch_progress(&mut self, ctx: &Ctx<'_>) {
        if !self.is_leader() {
            return;
        }
        if self.tenure.stuck {
            if ctx.now >= self.tenure.until {
                let term = self.node.raft.term;
                self.node.raft.become_follower(term, INVALID_ID);
                self.observe(ctx);
                // It could campaign, but it has shown that it cannot commit: the others may go first.
                self.release_followers(Term(term));
            }
            return;
        }
        let (committed, last) = (self.committed().0, self.last().index.0);
        self.tenure.oldest = match self.tenure.oldest {
            Some((index, since)) if index > committed => Some((index, since)),
            _ if last > committed => Some((committed + 1, ctx.mono)),
            _ => None,
        };
        let patience = self.config.support_duration * 2;
        let late = self.tenure.oldest.is_some_and(|(_, since)| ctx.mono.saturating_sub(since) >= patience);
        let rested = self.last_stuck.is_none_or(|at| ctx.mono.saturating_sub(at) >= STUCK_PAUSE);
        if late && rested {
            self.last_stuck = Some(ctx.mono);
            self.tenure.stuck = true;
            self.tenure.frozen = true;
        }
    }

    fn tick_follower(&mut self, ctx: &Ctx<'_>) {
        if self.elections.campaign_at.is_some_and(|at| ctx.mono >= at) {
            self.campaign(ctx);
        }
    }

    fn is_blocked(&self, ctx: &Ctx<'_>) -> bool {
        self.promise_is_active(ctx) || self.hold.is_some_and(|(_, until)| ctx.now < until)
    }

    /// Whether the chosen voters are a majority of each configuration.
    fn is_quorum(&self, chosen: impl Fn(ReplicaId) -> bool) -> bool {
        let majority = |voters: &[u64]| {
            let yes = voters.iter().filter(|id| chosen(ReplicaId(**id))).count();
            voters.is_empty() || yes * 2 > voters.len()
        };
        let conf = self.conf();
        majority(&conf.voters) && majority(&conf.voters_outgoing)
    }

    fn is_supported(&self, ctx: &Ctx<'_>) -> bool {
        let supported = |id| {
            let store = self.stores.get(&id);
            id == self.me || store.is_some_and(|store| ctx.support.is_supported_by(*store))
        };
        self.elections.tries >= TRIES_WITH_SUPPORT || self.is_quorum(supported)
    }

    /// Leases 4, campaigning. The library checks pending configuration changes itself.
    fn campaign(&mut self, ctx: &Ctx<'_>) {
        if !self.promotable() || self.promise_is_active(ctx) {
            self.elections.campaign_at = None;
            return;
        }
        if let Some((_, until)) = self.hold.filter(|(_, until)| ctx.now < *until) {
            // As soon as the hold ends.
            self.elections.campaign_at = Some(ctx.mono + until.since(ctx.now) + Duration::from_nanos(1));
            return;
        }
        // The library asserts that everything is durable when it wins; a single voter would panic.
        let durable = self.persisted_index() == self.last().index && self.restoring.is_none();
        let allowed = ctx.may_campaign && durable && self.is_supported(ctx);
        self.elections.tried(ctx.mono);
        if allowed {
            // Errors do not happen for a local campaign message.
            let _ = self.node.campaign();
            self.observe(ctx);
        }
    }

    /// Campaign at the next `tick` if it is allowed, and soon again: a split's child on the store of its parent's leader
    /// (leases 5.7).
    pub fn campaign_eagerly(&mut self, ctx: &Ctx<'_>) {
        if self.promotable() && !self.is_leader() {
            self.elections.eagerly(ctx.mono);
        }
    }

    /// Campaign at the next `tick` if it is allowed.
    pub fn campaign_soon(&mut self, ctx: &Ctx<'_>) {
        if self.promotable() && !self.is_leader() {
            self.elections.campaign_at = Some(ctx.mono);
        }
    }

    /// This store durably left its support of a peer's epoch: a promise that rests on it is void.
    pub fn support_left(&mut self, ctx: &Ctx<'_>, peer: StoreId, epoch: u64) {
        self.guard(ctx, |group| {
            let Some(promise) = group.promise else { return };
            if promise.leader_store != peer || promise.epoch > epoch {
                return;
            }
            group.suspect = Some(promise);
            group.forget(ctx);
            group.elections.after_silence(ctx.mono, group.config.support_duration);
            group.plan_if_winnable(ctx, &promise);
        });
    }

    /// Epochs or hints changed: an election may have become possible.
    pub fn support_changed(&mut self, ctx: &Ctx<'_>) {
        self.guard(ctx, |group| {
            if let Some(promise) = group.suspect {
                group.plan_if_winnable(ctx, &promise);
            }
        });
    }

    /// Once the own store and those hinted free are a quorum (leases 2.9), so that a flapping link starts no election
    /// that cannot win.
    fn plan_if_winnable(&mut self, ctx: &Ctx<'_>, left: &Promise) {
        let free = |id| {
            let store = self.stores.get(&id);
            let hinted = |store: &StoreId| ctx.support.hinted_free(*store, left.leader_store, left.epoch);
            id == self.me || store.is_some_and(hinted)
        };
        if self.is_quorum(free) {
            self.suspect = None;
            self.plan_ranked(ctx, left.leader_replica);
        }
    }

    /// Rank: the position among the live voters, by replica id, without the leader that is over.
    pub(super) fn plan_ranked(&mut self, ctx: &Ctx<'_>, over: ReplicaId) {
        if !self.promotable() || self.is_leader() || self.is_blocked(ctx) {
            return;
        }
        let live = |id: &ReplicaId| {
            let store = self.stores.get(id);
            store.is_some_and(|store| ctx.support.given(*store).is_some_and(|given| given.active))
        };
        let voters = self.view().voters();
        let before = voters.range(..self.me).filter(|id| **id != over && live(id)).count();
        let rank = u32::try_from(before).unwrap_or(u32::MAX);
        self.elections.ranked(ctx.mono, rank, self.config.rank_delay);
    }

    /// The replica is waking from sleep (leases 7.3): a stale check-quorum must not depose the leader, and a follower
    /// without an active promise forgets its leader before any message is stepped.
    pub fn wake(&mut self, ctx: &Ctx<'_>) {
        self.guard(ctx, |group| {
            group.node.raft.election_elapsed = 0;
            if group.is_leader() {
                group.tenure.tick_at = ctx.mono;
                group.tenure.oldest = None;
                return;
            }
            if !group.promise_is_active(ctx) {
                group.forget(ctx);
                if group.elections.campaign_at.is_none() && group.promotable() {
                    group.elections.after_silence(ctx.mono, group.config.support_duration);
                }
            }
        });
    }

    /// Leases 5.2: a former leader that cannot campaign itself frees its followers, each H from HLC ≥ U, until a higher
    /// term is known.
    fn release_if_due(&mut self, ctx: &Ctx<'_>) {
        let Some((term, until, at)) = self.release else { return };
        let over = self.lost.is_none() && self.term_now() > term;
        if over || (self.promotable() && ctx.now >= until && self.hold.is_none()) {
            self.release = None;
            return;
        }
        if ctx.mono < at {
            return;
        }
        self.release = Some((term, until, ctx.mono + self.config.heartbeat_interval));
        if ctx.now >= until && !self.promotable() {
            self.release_followers(term);
        }
        if ctx.now >= until && self.lost.is_none() && self.node.raft.state != StateRole::Leader {
            self.hold = None;
        }
    }

    fn release_followers(&mut self, term: Term) {
        let others = self.stores.iter().filter(|(replica, _)| **replica != self.me);
        self.releases.extend(others.map(|(_, store)| (*store, term)));
    }
}
