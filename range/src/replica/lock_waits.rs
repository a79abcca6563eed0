//! Requests that wait for locks of transactions (docs/transactions.md, "Evaluation"). They hold no latch meanwhile; when a lock
//! that they met is gone, they start again at their admission, in the order in which they first came, so that nobody who
//! came later takes the key from them.
//!
//! Who waits for some time asks the record of the transaction in its way, again and again with longer pauses: it may have
//! ended without clearing its locks, its coordinator may be dead, or all may wait in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_types::{
    Command as RangeCommand, Key, LockedBy, Priority, PushKind, PushResult, PushTxn, TxnId, TxnMeta, Wait, Waiter,
};

use super::Open;
use crate::transact::Blocker;
use crate::transact::conflicts::Passes;

/// Pauses between pushes in milliseconds, the last one repeats: of a transaction that holds other locks, and so may be in a circle,
/// which each round of pushes shows further; and of one that does not, and only looks whether its holder is dead.
const IN_A_CIRCLE: [u64; 7] = [5, 10, 20, 40, 80, 160, 250];
const IN_A_LINE: [u64; 4] = [20, 60, 150, 250];
/// A push whose answer does not come is given up after this time.
const PUSH_PATIENCE: Duration = Duration::from_secs(3);

/// What a request remembers of its waiting, from one try to the next.
#[derive(Debug, Default)]
pub(super) struct Story {
    /// Its place in line; 0 if it never waited.
    arrival: u64,
    /// How often it has pushed.
    pushes: usize,
    /// Since when it waits for the locks that it met last.
    since: Duration,
    pub(super) passes: Passes,
}

impl Story {
    /// How long it has waited for the locks that it met last.
    pub(super) const fn waited(&self, mono: Duration) -> Duration {
        mono.saturating_sub(self.since)
    }
}

struct Waiting {
    open: Open,
    blockers: Vec<Blocker>,
    push_at: Duration,
    /// Pushes under way, by number.
    pushing: BTreeMap<u64, (TxnId, PushKind)>,
}

/// A request that need not wait any longer.
pub(super) enum Released {
    /// It may try again.
    Again(Open),
    /// Its own transaction was aborted.
    Aborted(Open),
    /// It does not want to wait for a transaction that lives.
    Unwilling(Open, LockedBy),
}

/// The pause before a request's next push.
fn pause(open: &Open) -> Duration {
    let holds =
        pusher(open).is_some_and(|meta| open.request.command.span().is_none_or(|span| !span.contains(&meta.anchor)));
    let pauses = if holds { &IN_A_CIRCLE[..] } else { &IN_A_LINE[..] };
    Duration::from_millis(pauses[open.story.pushes.min(pauses.len() - 1)])
}

/// What a request wants that does not want to wait. It asks once, and at once: the transaction in its way may have ended and left
/// its lock.
fn hurries(open: &Open) -> bool {
    matches!(&open.request.command, RangeCommand::Txn { header, .. } if header.wait != Wait::Block)
}

/// A push to be carried out, and on which keys its transaction stands in the way.
pub(super) struct Push {
    pub(super) number: u64,
    pub(super) keys: Vec<Key>,
    pub(super) push: PushTxn,
}

/// See the module's page.
#[derive(Default)]
pub(super) struct LockWaits {
    next: u64,
    /// By arrival.
    waiting: BTreeMap<u64, Waiting>,
    by_txn: BTreeSet<(TxnId, u64)>,
    push_at: BTreeSet<(Duration, u64)>,
    deadlines: BTreeSet<(Duration, u64)>,
    /// Who pushes, by number.
    pushes: BTreeMap<u64, u64>,
}

fn pusher(open: &Open) -> Option<&TxnMeta> {
    match &open.request.command {
        RangeCommand::Txn { header, .. } => Some(&header.meta),
        _ => None,
    }
}

impl LockWaits {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// A number never used before in this process: time passes faster than requests come.
    fn number(&mut self, mono: Duration) -> u64 {
        self.next = (self.next + 1).max(u64::try_from(mono.as_nanos()).unwrap_or(u64::MAX));
        self.next
    }

    /// A request met these locks.
    pub(super) fn wait(&mut self, mut open: Open, blockers: Vec<Blocker>, mono: Duration) {
        if open.story.arrival == 0 {
            open.story.arrival = self.number(mono);
        }
        open.story.since = mono;
        let arrival = open.story.arrival;
        let push_at = if hurries(&open) { mono } else { mono + pause(&open) };
        self.by_txn.extend(blockers.iter().map(|blocker| (blocker.txn.id, arrival)));
        self.push_at.insert((push_at, arrival));
        self.deadlines.insert((open.deadline, arrival));
        self.waiting.insert(arrival, Waiting { open, blockers, push_at, pushing: BTreeMap::new() });
    }

