//! Evaluation: what a request reads, and what its write will be. Runs at the leaseholder only, under latches, on state
//! that shows everything applied so far.
//!
//! A write is evaluated once. A retry finds the version that the first try wrote, by its request id, and gets the same
//! answer (docs/durability.md, "Requests take effect once"). All versions of a batch carry the id, so that each key
//! tells by itself, wherever a later split puts it.

use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::keys as physical;
use flotilla_storage::mvcc::{self, MvccError, ReadWindow, ScanBounds, Version};
use flotilla_types::{
    BatchOp, FinishedTxn, Increment, Key, KeySpan, RangeDescriptor, RangeError, RangeReply, Read, RecordError,
    RecordReader, RecordWriter, Reply, RequestId, Timestamp, Write, WriteResult,
};

use crate::command::{Command, Versions};
use crate::edit::Edit;
use crate::transact::Blocker;
use crate::transact::whole::{self, Done};

/// A client's clock may lag behind the version's by so much: ids are looked for in versions newer than birth minus this.
pub(crate) const BIRTH_SLACK: Duration = Duration::from_secs(2);
const FINISHED_VERSION: u8 = 1;

/// Why a request could not be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The answer to the caller.
    Answer(RangeError),
    /// The engine failed: the replica is lost.
    Engine(String),
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Self::Engine(error.to_string())
    }
}

impl From<RecordError> for Failed {
    fn from(error: RecordError) -> Self {
        Self::Engine(error.to_string())
    }
}

/// What a request comes to. Large, but handed over once and never kept: a box would cost each write an allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant)]
pub(crate) enum Evaluated {
    /// Foreign locks are in the way.
    Blocked(Vec<Blocker>),
    /// The answer would be a promise that needs a proof of leadership first.
    Unproven(ReadWindow),
    /// Answer now: nothing is to be written.
    Answer(RangeReply),
    /// Propose this; answer so when it was applied.
    Propose(Command, RangeReply),
}

impl Evaluated {
    /// What a transaction changes, and the answer then; the answer alone if it changes nothing.
    pub(crate) fn edit(edits: Vec<Edit>, reply: RangeReply) -> Self {
        if edits.is_empty() { Self::Answer(reply) } else { Self::Propose(Command::Edit(edits), reply) }
    }
}

/// Evaluates a read.
pub(crate) fn read(reader: &dyn Reader, read: &Read, window: ReadWindow) -> Result<RangeReply, Failed> {
    let answer = match read {
        Read::Get { key } => mvcc::get(reader, key, window).map(Reply::Get),
        Read::Scan { span, reverse, rows_max, bytes_max } => {
            let bounds = ScanBounds { reverse: *reverse, rows_max: *rows_max, bytes_max: *bytes_max };
            mvcc::scan(reader, span, window, bounds).map(Reply::Scan)
        }
    };
    match answer {
        Ok(reply) => Ok(RangeReply { timestamp: window.at, reply }),
        Err(MvccError::Uncertain { key, existing }) => {
            Err(Failed::Answer(RangeError::Uncertain { key, read: window.at, existing }))
        }
        Err(MvccError::Engine(error)) => Err(error.into()),
    }
}

/// Evaluates a write at or above `floor`, which lies above every read of its keys. `now` is the leaseholder's clock.
pub(crate) fn write(
    reader: &dyn Reader,
    id: RequestId,
    write: &Write,
    floor: Timestamp,
    now: Timestamp,
) -> Result<Evaluated, Failed> {
    check_birth(id, floor)?;
    match write {
        Write::Put { key, value } => blind(reader, id, floor, vec![(key.clone(), Some(value.clone()))]),
        Write::Delete { key } => blind(reader, id, floor, vec![(key.clone(), None)]),
        Write::Batch { ops } => batch(reader, id, floor, ops),
        Write::CompareAndSwap { key, expected, new } => swap(reader, id, floor, key, expected.as_ref(), new.as_ref()),
        Write::Increment(Increment { key, by }) => increment(reader, id, floor, key, *by),
        Write::DeleteRange { span, keys_max } => delete_range(reader, id, floor, span, *keys_max),
        Write::Whole(whole) => {
            let Done { timestamp, changes, finished, result } = whole::evaluate(reader, id, whole, floor, now)?;
            let reply = done(timestamp, result);
            Ok(if changes.is_empty() {
                Evaluated::Answer(reply)
            } else {
                Evaluated::Propose(Command::Write(Versions { timestamp, changes, finished }), reply)
            })
        }
        Write::PutMeta { key, descriptor } => {
            let newest = mvcc::newest(reader, key)?;
            let known = newest
                .as_ref()
                .and_then(|version| version.value.as_deref())
                .map(RangeDescriptor::decode)
                .transpose()?;
            if known.is_some_and(|known| known.generation >= descriptor.generation) {
                return Ok(Evaluated::Answer(done(floor, WriteResult::Done)));
            }
            blind(reader, id, floor, vec![(key.clone(), Some(descriptor.encode()))])
        }
    }
}

