//! Logs that are given up: see `truncation` for how much.

use flotilla_storage::log::LogOp;
use flotilla_types::{LogIndex, RangeId};

use super::Fleet;
use crate::event::{Effect, FlushMark};
use crate::flush::Act;
use crate::message::Beat;
use crate::raft::{Ctx, Role};
use crate::replica::Replica;
use crate::truncation::Holder;
use crate::turn::Turn;

impl Fleet {
    /// A flush covers more of the range's state.
    pub(super) fn flushed(&mut self, ctx: &Ctx<'_>, range: RangeId, through: FlushMark, turn: &mut Turn) {
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        if let Some(mark) = replica.keeping.flushed_through(through) {
            self.flush.wait_for(mark, Act::MayTruncate { range });
        }
        self.truncate(ctx, range, turn);
    }

    /// The engine changes of the turn are given out: what these ranges applied is covered by the present mark.
    pub(super) fn await_flush(&mut self, applied: Vec<RangeId>) {
        let mark = self.flush.written();
        for range in applied {
            let Some(replica) = self.replicas.get_mut(&range) else { continue };
            if replica.keeping.applied(mark, replica.state.applied.pos.index) {
                self.flush.wait_for(mark, Act::MayTruncate { range });
            }
        }
    }

    /// Old entries of these ranges pin log files.
    pub(super) fn pinned(&mut self, ctx: &Ctx<'_>, ranges: Vec<RangeId>, turn: &mut Turn) {
        let mut unflushed = false;
        for range in ranges {
            let Some(replica) = self.replicas.get_mut(&range) else { continue };
            replica.keeping.urgent = true;
            unflushed |= replica.keeping.flushed < replica.state.applied.pos.index;
            self.truncate(ctx, range, turn);
        }
        if unflushed {
            turn.effects.push(Effect::Flush);
        }
    }

    /// Gives up what may be given up now.
    pub(super) fn truncate(&mut self, ctx: &Ctx<'_>, range: RangeId, turn: &mut Turn) {
        let held = self.outgoing.held(range);
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        let needless = match replica.group.role().role {
            Role::Leader => needless(ctx, replica, held),
            _ => replica.keeping.needless_here().min(held.unwrap_or(LogIndex(u64::MAX))),
        };
        let truncated = replica.group.truncated().index;
        let Some(through) = replica.keeping.through(needless, truncated) else { return };
        if let Some(LogOp::Truncate { range, through }) = replica.group.truncate(through) {
            replica.keeping.truncated(truncated, through.index, replica.group.last().index);
            turn.log_ops.push(LogOp::Truncate { range, through });
            turn.effects.push(Effect::Count("flotilla_log_truncations_total", 1));
        }
    }

    /// A follower hears what its leader does not need it to keep.
    pub(super) fn told_to_keep(&mut self, ctx: &Ctx<'_>, beat: &Beat, turn: &mut Turn) {
        let Some(replica) = self.replicas.get_mut(&beat.range) else { return };
        let role = replica.group.role();
        if beat.to == replica.id() && role.term == beat.term && role.leader == Some(beat.from) {
            replica.keeping.keep_from = beat.keep_from;
            self.truncate(ctx, beat.range, turn);
        }
    }

    /// What a leader's beats tell its followers.
    pub(super) fn keep_from(&self, ctx: &Ctx<'_>, range: RangeId) -> LogIndex {
        let held = self.outgoing.held(range);
        self.replicas.get(&range).map_or(LogIndex(0), |replica| needless(ctx, replica, held).next())
    }
}

/// Up to where nobody needs a leader's log.
fn needless(ctx: &Ctx<'_>, replica: &Replica, held: Option<LogIndex>) -> LogIndex {
    let descriptor = &replica.state.descriptor;
    let holders = replica.group.peers().into_iter().map(|peer| {
        let store = descriptor.replica(peer.replica).map(|replica| replica.store);
        let live = store.is_some_and(|store| ctx.support.given(store).is_some_and(|given| given.active));
        Holder { matched: peer.matched, live, in_snapshot: peer.in_snapshot }
    });
    replica.keeping.needless(&holders.collect::<Vec<_>>(), held, replica.group.last().index)
}
