//! What comes from other stores: checked, filtered, stepped.

use bytes::Bytes;
use flotilla_types::{RangeId, ReplicaId, StoreId, Term};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{INVALID_ID, StateRole};

use super::filter::{Verdict, View};
use super::group::Group;
use super::support::Ctx;
use super::types::LossReason;
use super::wire;
use crate::entry::verify;
use crate::message::{Beat, BeatReply, Envelope};

/// Whether an entry is what its proposer made. A new leader's own entry carries nothing.
fn is_whole(range: RangeId, entry: &Entry) -> bool {
    match entry.get_entry_type() {
        EntryType::EntryNormal => entry.data.is_empty() || verify(range, &entry.data).is_ok(),
        // What the range makes of a membership change travels beside the library's own part.
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => verify(range, &entry.context).is_ok(),
    }
}

/// Whether an append's entries follow the position that it names, without a gap. The library does not look, and would
/// acknowledge entries that it was never given.
fn is_continuous(message: &Message) -> bool {
    message.get_msg_type() != MessageType::MsgAppend
        || message.entries.iter().zip(message.index + 1..).all(|(entry, index)| entry.index == index)
}

impl Group {
    /// Takes a message of the raft lane. Snapshots come by `receive_snapshot` alone.
    pub fn receive(&mut self, ctx: &Ctx<'_>, from: StoreId, envelope: &Envelope) {
        self.receive_kind(ctx, from, envelope, false);
    }

    /// Takes MsgSnapshot, once all its frames were verified.
    pub fn receive_snapshot(&mut self, ctx: &Ctx<'_>, from: StoreId, envelope: &Envelope) {
        self.receive_kind(ctx, from, envelope, true);
    }

    fn receive_kind(&mut self, ctx: &Ctx<'_>, from: StoreId, envelope: &Envelope, snapshot: bool) {
        if envelope.range != self.range || envelope.to != self.me {
            return;
        }
        self.guard(ctx, |group| {
            let Some(message) = wire::parse(&envelope.message, group.config.message_bytes_max) else { return };
            let expected = (message.get_msg_type() == MessageType::MsgSnapshot) == snapshot;
            if group.config.verify_entries && !message.entries.iter().all(|entry| is_whole(group.range, entry)) {
                // The sender sends it again; what was damaged on its way does not reach the log.
                tracing::warn!(range = %group.range, %from, "an entry's checksum does not match: its message is dropped");
                return;
            }
            if expected && is_continuous(&message) && message.from == envelope.from.0 && message.to == envelope.to.0 {
                group.take(ctx, from, message, envelope.promised);
            }
        });
    }

    /// Takes a leader's heartbeat.
    pub fn receive_beat(&mut self, ctx: &Ctx<'_>, from: StoreId, beat: &Beat) {
        if beat.range != self.range || beat.to != self.me {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgHeartbeat);
        (message.from, message.to, message.term) = (beat.from.0, beat.to.0, beat.term.0);
        message.commit = beat.commit.0;
        self.guard(ctx, |group| group.take(ctx, from, message, 0));
    }

    /// Takes a follower's answer.
    pub fn receive_beat_reply(&mut self, ctx: &Ctx<'_>, from: StoreId, reply: &BeatReply) {
        if reply.range != self.range || reply.to != self.me {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgHeartbeatResponse);
        (message.from, message.to, message.term) = (reply.from.0, reply.to.0, reply.term.0);
        (message.commit, message.context) = (reply.commit.0, Bytes::new());
        self.guard(ctx, |group| group.take(ctx, from, message, reply.promised));
    }

    /// Takes a former leader's word that it is over (leases section 9): the promise to it falls.
    pub fn receive_release(&mut self, ctx: &Ctx<'_>, replica: ReplicaId, term: Term) {
        self.guard(ctx, |group| {
            let named = group.promise.is_some_and(|p| p.leader_replica == replica && p.term <= term);
            if named {
                group.set_promise(None);
            }
            let led_by_it = group.node.raft.leader_id == replica.0 && group.term_now() <= term;
            if named || led_by_it {
                group.forget(ctx);
                group.plan_ranked(ctx, replica);
            }
        });
    }