/// Versions are written at or above `floor`; the id of one that was born later would not be looked for there.
pub(crate) fn check_birth(id: RequestId, floor: Timestamp) -> Result<(), Failed> {
    if birth(id) < floor.plus(BIRTH_SLACK) {
        return Ok(());
    }
    let what = format!(
        "the request id {id} was born in the future (its first 48 bits are milliseconds since 1970): set the client's clock, or \
         learn the cluster's time"
    );
    Err(Failed::Answer(RangeError::Invalid { what }))
}

fn done(timestamp: Timestamp, result: WriteResult) -> RangeReply {
    RangeReply { timestamp, reply: Reply::Write(result) }
}

fn propose(timestamp: Timestamp, changes: Vec<(Key, Option<Bytes>)>, result: WriteResult) -> Evaluated {
    let versions = Versions { timestamp, changes, finished: None };
    Evaluated::Propose(Command::Write(versions), done(timestamp, result))
}

fn batch(reader: &dyn Reader, id: RequestId, floor: Timestamp, ops: &[BatchOp]) -> Result<Evaluated, Failed> {
    let mut changes: Vec<_> = ops
        .iter()
        .map(|op| match op {
            BatchOp::Put { key, value } => (key.clone(), Some(value.clone())),
            BatchOp::Delete { key } => (key.clone(), None),
        })
        .collect();
    changes.sort_by(|a, b| a.0.cmp(&b.0));
    if changes.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        let what = "a batch names a key twice: write each key once".to_owned();
        return Err(Failed::Answer(RangeError::Invalid { what }));
    }
    blind(reader, id, floor, changes)
}

/// Writes that look at nothing but their own repetition.
fn blind(
    reader: &dyn Reader,
    id: RequestId,
    floor: Timestamp,
    changes: Vec<(Key, Option<Bytes>)>,
) -> Result<Evaluated, Failed> {
    let Some((first, _)) = changes.first() else {
        return Err(Failed::Answer(RangeError::Invalid {
            what: "a batch is empty: write at least one key".to_owned(),
        }));
    };
    if let Some(timestamp) = earlier_try(reader, first, id)? {
        return Ok(Evaluated::Answer(done(timestamp, WriteResult::Done)));
    }
    let mut timestamp = floor;
    for (key, _) in &changes {
        timestamp = timestamp.max(above_newest(reader, key)?);
    }
    Ok(propose(timestamp, changes, WriteResult::Done))
}

fn swap(
    reader: &dyn Reader,
    id: RequestId,
    floor: Timestamp,
    key: &Key,
    expected: Option<&Bytes>,
    new: Option<&Bytes>,
) -> Result<Evaluated, Failed> {
    if let Some(timestamp) = earlier_try(reader, key, id)? {
        return Ok(Evaluated::Answer(done(timestamp, WriteResult::Done)));
    }
    let newest = mvcc::newest(reader, key)?;
    let timestamp = newest.as_ref().map_or(floor, |version| floor.max(version.timestamp.next()));
    let actual = newest.and_then(|version| version.value);
    if actual.as_ref() != expected {
        return Ok(Evaluated::Answer(done(timestamp, WriteResult::ConditionFailed { actual })));
    }
    Ok(propose(timestamp, vec![(key.clone(), new.cloned())], WriteResult::Done))
}

fn delete_range(
    reader: &dyn Reader,
    id: RequestId,
    floor: Timestamp,
    span: &KeySpan,
    keys_max: u64,
) -> Result<Evaluated, Failed> {
    if let Some(answer) = reader.get(&physical::finished(&span.start, id))? {
        if FinishedTxn::is_one(&answer) {
            return Err(whole::used_otherwise(id));
        }
        return Ok(Evaluated::Answer(decode_finished(&answer, &span.end)?));
    }
    let bounds = ScanBounds { reverse: false, rows_max: keys_max.max(1), bytes_max: u64::MAX };
    let found = mvcc::scan(reader, span, ReadWindow::exactly(Timestamp::MAX), bounds);
    let found = found.map_err(|error| Failed::Engine(error.to_string()))?;
    let timestamp = found.rows.iter().map(|row| row.timestamp.next()).fold(floor, Timestamp::max);
    let keys = found.rows.len() as u64;
    let reply = done(timestamp, WriteResult::Deleted { keys, resume: found.resume });
    let changes = found.rows.into_iter().map(|row| (row.key, None)).collect();
    let finished = Some((span.start.clone(), encode_finished(&reply, &span.end)));
    Ok(Evaluated::Propose(Command::Write(Versions { timestamp, changes, finished }), reply))
}

