//! The durable records of store liveness: the clock's bound, and one row per supported store.

use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::log::StoreBound;
use flotilla_types::{RecordError, RecordReader, RecordWriter, nanoseconds};

use super::state::Row;

const VERSION: u8 = 1;

/// Writes `MetaKey::Bound`.
#[must_use]
pub fn encode_bound(bound: &StoreBound) -> Bytes {
    RecordWriter::new(VERSION).timestamp(bound.bound).u64(nanoseconds(bound.support)).finish().into()
}

/// Reads `MetaKey::Bound`.
///
/// # Errors
/// It is damaged or of another version.
pub fn decode_bound(bytes: &[u8]) -> Result<StoreBound, RecordError> {
    let mut record = RecordReader::new("clock bound", VERSION, bytes)?;
    let bound = StoreBound { bound: record.timestamp()?, support: Duration::from_nanos(record.u64()?) };
    record.end()?;
    Ok(bound)
}

/// Writes `MetaKey::Support`.
#[must_use]
pub fn encode_row(row: &Row) -> Bytes {
    let record = RecordWriter::new(VERSION).u64(row.epoch).u8(u8::from(row.active));
    record.u64(nanoseconds(row.support)).finish().into()
}

/// Reads `MetaKey::Support`.
///
/// # Errors
/// It is damaged or of another version.
pub fn decode_row(bytes: &[u8]) -> Result<Row, RecordError> {
    let mut record = RecordReader::new("support row", VERSION, bytes)?;
    let row = Row { epoch: record.u64()?, active: record.flag()?, support: Duration::from_nanos(record.u64()?) };
    record.end()?;
    Ok(row)
}
