//! Replicas that go (docs/durability.md, "Destruction").
//!
//! A replica is destroyed on proof alone: it applied its own removal; or whoever applied it says so; or a newer replica of
//! the range is addressed on this store; or the addressing records, read consistently, name others. Silence proves nothing.
//!
//! ```text
//!  Live ─► one engine batch: spans emptied, tombstone ─► Closing ─ flushed ─► log removed
//! ```

use flotilla_storage::keys;
use flotilla_storage::log::LogOp;
use flotilla_storage::state::encode_replica_id;
use flotilla_types::{RangeDescriptor, RangeId, ReplicaId, StoreId};

use super::Fleet;
use crate::event::Effect;
use crate::flush::Act;
use crate::message::PeerMessage;
use crate::raft::{Ctx, LossReason};
use crate::turn::Turn;

/// A replica that a start found out of order.
pub(super) struct Lost {
    pub(super) me: ReplicaId,
    pub(super) descriptor: RangeDescriptor,
}

impl Fleet {
    /// Destroys the replica here; ids below `next` never come back to this store.
    pub(super) fn destroy(&mut self, ctx: &Ctx<'_>, range: RangeId, next: ReplicaId, turn: &mut Turn) {
        if self.incoming.is_ingesting(range) {
            // The files would come back after the batch. Whoever proves it will prove it again.
            return;
        }
        if let Some(arrival) = self.incoming.give_up(range) {
            turn.effects.push(Effect::Discard { files: arrival.files });
        }
        let Some(mut replica) = self.replicas.remove(&range) else { return };
        self.sleepers.woke(range);
        self.awake.remove(&range);
        self.leaders.remove(&range);
        let damaged = replica.group.lost().is_some();
        replica.group.lose(ctx, LossReason::Removed);
        replica.role_changed(ctx, replica.group.role(), &mut turn.effects);
        replica.give_up_waits(&mut turn.effects);
        if self.peers.count(Some(&replica.state.descriptor), None) {
            turn.effects.push(Effect::Peers(self.peers.stores()));
        }
        if let Some(at) = self.wake_of.remove(&range) {
            self.wakes.remove(&(at, range));
        }
        self.bury(&replica.state.descriptor, next, damaged, turn);
        self.lose_unborn_of(range, turn);
    }

    /// One batch for all that the range has here. Nobody rewrites files that are known to be damaged: the engine would
    /// refuse every write from then on, and take the store's other replicas with it.
    fn bury(&mut self, descriptor: &RangeDescriptor, next: ReplicaId, damaged: bool, turn: &mut Turn) {
        let range = descriptor.range;
        for (start, end) in keys::spans(range, &descriptor.span) {
            turn.batch.delete_range(start, end);
        }
        turn.batch.put(keys::tombstone(range), encode_replica_id(next));
        turn.acts.push(Act::RemoveLog { range });
        turn.effects.push(Effect::WithdrawGc { span: descriptor.span.clone() });
        turn.effects.push(Effect::Flush);
        self.closing.insert(range, (!damaged).then(|| descriptor.span.clone()));
        tracing::info!(%range, %next, "the replica was removed from this store");
    }

    /// The destruction is durable.
    pub(super) fn remove_log(&mut self, range: RangeId, turn: &mut Turn) {
        if let Some(span) = self.closing.remove(&range) {
            turn.log_ops.push(LogOp::Remove { range });
            turn.effects.extend(span.map(|span| Effect::Reclaim { span }));
        }
    }

    /// Somebody who applied it says that the replica of a range here is removed, if its id is below `next`.
    pub(super) fn told_removed(&mut self, ctx: &Ctx<'_>, range: RangeId, next: ReplicaId, turn: &mut Turn) {
        if self.replicas.get(&range).is_some_and(|replica| replica.id() < next) {
            self.destroy(ctx, range, next, turn);
        } else if self.lost.get(&range).is_some_and(|lost| lost.me < next) {
            if let Some(lost) = self.lost.remove(&range) {
                self.bury(&lost.descriptor, next, true, turn);
            }
        } else if self.uninit.get(&range).is_some_and(|uninit| uninit.me < next) && !self.incoming.is_arriving(range) {
            // It holds nothing and has promised nothing.
            self.uninit.remove(&range);
            turn.batch.put(keys::tombstone(range), encode_replica_id(next));
            turn.acts.push(Act::RemoveLog { range });
            turn.effects.push(Effect::Flush);
            self.closing.insert(range, None);
        } else {
            self.forget_unborn(range, next, turn);
        }
    }

    /// A message of a replica that the applied descriptor here does not know any more: its store missed the removal.
    pub(super) fn answer_removed(&self, range: RangeId, from: ReplicaId, store: StoreId, turn: &mut Turn) {
        let Some(replica) = self.replicas.get(&range) else { return };
        let descriptor = &replica.state.descriptor;
        if from < descriptor.next_replica && descriptor.replica(from).is_none() {
            let next = from.next();
            turn.messages.push((store, PeerMessage::Removed { range, next }));
        }
    }

    /// The owner of the range's start key, read consistently.
    pub(super) fn confirmed(&mut self, ctx: &Ctx<'_>, range: RangeId, current: &RangeDescriptor, turn: &mut Turn) {
        let live = self.replicas.get(&range).map(|replica| (replica.id(), &replica.state.descriptor));
        let Some((me, mine)) = live.or_else(|| self.lost.get(&range).map(|lost| (lost.me, &lost.descriptor))) else {
            return;
        };
        if current.range == range && current.generation >= mine.generation && current.replica(me).is_none() {
            self.told_removed(ctx, range, me.next(), turn);
        }
    }

    /// A replica that heard no leader for a minute may have been forgotten: it asks, and asks again after another minute.
    pub(super) fn ask_if_orphaned(&mut self, ctx: &Ctx<'_>, range: RangeId, turn: &mut Turn) {
        let Some(replica) = self.replicas.get_mut(&range) else { return };
        if replica.asks_at().is_some_and(|at| ctx.mono >= at) {
            replica.asked = ctx.mono;
            if replica.slumber.asleep && replica.group.follows_by_promise(ctx) {
                return;
            }
            let key = replica.state.descriptor.span.start.clone();
            turn.effects.push(Effect::Confirm { range, key });
        }
    }
}