/// Keeps where the piece ended. A retry may ask for a shorter piece, if the range was cut meanwhile: it then goes on behind
/// what the first try removed, and not where its own piece ends, which would remove what was written there since.
fn encode_finished(reply: &RangeReply, end: &Key) -> Bytes {
    let record = RecordWriter::new(FINISHED_VERSION).timestamp(reply.timestamp);
    let Reply::Write(WriteResult::Deleted { keys, resume }) = &reply.reply else {
        return record.u64(0).bytes(end.as_bytes()).finish().into();
    };
    record.u64(*keys).bytes(resume.as_ref().unwrap_or(end).as_bytes()).finish().into()
}

fn decode_finished(bytes: &[u8], end: &Key) -> Result<RangeReply, RecordError> {
    let mut record = RecordReader::new("finished request", FINISHED_VERSION, bytes)?;
    let (timestamp, keys, done_to) = (record.timestamp()?, record.u64()?, Key::new(record.bytes()?.to_vec()));
    record.end()?;
    let resume = (done_to != *end).then_some(done_to);
    Ok(done(timestamp, WriteResult::Deleted { keys, resume }))
}

/// When the intention was born, by its client's clock.
fn birth(id: RequestId) -> Timestamp {
    Timestamp::from_wall(id.born_ms().saturating_mul(1_000_000))
}

/// When an earlier try of the request wrote the key.
pub(crate) fn earlier_try(reader: &dyn Reader, key: &Key, id: RequestId) -> Result<Option<Timestamp>, Failed> {
    Ok(earlier_version(reader, key, id)?.map(|version| version.timestamp))
}

fn earlier_version(reader: &dyn Reader, key: &Key, id: RequestId) -> Result<Option<Version>, Failed> {
    Ok(mvcc::find_request(reader, key, id, birth(id).minus(BIRTH_SLACK))?)
}

/// A counter's value.
pub(crate) fn number(key: &Key, value: Option<&Bytes>) -> Result<i64, Failed> {
    let Some(value) = value else { return Ok(0) };
    let bytes: Result<[u8; 8], _> = value[..].try_into();
    bytes.map(i64::from_be_bytes).map_err(|_| {
        let what =
            format!("{key} holds {} bytes, and a counter is 8 bytes, big-endian: set it to one first", value.len());
        Failed::Answer(RangeError::Invalid { what })
    })
}

/// What a counter holds after an addition.
pub(crate) fn sum(key: &Key, value: i64, by: i64) -> Result<i64, Failed> {
    value.checked_add(by).ok_or_else(|| {
        let what = format!("{key} holds {value}, and adding {by} leaves the 64 bits of a counter");
        Failed::Answer(RangeError::Invalid { what })
    })
}

fn increment(reader: &dyn Reader, id: RequestId, floor: Timestamp, key: &Key, by: i64) -> Result<Evaluated, Failed> {
    if let Some(version) = earlier_version(reader, key, id)? {
        let value = number(key, version.value.as_ref())?;
        return Ok(Evaluated::Answer(done(version.timestamp, WriteResult::Number(value))));
    }
    let newest = mvcc::newest(reader, key)?;
    let timestamp = newest.as_ref().map_or(floor, |version| floor.max(version.timestamp.next()));
    let value = sum(key, number(key, newest.and_then(|version| version.value).as_ref())?, by)?;
    let bytes = Bytes::copy_from_slice(&value.to_be_bytes());
    Ok(propose(timestamp, vec![(key.clone(), Some(bytes))], WriteResult::Number(value)))
}

fn above_newest(reader: &dyn Reader, key: &Key) -> Result<Timestamp, Failed> {
    Ok(mvcc::newest(reader, key)?.map_or(Timestamp::ZERO, |version| version.timestamp.next()))
}

#[cfg(test)]
mod tests {
    use flotilla_types::keys;

    use super::*;

    #[test]
    fn a_repeated_piece_that_became_shorter_goes_on_behind_what_was_removed() {
        let (m, z) = (keys::user(b"m"), keys::user(b"z"));
        let reply = done(Timestamp::from_wall(7), WriteResult::Deleted { keys: 3, resume: None });
        let record = encode_finished(&reply, &z);
        assert_eq!(decode_finished(&record, &z), Ok(reply));
        let Ok(RangeReply { reply: Reply::Write(WriteResult::Deleted { resume, .. }), .. }) =
            decode_finished(&record, &m)
        else {
            panic!("it reads back");
        };
        assert_eq!(resume, Some(z));
    }
}
