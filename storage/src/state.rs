//! The records that a range keeps beside its data, and how they are written.

use bytes::Bytes;
use flotilla_types::{LogIndex, RecordError, RecordReader, RecordWriter, ReplicaId, StoreId, Term, Timestamp};

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
    /// Reads at or below are refused; zero if old versions never went. Only rises.
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
    use flotilla_types::{Generation, Key, KeySpan, RangeDescriptor, RangeId, ReplicaDescriptor, ReplicaKind};
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
            if let Ok(descriptor) = RangeDescriptor::decode(&bytes) {
                prop_assert_eq!(&descriptor.encode()[..], &bytes[..]);
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
        let bytes = descriptor.encode();
        assert_eq!(RangeDescriptor::decode(&bytes), Ok(descriptor));
        assert!((0..bytes.len()).all(|cut| RangeDescriptor::decode(&bytes[..cut]).is_err()));
    }
}
