//! From nouns to messages of the public API.

use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{LockWait, OpenTxn};
use flotilla_proto::v1;
use flotilla_types::{Key, NodeId, RangeDescriptor, ReplicaDescriptor, ReplicaHash, ReplicaKind};

use super::site::{NodeView, ReplicaView};

pub(crate) fn node(node: NodeView) -> v1::Node {
    v1::Node {
        node_id: node.node.0,
        address: node.address,
        locality: node.locality.to_string(),
        live: node.live,
        version: node.version,
        replicas: node.counts.map(|(replicas, _)| replicas),
        leaders: node.counts.map(|(_, leaders)| leaders),
    }
}

pub(crate) fn range(range: &RangeDescriptor, leader: Option<&(NodeId, ReplicaView)>) -> v1::Range {
    let store = leader.map(|(node, _)| node.0);
    let stats = leader.map(|(_, replica)| v1::RangeStats {
        applied_index: replica.applied.0,
        term: replica.term.0,
        bytes: replica.bytes,
    });
    v1::Range { descriptor: Some(descriptor(range)), leader: store, leaseholder: store, stats }
}

pub(crate) fn descriptor(range: &RangeDescriptor) -> v1::RangeDescriptor {
    v1::RangeDescriptor {
        range_id: range.range.0,
        start: range.span.start.clone().into_bytes(),
        end: range.span.end.clone().into_bytes(),
        generation: range.generation.0,
        replicas: range.replicas.iter().map(replica).collect(),
        next_replica_id: range.next_replica.0,
    }
}

fn replica(replica: &ReplicaDescriptor) -> v1::ReplicaDescriptor {
    let kind = match replica.kind {
        ReplicaKind::Voter => v1::ReplicaKind::Voter,
        ReplicaKind::Learner => v1::ReplicaKind::Learner,
        ReplicaKind::VoterIncoming => v1::ReplicaKind::VoterIncoming,
        ReplicaKind::VoterOutgoing => v1::ReplicaKind::VoterOutgoing,
        ReplicaKind::VoterDemoting => v1::ReplicaKind::VoterDemoting,
    };
    v1::ReplicaDescriptor { replica_id: replica.replica.0, store_id: replica.store.0, kind: kind.into() }
}

pub(crate) fn hash(replica: &ReplicaDescriptor, hash: Result<ReplicaHash, String>) -> v1::ReplicaHash {
    let (replica_id, store_id) = (replica.replica.0, replica.store.0);
    match hash {
        Ok(hash) => v1::ReplicaHash {
            replica_id,
            store_id,
            applied_index: hash.applied.0,
            hash: hash.hash,
            pairs: hash.pairs,
            error: None,
        },
        Err(why) => v1::ReplicaHash { replica_id, store_id, error: Some(why), ..Default::default() },
    }
}

pub(crate) fn transaction(open: OpenTxn) -> v1::OpenTransaction {
    v1::OpenTransaction {
        txn_id: Bytes::copy_from_slice(&open.id.0),
        age_ms: millis(open.age),
        isolation: v1::Isolation::from(open.isolation).into(),
        priority: v1::Priority::from(open.priority).into(),
        locks: open.locks as u64,
        first_locks: open.first_locks.into_iter().map(Key::into_bytes).collect(),
        anchor: open.anchor.map(Key::into_bytes),
        aborted: open.aborted,
    }
}

pub(crate) fn lock_wait(wait: LockWait) -> v1::LockWait {
    v1::LockWait {
        waiter: Bytes::copy_from_slice(&wait.waiter.0),
        holder: Bytes::copy_from_slice(&wait.holder.0),
        key: wait.key.into_bytes(),
        waiting_ms: millis(wait.time),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
