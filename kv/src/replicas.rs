//! What is believed of replicas: who leads, and who does not answer.
//!
//! A breaker guards each replica that failed to answer: while it is open the replica is passed over, and after a pause one
//! request is let through as a probe. Pauses double from probe to probe; an answer, whatever it says, closes the breaker.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use flotilla_types::{RangeDescriptor, RangeId, StoreId, Term};

/// First pause of a breaker. Short: a connection that broke may be back at once, and its replica may still lead.
const PROBE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: so late is a replica found that came back.
const PROBE_MAX: Duration = Duration::from_secs(3);
/// Beyond so many ranges all hints are forgotten; each is found again with one more hop.
const HINTS_MAX: usize = 200_000;

/// A belief about a range's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hint {
    store: StoreId,
    term: Term,
}

/// An open breaker.
#[derive(Debug, Clone, Copy)]
struct Breaker {
    /// When the next probe may go.
    probe_at: Duration,
    /// How long the pause after it will be.
    pause: Duration,
}

/// Leader hints and breakers. Shared by all tasks.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    leaders: DashMap<RangeId, Hint>,
    breakers: DashMap<(RangeId, StoreId), Breaker>,
    /// Stores that let a request go without an answer, until they answer any: a hung store leads many ranges, and not
    /// each of them shall find that out by a whole timeout.
    silent: DashMap<StoreId, ()>,
    /// Whether there are any; read on every request's road.
    any_silent: AtomicBool,
}

impl Replicas {
    /// The next store to ask: the believed leader, else the first voter, else anyone, of those that were not asked in this
    /// round and whose breaker lets a request through.
    pub(crate) fn choose(&self, descriptor: &RangeDescriptor, asked: &[StoreId], mono: Duration) -> Option<StoreId> {
        let leader = self.leaders.get(&descriptor.range).map(|hint| hint.store);
        let leader = leader.filter(|store| descriptor.on_store(*store).is_some());
        let voters = descriptor.replicas.iter().filter(|replica| replica.kind.votes_incoming());
        let others = descriptor.replicas.iter().filter(|replica| !replica.kind.votes_incoming());
        let candidates = leader.into_iter().chain(voters.chain(others).map(|replica| replica.store));
        let mut fresh = candidates.filter(|store| !asked.contains(store));
        fresh.find(|store| self.passes(descriptor.range, *store, mono))
    }

    /// Whether a request may go to the replica now. If its breaker is open and due, this request becomes the probe.
    fn passes(&self, range: RangeId, store: StoreId, mono: Duration) -> bool {
        let Some(mut breaker) = self.breakers.get_mut(&(range, store)) else { return true };
        if mono < breaker.probe_at {
            return false;
        }
        breaker.probe_at = mono + breaker.pause;
        true
    }

    /// Whether the store is known to be silent: then a short wait is enough.
    pub(crate) fn is_silent(&self, store: StoreId) -> bool {
        self.any_silent.load(Ordering::Relaxed) && self.silent.contains_key(&store)
    }

    /// A request to the store waited in vain.
    pub(crate) fn fell_silent(&self, store: StoreId) {
        self.silent.insert(store, ());
        self.any_silent.store(true, Ordering::Relaxed);
    }

    /// The replica answered something.
    pub(crate) fn answered(&self, range: RangeId, store: StoreId) {
        if self.is_silent(store) {
            self.silent.remove(&store);
            self.any_silent.store(!self.silent.is_empty(), Ordering::Relaxed);
        }
        // Looked at first: removing takes the shard's lock for writing, and this is on every request's road.
        if self.breakers.contains_key(&(range, store)) {
            self.breakers.remove(&(range, store));
        }
    }

    /// The replica did not answer.
    pub(crate) fn silent(&self, range: RangeId, store: StoreId, mono: Duration) {
        let first = Breaker { probe_at: mono + PROBE_MIN, pause: PROBE_MIN * 2 };
        let again = |breaker: &mut Breaker| {
            breaker.probe_at = mono + breaker.pause;
            breaker.pause = (breaker.pause * 2).min(PROBE_MAX);
        };
        self.breakers.entry((range, store)).and_modify(again).or_insert(first);
    }

    /// The replica did what only a leader does.
    pub(crate) fn leads(&self, range: RangeId, store: StoreId) {
        if self.leaders.get(&range).is_some_and(|hint| hint.store == store) {
            return;
        }
        let term = self.leaders.get(&range).map_or(Term(0), |hint| hint.term);
        self.remember(range, Hint { store, term });
    }

    /// A replica said who leads. Hints of older terms than the one known are worth nothing.
    pub(crate) fn hinted(&self, range: RangeId, from: StoreId, leader: Option<StoreId>, term: Term) {
        let known = self.leaders.get(&range).map(|hint| *hint);
        match (known, leader) {
            (Some(known), Some(store)) if term >= known.term => self.remember(range, Hint { store, term }),
            (None, Some(store)) => self.remember(range, Hint { store, term }),
            (Some(known), None) if known.store == from => {
                self.leaders.remove(&range);
            }
            _ => {}
        }
    }

    fn remember(&self, range: RangeId, hint: Hint) {
        if self.leaders.len() >= HINTS_MAX {
            self.leaders.clear();
        }
        self.leaders.insert(range, hint);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Generation, KeySpan, ReplicaDescriptor, ReplicaId, ReplicaKind};

    use super::*;

    const RANGE: RangeId = RangeId(7);
    const S: [StoreId; 3] = [StoreId(1), StoreId(2), StoreId(3)];

    fn three() -> RangeDescriptor {
        let replica = |n: u64| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n), kind: ReplicaKind::Voter };
        RangeDescriptor {
            range: RANGE,
            span: KeySpan::ALL,
            generation: Generation(1),
            replicas: (1..=3).map(replica).collect(),
            next_replica: ReplicaId(4),
        }
    }

    #[test]
    fn an_open_breaker_lets_one_probe_through_at_a_time() {
        let (replicas, range) = (Replicas::default(), three());
        replicas.leads(RANGE, S[1]);
        assert_eq!(replicas.choose(&range, &[], Duration::ZERO), Some(S[1]));
        replicas.silent(RANGE, S[1], Duration::ZERO);
        assert_eq!(
            replicas.choose(&range, &[], Duration::ZERO),
            Some(S[0]),
            "passed over although it is believed to lead"
        );
        assert_eq!(replicas.choose(&range, &[], PROBE_MIN), Some(S[1]), "the probe");
        assert_eq!(replicas.choose(&range, &[], PROBE_MIN), Some(S[0]), "one at a time");
        replicas.answered(RANGE, S[1]);
        assert_eq!(replicas.choose(&range, &[], PROBE_MIN), Some(S[1]));
    }

    #[test]
    fn hints_of_older_terms_are_worth_nothing() {
        let (replicas, range) = (Replicas::default(), three());
        replicas.hinted(RANGE, S[0], Some(S[2]), Term(7));
        replicas.hinted(RANGE, S[0], Some(S[0]), Term(6));
        assert_eq!(replicas.choose(&range, &[], Duration::ZERO), Some(S[2]));
        replicas.hinted(RANGE, S[2], None, Term(7));
        assert_eq!(replicas.choose(&range, &[], Duration::ZERO), Some(S[0]), "the believed leader denied it");
    }
}
