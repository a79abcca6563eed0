//! What a range is: its span, its replicas, and the version of both.

use std::collections::BTreeSet;

use smallvec::SmallVec;
use thiserror::Error;

use crate::{Generation, Key, KeySpan, LogIndex, RangeId, ReplicaId, StoreId, Term};

/// What a replica may do in its Raft group. The four voter kinds appear together only in a joint configuration
/// (Ongaro's thesis, section 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplicaKind {
    /// Votes and acknowledges.
    Voter,
    /// Receives the log, counts for nothing.
    Learner,
    /// Joint: a voter of the incoming configuration only.
    VoterIncoming,
    /// Joint: a voter of the outgoing configuration only, about to be removed.
    VoterOutgoing,
    /// Joint: a voter of the outgoing configuration only, about to become a learner.
    VoterDemoting,
}

impl ReplicaKind {
    /// Counts in the incoming (or only) configuration.
    #[must_use]
    pub const fn votes_incoming(self) -> bool {
        matches!(self, Self::Voter | Self::VoterIncoming)
    }

    /// Counts in the outgoing configuration while the range is joint.
    #[must_use]
    pub const fn votes_outgoing(self) -> bool {
        matches!(self, Self::Voter | Self::VoterOutgoing | Self::VoterDemoting)
    }

    /// Exists only in a joint configuration.
    #[must_use]
    pub const fn is_joint(self) -> bool {
        matches!(self, Self::VoterIncoming | Self::VoterOutgoing | Self::VoterDemoting)
    }
}

/// One replica of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaDescriptor {
    /// Its id within the range; also its Raft peer id.
    pub replica: ReplicaId,
    /// Where it lives.
    pub store: StoreId,
    /// What it may do.
    pub kind: ReplicaKind,
}

/// A range as its replicas agreed on it.
///
/// Invariants (checked by `validate`): the span is not empty; replica ids and stores are each unique; every replica
/// id is below `next_replica`; there is a voter in each configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeDescriptor {
    /// Its id.
    pub range: RangeId,
    /// The keys it owns.
    pub span: KeySpan,
    /// Grows with each split, merge and membership change.
    pub generation: Generation,
    /// Its replicas, ordered by id.
    pub replicas: SmallVec<[ReplicaDescriptor; 3]>,
    /// The id that the next new replica gets.
    pub next_replica: ReplicaId,
}

/// A descriptor that breaks its invariants.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the descriptor of {range} is broken: {what}")]
pub struct DescriptorError {
    range: RangeId,
    what: &'static str,
}

impl RangeDescriptor {
    /// The log position that every range is born with. Its first own entry has the next index.
    pub const INITIAL_INDEX: LogIndex = LogIndex(10);
    /// The term that every range is born with.
    pub const INITIAL_TERM: Term = Term(5);

    /// Checks the invariants; call it on everything that was decoded.
    ///
    /// # Errors
    /// Says which invariant does not hold.
    pub fn validate(&self) -> Result<(), DescriptorError> {
        let refuse = |what| Err(DescriptorError { range: self.range, what });
        if self.span.start >= self.span.end {
            return refuse("its span is empty");
        }
        let ids: BTreeSet<_> = self.replicas.iter().map(|r| r.replica).collect();
        let stores: BTreeSet<_> = self.replicas.iter().map(|r| r.store).collect();
        if ids.len() != self.replicas.len() || stores.len() != self.replicas.len() {
            return refuse("two replicas share an id or a store");
        }
        if ids.last().is_some_and(|last| *last >= self.next_replica) {
            return refuse("a replica id is not below next_replica");
        }
        if !self.replicas.iter().any(|r| r.kind.votes_incoming()) {
            return refuse("it has no voter");
        }
        Ok(())
    }

    /// The replica on a store.
    #[must_use]
    pub fn on_store(&self, store: StoreId) -> Option<&ReplicaDescriptor> {
        self.replicas.iter().find(|r| r.store == store)
    }

    /// The replica with an id.
    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> Option<&ReplicaDescriptor> {
        self.replicas.iter().find(|r| r.replica == id)
    }

    /// Whether a membership change is half done.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.replicas.iter().any(|r| r.kind.is_joint())
    }

    /// Stores of the voters of the incoming (or only) configuration.
    pub fn voters_incoming(&self) -> impl Iterator<Item = &ReplicaDescriptor> {
        self.replicas.iter().filter(|r| r.kind.votes_incoming())
    }

    /// Voters of the outgoing configuration; empty unless joint.
    pub fn voters_outgoing(&self) -> impl Iterator<Item = &ReplicaDescriptor> {
        let joint = self.is_joint();
        self.replicas.iter().filter(move |r| joint && r.kind.votes_outgoing())
    }

    /// Whether the chosen replicas are a majority of each configuration.
    pub fn is_quorum(&self, chosen: impl Fn(&ReplicaDescriptor) -> bool) -> bool {
        let majority = |voters: &mut dyn Iterator<Item = &ReplicaDescriptor>| {
            let (all, yes) = voters.fold((0, 0), |(all, yes), r| (all + 1, yes + usize::from(chosen(r))));
            all == 0 || yes * 2 > all
        };
        majority(&mut self.voters_incoming()) && majority(&mut self.voters_outgoing())
    }

    /// The two halves that a split at `key` makes; the left one keeps the id. `None` unless the key lies strictly
    /// inside.
    #[must_use]
    pub fn split(&self, key: &Key, right: RangeId) -> Option<(Self, Self)> {
        if *key <= self.span.start || *key >= self.span.end {
            return None;
        }
        let generation = self.generation.next();
        let mut left = Self { generation, ..self.clone() };
        let mut child = Self { range: right, generation, ..self.clone() };
        left.span.end = key.clone();
        child.span.start = key.clone();
        Some((left, child))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(kinds: &[ReplicaKind]) -> RangeDescriptor {
        let replicas: SmallVec<[_; 3]> = kinds
            .iter()
            .zip(1..)
            .map(|(kind, n)| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n), kind: *kind })
            .collect();
        RangeDescriptor {
            range: RangeId(7),
            span: KeySpan::ALL,
            generation: Generation(1),
            next_replica: ReplicaId(replicas.len() as u64 + 1),
            replicas,
        }
    }

    #[test]
    fn a_joint_quorum_needs_both_halves() {
        use ReplicaKind::{Voter, VoterIncoming, VoterOutgoing};
        let joint = descriptor(&[Voter, Voter, VoterOutgoing, VoterIncoming]);
        assert!(joint.is_quorum(|r| r.replica.0 <= 2));
        assert!(!joint.is_quorum(|r| r.replica.0 == 1 || r.replica.0 == 4), "outgoing has only one of three");
        let plain = descriptor(&[Voter, Voter, Voter]);
        assert!(plain.is_quorum(|r| r.replica.0 != 2));
        assert!(!plain.is_quorum(|r| r.replica.0 == 2));
    }

    #[test]
    fn a_broken_descriptor_is_refused() {
        let good = descriptor(&[ReplicaKind::Voter]);
        assert_eq!(good.validate(), Ok(()));
        let mut twice = good.clone();
        twice.replicas.push(good.replicas[0]);
        assert!(twice.validate().is_err());
        let mut reused = good.clone();
        reused.next_replica = ReplicaId(1);
        assert!(reused.validate().is_err());
        assert!(descriptor(&[ReplicaKind::Learner]).validate().is_err());
    }
}
