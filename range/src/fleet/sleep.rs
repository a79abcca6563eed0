//! Ranges that fall asleep, and wake (docs/leases.md, section 7). `sleepers` knows who rests on whom; `replica::sleep`, who
//! may sleep.

use std::time::Duration;

use flotilla_types::{Command, RangeId, RangeRequest, StoreId};

use super::Fleet;
use crate::message::{Beat, BeatReply};
use crate::raft::{Ctx, Role, Sends};
use crate::replica::Replica;

/// A range is idle after so many heartbeat intervals without a proposal.
const IDLE_INTERVALS: u32 = 10;

impl Fleet {
    fn idle(&self) -> Duration {
        self.config.group.heartbeat_interval * IDLE_INTERVALS
    }

    /// After a start all replicas sleep. Those without an active promise wake one after the other (leases 7.5).
    pub(super) fn start_asleep(&mut self, ctx: &Ctx<'_>) {
        for (range, replica) in &mut self.replicas {
            replica.slumber.asleep = true;
            match replica.group.promise().filter(|_| replica.group.promise_is_active(ctx)) {
                Some(promise) => {
                    let voters = replica.voter_stores();
                    self.sleepers.follows(*range, promise.leader_store, voters, replica.is_users());
                }
                None => self.sleepers.starts(*range, replica.is_users()),
            }
        }
    }

    /// Wakes those whose turn it is, and looks at the sets that rest on what changed.
    pub(super) fn wake_sleepers(&mut self, ctx: &Ctx<'_>) {
        if std::mem::take(&mut self.support_changed) {
            self.sleepers.look(ctx.now, ctx.support);
        }
        while let Some(range) = self.sleepers.next_due(ctx.mono) {
            // A leader whose quorum stands has a heartbeat to give and nothing else.
            self.wake(ctx, range, true);
        }
    }

    /// Wakes a range, if it sleeps.
    pub(super) fn wake(&mut self, ctx: &Ctx<'_>, range: RangeId, soon: bool) {
        if !self.sleepers.woke(range) {
            return;
        }
        let idle = self.idle();
        if let Some(replica) = self.replicas.get_mut(&range) {
            replica.wake(ctx, idle, soon);
            self.awake.insert(range);
            self.touched.insert(range);
        }
    }

    /// What is asked of a sleeping range wakes it, but for reads under its lease. A follower is woken only if it could
    /// not name a leader.
    pub(super) fn wake_for(&mut self, ctx: &Ctx<'_>, request: &RangeRequest) {
        let Some(replica) = self.replicas.get_mut(&request.range).filter(|replica| replica.slumber.asleep) else {
            return;
        };
        let wanted = if replica.group.role().role == Role::Leader {
            !matches!(request.command, Command::Read { .. }) || !replica.covers_present(ctx)
        } else {
            self.sleepers.is_restless(request.range)
        };
        if wanted {
            self.wake(ctx, request.range, false);
        }
    }

    /// A leader's heartbeat. One that only repeats the offer at which the follower fell asleep does not wake it.
    pub(super) fn beat(&mut self, ctx: &Ctx<'_>, from: StoreId, beat: &Beat) {
        if !self.replicas.get(&beat.range).is_some_and(|replica| replica.sleeps_through(ctx, beat)) {
            self.wake(ctx, beat.range, false);
        }
        if let Some(group) = self.group(beat.range) {
            group.receive_beat(ctx, from, beat);
        }
        if let Some(replica) = self.replicas.get_mut(&beat.range).filter(|replica| replica.id() == beat.to) {
            replica.heard_offer(beat);
        }
    }

    /// A follower's answer. It does not wake a leader: nothing is asked of it.
    pub(super) fn beat_reply(&mut self, ctx: &Ctx<'_>, from: StoreId, reply: &BeatReply) {
        if let Some(group) = self.group(reply.range) {
            group.receive_beat_reply(ctx, from, reply);
        }
        if let Some(replica) = self.replicas.get_mut(&reply.range) {
            replica.heard_asleep(reply);
        }
    }

    /// Fills in what heartbeats and their answers say about sleep. A follower that may sleep does, before it says so.
    pub(super) fn tell_sleep(&mut self, ctx: &Ctx<'_>, range: RangeId, sends: &mut Sends) {
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        sends.beats.iter_mut().for_each(|(_, beat)| beat.sleep_at = replica.slumber.offered);
        if sends.beat_replies.is_empty() {
            return;
        }
        if !replica.slumber.asleep
            && replica.may_doze(ctx)
            && let Some(promise) = replica.group.promise()
        {
            replica.slumber.asleep = true;
            self.awake.remove(&range);
            self.sleepers.follows(range, promise.leader_store, replica.voter_stores(), replica.is_users());
        }
        let asleep = replica.slumber.asleep && replica.may_doze(ctx);
        sends.beat_replies.iter_mut().for_each(|(_, reply)| reply.asleep = asleep);
    }

    /// What time brings to an awake replica.
    pub(super) fn tick(&mut self, ctx: &Ctx<'_>, range: RangeId) {
        let (idle, sends_snapshot) = (self.idle(), self.outgoing.held(range).is_some());
        let Some(replica) = self.replicas.get_mut(&range).filter(|replica| !replica.slumber.asleep) else { return };
        if replica.group.role().role == Role::Leader {
            replica.offer_sleep(ctx, idle, sends_snapshot);
        }
        replica.group.tick(ctx);
    }

    /// The end of a range's turn: a leader whose followers all sleep follows them; a sleeper that cannot sleep on wakes.
    pub(super) fn settle(&mut self, ctx: &Ctx<'_>, range: RangeId) {
        let Some(replica) = self.replicas.get_mut(&range) else {
            self.leaders.remove(&range);
            self.awake.remove(&range);
            self.sleepers.woke(range);
            return;
        };
        let leads = replica.group.role().role == Role::Leader;
        if leads {
            self.leaders.insert(range);
        } else {
            self.leaders.remove(&range);
        }
        if replica.slumber.asleep {
            let disturbed = replica.group.lost().is_some()
                || if leads { !replica.group.usable() || !replica.group.at_rest() } else { !follows(replica) };
            if disturbed {
                self.wake(ctx, range, false);
            }
        } else if leads && replica.all_sleep(ctx) {
            replica.slumber.asleep = true;
            self.sleepers.leads(range, replica.crew(ctx), replica.is_users());
            self.awake.remove(&range);
        } else {
            self.awake.insert(range);
        }
    }
}

fn follows(replica: &Replica) -> bool {
    replica.group.role().role == Role::Follower
}
