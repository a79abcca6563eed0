//! The end of a lease before its time: hand-over to another replica, or to the next term of the same one (leases 5.3, 5.4).
//!
//! Once EndLease is in the log there is no way back: nothing of the term is served any more. It carries the highest
//! timestamp that the term served, so that the next leader writes above it without waiting.

use std::time::Duration;

use flotilla_types::{RangeError, ReplicaId, ReplicaKind, StoreId};

use super::Replica;
use super::changes::{Answer, RETRY_AFTER};
use crate::command::Command;
use crate::event::{Effect, Token};
use crate::message::BeatReply;
use crate::raft::{AfterEnd, Ctx, LossReason, Refused, Role};

/// How long a leader that is wrong tries to find an heir.
const HANDS_OVER: Duration = Duration::from_secs(5);
/// Entries that the target of a hand-over may have left to apply.
const APPLY_LAG: u64 = 1024;

impl Replica {
    /// Makes the replica on another store the leader. An answer, unless EndLease went into the log.
    pub(super) fn transfer(
        &mut self,
        ctx: &Ctx<'_>,
        token: Token,
        to: StoreId,
        effects: &mut Vec<Effect>,
    ) -> Option<Answer> {
        if let Err(error) = self.check_usable() {
            return Some(Err(error));
        }
        if to == self.store {
            return Some(Ok(self.present(ctx)));
        }
        let heir = self.state.descriptor.on_store(to).filter(|replica| replica.kind == ReplicaKind::Voter);
        let Some(heir) = heir.map(|heir| heir.replica) else {
            let what = format!("{to} holds no voter of {}: it cannot lead", self.state.descriptor.range);
            return Some(Err(RangeError::Invalid { what }));
        };
        let fit = if self.applies_along(heir) {
            self.end_lease(ctx, AfterEnd::Transfer(heir), Some(token), effects)
        } else {
            Err(Refused::UnfitTarget)
        };
        match fit {
            Ok(()) => None,
            Err(Refused::NotLeader | Refused::NotUsable | Refused::Lost) => Some(Err(self.not_leaseholder())),
            Err(_) => Some(Err(RangeError::Overloaded {
                queue: "what its next leader still has to receive".into(),
                retry_after: RETRY_AFTER,
            })),
        }
    }

    /// A follower says how far it has applied.
    pub(crate) fn heard_applied(&mut self, reply: &BeatReply) {
        let known = self.followers.entry(reply.from).or_default();
        *known = reply.applied.max(*known);
    }

    /// Whether a replica would lead at once: one that holds the log and is far behind in applying it would serve nobody
    /// until it has (leases 5.3). One that said nothing in this term is believed to be.
    fn applies_along(&self, heir: ReplicaId) -> bool {
        let last = self.group.last().index.0;
        self.followers.get(&heir).is_none_or(|applied| last.saturating_sub(applied.0) <= APPLY_LAG)
    }

    /// Hands over to the first of these that is fit. Says whether it was begun.
    pub(super) fn hand_over(&mut self, ctx: &Ctx<'_>, heirs: &[ReplicaId], effects: &mut Vec<Effect>) -> bool {
        let fit = heirs.iter().copied();
        let fit = fit.filter(|heir| self.applies_along(*heir)).find(|heir| self.group.can_transfer(ctx, *heir).is_ok());
        fit.is_some_and(|heir| self.end_lease(ctx, AfterEnd::Transfer(heir), None, effects).is_ok())
    }

    /// The store stops: whoever else can lead, leads. Says whether the hand-over was begun.
    pub(crate) fn leave_to_others(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) -> bool {
        if self.group.role().role != Role::Leader || !self.group.usable() {
            return false;
        }
        let heirs: Vec<_> = self.state.descriptor.voters_incoming().map(|voter| voter.replica).collect();
        self.hand_over(ctx, &heirs, effects)
    }

    /// A replica that a check found to be wrong is lost; if it leads, another does first.
    pub(crate) fn give_up_if_wrong(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        let Some((_, since)) = &self.wrong else { return };
        let patient = ctx.mono.saturating_sub(*since) < HANDS_OVER;
        if self.group.role().role == Role::Leader && patient {
            self.leave_to_others(ctx, effects);
        } else if let Some((why, _)) = self.wrong.take() {
            self.group.lose(ctx, LossReason::Damaged(why));
        }
    }

    /// A peer is stranded at a higher term: the next term reaches it (leases 5.4).
    pub(crate) fn catch_up_term(&mut self, ctx: &Ctx<'_>, effects: &mut Vec<Effect>) {
        if let Err(refused) = self.end_lease(ctx, AfterEnd::SelfTransfer, None, effects) {
            tracing::debug!(range = %self.state.descriptor.range, %refused, "the term is not ended");
        }
    }

    fn end_lease(
        &mut self,
        ctx: &Ctx<'_>,
        then: AfterEnd,
        token: Option<Token>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Refused> {
        let data = self.alone(&Command::EndLease { floor: self.max_served });
        let at = self.group.propose_end(ctx, data, then)?;
        self.changing.extend(token.map(|token| (at.index, (at.term, token))));
        if let AfterEnd::Transfer(heir) = then {
            self.heir = self.state.descriptor.replica(heir).map(|heir| heir.store);
        }
        // What waits for its latches is not served here any more; what is in the log lies before the end.
        let waiting: Vec<_> = self.open.keys().copied().collect();
        for latch in waiting {
            self.answer(latch, Err(self.not_leaseholder()), effects);
        }
        self.refuse_waiting_reads(effects);
        self.granted.clear();
        Ok(())
    }
}
