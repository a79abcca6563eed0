//! What a raft entry's commands do, and how the log keeps them: results of evaluation, never questions. Applying one reads
//! nothing but the range's own lease and bounds, so that every replica does the same.

use bytes::Bytes;
use flotilla_types::{
    CheckId, Key, RangeDescriptor, RecordError, RecordReader, RecordWriter, ReplicaId, RequestId, StoreId, Timestamp,
};

use crate::edit::Edit;

const VERSION: u8 = 1;
const START: u8 = 1;
const WRITE: u8 = 2;
const CHANGE_REPLICAS: u8 = 3;
const CHECK: u8 = 4;
const END: u8 = 5;
const SPLIT: u8 = 6;
const FORGET: u8 = 7;
const EDIT: u8 = 8;
const GC: u8 = 9;

/// One replicated command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Opens a term: its first proposal (leases 3.5).
    LeaseStart {
        /// The leader.
        replica: ReplicaId,
        /// Where it lives.
        store: StoreId,
        /// All writes of the term lie at or above.
        start: Timestamp,
    },
    /// Writes versions.
    Write(Versions),
    /// What a transaction changes, all or nothing.
    Edit(Vec<Edit>),
    /// One step of a membership change. Travels in the context of the library's own entry, and nowhere else.
    ChangeReplicas {
        /// What the range becomes: one generation above what it is.
        descriptor: RangeDescriptor,
    },
    /// Closes a term: nothing of it is served after this was evaluated (leases 3.5).
    EndLease {
        /// The highest timestamp that the term served a read at.
        floor: Timestamp,
    },
    /// Cuts the range in two.
    Split {
        /// What the range becomes: one generation above what it is.
        left: RangeDescriptor,
        /// The new range, with the same replicas.
        right: RangeDescriptor,
        /// No read of the right half was served above; none is served between the evaluation and its own first lease.
        floor: Timestamp,
    },
    /// Every replica hashes its state as of this entry.
    Check {
        /// Names the check.
        check: CheckId,
    },
    /// Finished requests that nobody sends again are forgotten (durability 8). The leader found them; naming them spares
    /// every replica the search, and makes all of them do the same.
    Forget {
        /// Range deletions born below (ms since 1970) are refused as too old to be known. Only rises.
        floor_ms: u64,
        /// Whose records go: all were born below the floor.
        finished: Vec<(Key, RequestId)>,
    },
    /// Old versions may go (docs/durability.md, "Old versions").
    Gc {
        /// Reads at or below are refused from now on. Only rises: a lower one than before changes nothing.
        threshold: Timestamp,
        /// About how many bytes the leader thinks will go: whether it is worth rewriting files for.
        garbage: u64,
        /// Whether enough keys were deleted for each replica to look for their markers.
        sweep: bool,
    },
}

/// Versions that are written together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    /// Of all of them.
    pub timestamp: Timestamp,
    /// Keys and values; `None` deletes. Each carries the request's id.
    pub changes: Vec<(Key, Option<Bytes>)>,
    /// The answer of a request that the versions alone cannot tell again: its anchor key, and the answer's record.
    pub finished: Option<(Key, Bytes)>,
}

impl Command {
    /// The bytes for the log.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let record = RecordWriter::new(VERSION);
        match self {
            Self::LeaseStart { replica, store, start } => {
                record.u8(START).u64(replica.0).u64(store.0).timestamp(*start).finish().into()
            }
            Self::Write(versions) => {
                let mut record = record.u8(WRITE).timestamp(versions.timestamp).u32(versions.changes.len() as u32);
                for (key, value) in &versions.changes {
                    record = record.bytes(key.as_bytes()).u8(u8::from(value.is_some()));
                    record = record.bytes(value.as_deref().unwrap_or_default());
                }
                record = record.u8(u8::from(versions.finished.is_some()));
                if let Some((anchor, answer)) = &versions.finished {
                    record = record.bytes(anchor.as_bytes()).bytes(answer);
                }
                record.finish().into()
            }
            Self::Edit(edits) => {
                let record = record.u8(EDIT).u32(edits.len() as u32);
                edits.iter().fold(record, |record, edit| edit.write(record)).finish().into()
            }
            Self::ChangeReplicas { descriptor } => {
                record.u8(CHANGE_REPLICAS).bytes(&descriptor.encode()).finish().into()
            }
            Self::Split { left, right, floor } => {
                record.u8(SPLIT).bytes(&left.encode()).bytes(&right.encode()).timestamp(*floor).finish().into()
            }
            Self::Check { check } => record.u8(CHECK).u64(check.0).finish().into(),
            Self::Forget { floor_ms, finished } => {
                let mut record = record.u8(FORGET).u64(*floor_ms).u32(finished.len() as u32);
                for (anchor, id) in finished {
                    record = record.bytes(anchor.as_bytes()).bytes(&id.0);
                }
                record.finish().into()
            }
            Self::Gc { threshold, garbage, sweep } => {
                record.u8(GC).timestamp(*threshold).u64(*garbage).u8(u8::from(*sweep)).finish().into()
            }
            Self::EndLease { floor } => record.u8(END).timestamp(*floor).finish().into(),
        }
    }

    /// Reads a command.
    ///
    /// # Errors
    /// It is damaged or of another version: the replica is lost, since skipping it would make replicas differ.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("command", VERSION, bytes)?;
        let command = match record.u8()? {
            START => {
                let (replica, store) = (ReplicaId(record.u64()?), StoreId(record.u64()?));
                Self::LeaseStart { replica, store, start: record.timestamp()? }
            }
            WRITE => Self::Write(decode_versions(&mut record)?),
            EDIT => {
                let count = record.u32()?;
                Self::Edit((0..count).map(|_| Edit::read(&mut record)).collect::<Result<_, _>>()?)
            }
            CHANGE_REPLICAS => Self::ChangeReplicas { descriptor: RangeDescriptor::decode(record.bytes()?)? },
            SPLIT => Self::Split {
                left: RangeDescriptor::decode(record.bytes()?)?,
                right: RangeDescriptor::decode(record.bytes()?)?,
                floor: record.timestamp()?,
            },
            CHECK => Self::Check { check: CheckId(record.u64()?) },
            FORGET => decode_forget(&mut record)?,
            GC => Self::Gc { threshold: record.timestamp()?, garbage: record.u64()?, sweep: record.flag()? },
            END => Self::EndLease { floor: record.timestamp()? },
            _ => return record.refuse("it is of an unknown kind"),
        };
        record.end()?;
        Ok(command)
    }
}

