//! Multi-version values: every write makes a new version, a read sees the newest one at or below its timestamp.
//!
//! A version's key is `keys::version`; its value is one byte of flags (bit 0: the key was deleted; bit 1: a request id
//! follows), the 16 bytes of the id if there is one, and the payload. The id makes a version the record that a request
//! was done (docs/durability.md, "Requests take effect once").
//!
//! Works on any `Reader`: the live engine, or a snapshot. Locks of transactions lie in a region of their own and are no
//! matter of this module.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_types::{Key, KeySpan, RequestId, Row, ScanResult, Timestamp};
use thiserror::Error;

use crate::engine::{Cursor, EngineError, Reader, WriteBatch};
use crate::keys;

const FLAG_DELETE: u8 = 1;
const FLAG_REQUEST: u8 = 2;

/// Why a read of versions failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MvccError {
    /// A version in (read timestamp, limit] exists: it may be older than the read in real time.
    #[error("a version of {key} at {existing} may be older than the read")]
    Uncertain {
        /// Of which key.
        key: Key,
        /// Its timestamp.
        existing: Timestamp,
    },
    /// The engine failed, or holds what nobody wrote.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// One version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// When it was written.
    pub timestamp: Timestamp,
    /// The request that wrote it, if it was a single-key one.
    pub request: Option<RequestId>,
    /// The value; `None` if the key was deleted.
    pub value: Option<Bytes>,
}

/// Which versions a read sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadWindow {
    /// Versions at or below are seen.
    pub at: Timestamp,
    /// Versions above `at` up to here make the read uncertain. Invariant: not below `at`.
    pub limit: Timestamp,
}

impl ReadWindow {
    /// A read without uncertainty.
    #[must_use]
    pub const fn exactly(at: Timestamp) -> Self {
        Self { at, limit: at }
    }
}

/// Adds a version to a batch; `value` is `None` for a deletion.
pub fn write(
    batch: &mut WriteBatch,
    key: &Key,
    timestamp: Timestamp,
    value: Option<&[u8]>,
    request: Option<RequestId>,
) {
    let payload = value.unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(17 + payload.len());
    let deleted = if value.is_none() { FLAG_DELETE } else { 0 };
    bytes.put_u8(deleted | if request.is_some() { FLAG_REQUEST } else { 0 });
    if let Some(request) = request {
        bytes.extend_from_slice(&request.0);
    }
    bytes.extend_from_slice(payload);
    batch.put(keys::version(key, timestamp), bytes.freeze());
}

/// The newest version of a key, deletions included.
///
/// # Errors
/// A read error.
pub fn newest(reader: &dyn Reader, key: &Key) -> Result<Option<Version>, EngineError> {
    newest_at(reader, key, Timestamp::MAX)
}

/// The newest version of a key at or below a timestamp, deletions included.
///
/// # Errors
/// A read error.
pub fn newest_at(reader: &dyn Reader, key: &Key, at: Timestamp) -> Result<Option<Version>, EngineError> {
    let seek = keys::version(key, at);
    let upper = keys::prefix_end(&keys::version_prefix(key));
    let found = reader.first_in_prefix(&seek, &upper)?;
    found.map(|(physical, value)| decode(&physical, &value).map(|(_, version)| version)).transpose()
}

/// The value of one key as a read sees it; `None` if it is absent.
///
/// # Errors
/// `Uncertain`, or a read error.
pub fn get(reader: &dyn Reader, key: &Key, window: ReadWindow) -> Result<Option<Row>, MvccError> {
    match newest_at(reader, key, window.limit)? {
        Some(version) if version.timestamp > window.at => {
            Err(MvccError::Uncertain { key: key.clone(), existing: version.timestamp })
        }
        version => Ok(version.and_then(|version| row(key.clone(), version))),
    }
}

/// Whether a request wrote one of a key's versions that are newer than `born_after`; newest first.
///
/// # Errors
/// A read error.
pub fn find_request(
    reader: &dyn Reader,
    key: &Key,
    request: RequestId,
    born_after: Timestamp,
) -> Result<Option<Version>, EngineError> {
    let prefix = keys::version_prefix(key);
    let upper = keys::prefix_end(&prefix);
    let mut cursor = reader.cursor(&prefix, &upper);
    let mut there = cursor.seek(&prefix)?;
    while there {
        let (_, version) = decode(cursor.key(), cursor.value())?;
        if version.timestamp <= born_after {
            break;
        }
        if version.request == Some(request) {
            return Ok(Some(version));
        }
        there = cursor.next()?;
    }
    Ok(None)
}

