//! What waits for the engine to be flushed (docs/durability.md, "Apply").
//!
//! The log gives up a fact only after what replaced it is durable in the engine, and only here is that decided: an act is
//! tied to the count of engine changes that it depends on, and runs when the shell says that so many are flushed. Fleet
//! and shell count alike: every `Effect::Write` and every `Effect::Ingest` of this boot, in the order they are carried out.

use std::collections::VecDeque;

use flotilla_types::{LogIndex, RangeId};

use crate::event::FlushMark;

/// What may be done once the engine is flushed. Nothing else in the fleet may perform these effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "splits and destruction come")]
pub(crate) enum Act {
    /// The range's state up to `applied` is durable: its log may be given up as far as nobody needs it.
    MayTruncate {
        /// Range.
        range: RangeId,
        /// Applied index that the flush covers.
        applied: LogIndex,
    },
    /// The destruction of the replica is durable: its log may go.
    RemoveLog {
        /// Range.
        range: RangeId,
    },
    /// The split that made the range is durable.
    DropBirth {
        /// The child.
        range: RangeId,
    },
}

/// The queue of acts.
#[derive(Debug, Default)]
pub(crate) struct AfterFlush {
    /// Engine changes given out so far.
    written: FlushMark,
    /// Invariant: marks ascend.
    waiting: VecDeque<(FlushMark, Vec<Act>)>,
}

impl AfterFlush {
    /// An engine change is given out.
    pub(crate) fn count(&mut self) {
        self.written.0 += 1;
    }

    /// These acts depend on everything that was given out so far.
    pub(crate) fn wait(&mut self, acts: Vec<Act>) {
        if acts.is_empty() {
            return;
        }
        match self.waiting.back_mut() {
            Some((mark, last)) if *mark == self.written => last.extend(acts),
            _ => self.waiting.push_back((self.written, acts)),
        }
    }

    /// What may be done now.
    pub(crate) fn flushed(&mut self, through: FlushMark) -> Vec<Act> {
        let mut due = Vec::new();
        while self.waiting.front().is_some_and(|(mark, _)| *mark <= through) {
            due.extend(self.waiting.pop_front().map(|(_, acts)| acts).unwrap_or_default());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_act_waits_for_every_change_before_it() {
        let act = |n| Act::DropBirth { range: RangeId(n) };
        let mut queue = AfterFlush::default();
        queue.count();
        queue.wait(vec![act(1)]);
        queue.count();
        queue.count();
        queue.wait(vec![act(2)]);
        queue.wait(vec![act(3)]);
        assert_eq!(queue.flushed(FlushMark(0)), []);
        assert_eq!(queue.flushed(FlushMark(2)), [act(1)]);
        assert_eq!(queue.flushed(FlushMark(3)), [act(2), act(3)]);
        assert_eq!(queue.flushed(FlushMark(9)), []);
    }
}
