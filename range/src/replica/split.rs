//! Splits, at the range that is cut (docs/durability.md, "Splits"; leases 5.7).
//!
//! The cut waits for every command on the right half and keeps its latch until it is applied: no read of that half is
//! served between the evaluation, which notes how high reads went, and the first lease of the child, which begins above.

use std::time::Duration;

use flotilla_storage::engine::WriteBatch;
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::state::{Thresholds, encode_replica_id};
use flotilla_types::{
    Admin, Generation, Key, KeySpan, RangeDescriptor, RangeError, RangeId, RangeReply, ReplicaId, Reply,
    keys as logical,
};

use super::changes::RETRY_AFTER;
use super::{Proposed, Replica};
use crate::apply::State;
use crate::command::Command;
use crate::event::Effect;
use crate::latches::{Access, LatchId};
use crate::raft::{Ctx, Refused};

impl Replica {
    /// What the cut latches: all of the right half.
    pub(super) fn admit_split(&self, admin: &Admin) -> Result<Vec<(KeySpan, Access)>, RangeError> {
        let Admin::Split { generation, key, right } = admin else {
            return Err(RangeError::Invalid { what: "it waits for no keys".to_owned() });
        };
        self.check_usable()?;
        let (_, right) = self.halves(*generation, key, *right)?;
        // Records are latched beside the keys: none of the right half may change meanwhile.
        Ok(vec![(right.span, Access::Write), (super::transact::all_records(), Access::Write)])
    }

    /// What the range would become.
    fn halves(
        &self,
        generation: Generation,
        key: &Key,
        right: RangeId,
    ) -> Result<(RangeDescriptor, RangeDescriptor), RangeError> {
        let now = &self.state.descriptor;
        if generation != now.generation {
            return Err(RangeError::GenerationMismatch { current: Box::new(now.clone()) });
        }
        if *key < logical::META2 {
            let what = "the first range says where the addresses lie, and stays whole: cut above it".to_owned();
            return Err(RangeError::Invalid { what });
        }
        if right == now.range || right == RangeId(0) {
            return Err(RangeError::Invalid { what: format!("{right} is not a new range's id") });
        }
        if now.is_joint() || self.group.has_pending_conf() {
            return Err(RangeError::Overloaded { queue: "its membership changes".into(), retry_after: RETRY_AFTER });
        }
        now.split(key, right).ok_or_else(|| match now.span.contains(key) {
            true => RangeError::Invalid { what: format!("{} begins there already", now.range) },
            false => self.mismatch(KeySpan::point(key.clone())),
        })
    }

    /// The latch is held: proposes the cut.
    pub(super) fn split(&mut self, ctx: &Ctx<'_>, latch: LatchId, admin: &Admin, effects: &mut Vec<Effect>) {
        let Admin::Split { generation, key, right } = admin else { return };
        let halves = self.check_usable().and_then(|()| self.halves(*generation, key, *right));
        let (left, right) = match halves {
            Ok(halves) => halves,
            Err(error) => return self.answer(latch, Err(error), effects),
        };
        let floor = self.max_served.max(self.state.lease.start);
        let reply = RangeReply { timestamp: ctx.now, reply: Reply::Admin(vec![left.clone(), right.clone()]) };
        let data = self.alone(&Command::Split { left, right, floor });
        match self.group.propose(ctx, data) {
            Ok(pos) => {
                let deadline = self.open.get(&latch).map_or(Duration::MAX, |open| open.deadline);
                let token = self.close(latch);
                self.proposed.insert(pos.index, pos.term, ctx.mono, vec![Proposed { token, latch, reply, deadline }]);
                // A follower that heard of the cut only with the next write would leave the child without a quorum.
                self.group.tell_commits_at_once(true);
            }
            Err(Refused::Full) => {
                let error = RangeError::Overloaded { queue: "its proposals".into(), retry_after: RETRY_AFTER };
                self.answer(latch, Err(error), effects);
            }
            Err(_) => self.answer(latch, Err(self.not_leaseholder()), effects),
        }
    }

    /// Some of the keys are not the range's (any more).
    pub(super) fn mismatch(&self, span: KeySpan) -> RangeError {
        let now = &self.state.descriptor;
        let cut = self.cut_off.iter().filter(|cut| cut.span.overlaps(&span)).cloned();
        let known = cut.chain([now.clone()]).collect();
        RangeError::RangeMismatch { range: now.range, span, known }
    }
}

/// Writes what makes a range exist in the engine, for the replica here.
pub(crate) fn write_records(state: &State, me: ReplicaId, batch: &mut WriteBatch) {
    let record = |record| keys::range_record(state.descriptor.range, record);
    batch.put(record(RangeRecord::Descriptor), state.descriptor.encode());
    batch.put(record(RangeRecord::Applied), state.applied.encode());
    batch.put(record(RangeRecord::Lease), state.lease.encode());
    batch.put(record(RangeRecord::ReplicaId), encode_replica_id(me));
    if state.thresholds != Thresholds::default() {
        batch.put(record(RangeRecord::Thresholds), state.thresholds.encode());
    }
}
