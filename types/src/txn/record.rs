//! The record of a transaction, at its anchor: the one judge of what became of it.

use bytes::Bytes;

use super::{Outcome, Seq, SeqRange, TxnMeta, read_id, read_ignored, write_ignored};
use crate::{Key, KeySpan, RecordError, RecordReader, RecordWriter, Timestamp, TxnId};

const RECORD_VERSION: u8 = 1;
/// Another than that of a finished range deletion, which lies under a key of the same form.
const FINISHED_VERSION: u8 = 2;

/// A write that may not have arrived yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Claim {
    /// Of which key.
    pub key: Key,
    /// Which write: its intent carries this number.
    pub seq: Seq,
}

/// A transaction is committed at `at` if all these writes are there, each at or below (parallel commit).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Staged {
    /// When it would commit.
    pub at: Timestamp,
    /// What was on its way when the record was written.
    pub in_flight: Vec<Claim>,
}

/// How far a transaction is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TxnStatus {
    /// Its coordinator works.
    Pending,
    /// Its coordinator has sent everything. Whether that makes it committed counts once its coordinator has told its caller so,
    /// or somebody has proven it and written it here.
    Staging(Staged),
    /// Committed at this timestamp; some locks may still be there.
    Committed(Timestamp),
}

/// The record while something may be left to do: region 03, kind `t`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnRecord {
    /// How far it is.
    pub status: TxnStatus,
    /// Whose.
    pub meta: TxnMeta,
    /// When its coordinator was last heard of, by the clock of the anchor's leader.
    pub heartbeat: Timestamp,
    /// Writes that were taken back.
    pub ignored: Vec<SeqRange>,
    /// Where its locks lie.
    pub lock_spans: Vec<KeySpan>,
}

impl TxnRecord {
    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (status, at, in_flight) = match &self.status {
            TxnStatus::Pending => (1, Timestamp::ZERO, &[][..]),
            TxnStatus::Committed(at) => (2, *at, &[][..]),
            TxnStatus::Staging(staged) => (3, staged.at, &staged.in_flight[..]),
        };
        let record = self.meta.write(RecordWriter::new(RECORD_VERSION).u8(status).timestamp(at));
        let record = write_ignored(record.timestamp(self.heartbeat), &self.ignored).u32(self.lock_spans.len() as u32);
        let spans = self.lock_spans.iter();
        let record = spans.fold(record, |record, span| record.bytes(span.start.as_bytes()).bytes(span.end.as_bytes()));
        let claims = in_flight.iter();
        claims
            .fold(record.u32(in_flight.len() as u32), |record, claim| {
                record.bytes(claim.key.as_bytes()).u32(claim.seq.0)
            })
            .finish()
            .into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("transaction", RECORD_VERSION, bytes)?;
        let (status, at) = (record.u8()?, record.timestamp()?);
        let meta = TxnMeta::read(&mut record)?;
        let (heartbeat, ignored) = (record.timestamp()?, read_ignored(&mut record)?);
        let count = record.u32()?;
        let span = |record: &mut RecordReader<'_>| {
            let (start, end) = (Key::new(record.bytes()?.to_vec()), Key::new(record.bytes()?.to_vec()));
            KeySpan::new(start, end).or_else(|_| record.refuse("a span is empty"))
        };
        let lock_spans = (0..count).map(|_| span(&mut record)).collect::<Result<_, _>>()?;
        let count = record.u32()?;
        let claim = |record: &mut RecordReader<'_>| {
            Ok(Claim { key: Key::new(record.bytes()?.to_vec()), seq: Seq(record.u32()?) })
        };
        let in_flight = (0..count).map(|_| claim(&mut record)).collect::<Result<_, RecordError>>()?;
        let status = match status {
            1 => TxnStatus::Pending,
            2 => TxnStatus::Committed(at),
            3 => TxnStatus::Staging(Staged { at, in_flight }),
            _ => return record.refuse("its status is unknown"),
        };
        record.end()?;
        Ok(Self { status, meta, heartbeat, ignored, lock_spans })
    }
}