fn decode_forget(record: &mut RecordReader<'_>) -> Result<Command, RecordError> {
    let floor_ms = record.u64()?;
    let mut finished = Vec::new();
    for _ in 0..record.u32()? {
        let anchor = Key::new(record.bytes()?.to_vec());
        let Ok(id) = record.bytes()?.try_into() else { return record.refuse("a request id has another length") };
        finished.push((anchor, RequestId(id)));
    }
    Ok(Command::Forget { floor_ms, finished })
}

fn decode_versions(record: &mut RecordReader<'_>) -> Result<Versions, RecordError> {
    let timestamp = record.timestamp()?;
    let mut changes = Vec::new();
    for _ in 0..record.u32()? {
        let key = Key::new(record.bytes()?.to_vec());
        let there = record.flag()?;
        let value = Bytes::copy_from_slice(record.bytes()?);
        changes.push((key, there.then_some(value)));
    }
    let finished = match record.flag()? {
        true => Some((Key::new(record.bytes()?.to_vec()), Bytes::copy_from_slice(record.bytes()?))),
        false => None,
    };
    Ok(Versions { timestamp, changes, finished })
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Generation, KeySpan, RangeId, ReplicaDescriptor, ReplicaKind, TxnId, keys};

    use super::*;

    fn edits() -> Vec<Edit> {
        let (key, txn, id) = (keys::user(b"k"), TxnId([3; 16]), RequestId([4; 16]));
        let (timestamp, bytes) = (Timestamp { wall: 7, logical: 1 }, Bytes::from_static(b"record"));
        let version = |value| Edit::Version { key: key.clone(), timestamp, value, request: id };
        vec![
            Edit::Lay { key: key.clone(), txn, shared: true, lock: bytes.clone() },
            Edit::Release { key: key.clone(), txn, shared: false },
            version(Some(bytes.clone())),
            version(None),
            Edit::Record { anchor: key.clone(), txn, record: bytes.clone() },
            Edit::DropRecord { anchor: key.clone(), txn },
            Edit::Finish { anchor: key.clone(), id, record: bytes },
        ]
    }

    #[test]
    fn commands_read_back_as_written_and_cut_ones_are_refused() {
        let timestamp = Timestamp { wall: 7, logical: 1 };
        let changes = vec![(keys::user(b"a"), Some(Bytes::from_static(b"1"))), (keys::user(b"b"), None)];
        let voter = ReplicaDescriptor { replica: ReplicaId(1), store: StoreId(2), kind: ReplicaKind::Voter };
        let descriptor = RangeDescriptor {
            range: RangeId(7),
            span: KeySpan::ALL,
            generation: Generation(3),
            replicas: [voter].into_iter().collect(),
            next_replica: ReplicaId(2),
        };
        let finished = Some((keys::user(b"a"), Bytes::from_static(b"answer")));
        for command in [
            Command::LeaseStart { replica: ReplicaId(1), store: StoreId(2), start: timestamp },
            Command::Write(Versions { timestamp, changes: changes.clone(), finished }),
            Command::Write(Versions { timestamp, changes, finished: None }),
            Command::Edit(edits()),
            Command::Split { left: descriptor.clone(), right: descriptor.clone(), floor: timestamp },
            Command::ChangeReplicas { descriptor },
            Command::Check { check: CheckId(9) },
            Command::EndLease { floor: timestamp },
            Command::Forget { floor_ms: 7, finished: vec![(keys::user(b"a"), RequestId([7; 16]))] },
            Command::Gc { threshold: timestamp, garbage: 7, sweep: true },
        ] {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Ok(command));
            assert!((0..bytes.len()).all(|cut| Command::decode(&bytes[..cut]).is_err()));
        }
    }
}
