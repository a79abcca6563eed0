//! What waits for the clock, or for a proof of leadership (docs/leases.md, 6.2 to 6.4).
//!
//! Nothing here holds a latch: a request that waited starts again at its admission. An answer that is held back is final:
//! what it tells has happened, but its timestamp lies ahead of the clock, and told now it would be missed by reads of
//! the present elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_types::{LogIndex, RangeReply, Term, Timestamp};

use super::Open;
use crate::event::Token;
use crate::raft::Ctx;

/// While a clock stands still it is looked at again so often.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Leadership in a term was confirmed by a quorum after the store's clock read `before`: reads below it are safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) term: Term,
    pub(super) before: Timestamp,
}

/// An answer that waits until the clock has reached its timestamp.
pub(super) struct Held {
    pub(super) token: Token,
    pub(super) reply: RangeReply,
    pub(super) deadline: Duration,
}

enum Ahead {
    Read(Box<Open>),
    Held(Held),
}

/// A read-index round under way.
struct Round {
    id: u64,
    proof: Proof,
    since: Duration,
    /// Confirmed, once the state shows this index.
    index: Option<LogIndex>,
    reads: Vec<Open>,
}

/// See the module's page.
#[derive(Default)]
pub(super) struct Waits {
    next: u64,
    ahead: BTreeMap<(Timestamp, u64), Ahead>,
    /// Of those in `ahead`.
    deadlines: BTreeSet<(Duration, Timestamp, u64)>,
    /// When the clock may have reached the first of `ahead`.
    look_at: Option<Duration>,
    /// Reads that came after the round under way began.
    unproven: Vec<Open>,
    round: Option<Round>,
}

/// What became due.
#[derive(Default)]
pub(super) struct Due {
    /// To be admitted again.
    pub(super) reads: Vec<Open>,
    /// To be given.
    pub(super) answers: Vec<Held>,
    /// Whose time is over before their clock came.
    pub(super) late_reads: Vec<Open>,
    /// The same.
    pub(super) late_answers: Vec<Held>,
}

impl Waits {
    pub(super) fn is_empty(&self) -> bool {
        self.ahead.is_empty() && self.unproven.is_empty() && self.round.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.ahead.len() + self.unproven.len() + self.round.as_ref().map_or(0, |round| round.reads.len())
    }

    /// A read whose timestamp the clock has not reached.
    pub(super) fn until(&mut self, timestamp: Timestamp, open: Open) {
        self.insert(timestamp, open.deadline, Ahead::Read(Box::new(open)));
    }

    /// An answer whose timestamp the clock has not reached.
    pub(super) fn hold(&mut self, held: Held) {
        self.insert(held.reply.timestamp, held.deadline, Ahead::Held(held));
    }

    fn insert(&mut self, timestamp: Timestamp, deadline: Duration, ahead: Ahead) {
        self.next += 1;
        self.deadlines.insert((deadline, timestamp, self.next));
        self.ahead.insert((timestamp, self.next), ahead);
    }

    /// A read that needs a proof of leadership.
    pub(super) fn unproven(&mut self, open: Open) {
        self.unproven.push(open);
    }