/// What is kept of a transaction when nothing is left to do: region 03, kind `f`, under its id, or under the request id that
/// it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedTxn {
    /// What became of it.
    pub outcome: Outcome,
    /// Whose. Differs from the id in the key where that is a client's request.
    pub txn: TxnId,
    /// When it ended, by the clock of the anchor's leader. The record may be forgotten when no copy of a message is as old.
    pub end: Timestamp,
    /// Writes that were taken back.
    pub ignored: Vec<SeqRange>,
    /// Of a conditional transaction: whether its comparisons held.
    pub held: Option<bool>,
}

impl FinishedTxn {
    /// Whether the bytes of a finished record are a transaction's.
    #[must_use]
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.first() == Some(&FINISHED_VERSION)
    }

    /// The record's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let (kind, at) = match self.outcome {
            Outcome::Committed { at } => (1, at),
            Outcome::Aborted => (2, Timestamp::ZERO),
        };
        let record = RecordWriter::new(FINISHED_VERSION).u8(kind).timestamp(at).bytes(&self.txn.0);
        let held = self.held.map_or(2, u8::from);
        write_ignored(record.timestamp(self.end), &self.ignored).u8(held).finish().into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut record = RecordReader::new("finished transaction", FINISHED_VERSION, bytes)?;
        let (kind, at) = (record.u8()?, record.timestamp()?);
        let outcome = match kind {
            1 => Outcome::Committed { at },
            2 => Outcome::Aborted,
            _ => return record.refuse("its outcome is unknown"),
        };
        let txn = read_id(&mut record)?;
        let (end, ignored) = (record.timestamp()?, read_ignored(&mut record)?);
        let held = match record.u8()? {
            0 => Some(false),
            1 => Some(true),
            2 => None,
            _ => return record.refuse("its branch is unknown"),
        };
        record.end()?;
        Ok(Self { outcome, txn, end, ignored, held })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Isolation, LockRecord, Priority, RequestId, Strength, keys};

    fn meta() -> TxnMeta {
        TxnMeta {
            id: TxnId([7; 16]),
            anchor: keys::user(b"a"),
            anchored: Timestamp::from_wall(4),
            min_ts: Timestamp::from_wall(3),
            isolation: Isolation::Snapshot,
            priority: Priority::Normal,
            commit_id: RequestId([8; 16]),
        }
    }

    #[test]
    fn records_read_back_as_written_and_cut_ones_are_refused() {
        let (ts, ignored) = (Timestamp { wall: 9, logical: 2 }, vec![SeqRange { from: Seq(2), to: Seq(4) }]);
        let in_flight = vec![Claim { key: keys::user(b"b"), seq: Seq(9) }];
        let staging = TxnStatus::Staging(Staged { at: ts, in_flight });
        for status in [TxnStatus::Pending, TxnStatus::Committed(ts), staging] {
            let lock_spans = vec![KeySpan::point(keys::user(b"a")), KeySpan::ALL];
            let record = TxnRecord { status, meta: meta(), heartbeat: ts, ignored: ignored.clone(), lock_spans };
            let bytes = record.encode();
            assert_eq!(TxnRecord::decode(&bytes), Ok(record));
            assert!((0..bytes.len()).all(|cut| TxnRecord::decode(&bytes[..cut]).is_err()));
        }
        for outcome in [Outcome::Committed { at: ts }, Outcome::Aborted] {
            let held = if outcome == Outcome::Aborted { None } else { Some(true) };
            let record = FinishedTxn { outcome, txn: TxnId([7; 16]), end: ts, ignored: ignored.clone(), held };
            let bytes = record.encode();
            assert!(FinishedTxn::is_one(&bytes));
            assert_eq!(FinishedTxn::decode(&bytes), Ok(record));
            assert!((0..bytes.len()).all(|cut| FinishedTxn::decode(&bytes[..cut]).is_err()));
        }
        let lock = LockRecord {
            txn: meta(),
            ts,
            local_ts: ts,
            seq: Seq(7),
            strength: Strength::Intent,
            value: None,
            history: vec![(Seq(3), Strength::Shared, None), (Seq(5), Strength::Intent, Some(Bytes::from_static(b"x")))],
        };
        let bytes = lock.encode();
        assert_eq!(LockRecord::decode(&bytes), Ok(lock));
        assert!((0..bytes.len()).all(|cut| LockRecord::decode(&bytes[..cut]).is_err()));
    }

    proptest! {
        #[test]
        fn damaged_records_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (TxnRecord::decode(&bytes), FinishedTxn::decode(&bytes), LockRecord::decode(&bytes));
        }
    }
}
