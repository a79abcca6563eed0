//! Membership: which single step leads from a range's present replicas towards those it should have.
//!
//! ```text
//!  add learner ─► (it catches up) ─► joint: promote and demote ─► leave joint ─► remove learner
//! ```
//! Pure. Every step makes a new descriptor, and the library's change beside it; both travel in one entry, so that they are
//! applied together or not at all. The leader is never demoted while it leads (leases 5.6).

use flotilla_types::{ConfTarget, RangeDescriptor, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// The range has the replicas that it should have.
    Done,
    /// Propose this change; the descriptor is what it leads to.
    Change(ConfChangeV2, Box<RangeDescriptor>),
    /// A new replica has not caught up yet.
    Wait,
    /// The leader is to go: one of these leads first.
    HandOver(Vec<ReplicaId>),
    /// The target makes no sense.
    Refuse(&'static str),
}

/// The next step. `caught_up` says which learners may be promoted.
pub(crate) fn next_step(
    now: &RangeDescriptor,
    target: &ConfTarget,
    leader: ReplicaId,
    caught_up: impl Fn(&ReplicaDescriptor) -> bool,
) -> Step {
    if target.voters.is_empty() {
        return Step::Refuse("a range needs at least one voter");
    }
    if target.learners.iter().any(|store| target.voters.contains(store)) {
        return Step::Refuse("a store cannot hold a voter and a learner of one range");
    }
    if now.is_joint() {
        return leave(now);
    }
    let wanted = |store: StoreId| target.voters.contains(&store) || target.learners.contains(&store);
    let votes = |replica: &ReplicaDescriptor| replica.kind == ReplicaKind::Voter;
    if let Some(extra) = now.replicas.iter().find(|replica| !votes(replica) && !wanted(replica.store)) {
        return remove(now, extra.replica);
    }
    let missing = target.voters.iter().chain(&target.learners).find(|store| now.on_store(**store).is_none());
    if let Some(store) = missing {
        return add(now, *store);
    }
    let promoted: Vec<_> =
        now.replicas.iter().filter(|replica| !votes(replica) && target.voters.contains(&replica.store)).collect();
    let mut demoted: Vec<_> =
        now.replicas.iter().filter(|replica| votes(replica) && !target.voters.contains(&replica.store)).collect();
    if demoted.iter().any(|replica| replica.replica == leader) {
        let heirs = now.replicas.iter().filter(|replica| votes(replica) && target.voters.contains(&replica.store));
        let heirs: Vec<_> = heirs.map(|replica| replica.replica).collect();
        if !heirs.is_empty() {
            return Step::HandOver(heirs);
        }
        // Nobody can lead yet but the one that is to go: it stays until another votes.
        demoted.retain(|replica| replica.replica != leader);
    }
    if !promoted.iter().all(|replica| caught_up(replica)) {
        return Step::Wait;
    }
    change_votes(now, &promoted, &demoted)
}

fn single(kind: ConfChangeType, replica: ReplicaId) -> ConfChangeSingle {
    let mut change = ConfChangeSingle { node_id: replica.0, ..ConfChangeSingle::default() };
    change.set_change_type(kind);
    change
}

fn of(changes: Vec<ConfChangeSingle>) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    if changes.len() > 1 {
        // Left by an entry of its own: an automatic leave may be missed when leadership moves (etcd#12136).
        change.set_transition(ConfChangeTransition::Explicit);
    }
    change.set_changes(changes.into());
    change
}

fn next(now: &RangeDescriptor) -> RangeDescriptor {
    RangeDescriptor { generation: now.generation.next(), ..now.clone() }
}

fn add(now: &RangeDescriptor, store: StoreId) -> Step {
    let (mut after, replica) = (next(now), now.next_replica);
    after.replicas.push(ReplicaDescriptor { replica, store, kind: ReplicaKind::Learner });
    after.next_replica = replica.next();
    Step::Change(of(vec![single(ConfChangeType::AddLearnerNode, replica)]), Box::new(after))
}

fn remove(now: &RangeDescriptor, replica: ReplicaId) -> Step {
    let mut after = next(now);
    after.replicas.retain(|other| other.replica != replica);
    Step::Change(of(vec![single(ConfChangeType::RemoveNode, replica)]), Box::new(after))
}

fn change_votes(now: &RangeDescriptor, promoted: &[&ReplicaDescriptor], demoted: &[&ReplicaDescriptor]) -> Step {
    let joint = promoted.len() + demoted.len() > 1;
    let mut after = next(now);
    let mut changes = Vec::new();
    for replica in &mut after.replicas {
        if promoted.iter().any(|other| other.replica == replica.replica) {
            replica.kind = if joint { ReplicaKind::VoterIncoming } else { ReplicaKind::Voter };
            changes.push(single(ConfChangeType::AddNode, replica.replica));
        } else if demoted.iter().any(|other| other.replica == replica.replica) {
            replica.kind = if joint { ReplicaKind::VoterDemoting } else { ReplicaKind::Learner };
            changes.push(single(ConfChangeType::AddLearnerNode, replica.replica));
        }
    }
    if changes.is_empty() { Step::Done } else { Step::Change(of(changes), Box::new(after)) }
}

