//! Replicas that exist by name only: they have a log and a term, but neither span nor data. They vote and do nothing else. A message
//! for an unknown replica makes one; a snapshot, or the split of its parent, makes it live.

use flotilla_storage::engine::Reader;
use flotilla_storage::keys;
use flotilla_storage::log::{HardState, LogHead, LogOp, LogPos};
use flotilla_storage::state::{LeaseState, decode_replica_id};
use flotilla_types::{LogIndex, RangeId, ReplicaId};

use super::Fleet;
use crate::raft::{Ctx, Group, GroupBoot};
use crate::turn::Turn;

/// A replica without state.
pub(super) struct Uninit {
    pub(super) me: ReplicaId,
    pub(super) group: Group,
}

impl Fleet {
    /// A message for a replica: if nothing of the range is here, it begins to exist. If an older one is, that one was
    /// removed: a store holds one replica of a range, and ids are never used twice.
    pub(super) fn meet(&mut self, ctx: &Ctx<'_>, range: RangeId, to: ReplicaId, engine: &dyn Reader, turn: &mut Turn) {
        if self.replicas.contains_key(&range) || self.lost.contains_key(&range) {
            // A lost replica must not begin anew under its old id: it may have acknowledged what it has lost.
            return self.told_removed(ctx, range, to, turn);
        }
        let older = self.uninit.get(&range).is_some_and(|uninit| uninit.me < to) && !self.incoming.is_arriving(range);
        let free = older || !self.uninit.contains_key(&range);
        let taken = self.closing.contains_key(&range) || self.unborn.contains_key(&range);
        if !free || to == ReplicaId(0) || taken {
            return;
        }
        // Unreadable is as good as gone: nothing is lost by waiting.
        let Ok(tombstone) = engine.get(&keys::tombstone(range)) else { return };
        let next = tombstone.map(|bytes| decode_replica_id(&bytes));
        if next.is_some_and(|next| !next.is_ok_and(|next| next <= to)) {
            return;
        }
        let (trunc, hard) = (LogPos::default(), HardState::default());
        let head = LogHead { replica: to, birth: None, hard, hard_last: trunc, promise: None, trunc, last: trunc };
        if self.start_uninit(range, head, ctx.mono) {
            // Its first answer waits for its first term, which is written behind this.
            turn.log_ops.push(LogOp::Create { range, replica: to, birth: None, trunc, hard });
        }
    }

    /// Starts the group of a replica without state.
    pub(super) fn start_uninit(&mut self, range: RangeId, head: LogHead, mono: std::time::Duration) -> bool {
        let boot = GroupBoot {
            range,
            me: head.replica,
            store: self.config.store,
            descriptor: None,
            head,
            applied: LogPos::default(),
            lease: LeaseState::default(),
            commit_at_least: LogIndex(0),
            mono,
        };
        match Group::start(&boot, &self.config.group, std::sync::Arc::clone(&self.log)) {
            Ok(group) => {
                self.uninit.insert(range, Uninit { me: head.replica, group });
                true
            }
            Err(why) => {
                tracing::error!(%range, %why, "a replica without state could not be started");
                false
            }
        }
    }

    pub(super) fn turn_of_uninit(&mut self, ctx: &Ctx<'_>, range: RangeId, turn: &mut Turn) {
        while let Some(uninit) = self.uninit.get_mut(&range)
            && let Some(ready) = uninit.group.ready(ctx)
        {
            let ended = ready.snapshot.is_some();
            self.snapshot_ready(range, &ready, turn);
            turn.log_ops.extend(ready.log_ops);
            turn.numbers.extend(ready.number.map(|number| (range, number)));
            self.send(ctx, range, ready.sends, turn);
            if ended {
                break;
            }
        }
        self.discard_refused(range, turn);
    }
}
