//! Nouns come back from the wire as they went; garbage is refused and never panics.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{
    Admin, BatchOp, CheckId, Command, ConfTarget, Generation, Key, KeySpan, RangeDescriptor, RangeError, RangeId,
    RangeReply, RangeRequest, Read, ReadAt, ReplicaDescriptor, ReplicaId, ReplicaKind, Reply, RequestId, Row,
    ScanResult, StoreId, Term, Timestamp, Write, WriteResult, keys,
};
use proptest::prelude::*;
use prost::Message as _;

use super::txn_tests;
use crate::internal as wire;

fn key(n: u8) -> Key {
    keys::user(&[n])
}

fn descriptor() -> RangeDescriptor {
    let replica = |n: u64, kind| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n + 10), kind };
    RangeDescriptor {
        range: RangeId(42),
        span: KeySpan { start: key(1), end: Key::MAX },
        generation: Generation(9),
        replicas: [
            replica(1, ReplicaKind::Voter),
            replica(2, ReplicaKind::VoterIncoming),
            replica(3, ReplicaKind::VoterOutgoing),
            replica(4, ReplicaKind::Learner),
            replica(5, ReplicaKind::VoterDemoting),
        ]
        .into_iter()
        .collect(),
        next_replica: ReplicaId(6),
    }
}

fn at(n: u64) -> Timestamp {
    Timestamp { wall: n, logical: n as u32 }
}

fn commands() -> Vec<Command> {
    let (id, value) = (RequestId([7; 16]), Bytes::from_static(b"value"));
    let span = KeySpan { start: key(1), end: key(9) };
    let write = |write| Command::Write { id, write };
    let gateway = ReadAt::Timestamp { timestamp: at(5), limit: at(9) };
    let ops = vec![BatchOp::Put { key: key(1), value: value.clone() }, BatchOp::Delete { key: key(2) }];
    vec![
        Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: key(1) } },
        Command::Read {
            at: gateway,
            read: Read::Scan { span: span.clone(), reverse: true, rows_max: 3, bytes_max: 4 },
        },
        write(Write::Put { key: key(1), value: value.clone() }),
        write(Write::Put { key: key(1), value: Bytes::new() }),
        write(Write::Delete { key: key(1) }),
        write(Write::CompareAndSwap { key: key(1), expected: None, new: Some(value.clone()) }),
        write(Write::CompareAndSwap { key: key(1), expected: Some(Bytes::new()), new: None }),
        write(Write::Batch { ops }),
        write(Write::DeleteRange { span, keys_max: 7 }),
        write(Write::PutMeta { key: key(1), descriptor: descriptor() }),
        Command::Admin(Admin::Split { generation: Generation(3), key: key(4), right: RangeId(8) }),
        Command::Admin(Admin::TransferLeader { to: StoreId(2) }),
        Command::Admin(Admin::ChangeReplicas {
            generation: Generation(3),
            target: ConfTarget {
                voters: [StoreId(1), StoreId(2)].into_iter().collect(),
                learners: [StoreId(3)].into_iter().collect(),
            },
        }),
        Command::Admin(Admin::Check { check: CheckId(77) }),
    ]
}

fn replies() -> Vec<Reply> {
    let row = Row { key: key(1), value: Bytes::from_static(b"v"), timestamp: at(3) };
    vec![
        Reply::Get(None),
        Reply::Get(Some(row.clone())),
        Reply::Scan(ScanResult { rows: vec![row], resume: Some(key(2)) }),
        Reply::Scan(ScanResult::default()),
        Reply::Write(WriteResult::Done),
        Reply::Write(WriteResult::ConditionFailed { actual: None }),
        Reply::Write(WriteResult::ConditionFailed { actual: Some(Bytes::new()) }),
        Reply::Write(WriteResult::Deleted { keys: 4, resume: Some(key(5)) }),
        Reply::Admin(vec![descriptor()]),
    ]
}

fn errors() -> Vec<RangeError> {
    let (range, store, why) = (RangeId(1), StoreId(2), "why".to_owned());
    let span = KeySpan { start: key(1), end: key(2) };
    vec![
        RangeError::NotLeaseholder { range, leader: Some(store), term: Term(3) },
        RangeError::NotLeaseholder { range, leader: None, term: Term(3) },
        RangeError::RangeNotFound { range, store },
        RangeError::RangeMismatch { range, span, known: vec![descriptor()] },
        RangeError::RangeUnavailable { range, why: why.clone() },
        RangeError::StoreNotServing { store, why: why.clone() },
        RangeError::Overloaded { queue: "the range's latches".into(), retry_after: Duration::from_millis(3) },
        RangeError::DiskFull { store },
        RangeError::Uncertain { key: key(1), read: at(1), existing: at(2) },
        RangeError::FutureTimestamp { timestamp: at(1) },
        RangeError::BelowGcThreshold { timestamp: at(1), threshold: at(2) },
        RangeError::GenerationMismatch { current: Box::new(descriptor()) },
        RangeError::DeadlineExceeded { range },
        RangeError::Ambiguous { why: why.clone() },
        RangeError::TooOld { range, floor: at(1) },
        RangeError::Diverged { range },
        RangeError::Invalid { what: why },
    ]
}

#[test]
fn requests_replies_and_errors_come_back_as_they_went() {
    for command in commands().into_iter().chain(txn_tests::commands()) {
        let request = RangeRequest { range: RangeId(5), timeout: Duration::from_millis(1500), command };
        let bytes = wire::RangeRequest::from(&request).encode_to_vec();
        let back = wire::RangeRequest::decode(&bytes[..]).unwrap();
        assert_eq!(RangeRequest::try_from(back), Ok(request));
    }
    for reply in replies().into_iter().chain(txn_tests::replies()) {
        let reply = RangeReply { timestamp: at(8), reply };
        let bytes = wire::RangeReply::from(reply.clone()).encode_to_vec();
        assert_eq!(RangeReply::try_from(wire::RangeReply::decode(&bytes[..]).unwrap()), Ok(reply));
    }
    for error in errors().into_iter().chain(txn_tests::errors()) {
        let bytes = wire::RangeError::from(error.clone()).encode_to_vec();
        assert_eq!(RangeError::try_from(wire::RangeError::decode(&bytes[..]).unwrap()), Ok(error));
    }
}

#[test]
fn what_breaks_an_invariant_does_not_pass() {
    let mut broken = crate::v1::RangeDescriptor::from(&descriptor());
    broken.next_replica_id = 1;
    assert!(RangeDescriptor::try_from(broken).is_err());
    let span = wire::KeySpan { start: vec![2].into(), end: vec![1].into() };
    assert!(KeySpan::try_from(span).is_err());
    assert!(RangeRequest::try_from(wire::RangeRequest::default()).is_err());
    assert!(RangeReply::try_from(wire::RangeReply::default()).is_err());
    assert!(RangeError::try_from(wire::RangeError::default()).is_err());
}

proptest! {
    #[test]
    fn flipped_bytes_are_refused_or_read_without_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), by in 1u8..) {
        let all: Vec<_> = commands().into_iter().chain(txn_tests::commands()).collect();
        let request = RangeRequest { range: RangeId(5), timeout: Duration::from_millis(1), command: which.get(&all).clone() };
        let mut bytes = wire::RangeRequest::from(&request).encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        if let Ok(message) = wire::RangeRequest::decode(&bytes[..]) {
            let _ = RangeRequest::try_from(message);
        }
    }
}
