//! The lock of a transaction on a key, as region 04 keeps it. A lock with a value is an intent: it becomes a version when its
//! transaction commits. The value lies in the lock and not among the versions, so that readers of versions never meet what
//! is not committed.

use bytes::Bytes;

use super::{Seq, SeqRange, TxnMeta, is_ignored};
use crate::{RecordError, RecordReader, RecordWriter, Timestamp};

const VERSION: u8 = 1;

/// How many overwritten values a lock keeps.
pub const HISTORY_MAX: usize = 64;

/// How strong a lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strength {
    /// Keeps others from writing; any number of transactions may hold one.
    Shared,
    /// Keeps others from writing and locking.
    Exclusive,
    /// Exclusive, with a value that becomes a version at commit.
    Intent,
}

/// One transaction's lock on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockRecord {
    /// Whose.
    pub txn: TxnMeta,
    /// Its transaction commits at or above.
    pub ts: Timestamp,
    /// The leaseholder's clock when it was laid; at most `ts`, and never raised.
    pub local_ts: Timestamp,
    /// What laid it last.
    pub seq: Seq,
    /// How strong.
    pub strength: Strength,
    /// An intent's value; `None` for a deletion, and for locks without one.
    pub value: Option<Bytes>,
    /// What it was before, oldest first: for the own reads of earlier statements and for savepoints.
    pub history: Vec<(Seq, Strength, Option<Bytes>)>,
}

/// What an own read sees in an own lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnValue {
    /// The lock carries nothing for it: the versions tell.
    Below,
    /// This value, or a deletion.
    Value(Option<Bytes>),
}

impl LockRecord {
    /// The newest write with a number up to `seq` that was not taken back.
    #[must_use]
    pub fn own_value(&self, seq: Seq, ignored: &[SeqRange]) -> OwnValue {
        let newest = (self.seq, self.strength, &self.value);
        let older = self.history.iter().rev().map(|(seq, strength, value)| (*seq, *strength, value));
        let mut seen = std::iter::once(newest).chain(older);
        let found =
            seen.find(|(at, strength, _)| *strength == Strength::Intent && *at <= seq && !is_ignored(ignored, *at));
        found.map_or(OwnValue::Below, |(_, _, value)| OwnValue::Value(value.clone()))
    }

    /// What remains at the end of the transaction: the value to be written, if any write was not taken back.
    #[must_use]
    pub fn final_value(&self, ignored: &[SeqRange]) -> OwnValue {
        self.own_value(Seq(u32::MAX), ignored)
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let record = self.txn.write(RecordWriter::new(VERSION)).timestamp(self.ts).timestamp(self.local_ts);
        let record = entry(record, self.seq, self.strength, self.value.as_ref()).u32(self.history.len() as u32);
        let record = self
            .history
            .iter()
            .fold(record, |record, (seq, strength, value)| entry(record, *seq, *strength, value.as_ref()));
        record.finish().into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("lock", VERSION, bytes)?;
        let txn = TxnMeta::read(&mut record)?;
        let (ts, local_ts) = (record.timestamp()?, record.timestamp()?);
        let (seq, strength, value) = read_entry(&mut record)?;
        let count = record.u32()?;
        let history = (0..count).map(|_| read_entry(&mut record)).collect::<Result<_, _>>()?;
        record.end()?;
        Ok(Self { txn, ts, local_ts, seq, strength, value, history })
    }
}

fn entry(record: RecordWriter, seq: Seq, strength: Strength, value: Option<&Bytes>) -> RecordWriter {
    let strength = match strength {
        Strength::Shared => 1,
        Strength::Exclusive => 2,
        Strength::Intent => 3,
    };
    record.u32(seq.0).u8(strength).u8(u8::from(value.is_some())).bytes(value.map_or(&[][..], |value| &value[..]))
}

fn read_entry(record: &mut RecordReader<'_>) -> Result<(Seq, Strength, Option<Bytes>), RecordError> {
    let seq = Seq(record.u32()?);
    let strength = match record.u8()? {
        1 => Strength::Shared,
        2 => Strength::Exclusive,
        3 => Strength::Intent,
        _ => return record.refuse("its strength is unknown"),
    };
    let there = record.flag()?;
    let value = Bytes::copy_from_slice(record.bytes()?);
    Ok((seq, strength, there.then_some(value)))
}