    fn filter_view(&mut self, ctx: &Ctx<'_>) -> View {
        let leads = self.is_leader();
        let until = self.lease_until(ctx);
        // An applied end binds the one that led as little as its followers (leases 3.7).
        let ended = self.lease.ended && self.lease.term == self.term_now();
        let raft = &self.node.raft;
        let silent = ctx.mono.saturating_sub(self.elections.heard) >= self.config.support_duration;
        View {
            initialised: self.initialised,
            role: raft.state,
            term: raft.term,
            leader: raft.leader_id,
            term_leader: if self.term_leader.0 == raft.term { self.term_leader.1 } else { INVALID_ID },
            last: raft.raft_log.last_index(),
            now: ctx.now,
            promise: self.promise,
            promise_active: self.promise_is_active(ctx),
            hold: if leads { (!ended).then_some((self.tenure.term, until)) } else { self.hold },
            leader_heard: self.elections.heard_unpromised && !silent,
            leased_leader: leads && !ended && ctx.now < until,
        }
    }

    pub(super) fn take(&mut self, ctx: &Ctx<'_>, from: StoreId, message: Message, promised: u64) {
        match self.filter_view(ctx).judge(&message) {
            Verdict::Drop(_) => {}
            Verdict::CatchUp => self.wants_catch_up |= !self.tenure.ending,
            Verdict::LostTail { commit } => {
                let last = self.last().index;
                self.lose(ctx, LossReason::LostTail { commit, last });
            }
            Verdict::Step { forget } => {
                if forget {
                    self.forget(ctx);
                }
                self.step(ctx, from, message, promised);
            }
        }
    }

    fn step(&mut self, ctx: &Ctx<'_>, from: StoreId, message: Message, promised: u64) {
        use MessageType::{MsgAppend, MsgAppendResponse, MsgHeartbeat, MsgHeartbeatResponse, MsgSnapshot};
        let (kind, sender, term) = (message.get_msg_type(), message.from, message.term);
        // An uninitialised replica has no descriptor; whoever writes to it can be answered.
        self.stores.entry(ReplicaId(sender)).or_insert(from);
        if matches!(kind, MsgAppendResponse | MsgHeartbeatResponse) {
            self.fortify(ReplicaId(sender), term, promised);
        }
        // Errors are dropped messages: from a peer outside the configuration.
        let _ = self.node.step(message);
        self.observe(ctx);
        let raft = &self.node.raft;
        let accepted = raft.state == StateRole::Follower && raft.leader_id == sender && raft.term == term;
        if matches!(kind, MsgAppend | MsgHeartbeat | MsgSnapshot) && accepted {
            self.promise_to_leader(ctx, from);
            let promised = self.promise_is_active(ctx);
            self.elections.leader_spoke(ctx.mono, self.config.support_duration, promised);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Payload;

    #[test]
    fn an_entry_that_was_damaged_or_is_of_another_range_is_noticed() {
        let data = Payload { term: Term(6), commands: Vec::new() }.encode(RangeId(7));
        let mut entry = Entry { data: data.clone(), ..Entry::default() };
        assert!(is_whole(RangeId(7), &entry));
        assert!(!is_whole(RangeId(8), &entry));
        let mut flipped = data.to_vec();
        flipped[9] ^= 4;
        entry.data = flipped.into();
        assert!(!is_whole(RangeId(7), &entry));
        assert!(is_whole(RangeId(7), &Entry::default()), "a new leader's own");
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.context = data;
        assert!(is_whole(RangeId(7), &entry));
        entry.context = Bytes::new();
        assert!(!is_whole(RangeId(7), &entry));
    }

    /// What the library's batching of appends made of an empty append and an entry below it: the simulation saw a
    /// follower acknowledge index 128 with a log that ended at 127, and the leader commit by it.
    #[test]
    fn an_append_whose_entries_do_not_follow_its_position_is_not_taken() {
        let append = |index: u64, entries: &[u64]| {
            let entries = entries.iter().map(|index| Entry { index: *index, ..Entry::default() });
            let mut message = Message { index, entries: entries.collect(), ..Message::default() };
            message.set_msg_type(MessageType::MsgAppend);
            message
        };
        assert!(is_continuous(&append(127, &[])) && is_continuous(&append(126, &[127, 128])));
        assert!(!is_continuous(&append(127, &[127])), "begins below");
        assert!(!is_continuous(&append(126, &[128])), "begins above");
        assert!(!is_continuous(&append(126, &[127, 129])), "a gap");
    }
}