    fn remove(&mut self, arrival: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&arrival)?;
        for blocker in &waiting.blockers {
            self.by_txn.remove(&(blocker.txn.id, arrival));
        }
        self.push_at.remove(&(waiting.push_at, arrival));
        self.deadlines.remove(&(waiting.open.deadline, arrival));
        for number in waiting.pushing.keys() {
            self.pushes.remove(number);
        }
        Some(waiting)
    }

    /// These locks are gone: who may try again, first come first.
    pub(super) fn released(&mut self, released: &[(Key, TxnId)]) -> Vec<Open> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let mut woken = BTreeSet::new();
        for (key, txn) in released {
            for (_, arrival) in self.by_txn.range((*txn, 0)..=(*txn, u64::MAX)) {
                let Some(waiting) = self.waiting.get(arrival) else { continue };
                if waiting.blockers.iter().any(|blocker| blocker.txn.id == *txn && blocker.key == *key) {
                    woken.insert(*arrival);
                }
            }
        }
        woken.into_iter().filter_map(|arrival| self.remove(arrival)).map(|waiting| waiting.open).collect()
    }

    /// A push was answered, or was not: what that means for the request that pushed, if anything.
    pub(super) fn pushed(&mut self, number: u64, result: Option<&PushResult>) -> Option<Released> {
        let arrival = self.pushes.remove(&number)?;
        let waiting = self.waiting.get_mut(&arrival)?;
        let (txn, kind) = waiting.pushing.remove(&number)?;
        match result {
            Some(PushResult::Passed) => waiting.open.story.passes.insert(txn, kind),
            // Its locks here were cleared before this was told.
            Some(PushResult::Final { .. }) => {}
            Some(PushResult::PusherAborted) => {
                return self.remove(arrival).map(|waiting| Released::Aborted(waiting.open));
            }
            Some(PushResult::Waiting | PushResult::Indeterminate(_)) if hurries(&waiting.open) => {
                let key = waiting.blockers.iter().find(|blocker| blocker.txn.id == txn)?.key.clone();
                let by = LockedBy { key, holder: txn };
                return self.remove(arrival).map(|waiting| Released::Unwilling(waiting.open, by));
            }
            // Whoever pushes finds out what became of a staged one, and says that.
            Some(PushResult::Waiting | PushResult::Indeterminate(_)) | None => return None,
        }
        self.remove(arrival).map(|waiting| Released::Again(waiting.open))
    }

    /// The pushes that are due now.
    pub(super) fn due(&mut self, mono: Duration) -> Vec<Push> {
        let mut due = Vec::new();
        while let Some((at, arrival)) = self.push_at.first().copied()
            && at <= mono
        {
            self.push_at.remove(&(at, arrival));
            let number = self.number(mono);
            let Some(waiting) = self.waiting.get_mut(&arrival) else { continue };
            waiting.open.story.pushes += 1;
            // The pushes of the last round have had their time.
            let all_answered = waiting.pushing.is_empty();
            let pause = pause(&waiting.open);
            waiting.push_at = mono + if all_answered { pause } else { PUSH_PATIENCE.min(pause * 4) };
            self.push_at.insert((waiting.push_at, arrival));
            for old in std::mem::take(&mut waiting.pushing).into_keys() {
                self.pushes.remove(&old);
            }
            let mut by_txn: BTreeMap<TxnId, Vec<&Blocker>> = BTreeMap::new();
            for blocker in &waiting.blockers {
                by_txn.entry(blocker.txn.id).or_default().push(blocker);
            }
            let me = pusher(&waiting.open);
            for (nth, (txn, blockers)) in (0..).zip(by_txn) {
                let Some(first) = blockers.first() else { continue };
                let push = PushTxn {
                    pushee: first.txn.clone(),
                    kind: first.kind,
                    pusher: me.map(Waiter::from),
                    priority: me.map_or(Priority::Normal, |meta| meta.priority),
                    seen: blockers.iter().map(|blocker| blocker.seen).max().unwrap_or_default(),
                    edges: Vec::new(),
                };
                let number = number + nth;
                self.next = self.next.max(number);
                waiting.pushing.insert(number, (txn, first.kind));
                self.pushes.insert(number, arrival);
                let keys = blockers.iter().map(|blocker| blocker.key.clone()).collect();
                due.push(Push { number, keys, push });
            }
        }
        due
    }

    /// Requests whose time is over, and what they waited for.
    pub(super) fn late(&mut self, mono: Duration) -> Vec<(Open, LockedBy)> {
        let mut late = Vec::new();
        while let Some((at, arrival)) = self.deadlines.first().copied()
            && at <= mono
        {
            self.deadlines.remove(&(at, arrival));
            let Some(waiting) = self.remove(arrival) else { continue };
            if let Some(first) = waiting.blockers.first() {
                let by = LockedBy { key: first.key.clone(), holder: first.txn.id };
                late.push((waiting.open, by));
            }
        }
        late
    }

    /// All requests, first come first.
    pub(super) fn take(&mut self) -> Vec<Open> {
        let next = self.next;
        let taken = std::mem::replace(self, Self { next, ..Self::default() });
        taken.waiting.into_values().map(|waiting| waiting.open).collect()
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        let push = self.push_at.first().map(|(at, _)| *at);
        push.into_iter().chain(self.deadlines.first().map(|(at, _)| *at)).min()
    }
}
