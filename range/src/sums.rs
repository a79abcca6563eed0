//! Running checksums of applied commands, compared between leader and followers at equal indexes: the cheap half of
//! noticing that replicas differ (docs/durability.md, "Checking that replicas agree").

use std::collections::{BTreeSet, VecDeque};

use flotilla_storage::state::Applied;
use flotilla_types::{LogIndex, ReplicaId};

use crate::message::BeatReply;

/// How many indexes are remembered: a follower that keeps up is met among them.
const KEPT: usize = 32;

/// What a replica applied lately, and who was seen to differ.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    lately: VecDeque<(LogIndex, u64)>,
    diverged: BTreeSet<ReplicaId>,
}

impl Sums {
    /// An entry was applied.
    pub(crate) fn applied(&mut self, applied: &Applied) {
        if self.lately.len() == KEPT {
            self.lately.pop_front();
        }
        self.lately.push_back((applied.pos.index, applied.sum));
    }

    /// Whether a follower is found to differ for the first time.
    pub(crate) fn differs(&mut self, reply: &BeatReply) -> bool {
        let here = self.lately.iter().find(|(index, _)| *index == reply.applied);
        here.is_some_and(|(_, sum)| *sum != reply.sum) && self.diverged.insert(reply.from)
    }

    /// Who was seen to differ.
    pub(crate) fn diverged(&self) -> Vec<ReplicaId> {
        self.diverged.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::log::LogPos;
    use flotilla_types::{RangeId, Term};

    use super::*;

    #[test]
    fn only_equal_indexes_are_compared_and_each_replica_is_named_once() {
        let mut sums = Sums::default();
        for index in 1..=40 {
            let pos = LogPos { index: LogIndex(index), term: Term(5) };
            sums.applied(&Applied { pos, sum: index * 7, ..Applied::default() });
        }
        let reply = |applied, sum| BeatReply {
            range: RangeId(1),
            from: ReplicaId(2),
            to: ReplicaId(1),
            term: Term(5),
            commit: LogIndex(0),
            applied: LogIndex(applied),
            sum,
            promised: 0,
            asleep: false,
        };
        assert!(!sums.differs(&reply(40, 280)));
        assert!(!sums.differs(&reply(3, 1)), "too long ago to say");
        assert!(!sums.differs(&reply(41, 1)), "not applied here yet");
        assert!(sums.differs(&reply(39, 1)));
        assert!(!sums.differs(&reply(39, 1)), "named before");
        assert_eq!(sums.diverged(), [ReplicaId(2)]);
    }
}
