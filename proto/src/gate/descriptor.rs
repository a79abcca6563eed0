//! Descriptors, as both the public API and the nodes write them.

use flotilla_types::{
    Generation, Key, KeySpan, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId,
};

use super::{WireError, key_out};
use crate::v1;

impl From<ReplicaKind> for v1::ReplicaKind {
    fn from(kind: ReplicaKind) -> Self {
        match kind {
            ReplicaKind::Voter => Self::Voter,
            ReplicaKind::Learner => Self::Learner,
            ReplicaKind::VoterIncoming => Self::VoterIncoming,
            ReplicaKind::VoterOutgoing => Self::VoterOutgoing,
            ReplicaKind::VoterDemoting => Self::VoterDemoting,
        }
    }
}

impl From<&RangeDescriptor> for v1::RangeDescriptor {
    fn from(descriptor: &RangeDescriptor) -> Self {
        let replicas = descriptor.replicas.iter().map(|replica| v1::ReplicaDescriptor {
            replica_id: replica.replica.0,
            store_id: replica.store.0,
            kind: v1::ReplicaKind::from(replica.kind).into(),
        });
        Self {
            range_id: descriptor.range.0,
            start: key_out(&descriptor.span.start),
            end: key_out(&descriptor.span.end),
            generation: descriptor.generation.0,
            replicas: replicas.collect(),
            next_replica_id: descriptor.next_replica.0,
        }
    }
}

impl TryFrom<v1::RangeDescriptor> for RangeDescriptor {
    type Error = WireError;

    fn try_from(descriptor: v1::RangeDescriptor) -> Result<Self, WireError> {
        let replica = |replica: v1::ReplicaDescriptor| {
            let kind = match replica.kind() {
                v1::ReplicaKind::Voter => ReplicaKind::Voter,
                v1::ReplicaKind::Learner => ReplicaKind::Learner,
                v1::ReplicaKind::VoterIncoming => ReplicaKind::VoterIncoming,
                v1::ReplicaKind::VoterOutgoing => ReplicaKind::VoterOutgoing,
                v1::ReplicaKind::VoterDemoting => ReplicaKind::VoterDemoting,
                v1::ReplicaKind::Unspecified => return Err(WireError::new("a replica has no kind")),
            };
            Ok(ReplicaDescriptor { replica: ReplicaId(replica.replica_id), store: StoreId(replica.store_id), kind })
        };
        let descriptor = Self {
            range: RangeId(descriptor.range_id),
            span: KeySpan { start: Key::new(descriptor.start), end: Key::new(descriptor.end) },
            generation: Generation(descriptor.generation),
            replicas: descriptor.replicas.into_iter().map(replica).collect::<Result<_, _>>()?,
            next_replica: ReplicaId(descriptor.next_replica_id),
        };
        descriptor.validate().map_err(|error| WireError::new(error.to_string()))?;
        Ok(descriptor)
    }
}