/// The first key of a span that got a version in (`after`, `upto`], and the newest of those.
///
/// # Errors
/// A read error.
pub fn changed_in(
    reader: &dyn Reader,
    span: &KeySpan,
    after: Timestamp,
    upto: Timestamp,
) -> Result<Option<(Key, Version)>, EngineError> {
    let (lower, upper) = keys::version_span(span);
    let mut cursor = reader.cursor(&lower, &upper);
    let mut there = cursor.seek(&lower)?;
    while there {
        let (key, _) = decode_key(cursor.key())?;
        let end = keys::prefix_end(&keys::version_prefix(&key));
        if cursor.seek(&keys::version(&key, upto))? && cursor.key() < &end[..] {
            let (_, timestamp) = decode_key(cursor.key())?;
            if timestamp > after {
                return decode(cursor.key(), cursor.value()).map(Some);
            }
        }
        there = cursor.seek(&end)?;
    }
    Ok(None)
}

/// What a scan returns at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanBounds {
    /// From the end of the span to its start.
    pub reverse: bool,
    /// At most so many rows; 0 for no bound.
    pub rows_max: u64,
    /// Stops after the row that reaches this many bytes of keys and values.
    pub bytes_max: u64,
}

/// Rows of a span as a read sees them.
///
/// # Errors
/// `Uncertain` for the first uncertain key met before the bounds were reached, or a read error.
pub fn scan(
    reader: &dyn Reader,
    span: &KeySpan,
    window: ReadWindow,
    bounds: ScanBounds,
) -> Result<ScanResult, MvccError> {
    let (lower, upper) = keys::version_span(span);
    let mut cursor = reader.cursor(&lower, &upper);
    let mut result = ScanResult::default();
    let mut bytes = 0;
    let mut there = if bounds.reverse { cursor.seek_before(&upper)? } else { cursor.seek(&lower)? };
    while there {
        let (key, _) = decode_key(cursor.key())?;
        let full = bytes >= bounds.bytes_max || (bounds.rows_max > 0 && result.rows.len() as u64 >= bounds.rows_max);
        if full && !result.rows.is_empty() {
            // A reverse scan goes on below an excluded end: the smallest key above this one.
            result.resume = Some(if bounds.reverse { key.next() } else { key });
            break;
        }
        let seen = see(cursor.as_mut(), &key, window)?;
        if let Some(row) = seen {
            bytes += (row.key.as_bytes().len() + row.value.len()) as u64;
            result.rows.push(row);
        }
        let prefix = keys::version_prefix(&key);
        there = if bounds.reverse { cursor.seek_before(&prefix)? } else { cursor.seek(&keys::prefix_end(&prefix))? };
    }
    Ok(result)
}

/// What a read sees of the key whose versions the cursor stands in.
fn see(cursor: &mut dyn Cursor, key: &Key, window: ReadWindow) -> Result<Option<Row>, MvccError> {
    let end = keys::prefix_end(&keys::version_prefix(key));
    let there = cursor.seek(&keys::version(key, window.limit))? && cursor.key() < &end[..];
    if !there {
        return Ok(None);
    }
    let (_, version) = decode(cursor.key(), cursor.value())?;
    if version.timestamp > window.at {
        return Err(MvccError::Uncertain { key: key.clone(), existing: version.timestamp });
    }
    Ok(row(key.clone(), version))
}

/// Whether a version's value says that its key was deleted.
///
/// # Errors
/// It is no version's value.
pub fn is_deletion(value: &[u8]) -> Result<bool, EngineError> {
    let corrupt = || EngineError::Corrupt { action: "read a version", cause: "it is empty".to_owned() };
    value.first().map(|flags| flags & FLAG_DELETE != 0).ok_or_else(corrupt)
}

fn row(key: Key, version: Version) -> Option<Row> {
    version.value.map(|value| Row { key, value, timestamp: version.timestamp })
}

fn decode_key(physical: &[u8]) -> Result<(Key, Timestamp), EngineError> {
    keys::decode_version(physical)
        .map_err(|error| EngineError::Corrupt { action: "read a version", cause: error.to_string() })
}

fn decode(physical: &[u8], value: &[u8]) -> Result<(Key, Version), EngineError> {
    let corrupt = |cause: &str| EngineError::Corrupt { action: "read a version", cause: cause.to_owned() };
    let (key, timestamp) = decode_key(physical)?;
    let (flags, rest) = value.split_first().ok_or_else(|| corrupt("it is empty"))?;
    if flags & !(FLAG_DELETE | FLAG_REQUEST) != 0 {
        return Err(corrupt("it has flags of another version"));
    }
    let (request, payload) = if flags & FLAG_REQUEST == 0 {
        (None, rest)
    } else {
        let (id, payload) = rest.split_first_chunk::<16>().ok_or_else(|| corrupt("its request id is cut short"))?;
        (Some(RequestId(*id)), payload)
    };
    let value = (flags & FLAG_DELETE == 0).then(|| Bytes::copy_from_slice(payload));
    Ok((key, Version { timestamp, request, value }))
}