    /// Takes out what the clock or a deadline has reached, and plans the next look.
    pub(super) fn due(&mut self, ctx: &Ctx<'_>) -> Due {
        let mut due = Due::default();
        while let Some(first) = self.ahead.first_entry()
            && first.key().0 <= ctx.now
        {
            let ((timestamp, number), ahead) = first.remove_entry();
            let deadline = match ahead {
                Ahead::Read(open) => {
                    let deadline = open.deadline;
                    due.reads.push(*open);
                    deadline
                }
                Ahead::Held(held) => {
                    let deadline = held.deadline;
                    due.answers.push(held);
                    deadline
                }
            };
            self.deadlines.remove(&(deadline, timestamp, number));
        }
        while let Some((deadline, timestamp, number)) = self.deadlines.first().copied()
            && deadline <= ctx.mono
        {
            self.deadlines.remove(&(deadline, timestamp, number));
            match self.ahead.remove(&(timestamp, number)) {
                Some(Ahead::Read(open)) => due.late_reads.push(*open),
                Some(Ahead::Held(held)) => due.late_answers.push(held),
                None => {}
            }
        }
        let late = |open: &mut Open| open.deadline <= ctx.mono;
        due.late_reads.extend(self.unproven.extract_if(.., late));
        if let Some(round) = &mut self.round {
            due.late_reads.extend(round.reads.extract_if(.., late));
        }
        self.look_at = self.ahead.first_key_value().map(|((timestamp, _), _)| {
            // HAZARD: the clock may be ahead of physical time and stand: the distance is a guess.
            ctx.mono + timestamp.since(ctx.now).max(LOOK_AGAIN)
        });
        due
    }

    /// Whether a round should begin: reads wait for one, and none is under way that was not dropped.
    pub(super) fn wants_round(&mut self, mono: Duration, patience: Duration) -> bool {
        // The library drops a round silently.
        let dropped = |round: &mut Round| round.index.is_none() && mono.saturating_sub(round.since) >= patience;
        if let Some(round) = self.round.take_if(|round| dropped(round) || round.reads.is_empty()) {
            self.unproven.extend(round.reads);
        }
        self.round.is_none() && !self.unproven.is_empty()
    }

    /// A name for the next round, never used before in this process.
    pub(super) fn round_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A round began.
    pub(super) fn began(&mut self, id: u64, proof: Proof, since: Duration) {
        let reads = std::mem::take(&mut self.unproven);
        self.round = Some(Round { id, proof, since, index: None, reads });
    }

    /// A quorum confirmed a round.
    pub(super) fn confirmed(&mut self, id: u64, index: LogIndex) {
        if let Some(round) = self.round.as_mut().filter(|round| round.id == id) {
            round.index = Some(index);
        }
    }

    /// The reads of a confirmed round whose index is applied, with their proof.
    pub(super) fn proven(&mut self, applied: LogIndex) -> Vec<Open> {
        let done = |round: &mut Round| round.index.is_some_and(|index| index <= applied);
        let Some(round) = self.round.take_if(done) else { return Vec::new() };
        round.reads.into_iter().map(|open| Open { proof: Some(round.proof), ..open }).collect()
    }

    /// All reads: this replica does not serve them any more. Answers that are held back stay true.
    pub(super) fn take_reads(&mut self) -> Vec<Open> {
        let mut reads = std::mem::take(&mut self.unproven);
        reads.extend(self.round.take().into_iter().flat_map(|round| round.reads));
        for (at, ahead) in std::mem::take(&mut self.ahead) {
            match ahead {
                Ahead::Read(open) => {
                    self.deadlines.remove(&(open.deadline, at.0, at.1));
                    reads.push(*open);
                }
                held @ Ahead::Held(_) => {
                    self.ahead.insert(at, held);
                }
            }
        }
        reads
    }

    /// All answers that are held back, after `take_reads`: nobody will look at the clock for them any more.
    pub(super) fn take_held(&mut self) -> Vec<Held> {
        self.deadlines.clear();
        let held = std::mem::take(&mut self.ahead).into_values();
        held.filter_map(|ahead| match ahead {
            Ahead::Held(held) => Some(held),
            Ahead::Read(_) => None,
        })
        .collect()
    }

    /// When to look again; `patience` is how long a round may take.
    pub(super) fn next_wake(&self, patience: Duration) -> Option<Duration> {
        let reads = self.round.iter().flat_map(|round| &round.reads).chain(&self.unproven);
        let round = self.round.as_ref().filter(|round| round.index.is_none()).map(|round| round.since + patience);
        let deadline = self.deadlines.first().map(|(deadline, _, _)| *deadline);
        reads.map(|open| open.deadline).chain(self.look_at).chain(round).chain(deadline).min()
    }
}
