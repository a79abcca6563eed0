//! What may reach the library: the filter table of leases 4, as a pure function.
//!
//! The library would vote for anybody with a good log, obey a `MsgTimeoutNow` from any peer of its term, and step down
//! for any response of a higher term. The rows below keep the promise, the hold, and a leader's own lease.

use flotilla_storage::log::Promise;
use flotilla_types::{LogIndex, Term, Timestamp};
use raft::eraftpb::{Message, MessageType};
use raft::{CAMPAIGN_TRANSFER, StateRole};

/// What the filter knows of the replica.
pub(crate) struct View {
    pub(crate) initialised: bool,
    pub(crate) role: StateRole,
    pub(crate) term: u64,
    pub(crate) leader: u64,
    /// The leader of this term, also after it was forgotten.
    pub(crate) term_leader: u64,
    pub(crate) last: u64,
    pub(crate) now: Timestamp,
    /// P, whether or not it is active.
    pub(crate) promise: Option<Promise>,
    pub(crate) promise_active: bool,
    /// The hold, or a leader's own term and U.
    pub(crate) hold: Option<(Term, Timestamp)>,
    /// A leader message was accepted without an active promise, less than D ago.
    pub(crate) leader_heard: bool,
    /// Leads with a lease that still runs.
    pub(crate) leased_leader: bool,
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Give it to the library, after forgetting the leader if so said.
    Step { forget: bool },
    /// Not for us, or not now.
    Drop(&'static str),
    /// A peer is stranded at a higher term: end the term by the log and take the next one.
    CatchUp,
    /// The leader relies on entries that are gone.
    LostTail { commit: LogIndex },
}

impl View {
    fn held(&self) -> Option<Term> {
        self.hold.and_then(|(term, until)| (self.now < until).then_some(term))
    }

    fn blocked(&self) -> bool {
        self.promise_active || self.held().is_some()
    }

    /// Rows X1 to X3: the promise's leader is provably over.
    fn lifted(&self, promise: &Promise, m: &Message) -> bool {
        let leader_itself = m.from == promise.leader_replica.0 && m.term > promise.term.0;
        let handed_over = m.context == CAMPAIGN_TRANSFER && m.term == promise.term.0 + 1;
        // Strictly greater: equal would admit every follower of the leader itself.
        leader_itself || handed_over || m.log_term > promise.term.0
    }

    fn vote_request(&self, m: &Message) -> Verdict {
        if !self.initialised && m.log_term == 0 {
            // The candidate knows no more than we do: no floor, no lease, no entry.
            return Verdict::Drop("F1: uninitialised");
        }
        let mut forget = !self.promise_active && !self.leader_heard;
        if let Some(promise) = self.promise.as_ref().filter(|_| self.promise_active) {
            if !self.lifted(promise, m) {
                return Verdict::Drop("F1: promised");
            }
            forget = true;
        }
        if self.held().is_some_and(|led| m.log_term <= led.0) {
            return Verdict::Drop("F1: held");
        }
        // A leader does not forget itself; the library refuses for it.
        Verdict::Step { forget: forget && self.role != StateRole::Leader && self.leader != 0 }
    }

    fn timeout_now(&self, m: &Message) -> Verdict {
        let from_leader = m.term == self.term && m.from == self.term_leader;
        let promise_allows =
            !self.promise_active || self.promise.is_some_and(|promise| promise.leader_replica.0 == m.from);
        // The hold is our addition to F2: a leader that may not campaign by itself is not made to by a message.
        if !self.initialised || !from_leader || !promise_allows || self.held().is_some() {
            return Verdict::Drop("F2");
        }
        Verdict::Step { forget: false }
    }

    fn other(&self, m: &Message, kind: MessageType) -> Verdict {
        use MessageType::{MsgAppend, MsgHeartbeat, MsgSnapshot};
        let leads = matches!(kind, MsgAppend | MsgHeartbeat | MsgSnapshot);
        if m.term > self.term && !leads {
            return match self.role {
                StateRole::Leader if self.leased_leader => Verdict::CatchUp,
                StateRole::Follower if self.blocked() => Verdict::Drop("F3: blocked"),
                _ => Verdict::Step { forget: false },
            };
        }
        if kind == MsgHeartbeat && m.term >= self.term && m.commit > self.last {
            return Verdict::LostTail { commit: LogIndex(m.commit) };
        }
        Verdict::Step { forget: false }
    }

    /// The table. Range and replica ids were checked before.
    pub(crate) fn judge(&self, m: &Message) -> Verdict {
        use MessageType as T;
        let kind = m.get_msg_type();
        match kind {
            T::MsgRequestVote | T::MsgRequestPreVote => self.vote_request(m),
            T::MsgTimeoutNow => self.timeout_now(m),
            T::MsgPropose | T::MsgReadIndex | T::MsgTransferLeader | T::MsgReadIndexResp => Verdict::Drop("F4"),
            T::MsgHup | T::MsgBeat | T::MsgUnreachable | T::MsgSnapStatus | T::MsgCheckQuorum => {
                Verdict::Drop("F4: local")
            }
            _ if m.term == 0 => Verdict::Drop("F4: a message without a term"),
            _ => self.other(m, kind),
        }
    }
}
