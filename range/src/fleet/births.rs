//! Children of splits (docs/durability.md, "Splits").
//!
//! The engine batch that narrows the parent makes the child; the log batch of the same turn carries its `Create` with a
//! birth record, before it promises anything. After a crash the engine may stand before the split while the child's log
//! is there with all that it promised: the child is *unborn* until the parent's replay, which the birth proves to be
//! committed, makes it again.

use std::collections::BTreeSet;
use std::sync::Arc;

use flotilla_storage::engine::Reader;
use flotilla_storage::keys;
use flotilla_storage::log::{Birth, HardState, LogHead, LogOp};
use flotilla_storage::state::{decode_replica_id, encode_replica_id};
use flotilla_types::{LogIndex, RangeId, ReplicaId};

use super::Fleet;
use super::destroy::Lost;
use crate::apply::Born;
use crate::boot::INITIAL;
use crate::event::Effect;
use crate::flush::Act;
use crate::raft::{Ctx, Group, GroupBoot, Role};
use crate::replica::{Replica, write_records};
use crate::turn::Turn;

impl Fleet {
    /// A split was just applied into the turn's batch; what is written here lands in the same one.
    pub(super) fn born(&mut self, ctx: &Ctx<'_>, parent: RangeId, born: Born, engine: &dyn Reader, turn: &mut Turn) {
        let Some(cut) = self.replicas.get(&parent) else { return };
        let (parent_replica, leads) = (cut.id(), cut.group.role().role == Role::Leader);
        let descriptor = &born.state.descriptor;
        let range = descriptor.range;
        let Some(me) = descriptor.on_store(self.config.store).map(|replica| replica.replica) else { return };
        if self.has_newer(range, me, engine) {
            // That one was removed already, or is about to get a snapshot: what the parent held of its keys goes.
            for (start, end) in keys::spans(range, &descriptor.span) {
                turn.batch.delete_range(start, end);
            }
            return;
        }
        write_records(&born.state, me, &mut turn.batch);
        let birth = Birth { parent, parent_replica, at: born.at };
        let head = self.head_of_child(range, me, birth, turn);
        turn.acts.push(Act::DropBirth { range });
        let boot = GroupBoot {
            range,
            me,
            store: self.config.store,
            descriptor: Some(descriptor),
            head,
            applied: INITIAL,
            lease: born.state.lease,
            commit_at_least: self.proven(range, me),
            mono: ctx.mono,
        };
        match Group::start(&boot, &self.config.group, Arc::clone(&self.log)) {
            Ok(mut group) => {
                if leads {
                    group.campaign_eagerly(ctx);
                }
                let mut child = Replica::new(me, self.config.store, group, born.state);
                child.born = Some(ctx.mono);
                if self.peers.count(None, Some(&child.state.descriptor)) {
                    turn.effects.push(Effect::Peers(self.peers.stores()));
                }
                self.replicas.insert(range, child);
                self.touched.insert(range);
            }
            Err(why) => {
                self.lost.insert(range, Lost { me, descriptor: born.state.descriptor });
                turn.effects.push(Effect::Lost { range, why: why.to_string() });
            }
        }
    }

    /// Before anything is heard in this process: the parents' logs bring them to the cuts that births prove. Else a parent
    /// could be removed, by the first message, before it made its child again.
    pub(super) fn replay_births(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader, turn: &mut Turn) {
        loop {
            let births = self.unborn.values().filter(|head| self.is_expected(head)).filter_map(|head| head.birth);
            let parents: BTreeSet<_> = births.map(|birth| birth.parent).collect();
            let applied = |fleet: &Self| -> Vec<_> {
                parents.iter().map(|parent| fleet.replicas.get(parent).map(|of| of.state.applied.pos)).collect()
            };
            let before = applied(self);
            for parent in
                parents.iter().filter(|parent| self.replicas.contains_key(parent)).copied().collect::<Vec<_>>()
            {
                self.turn_of(ctx, parent, engine, turn);
            }
            // Nothing left, or nothing that goes on without the others.
            if applied(self) == before {
                return;
            }
        }
    }

