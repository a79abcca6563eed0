//! Commands in the log whose callers wait, and what becomes of them when nothing commits (docs/leases.md, 6.5).
//!
//! A command in the log may still take effect after its caller has gone: past its deadline it is answered as in doubt, and its
//! latches stay until it is applied. A leader whose oldest command does not commit takes no more of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_types::{LogIndex, RangeReply, Term};

use crate::event::Token;
use crate::latches::LatchId;

/// A range that cannot commit, or cannot be used, for so long answers at once instead of letting everybody wait.
pub(super) const BREAKS_AFTER: Duration = Duration::from_secs(3);

/// A proposed command's caller.
pub(super) struct Proposed {
    /// Taken once it was told that the outcome is in doubt.
    pub(super) token: Option<Token>,
    pub(super) latch: LatchId,
    pub(super) reply: RangeReply,
    pub(super) deadline: Duration,
}

struct Entry {
    term: Term,
    since: Duration,
    /// The first deadline of those who still wait.
    earliest: Duration,
    callers: Vec<Proposed>,
}

/// All commands in the log, by the entry that carries them.
#[derive(Default)]
pub(super) struct Proposals {
    entries: BTreeMap<LogIndex, Entry>,
    deadlines: BTreeSet<(Duration, LogIndex)>,
}

fn earliest(callers: &[Proposed]) -> Duration {
    let waiting = callers.iter().filter(|caller| caller.token.is_some());
    waiting.map(|caller| caller.deadline).min().unwrap_or(Duration::MAX)
}

impl Proposals {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn insert(&mut self, index: LogIndex, term: Term, mono: Duration, callers: Vec<Proposed>) {
        let earliest = earliest(&callers);
        self.deadlines.insert((earliest, index));
        self.entries.insert(index, Entry { term, since: mono, earliest, callers });
    }

    /// The entry was applied.
    pub(super) fn remove(&mut self, index: LogIndex) -> Option<(Term, Vec<Proposed>)> {
        let entry = self.entries.remove(&index)?;
        self.deadlines.remove(&(entry.earliest, index));
        Some((entry.term, entry.callers))
    }

    /// Leadership is gone: everybody who waited.
    pub(super) fn drain(&mut self) -> Vec<Proposed> {
        self.deadlines.clear();
        std::mem::take(&mut self.entries).into_values().flat_map(|entry| entry.callers).collect()
    }

    /// Callers whose time is over.
    pub(super) fn late(&mut self, mono: Duration) -> Vec<Token> {
        let mut late = Vec::new();
        while let Some((at, index)) = self.deadlines.first().copied()
            && at <= mono
        {
            self.deadlines.remove(&(at, index));
            let Some(entry) = self.entries.get_mut(&index) else { continue };
            late.extend(
                entry.callers.iter_mut().filter(|caller| caller.deadline <= mono).filter_map(|c| c.token.take()),
            );
            entry.earliest = earliest(&entry.callers);
            self.deadlines.insert((entry.earliest, index));
        }
        late
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at).filter(|at| *at < Duration::MAX)
    }

    /// Whether the oldest entry waits for so long that more of them would only wait as well.
    pub(super) fn are_stuck(&self, mono: Duration) -> bool {
        self.entries.first_key_value().is_some_and(|(_, entry)| mono.saturating_sub(entry.since) >= BREAKS_AFTER)
    }
}
