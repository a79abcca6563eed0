//! Replicas that are out of order on stores that live: they lost part of their log, or applied other commands than the
//! rest. They go first; the checker then finds too few, and fills up under new replica ids.

use std::collections::BTreeSet;

use flotilla_types::{ConfTarget, RangeDescriptor, ReplicaDescriptor, ReplicaId, StoreId};

/// The range without its replicas that are out of order. `None` if it has none, or if what remains on stores that live
/// is no quorum: then no membership change commits, or the wrong half would decide, and a person must look.
#[must_use]
pub fn without_lost(
    descriptor: &RangeDescriptor,
    lost: &BTreeSet<ReplicaId>,
    lives: impl Fn(StoreId) -> bool,
) -> Option<ConfTarget> {
    let is_good = |replica: &&ReplicaDescriptor| !lost.contains(&replica.replica);
    // A change that is half done is finished first.
    if descriptor.is_joint() || descriptor.replicas.iter().all(|replica| is_good(&replica)) {
        return None;
    }
    if !descriptor.is_quorum(|replica| is_good(&replica) && lives(replica.store)) {
        return None;
    }
    let (voters, learners): (Vec<_>, Vec<_>) =
        descriptor.replicas.iter().filter(is_good).partition(|replica| replica.kind.votes_incoming());
    let stores = |replicas: Vec<&ReplicaDescriptor>| replicas.into_iter().map(|replica| replica.store).collect();
    Some(ConfTarget { voters: stores(voters), learners: stores(learners) })
}
