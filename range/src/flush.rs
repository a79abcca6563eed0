//! What waits for the engine to be flushed (docs/durability.md, "Apply").
//!
//! The log gives up a fact only after what replaced it is durable in the engine, and only here is that decided: an act is
//! tied to the count of engine changes that it depends on, and runs when the shell says that so many are flushed. Fleet
//! and shell count alike: every `Effect::Write` and every `Effect::Ingest` of this boot, in the order they are carried out.

use std::collections::VecDeque;

use flotilla_types::RangeId;

use crate::apply::Raised;
use crate::event::FlushMark;

/// What may be done once the engine is flushed. Nothing else in the fleet may perform these effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "splits come")]
pub(crate) enum Act {
    /// More of the range's state is durable: its log may be given up as far as nobody needs it.
    MayTruncate {
        /// Range.
        range: RangeId,
    },
    /// The destruction of the replica is durable: its log may go.
    RemoveLog {
        /// Range.
        range: RangeId,
    },
    /// A raised threshold is durable: what lies below may go.
    PublishGc {
        /// Range.
        range: RangeId,
        /// Which one, and what is to be done about it.
        raised: Raised,
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
    /// Engine changes given out in this boot.
    written: FlushMark,
    /// Invariant: marks ascend.
    waiting: VecDeque<(FlushMark, Vec<Act>)>,
}

impl AfterFlush {
    /// An engine change is given out.
    pub(crate) fn count(&mut self) {
        self.written.0 += 1;
    }

    /// The count of all that was given out so far.
    pub(crate) const fn written(&self) -> FlushMark {
        self.written
    }

    /// These acts depend on everything that was given out so far.
    pub(crate) fn wait(&mut self, acts: Vec<Act>) {
        for act in acts {
            self.wait_for(self.written, act);
        }
    }

    /// This act depends on what was given out up to a mark.
    pub(crate) fn wait_for(&mut self, mark: FlushMark, act: Act) {
        let at = self.waiting.partition_point(|(other, _)| *other < mark);
        match self.waiting.get_mut(at) {
            Some((other, acts)) if *other == mark => acts.push(act),
            _ => self.waiting.insert(at, (mark, vec![act])),
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
