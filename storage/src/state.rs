//! The records that a range keeps beside its data, and how they are written.

use bytes::Bytes;
use flotilla_types::{
    Generation, Key, KeySpan, LogIndex, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaId, ReplicaKind, StoreId,
    Term, Timestamp,
};

pub use crate::codec::{RecordError, RecordReader, RecordWriter};
use crate::log::LogPos;

const VERSION: u8 = 1;

/// How far a replica has applied its log. Rewritten by every batch that changes the range, in that batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// The last applied entry.
    pub pos: LogPos,
    /// No write at or below will be applied any more.
    pub closed: Timestamp,
    /// Running checksum of all applied commands.
    pub sum: u64,
    /// This state came by a snapshot whose log reset may not be durable yet. Not hashed.
    pub via_snapshot: bool,
}

impl Applied {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let record = RecordWriter::new(VERSION).u64(self.pos.index.0).u64(self.pos.term.0).timestamp(self.closed);
        record.u64(self.sum).u8(u8::from(self.via_snapshot)).finish().into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("applied", VERSION, bytes)?;
        let pos = LogPos { index: LogIndex(record.u64()?), term: Term(record.u64()?) };
        let state = Self { pos, closed: record.timestamp()?, sum: record.u64()?, via_snapshot: record.flag()? };
        record.end()?;
        Ok(state)
    }
}

/// Who leads the range, as its log says (leases 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseState {
    /// The term of the newest LeaseStart.
    pub term: Term,
    /// Its leader.
    pub replica: ReplicaId,
    /// Where it lives.
    pub store: StoreId,
    /// All its writes lie at or above.
    pub start: Timestamp,
    /// The term was closed by an EndLease.
    pub ended: bool,
    /// The highest timestamp that any closed term served a read at.
    pub read_floor: Timestamp,
    /// Counts LeaseStarts.
    pub seq: u64,
}

impl LeaseState {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let record = RecordWriter::new(VERSION).u64(self.term.0).u64(self.replica.0).u64(self.store.0);
        let record = record.timestamp(self.start).u8(u8::from(self.ended)).timestamp(self.read_floor);
        record.u64(self.seq).finish().into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("lease", VERSION, bytes)?;
        let state = Self {
            term: Term(record.u64()?),
            replica: ReplicaId(record.u64()?),
            store: StoreId(record.u64()?),
            start: record.timestamp()?,
            ended: record.flag()?,
            read_floor: record.timestamp()?,
            seq: record.u64()?,
        };
        record.end()?;
        Ok(state)
    }
}

/// What the range has forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// Reads below are refused.
    pub gc: Timestamp,
    /// Request ids born below (ms since 1970) are refused as too old to be known.
    pub dedup_floor_ms: u64,
}

impl Thresholds {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        RecordWriter::new(VERSION).timestamp(self.gc).u64(self.dedup_floor_ms).finish().into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("thresholds", VERSION, bytes)?;
        let state = Self { gc: record.timestamp()?, dedup_floor_ms: record.u64()? };
        record.end()?;
        Ok(state)
    }
}

/// Writes a descriptor.
#[must_use]
pub fn encode_descriptor(descriptor: &RangeDescriptor) -> Bytes {
    let mut record = RecordWriter::new(VERSION)
        .u64(descriptor.range.0)
        .bytes(descriptor.span.start.as_bytes())
        .bytes(descriptor.span.end.as_bytes())
        .u64(descriptor.generation.0)
        .u64(descriptor.next_replica.0)
        .u32(descriptor.replicas.len() as u32);
    for replica in &descriptor.replicas {
        record = record.u64(replica.replica.0).u64(replica.store.0).u8(kind_number(replica.kind));
    }
    record.finish().into()
}

