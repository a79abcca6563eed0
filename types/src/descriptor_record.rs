//! The record of a descriptor, as it stands in stores, in the log and under meta keys.

use bytes::Bytes;

use crate::{
    Generation, Key, KeySpan, RangeDescriptor, RangeId, RecordError, RecordReader, RecordWriter, ReplicaDescriptor,
    ReplicaId, ReplicaKind, StoreId,
};

const VERSION: u8 = 1;

impl RangeDescriptor {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut record = RecordWriter::new(VERSION)
            .u64(self.range.0)
            .bytes(self.span.start.as_bytes())
            .bytes(self.span.end.as_bytes())
            .u64(self.generation.0)
            .u64(self.next_replica.0)
            .u32(self.replicas.len() as u32);
        for replica in &self.replicas {
            record = record.u64(replica.replica.0).u64(replica.store.0).u8(kind_number(replica.kind));
        }
        record.finish().into()
    }

    /// Reads a record and checks its invariants.
    ///
    /// # Errors
    /// It is damaged, of another version, or breaks an invariant.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
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
        let descriptor = Self { range, span: KeySpan { start, end }, generation, replicas, next_replica };
        if descriptor.validate().is_err() {
            return record.refuse("it breaks an invariant of descriptors");
        }
        record.end()?;
        Ok(descriptor)
    }
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
