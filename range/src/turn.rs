//! What one turn of the fleet gathers over all its ranges, and the order in which it leaves.

use std::collections::BTreeMap;

use flotilla_storage::engine::WriteBatch;
use flotilla_storage::log::LogOp;
use flotilla_types::{RangeId, StoreId};

use crate::event::{Effect, Ticket};
use crate::flush::{Act, AfterFlush};
use crate::message::{Beat, BeatReply, PeerMessage};
use crate::raft::Sends;

/// The effects of a turn, by kind.
#[derive(Default)]
pub(crate) struct Turn {
    /// Engine changes, and looks at the engine between them.
    done: Vec<Effect>,
    /// Engine changes of all ranges since the last look.
    pub(crate) batch: WriteBatch,
    pub(crate) log_ops: Vec<LogOp>,
    /// Groups that wait for the log, with their number.
    pub(crate) numbers: Vec<(RangeId, u64)>,
    pub(crate) messages: Vec<(StoreId, PeerMessage)>,
    pub(crate) beats: BTreeMap<StoreId, Vec<Beat>>,
    pub(crate) beat_replies: BTreeMap<StoreId, Vec<BeatReply>>,
    pub(crate) effects: Vec<Effect>,
    /// Answers to what the batch writes.
    pub(crate) replies: Vec<Effect>,
    /// Ranges that applied something.
    pub(crate) applied: Vec<RangeId>,
    /// What may be done once the batch is flushed.
    pub(crate) acts: Vec<Act>,
}

impl Turn {
    /// Takes up a group's messages. The fleet has filled in the beats.
    pub(crate) fn send(&mut self, sends: Sends) {
        let messages = sends.messages.into_iter();
        self.messages.extend(messages.map(|(to, envelope)| (to, PeerMessage::Raft(envelope))));
        for (to, beat) in sends.beats {
            self.beats.entry(to).or_default().push(beat);
        }
        for (to, reply) in sends.beat_replies {
            self.beat_replies.entry(to).or_default().push(reply);
        }
    }

    /// Looks at the engine as it is after everything that was gathered so far.
    pub(crate) fn look(&mut self, effect: Effect) {
        self.close_batch();
        self.done.push(effect);
    }

    fn close_batch(&mut self) {
        if !self.batch.is_empty() {
            self.done.push(Effect::Write(std::mem::take(&mut self.batch)));
        }
    }

    /// The effects in order: write, append, send, the rest, reply. `append` names the log write, if there is one.
    pub(crate) fn finish(mut self, append: Option<Ticket>, flush: &mut AfterFlush) -> Vec<Effect> {
        self.close_batch();
        let mut effects = self.done;
        effects.iter().filter(|effect| matches!(effect, Effect::Write(_))).for_each(|_| flush.count());
        flush.wait(self.acts);
        effects.extend(append.map(|ticket| Effect::Append { ticket, ops: self.log_ops }));
        effects.extend(self.messages.into_iter().map(|(to, message)| Effect::Send { to, message }));
        let beats = self.beats.into_iter().map(|(to, beats)| (to, PeerMessage::Beats(beats)));
        let replies = self.beat_replies.into_iter().map(|(to, replies)| (to, PeerMessage::BeatReplies(replies)));
        effects.extend(beats.chain(replies).map(|(to, message)| Effect::Send { to, message }));
        self.effects.iter().filter(|effect| matches!(effect, Effect::Ingest { .. })).for_each(|_| flush.count());
        effects.extend(self.effects);
        effects.extend(self.replies);
        effects
    }
}
