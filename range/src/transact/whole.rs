//! Transactions that are known as a whole and lie in one range: evaluated in one step, at one timestamp above everything that
//! they meet, without locks and without a record (docs/transactions.md, "Ways to commit").

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_storage::engine::Reader;
use flotilla_storage::{keys, mvcc};
use flotilla_types::{
    FinishedTxn, Key, OneShot, Outcome, RangeError, RequestId, Row, Timestamp, TxnId, Whole, WriteResult,
};

use crate::evaluate::{Failed, earlier_try, number, sum};

/// What a transaction comes to.
pub(crate) struct Done {
    pub(crate) timestamp: Timestamp,
    /// Nothing if it only read, or was done before.
    pub(crate) changes: Vec<(Key, Option<Bytes>)>,
    /// What tells a repetition which branch was done.
    pub(crate) finished: Option<(Key, Bytes)>,
    pub(crate) result: WriteResult,
}

/// The keys as the transaction sees them.
struct View {
    /// Newest values when it began.
    before: BTreeMap<Key, Option<Row>>,
    after: BTreeMap<Key, Option<Bytes>>,
}

impl View {
    fn row(&self, key: &Key, now: Timestamp) -> Option<Row> {
        match self.after.get(key) {
            Some(value) => value.clone().map(|value| Row { key: key.clone(), value, timestamp: now }),
            None => self.before.get(key).cloned().flatten(),
        }
    }
}

/// Evaluates it. `now` stands in for the time in the record of what was done.
pub(crate) fn evaluate(
    reader: &dyn Reader,
    id: RequestId,
    whole: &Whole,
    floor: Timestamp,
    now: Timestamp,
) -> Result<Done, Failed> {
    if let Some(done) = earlier(reader, id, whole)? {
        return Ok(done);
    }
    let mut view = View { before: BTreeMap::new(), after: BTreeMap::new() };
    let mut timestamp = floor;
    for key in whole.keys() {
        if view.before.contains_key(key) {
            continue;
        }
        let newest = mvcc::newest(reader, key)?;
        if let Some(version) = &newest {
            timestamp = timestamp.max(version.timestamp.next());
        }
        let row = newest.and_then(|version| {
            version.value.map(|value| Row { key: key.clone(), value, timestamp: version.timestamp })
        });
        view.before.insert(key.clone(), row);
    }
    let mut compares = whole.compares.iter();
    let held = compares.all(|compare| view.row(&compare.key, timestamp).map(|row| row.value) == compare.expected);
    let mut rows = Vec::new();
    for step in whole.branch(held) {
        rows.push(match step {
            OneShot::Get(key) => view.row(key, timestamp),
            OneShot::Write(key, value) => {
                view.after.insert(key.clone(), value.clone());
                None
            }
            OneShot::Increment(key, by) => {
                let before = view.row(key, timestamp).map(|row| row.value);
                let bytes = Bytes::copy_from_slice(&sum(key, number(key, before.as_ref())?, *by)?.to_be_bytes());
                view.after.insert(key.clone(), Some(bytes.clone()));
                Some(Row { key: key.clone(), value: bytes, timestamp })
            }
        });
    }
    let held = (!whole.compares.is_empty()).then_some(held);
    let changes: Vec<_> = view.after.into_iter().collect();
    // Without comparisons the same keys are written whenever it is repeated, and they tell.
    let remembers = held.is_some() && !changes.is_empty();
    let finished = if remembers { anchor(whole) } else { None }.map(|anchor| {
        let outcome = Outcome::Committed { at: timestamp };
        let record = FinishedTxn { outcome, txn: TxnId::from(id), end: now, ignored: Vec::new(), held };
        (anchor.clone(), record.encode())
    });
    Ok(Done { timestamp, changes, finished, result: WriteResult::Whole { held, rows: Some(rows) } })
}

/// A client has given one id to two intentions.
pub(crate) fn used_otherwise(id: RequestId) -> Failed {
    let what = format!("the request id {id} was used for something else before: each intention needs one of its own");
    Failed::Answer(RangeError::Invalid { what })
}

/// Where a transaction of several ranges would have its record, and so where a repetition looks.
fn anchor(whole: &Whole) -> Option<&Key> {
    whole.keys().min()
}

/// What an earlier try did.
fn earlier(reader: &dyn Reader, id: RequestId, whole: &Whole) -> Result<Option<Done>, Failed> {
    let done = |timestamp, held| {
        let result = WriteResult::Whole { held, rows: None };
        Some(Done { timestamp, changes: Vec::new(), finished: None, result })
    };
    if whole.compares.is_empty() {
        let Some(written) = whole.then.iter().find(|step| step.writes()) else { return Ok(None) };
        return Ok(earlier_try(reader, written.key(), id)?.and_then(|at| done(at, None)));
    }
    let Some(anchor) = anchor(whole) else { return Ok(None) };
    let Some(record) = reader.get(&keys::finished(anchor, id))? else { return Ok(None) };
    if !FinishedTxn::is_one(&record) {
        return Err(used_otherwise(id));
    }
    let FinishedTxn { outcome, held, .. } = FinishedTxn::decode(&record)?;
    Ok(if let Outcome::Committed { at } = outcome { done(at, held) } else { None })
}