/// The step that leaves a joint configuration.
pub(crate) fn leave(now: &RangeDescriptor) -> Step {
    let mut after = next(now);
    after.replicas.retain(|replica| replica.kind != ReplicaKind::VoterOutgoing);
    for replica in &mut after.replicas {
        replica.kind = match replica.kind {
            ReplicaKind::VoterIncoming => ReplicaKind::Voter,
            ReplicaKind::VoterDemoting => ReplicaKind::Learner,
            kind => kind,
        };
    }
    Step::Change(ConfChangeV2::default(), Box::new(after))
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Generation, KeySpan, RangeId};

    use super::*;

    fn start(stores: &[u64]) -> RangeDescriptor {
        let voter = |store: &u64| ReplicaDescriptor {
            replica: ReplicaId(*store),
            store: StoreId(*store),
            kind: ReplicaKind::Voter,
        };
        RangeDescriptor {
            range: RangeId(5),
            span: KeySpan::ALL,
            generation: Generation(1),
            replicas: stores.iter().map(voter).collect(),
            next_replica: ReplicaId(10),
        }
    }

    fn target(voters: &[u64], learners: &[u64]) -> ConfTarget {
        let stores = |stores: &[u64]| stores.iter().map(|store| StoreId(*store)).collect();
        ConfTarget { voters: stores(voters), learners: stores(learners) }
    }

    /// Goes all the way, with a leader that hands over when told; returns the number of steps.
    fn walk(mut now: RangeDescriptor, target: &ConfTarget, mut leader: ReplicaId) -> (RangeDescriptor, usize) {
        for steps in 0..20 {
            match next_step(&now, target, leader, |_| true) {
                Step::Done => return (now, steps),
                Step::HandOver(heirs) => leader = heirs[0],
                Step::Change(_, after) => {
                    after.validate().unwrap();
                    assert_eq!(after.generation, now.generation.next());
                    let kept = after.replica(leader).unwrap().kind;
                    assert!(kept.votes_incoming(), "a leader is never demoted");
                    now = *after;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("it does not end: {now:?}");
    }

    #[test]
    fn every_target_is_reached_and_the_leader_stays_a_voter_on_the_way() {
        let cases: [(&[u64], &[u64], &[u64]); 7] = [
            (&[1], &[1, 2, 3], &[]),
            (&[1, 2, 3], &[1, 2, 4], &[]),
            (&[1, 2, 3], &[2, 3, 4], &[]),
            (&[1, 2, 3], &[4, 5, 6], &[]),
            (&[1], &[2], &[]),
            (&[1, 2, 3], &[1], &[]),
            (&[1, 2, 3], &[1, 2], &[3, 4]),
        ];
        for (from, voters, learners) in cases {
            let target = target(voters, learners);
            let (end, _) = walk(start(from), &target, ReplicaId(1));
            let stores = |kind| {
                let mut stores: Vec<_> = end.replicas.iter().filter(|r| r.kind == kind).map(|r| r.store.0).collect();
                stores.sort_unstable();
                stores
            };
            assert_eq!(
                (stores(ReplicaKind::Voter), stores(ReplicaKind::Learner)),
                (voters.to_vec(), learners.to_vec())
            );
        }
    }

    #[test]
    fn a_replica_that_comes_back_gets_a_new_id_and_waits_until_it_has_caught_up() {
        let back = target(&[1, 2, 3], &[]);
        let Step::Change(_, gone) = next_step(&start(&[1, 2, 3]), &target(&[1, 2], &[]), ReplicaId(1), |_| true) else {
            panic!("a demotion")
        };
        let Step::Change(_, gone) = next_step(&gone, &target(&[1, 2], &[]), ReplicaId(1), |_| true) else {
            panic!("a removal")
        };
        let Step::Change(_, there) = next_step(&gone, &back, ReplicaId(1), |_| true) else { panic!("an addition") };
        assert_eq!(there.on_store(StoreId(3)).unwrap().replica, ReplicaId(10));
        assert_eq!(next_step(&there, &back, ReplicaId(1), |_| false), Step::Wait);
        assert!(matches!(next_step(&there, &back, ReplicaId(1), |_| true), Step::Change(..)));
    }

    #[test]
    fn targets_without_sense_are_refused() {
        let refused = |t: ConfTarget| matches!(next_step(&start(&[1]), &t, ReplicaId(1), |_| true), Step::Refuse(_));
        assert!(refused(target(&[], &[1])));
        assert!(refused(target(&[1, 2], &[2])));
    }
}