    /// Whether the store knows a later replica of the child's range, so that this one must not come to be.
    fn has_newer(&self, range: RangeId, me: ReplicaId, engine: &dyn Reader) -> bool {
        let uninit = self.uninit.get(&range).is_some_and(|uninit| uninit.me > me);
        let here = self.replicas.contains_key(&range) || self.lost.contains_key(&range);
        let buried = match engine.get(&keys::tombstone(range)) {
            Ok(Some(next)) => decode_replica_id(&next).is_ok_and(|next| next > me),
            _ => false,
        };
        uninit || here || buried || self.closing.contains_key(&range)
    }

    /// The child's log: the one that a restart found, or a new one, which keeps what a replica without state voted.
    fn head_of_child(&mut self, range: RangeId, me: ReplicaId, birth: Birth, turn: &mut Turn) -> LogHead {
        if let Some(head) = self.unborn.remove(&range).filter(|head| head.replica == me) {
            return head;
        }
        if let Some(arrival) = self.incoming.give_up(range) {
            turn.effects.push(Effect::Discard { files: arrival.files });
        }
        let before = self.uninit.remove(&range).filter(|uninit| uninit.me == me);
        let before = before.map(|uninit| uninit.group.hard()).filter(|hard| hard.term >= INITIAL.term);
        let fresh = HardState { term: INITIAL.term, vote: ReplicaId(0), commit: INITIAL.index };
        let hard = before.map_or(fresh, |hard| HardState { commit: INITIAL.index, ..hard });
        // The old group's numbers would count for the new one's.
        turn.numbers.retain(|(of, _)| *of != range);
        self.writing.values_mut().for_each(|groups| groups.retain(|(of, _)| *of != range));
        turn.log_ops.push(LogOp::Create { range, replica: me, birth: Some(birth), trunc: INITIAL, hard });
        let birth = Some(birth);
        LogHead { replica: me, birth, hard, hard_last: INITIAL, promise: None, trunc: INITIAL, last: INITIAL }
    }

    /// The births that wait for this replica prove that its log is committed up to here.
    pub(super) fn proven(&self, range: RangeId, me: ReplicaId) -> LogIndex {
        let births = self.unborn.values().filter_map(|head| head.birth);
        let own = births.filter(|birth| birth.parent == range && birth.parent_replica == me);
        own.map(|birth| birth.at).max().unwrap_or_default()
    }

    /// The split that made the range is durable in the engine.
    pub(super) fn drop_birth(&self, range: RangeId, turn: &mut Turn) {
        if self.replicas.contains_key(&range) {
            turn.log_ops.push(LogOp::DropBirth { range });
        }
    }

    /// An unborn replica whose parent is gone will never be; somebody proved that it is not needed.
    pub(super) fn forget_unborn(&mut self, range: RangeId, next: ReplicaId, turn: &mut Turn) {
        if self.unborn.get(&range).is_some_and(|head| head.replica < next && !self.is_expected(head)) {
            self.unborn.remove(&range);
            turn.batch.put(keys::tombstone(range), encode_replica_id(next));
            turn.acts.push(Act::RemoveLog { range });
            turn.effects.push(Effect::Flush);
            self.closing.insert(range, None);
        }
    }

    /// A parent is lost or gone: what it should have made again will never be, and waits to be replaced like it.
    pub(super) fn lose_unborn_of(&self, parent: RangeId, turn: &mut Turn) {
        let children = self.unborn.iter().filter(|(_, head)| head.birth.is_some_and(|birth| birth.parent == parent));
        for (range, _) in children.filter(|(_, head)| !self.is_expected(head)) {
            let why = "its log is here, and the split that made it cannot be replayed any more".to_owned();
            turn.effects.push(Effect::Lost { range: *range, why });
        }
    }

    /// Whether the parent's replay will come to the birth.
    pub(super) fn is_expected(&self, head: &LogHead) -> bool {
        let Some(birth) = head.birth else { return false };
        let parent = self.replicas.get(&birth.parent).filter(|parent| parent.id() == birth.parent_replica);
        let parent = parent.filter(|parent| parent.group.lost().is_none());
        let replays = parent.is_some_and(|parent| parent.state.applied.pos.index < birth.at);
        let unborn = self.unborn.get(&birth.parent).filter(|parent| parent.replica == birth.parent_replica);
        replays || unborn.is_some_and(|parent| self.is_expected(parent))
    }
}