/// Reads a descriptor and checks its invariants.
///
/// # Errors
/// It is damaged, of another version, or breaks an invariant.
pub fn decode_descriptor(bytes: &[u8]) -> Result<RangeDescriptor, RecordError> {
    let mut record = RecordReader::new("descriptor", VERSION, bytes)?;
    let range = RangeId(record.u64()?);
    let start = Key::new(record.bytes()?.to_vec());
    let end = Key::new(record.bytes()?.to_vec());
    let (generation, next_replica) = (Generation(record.u64()?), ReplicaId(record.u64()?));
    let count = record.u32()?;
    let mut replicas = smallvec::SmallVec::new();
    for _ in 0..count {
        let (replica, store) = (ReplicaId(record.u64()?), StoreId(record.u64()?));
        let Some(kind) = kind_from(record.u8()?) else {
            return record.refuse("a replica is of an unknown kind");
        };
        replicas.push(ReplicaDescriptor { replica, store, kind });
    }
    let descriptor = RangeDescriptor { range, span: KeySpan { start, end }, generation, replicas, next_replica };
    if descriptor.validate().is_err() {
        return record.refuse("it breaks an invariant of descriptors");
    }
    record.end()?;
    Ok(descriptor)
}

const fn kind_number(kind: ReplicaKind) -> u8 {
    match kind {
        ReplicaKind::Voter => 0,
        ReplicaKind::Learner => 1,
        ReplicaKind::VoterIncoming => 2,
        ReplicaKind::VoterOutgoing => 3,
        ReplicaKind::VoterDemoting => 4,
    }
}

const fn kind_from(number: u8) -> Option<ReplicaKind> {
    Some(match number {
        0 => ReplicaKind::Voter,
        1 => ReplicaKind::Learner,
        2 => ReplicaKind::VoterIncoming,
        3 => ReplicaKind::VoterOutgoing,
        4 => ReplicaKind::VoterDemoting,
        _ => return None,
    })
}

/// Writes a replica id: the content of a tombstone (ids below are gone) and of a replica's own record.
#[must_use]
pub fn encode_replica_id(replica: ReplicaId) -> Bytes {
    RecordWriter::new(VERSION).u64(replica.0).finish().into()
}

/// Reads a replica id.
///
/// # Errors
/// It is damaged or of another version.
pub fn decode_replica_id(bytes: &[u8]) -> Result<ReplicaId, RecordError> {
    let mut record = RecordReader::new("replica id", VERSION, bytes)?;
    let replica = ReplicaId(record.u64()?);
    record.end()?;
    Ok(replica)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timestamp() -> impl Strategy<Value = Timestamp> {
        (any::<u64>(), any::<u32>()).prop_map(|(wall, logical)| Timestamp { wall, logical })
    }

    proptest! {
        #[test]
        fn records_read_back_as_written(n in any::<[u64; 4]>(), t in timestamp(), u in timestamp(), flag in any::<bool>()) {
            let pos = LogPos { index: LogIndex(n[0]), term: Term(n[1]) };
            let applied = Applied { pos, closed: t, sum: n[2], via_snapshot: flag };
            prop_assert_eq!(Applied::decode(&applied.encode()), Ok(applied));
            let lease = LeaseState { term: Term(n[0]), replica: ReplicaId(n[1]), store: StoreId(n[2]), start: t, ended: flag, read_floor: u, seq: n[3] };
            prop_assert_eq!(LeaseState::decode(&lease.encode()), Ok(lease));
            let thresholds = Thresholds { gc: t, dedup_floor_ms: n[3] };
            prop_assert_eq!(Thresholds::decode(&thresholds.encode()), Ok(thresholds));
        }

        #[test]
        fn damaged_records_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(descriptor) = decode_descriptor(&bytes) {
                prop_assert_eq!(&encode_descriptor(&descriptor)[..], &bytes[..]);
            }
            let _ = (Applied::decode(&bytes), LeaseState::decode(&bytes), decode_replica_id(&bytes));
        }
    }

    #[test]
    fn a_descriptor_reads_back_and_a_cut_one_is_refused() {
        let replica = |n, kind| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n + 10), kind };
        let descriptor = RangeDescriptor {
            range: RangeId(42),
            span: KeySpan::new(Key::new(&b"\x10a"[..]), Key::MAX).unwrap(),
            generation: Generation(9),
            replicas: [replica(1, ReplicaKind::Voter), replica(4, ReplicaKind::Learner)].into_iter().collect(),
            next_replica: ReplicaId(5),
        };
        let bytes = encode_descriptor(&descriptor);
        assert_eq!(decode_descriptor(&bytes), Ok(descriptor));
        assert!((0..bytes.len()).all(|cut| decode_descriptor(&bytes[..cut]).is_err()));
    }
}
