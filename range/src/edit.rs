//! What transactions write, as the log carries it: finished bytes, so that followers decide nothing.

use bytes::Bytes;
use flotilla_storage::engine::WriteBatch;
use flotilla_storage::{keys, mvcc};
use flotilla_types::{Key, LockRecord, RecordError, RecordReader, RecordWriter, RequestId, Strength, Timestamp, TxnId};

const LAY: u8 = 1;
const RELEASE: u8 = 2;
const VERSION: u8 = 3;
const RECORD: u8 = 4;
const DROP_RECORD: u8 = 5;
const FINISH: u8 = 6;

/// One change that a transaction makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Lays a lock, or replaces an own one of the same kind.
    Lay {
        /// On which key.
        key: Key,
        /// Whose.
        txn: TxnId,
        /// Whether it may stand beside others.
        shared: bool,
        /// The encoded `LockRecord`.
        lock: Bytes,
    },
    /// Removes a lock.
    Release {
        /// From which key.
        key: Key,
        /// Whose.
        txn: TxnId,
        /// Of which kind.
        shared: bool,
    },
    /// Writes a version.
    Version {
        /// Of which key.
        key: Key,
        /// At which timestamp.
        timestamp: Timestamp,
        /// The value; `None`: a deletion.
        value: Option<Bytes>,
        /// The intention that wrote it.
        request: RequestId,
    },
    /// Writes a transaction's record.
    Record {
        /// Where.
        anchor: Key,
        /// Whose.
        txn: TxnId,
        /// The encoded `TxnRecord`.
        record: Bytes,
    },
    /// Removes a transaction's record.
    DropRecord {
        /// Where.
        anchor: Key,
        /// Whose.
        txn: TxnId,
    },
    /// Writes what became of a transaction.
    Finish {
        /// Where.
        anchor: Key,
        /// Its id, or that of the intention that it did.
        id: RequestId,
        /// The encoded `FinishedTxn`.
        record: Bytes,
    },
}

const fn kind(shared: bool) -> Strength {
    if shared { Strength::Shared } else { Strength::Exclusive }
}

impl Edit {
    /// Lays this lock.
    #[must_use]
    pub fn lay(key: &Key, lock: &LockRecord) -> Self {
        let shared = lock.strength == Strength::Shared;
        Self::Lay { key: key.clone(), txn: lock.txn.id, shared, lock: lock.encode() }
    }

    /// Removes this lock.
    #[must_use]
    pub fn release(key: &Key, lock: &LockRecord) -> Self {
        Self::Release { key: key.clone(), txn: lock.txn.id, shared: lock.strength == Strength::Shared }
    }

    /// The logical key where the change lies.
    #[must_use]
    pub const fn key(&self) -> &Key {
        match self {
            Self::Lay { key, .. } | Self::Release { key, .. } | Self::Version { key, .. } => key,
            Self::Record { anchor, .. } | Self::DropRecord { anchor, .. } | Self::Finish { anchor, .. } => anchor,
        }
    }

    /// Makes the change.
    pub(crate) fn apply(self, batch: &mut WriteBatch) {
        match self {
            Self::Lay { key, txn, shared, lock } => batch.put(keys::lock(&key, kind(shared), txn), lock),
            Self::Release { key, txn, shared } => batch.delete(keys::lock(&key, kind(shared), txn)),
            Self::Version { key, timestamp, value, request } => {
                mvcc::write(batch, &key, timestamp, value.as_deref(), Some(request));
            }
            Self::Record { anchor, txn, record } => batch.put(keys::txn_record(&anchor, txn), record),
            Self::DropRecord { anchor, txn } => batch.delete(keys::txn_record(&anchor, txn)),
            Self::Finish { anchor, id, record } => batch.put(keys::finished(&anchor, id), record),
        }
    }

    pub(crate) fn write(&self, record: RecordWriter) -> RecordWriter {
        match self {
            Self::Lay { key, txn, shared, lock } => {
                record.u8(LAY).bytes(key.as_bytes()).bytes(&txn.0).u8(u8::from(*shared)).bytes(lock)
            }
            Self::Release { key, txn, shared } => {
                record.u8(RELEASE).bytes(key.as_bytes()).bytes(&txn.0).u8(u8::from(*shared))
            }
            Self::Version { key, timestamp, value, request } => {
                let record = record.u8(VERSION).bytes(key.as_bytes()).timestamp(*timestamp);
                let record = record.u8(u8::from(value.is_some())).bytes(value.as_deref().unwrap_or_default());
                record.bytes(&request.0)
            }
            Self::Record { anchor, txn, record: bytes } => {
                record.u8(RECORD).bytes(anchor.as_bytes()).bytes(&txn.0).bytes(bytes)
            }
            Self::DropRecord { anchor, txn } => record.u8(DROP_RECORD).bytes(anchor.as_bytes()).bytes(&txn.0),
            Self::Finish { anchor, id, record: bytes } => {
                record.u8(FINISH).bytes(anchor.as_bytes()).bytes(&id.0).bytes(bytes)
            }
        }
    }

    pub(crate) fn read(record: &mut RecordReader<'_>) -> Result<Self, RecordError> {
        let kind = record.u8()?;
        let key = Key::new(record.bytes()?.to_vec());
        Ok(match kind {
            LAY => {
                let (txn, shared) = (TxnId(id(record)?), record.flag()?);
                Self::Lay { key, txn, shared, lock: Bytes::copy_from_slice(record.bytes()?) }
            }
            RELEASE => Self::Release { key, txn: TxnId(id(record)?), shared: record.flag()? },
            VERSION => {
                let (timestamp, there) = (record.timestamp()?, record.flag()?);
                let value = Bytes::copy_from_slice(record.bytes()?);
                Self::Version { key, timestamp, value: there.then_some(value), request: RequestId(id(record)?) }
            }
            RECORD => {
                let txn = TxnId(id(record)?);
                Self::Record { anchor: key, txn, record: Bytes::copy_from_slice(record.bytes()?) }
            }
            DROP_RECORD => Self::DropRecord { anchor: key, txn: TxnId(id(record)?) },
            FINISH => {
                let id = RequestId(id(record)?);
                Self::Finish { anchor: key, id, record: Bytes::copy_from_slice(record.bytes()?) }
            }
            _ => return record.refuse("an edit is of an unknown kind"),
        })
    }
}

fn id(record: &mut RecordReader<'_>) -> Result<[u8; 16], RecordError> {
    match record.bytes()?.try_into() {
        Ok(id) => Ok(id),
        Err(_) => record.refuse("an id has another length"),
    }
}
