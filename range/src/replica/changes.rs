//! Changes of the range itself that go through its log: its replicas, and checks of them.

use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::LogEntry;
use flotilla_types::{
    CheckId, ConfTarget, Generation, RangeDescriptor, RangeError, RangeReply, ReplicaDescriptor, Reply, RequestId,
};
use raft::eraftpb::ConfChangeV2;

use super::Replica;
use crate::apply::State;
use crate::command::Command;
use crate::entry::{EntryCommand, Payload};
use crate::event::{Effect, Token};
use crate::membership::{self, Step};
use crate::raft::{Ctx, Refused};
use crate::sums::Sums;

/// How far a learner may be behind when it is promoted.
const PROMOTION_LAG: u64 = 64;
/// When a change that waits for something is to be asked for again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(200);

pub(super) type Answer = Result<RangeReply, RangeError>;

impl Replica {
    /// Proposes the one step that leads towards the target. An answer, unless it went into the log.
    pub(super) fn change_replicas(
        &mut self,
        ctx: &Ctx<'_>,
        token: Token,
        generation: Generation,
        target: &ConfTarget,
        effects: &mut Vec<Effect>,
    ) -> Option<Answer> {
        if let Err(error) = self.check_usable() {
            return Some(Err(error));
        }
        let now = &self.state.descriptor;
        if generation != now.generation {
            return Some(Err(RangeError::GenerationMismatch { current: Box::new(now.clone()) }));
        }
        let wait =
            |queue: &'static str| Some(Err(RangeError::Overloaded { queue: queue.into(), retry_after: RETRY_AFTER }));
        match membership::next_step(now, target, self.me, |replica| self.has_caught_up(ctx, replica)) {
            Step::Done => Some(Ok(self.present(ctx))),
            Step::Wait => wait("what its new replica still has to receive"),
            Step::HandOver(heirs) => {
                self.hand_over(ctx, &heirs, effects);
                wait("the hand-over of its leadership")
            }
            Step::Refuse(what) => Some(Err(RangeError::Invalid { what: what.to_owned() })),
            Step::Change(change, after) => {
                let refused = self.propose_change(ctx, &change, *after, Some(token))?;
                match refused {
                    Refused::PendingConf => wait("its membership changes"),
                    Refused::Full | Refused::Unsupported => wait("its proposals"),
                    Refused::BadConf => {
                        let what = format!("the change does not fit: {refused}");
                        Some(Err(RangeError::Invalid { what }))
                    }
                    _ => Some(Err(self.not_leaseholder())),
                }
            }
        }
    }

    pub(super) fn present(&self, ctx: &Ctx<'_>) -> RangeReply {
        RangeReply { timestamp: ctx.now, reply: Reply::Admin(vec![self.state.descriptor.clone()]) }
    }

    fn has_caught_up(&self, ctx: &Ctx<'_>, replica: &ReplicaDescriptor) -> bool {
        let last = self.group.last().index.0;
        let near = self.group.peers().into_iter().find(|peer| peer.replica == replica.replica);
        // The library leaves a replica whose snapshot held everything in its probing state until the next entry, which in
        // an idle range may never come: whoever has all has caught up.
        let near = near
            .is_some_and(|peer| peer.matched.0 >= last || (peer.replicating && peer.matched.0 + PROMOTION_LAG >= last));
        near && ctx.support.given(replica.store).is_some_and(|given| given.active)
    }

    /// Says why it was refused, if it was.
    fn propose_change(
        &mut self,
        ctx: &Ctx<'_>,
        change: &ConfChangeV2,
        after: RangeDescriptor,
        token: Option<Token>,
    ) -> Option<Refused> {
        let data = self.alone(&Command::ChangeReplicas { descriptor: after });
        match self.group.propose_conf_change(ctx, change, data) {
            Ok(pos) => {
                self.changing.extend(token.map(|token| (pos.index, (pos.term, token))));
                None
            }
            Err(refused) => Some(refused),
        }
    }

    /// A payload of one command that no client named.
    pub(super) fn alone(&self, command: &Command) -> Bytes {
        let commands = vec![EntryCommand { request: RequestId([0; 16]), body: command.encode() }];
        Payload { term: self.group.term(), commands }.encode(self.state.descriptor.range)
    }

    /// A joint configuration is left as soon as it may be, by whoever leads (lessons section 3).
    pub(crate) fn leave_joint(&mut self, ctx: &Ctx<'_>) {
        if !self.state.descriptor.is_joint() || !self.group.usable() || self.group.has_pending_conf() {
            return;
        }
        if let Step::Change(change, after) = membership::leave(&self.state.descriptor)
            && let Some(refused) = self.propose_change(ctx, &change, *after, None)
        {
            tracing::debug!(range = %self.state.descriptor.range, %refused, "leaving the joint configuration waits");
        }
    }

    /// The library's side of an applied change.
    ///
    /// # Errors
    /// Library and descriptor disagree: the replica is lost.
    pub(super) fn apply_conf(&mut self, ctx: &Ctx<'_>, change: &ConfChangeV2) -> Result<(), String> {
        self.group.set_descriptor(&self.state.descriptor);
        self.group.apply_conf_change(ctx, change)?;
        if self.group.conf_matches(&self.state.descriptor) {
            Ok(())
        } else {
            Err("the applied membership is not the descriptor's".to_owned())
        }
    }

    /// Puts a check into the log.
    pub(super) fn check(&mut self, ctx: &Ctx<'_>, token: Token, check: CheckId) -> Option<Answer> {
        if let Err(error) = self.check_usable() {
            return Some(Err(error));
        }
        let data = self.alone(&Command::Check { check });
        match self.group.propose(ctx, data) {
            Ok(pos) => {
                self.changing.insert(pos.index, (pos.term, token));
                None
            }
            Err(Refused::Full) => {
                Some(Err(RangeError::Overloaded { queue: "its proposals".into(), retry_after: RETRY_AFTER }))
            }
            Err(_) => Some(Err(self.not_leaseholder())),
        }
    }

    /// The look at the engine that a check asks for.
    pub(super) fn hash(&self, check: CheckId) -> Effect {
        let State { descriptor, applied, .. } = &self.state;
        Effect::Hash { descriptor: descriptor.clone(), replica: self.me, check, applied: applied.pos.index }
    }

    /// Answers whoever asked for the change that stood at this entry.
    pub(super) fn reply_changed(&mut self, ctx: &Ctx<'_>, entry: &LogEntry, accepted: bool, replies: &mut Vec<Effect>) {
        let Some((term, token)) = self.changing.remove(&entry.pos.index) else { return };
        let result = if term == entry.pos.term && accepted {
            Ok(self.present(ctx))
        } else {
            // The library put an empty entry in its place, or the term had ended: it was not done and never will be.
            Err(self.not_leaseholder())
        };
        replies.push(Effect::Reply { token, result });
    }

    /// A snapshot took the place of everything that was here.
    pub(crate) fn replace_state(&mut self, state: State) {
        self.cache.raise_low_water(state.lease.start);
        self.sums = Sums::default();
        self.keeping.restart(state.applied.pos.index);
        self.state = state;
    }
}
