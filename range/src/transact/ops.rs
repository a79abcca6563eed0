//! Operations of a transaction on keys (docs/transactions.md, "Evaluation"). Called under latches, on state that shows
//! everything applied so far; whoever calls has made sure that what is read here may be told.

use bytes::Bytes;
use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::locks;
use flotilla_storage::mvcc::{self, MvccError, ReadWindow, ScanBounds, Version};
use flotilla_types::{
    HISTORY_MAX, Increment, Key, KeySpan, LockRecord, OwnValue, RangeError, RangeReply, Reply, Row, ScanResult, Seq,
    Strength, Timestamp, TxnAnswer, TxnHeader, TxnId, TxnOp, TxnRefusal, is_ignored,
};

use super::Blocker;
use super::conflicts::{self, Passes};
use crate::edit::Edit;
use crate::evaluate::{Evaluated, Failed, earlier_try, number, sum};

/// A lock of the transaction itself.
type Own = (Key, LockRecord);

/// Keys that one piece of a range delete locks.
const PIECE_KEYS: u64 = 256;

/// What an evaluation rests on besides the state.
pub(crate) struct Evaluation<'a> {
    pub(crate) reader: &'a dyn Reader,
    pub(crate) header: &'a TxnHeader,
    /// The leaseholder's clock.
    pub(crate) now: Timestamp,
    /// The lowest timestamp at which the operation's keys may be written.
    pub(crate) floor: Timestamp,
    /// What the request was told about others.
    pub(crate) passes: &'a Passes,
    /// Whether there may be any lock in the range.
    pub(crate) locked: bool,
}

/// A key as one operation meets it.
struct Met {
    own: Option<LockRecord>,
    blockers: Vec<Blocker>,
}

fn refuse<T>(refusal: TxnRefusal) -> Result<T, Failed> {
    Err(Failed::Answer(RangeError::Txn(refusal)))
}

fn of_mvcc(error: MvccError, read: Timestamp) -> Failed {
    match error {
        MvccError::Uncertain { key, existing } => Failed::Answer(RangeError::Uncertain { key, read, existing }),
        MvccError::Engine(error) => error.into(),
    }
}

impl Evaluation<'_> {
    pub(crate) fn run(&self, op: &TxnOp) -> Result<Evaluated, Failed> {
        match op {
            TxnOp::Get { key, lock: None } => self.get(key),
            TxnOp::Get { key, lock: Some(strength) } => self.get_and_lock(key, *strength),
            TxnOp::Scan { span, reverse, rows_max, bytes_max } => {
                let bounds = ScanBounds { reverse: *reverse, rows_max: *rows_max, bytes_max: *bytes_max };
                self.scan(span, bounds)
            }
            TxnOp::Write { key, value, was_read } => self.write(&[(key.clone(), value.clone())], *was_read),
            TxnOp::Batch { writes } => self.write(writes, false),
            TxnOp::Prove { key, seq, at } => self.prove(key, *seq, *at),
            TxnOp::CompareAndSet { key, expected, new } => self.compare_and_set(key, expected.as_ref(), new.clone()),
            TxnOp::Increment(increment) => self.increment(increment),
            TxnOp::DeleteRange { span, keys_max } => self.delete_range(span, *keys_max),
            TxnOp::Refresh { span, from, to } => self.refresh(span, *from, *to),
        }
    }

    const fn window(&self) -> ReadWindow {
        ReadWindow { at: self.header.read, limit: self.header.limit }
    }

    /// What own reads see of own writes: those of earlier operations.
    const fn sees(&self) -> Seq {
        Seq(self.header.seq.0.saturating_sub(1))
    }

    fn reply(&self, answer: TxnAnswer, locked: Option<Timestamp>) -> RangeReply {
        RangeReply { timestamp: self.header.read, reply: Reply::Txn { answer, locked } }
    }

    fn locks_of(&self, key: &Key) -> Result<Vec<LockRecord>, EngineError> {
        if self.locked { locks::of_key(self.reader, key) } else { Ok(Vec::new()) }
    }

    fn own(&self, found: &[LockRecord]) -> Option<LockRecord> {
        found.iter().find(|lock| lock.txn.id == self.header.meta.id).cloned()
    }

    /// What a read sees of a key through an own lock; `None`: the versions tell.
    fn own_row(&self, key: &Key, own: Option<&LockRecord>) -> Option<Option<Row>> {
        let lock = own?;
        match lock.own_value(self.sees(), &self.header.ignored) {
            OwnValue::Below => None,
            OwnValue::Value(value) => Some(value.map(|value| Row { key: key.clone(), value, timestamp: lock.ts })),
        }
    }

    fn get(&self, key: &Key) -> Result<Evaluated, Failed> {
        let found = self.locks_of(key)?;
        let blockers: Vec<_> = found.iter().filter_map(|lock| self.blocks_read(key, lock, self.window())).collect();
        if !blockers.is_empty() {
            return Ok(Evaluated::Blocked(blockers));
        }
        let row = match self.own_row(key, self.own(&found).as_ref()) {
            Some(row) => row,
            None => mvcc::get(self.reader, key, self.window()).map_err(|error| of_mvcc(error, self.header.read))?,
        };
        Ok(Evaluated::Answer(self.reply(TxnAnswer::Row(row), None)))
    }

    fn scan(&self, span: &KeySpan, bounds: ScanBounds) -> Result<Evaluated, Failed> {
        let mut result =
            mvcc::scan(self.reader, span, self.window(), bounds).map_err(|error| of_mvcc(error, self.header.read))?;
        let seen = covered(span, bounds.reverse, result.resume.as_ref());
        let (blockers, own) = self.meets_in(&seen, |key, lock| self.blocks_read(key, lock, self.window()))?;
        if !blockers.is_empty() {
            return Ok(Evaluated::Blocked(blockers));
        }
        self.overlay(&mut result, own, bounds);
        Ok(Evaluated::Answer(self.reply(TxnAnswer::Rows(result), None)))
    }

    fn blocks_read(&self, key: &Key, lock: &LockRecord, window: ReadWindow) -> Option<Blocker> {
        conflicts::of_read(key, lock, window, Some(self.header.meta.id), self.passes)
    }

    /// The locks of a span: what blocks, and the own ones.
    fn meets_in(
        &self,
        span: &KeySpan,
        judge: impl Fn(&Key, &LockRecord) -> Option<Blocker>,
    ) -> Result<(Vec<Blocker>, Vec<Own>), Failed> {
        let (mut blockers, mut own) = (Vec::new(), Vec::new());
        if self.locked {
            locks::each(self.reader, span, |key, lock| {
                blockers.extend(judge(&key, &lock));
                if lock.txn.id == self.header.meta.id {
                    own.push((key, lock));
                }
                blockers.is_empty()
            })?;
        }
        Ok((blockers, own))
    }

    /// Puts own writes over the rows of a scan.
    fn overlay(&self, result: &mut ScanResult, own: Vec<Own>, bounds: ScanBounds) {
        let mut changed = false;
        for (key, lock) in own {
            let Some(row) = self.own_row(&key, Some(&lock)) else { continue };
            result.rows.retain(|row| row.key != key);
            result.rows.extend(row);
            changed = true;
        }
        if !changed {
            return;
        }
        result.rows.sort_by(|a, b| if bounds.reverse { b.key.cmp(&a.key) } else { a.key.cmp(&b.key) });
        let most = usize::try_from(bounds.rows_max).unwrap_or(usize::MAX);
        if most > 0 && result.rows.len() > most {
            let next = result.rows[most].key.clone();
            result.rows.truncate(most);
            result.resume = Some(if bounds.reverse { next.next() } else { next });
        }
    }

    /// The locks of a key that is to be locked.
    fn meet(&self, key: &Key, strength: Strength) -> Result<Met, Failed> {
        let found = self.locks_of(key)?;
        let (me, shares) = (Some(self.header.meta.id), strength == Strength::Shared);
        let blockers = found.iter().filter_map(|lock| conflicts::of_lock(key, lock, me, shares)).collect();
        Ok(Met { own: self.own(&found), blockers })
    }

    /// The newest version, which must not be newer than the snapshot.
    fn newest_within(&self, key: &Key) -> Result<Option<Version>, Failed> {
        let newest = mvcc::newest(self.reader, key)?;
        match &newest {
            Some(version) if version.timestamp > self.header.read => {
                let (existing, other) = (version.timestamp, writer(version));
                refuse(TxnRefusal::WriteTooOld { key: key.clone(), existing, other })
            }
            _ => Ok(newest),
        }
    }

    fn get_and_lock(&self, key: &Key, strength: Strength) -> Result<Evaluated, Failed> {
        let met = self.meet(key, strength)?;
        if !met.blockers.is_empty() {
            return Ok(Evaluated::Blocked(met.blockers));
        }
        let newest = self.newest_within(key)?;
        let row = self.own_row(key, met.own.as_ref()).unwrap_or_else(|| visible(key, newest));
        let answer = TxnAnswer::Row(row);
        match met.own {
            Some(own) if own.strength >= strength => Ok(Evaluated::Answer(self.reply(answer, Some(own.ts)))),
            own => {
                let (edits, ts) = self.lay(key, own, strength, None, self.header.read)?;
                Ok(Evaluated::edit(edits, self.reply(answer, Some(ts))))
            }
        }
    }

    /// Lays a lock over what is there of the own transaction.
    fn lay(
        &self,
        key: &Key,
        own: Option<LockRecord>,
        strength: Strength,
        value: Option<Bytes>,
        at: Timestamp,
    ) -> Result<(Vec<Edit>, Timestamp), Failed> {
        let mut edits = Vec::new();
        let ts = at.max(own.as_ref().map_or(Timestamp::ZERO, |own| own.ts));
        let mut history = Vec::new();
        if let Some(own) = own {
            if own.strength == Strength::Shared && strength != Strength::Shared {
                edits.push(Edit::release(key, &own));
            }
            history = own.history;
            history.push((own.seq, own.strength, own.value));
            self.shorten(&mut history);
            if history.len() > HISTORY_MAX {
                let what = format!(
                    "{key} was written {HISTORY_MAX} times while earlier values are still needed: release savepoints"
                );
                return Err(Failed::Answer(RangeError::Invalid { what }));
            }
        }
        let local_ts = self.now.min(ts);
        let (txn, seq) = (self.header.meta.clone(), self.header.seq);
        let lock = LockRecord { txn, ts, local_ts, seq, strength, value, history };
        edits.push(Edit::lay(key, &lock));
        Ok((edits, ts))
    }

    /// Drops what nobody looks at any more: what was taken back, and all but the newest of what lies before every savepoint.
    fn shorten(&self, history: &mut Vec<(Seq, Strength, Option<Bytes>)>) {
        history.retain(|(seq, ..)| !is_ignored(&self.header.ignored, *seq));
        let old = history.iter().rposition(|(seq, ..)| *seq < self.header.keep_from);
        if let Some(newest_old) = old {
            history.drain(..newest_old);
        }
    }

    /// Whether a write with this number was done: then the lock's timestamp.
    fn written_before(&self, key: &Key, own: Option<&LockRecord>) -> Result<Option<Timestamp>, Failed> {
        let Some(own) = own else { return Ok(None) };
        let seq = self.header.seq;
        if own.seq == seq || own.history.iter().any(|(at, ..)| *at == seq) {
            return Ok(Some(own.ts));
        }
        if own.seq > seq { refuse(TxnRefusal::StaleWrite { key: key.clone() }) } else { Ok(None) }
    }

    /// A client's earlier try of the same intention may have written the key.
    fn check_done(&self, key: &Key) -> Result<(), Failed> {
        let meta = &self.header.meta;
        if !meta.is_one_shot() {
            return Ok(());
        }
        match earlier_try(self.reader, key, meta.commit_id)? {
            Some(at) => refuse(TxnRefusal::AlreadyCommitted { at, held: None }),
            None => Ok(()),
        }
    }

    /// Writes that look at nothing, unless the keys were read before.
    fn write(&self, writes: &[(Key, Option<Bytes>)], were_read: bool) -> Result<Evaluated, Failed> {
        let (mut met, mut blockers) = (Vec::with_capacity(writes.len()), Vec::new());
        for (key, _) in writes {
            let found = self.meet(key, Strength::Intent)?;
            blockers.extend(found.blockers);
            met.push(found.own);
        }
        if !blockers.is_empty() {
            return Ok(Evaluated::Blocked(blockers));
        }
        let (mut edits, mut highest) = (Vec::new(), Timestamp::ZERO);
        for ((key, value), own) in writes.iter().zip(met) {
            if let Some(ts) = self.written_before(key, own.as_ref())? {
                highest = highest.max(ts);
                continue;
            }
            self.check_done(key)?;
            let newest = if self.header.is_serializable() && !were_read {
                // Laid above: whether what was read still holds there is looked at before the commit.
                mvcc::newest(self.reader, key)?
            } else {
                self.newest_within(key)?
            };
            let (laid, ts) = self.intend(key, own, newest.as_ref(), value.clone())?;
            edits.extend(laid);
            highest = highest.max(ts);
        }
        Ok(Evaluated::edit(edits, self.reply(TxnAnswer::Written, Some(highest))))
    }

    /// Whether a write is there. The caller sees to it that a missing one cannot come any more.
    fn prove(&self, key: &Key, seq: Seq, at: Timestamp) -> Result<Evaluated, Failed> {
        let own = self.own(&self.locks_of(key)?);
        let there = own.is_some_and(|own| proves(&own, seq, at));
        Ok(Evaluated::Answer(self.reply(TxnAnswer::Proven(there), None)))
    }

    fn intend(
        &self,
        key: &Key,
        own: Option<LockRecord>,
        newest: Option<&Version>,
        value: Option<Bytes>,
    ) -> Result<(Vec<Edit>, Timestamp), Failed> {
        let above = newest.map_or(Timestamp::ZERO, |version| version.timestamp.next());
        let at = self.header.write.max(self.header.read).max(self.floor).max(above);
        self.lay(key, own, Strength::Intent, value, at)
    }

    /// Reads a key that is about to be written: the value as the transaction sees it, unless the write was done before.
    fn compare_and_set(&self, key: &Key, expected: Option<&Bytes>, new: Option<Bytes>) -> Result<Evaluated, Failed> {
        let met = self.meet(key, Strength::Intent)?;
        if !met.blockers.is_empty() {
            return Ok(Evaluated::Blocked(met.blockers));
        }
        let swapped = TxnAnswer::Compared { swapped: true, actual: None };
        if let Some(ts) = self.written_before(key, met.own.as_ref())? {
            return Ok(Evaluated::Answer(self.reply(swapped, Some(ts))));
        }
        self.check_done(key)?;
        let newest = self.newest_within(key)?;
        let actual = self.own_row(key, met.own.as_ref()).unwrap_or_else(|| visible(key, newest.clone()));
        let actual = actual.map(|row| row.value);
        if actual.as_ref() != expected {
            let answer = TxnAnswer::Compared { swapped: false, actual };
            return Ok(Evaluated::Answer(self.reply(answer, met.own.map(|own| own.ts))));
        }
        let (edits, ts) = self.intend(key, met.own, newest.as_ref(), new)?;
        Ok(Evaluated::edit(edits, self.reply(swapped, Some(ts))))
    }

    fn increment(&self, Increment { key, by }: &Increment) -> Result<Evaluated, Failed> {
        let met = self.meet(key, Strength::Intent)?;
        if !met.blockers.is_empty() {
            return Ok(Evaluated::Blocked(met.blockers));
        }
        if let Some(ts) = self.written_before(key, met.own.as_ref())? {
            let written = met.own.as_ref().map(|own| own.own_value(self.header.seq, &self.header.ignored));
            let value = if let Some(OwnValue::Value(value)) = written { value } else { None };
            return Ok(Evaluated::Answer(self.reply(TxnAnswer::Number(number(key, value.as_ref())?), Some(ts))));
        }
        self.check_done(key)?;
        let newest = self.newest_within(key)?;
        let row = self.own_row(key, met.own.as_ref()).unwrap_or_else(|| visible(key, newest.clone()));
        let value = number(key, row.map(|row| row.value).as_ref())?;
        let sum = sum(key, value, *by)?;
        let bytes = Bytes::copy_from_slice(&sum.to_be_bytes());
        let (edits, ts) = self.intend(key, met.own, newest.as_ref(), Some(bytes))?;
        Ok(Evaluated::edit(edits, self.reply(TxnAnswer::Number(sum), Some(ts))))
    }

    fn delete_range(&self, span: &KeySpan, keys_max: u64) -> Result<Evaluated, Failed> {
        let bounds = ScanBounds { reverse: false, rows_max: keys_max.clamp(1, PIECE_KEYS), bytes_max: u64::MAX };
        let mut rows =
            mvcc::scan(self.reader, span, self.window(), bounds).map_err(|error| of_mvcc(error, self.header.read))?;
        let seen = covered(span, false, rows.resume.as_ref());
        let me = Some(self.header.meta.id);
        let (blockers, own) = self.meets_in(&seen, |key, lock| conflicts::of_lock(key, lock, me, false))?;
        if !blockers.is_empty() {
            return Ok(Evaluated::Blocked(blockers));
        }
        let locks: std::collections::BTreeMap<Key, LockRecord> = own.iter().cloned().collect();
        self.overlay(&mut rows, own, bounds);
        let (mut edits, mut highest, mut keys) = (Vec::new(), Timestamp::ZERO, Vec::new());
        for row in rows.rows {
            let lock = locks.get(&row.key).cloned();
            let done = self.written_before(&row.key, lock.as_ref())?;
            if done.is_none() {
                let newest = self.newest_within(&row.key)?;
                let (laid, ts) = self.intend(&row.key, lock, newest.as_ref(), None)?;
                edits.extend(laid);
                highest = highest.max(ts);
            }
            highest = highest.max(done.unwrap_or_default());
            keys.push(row.key);
        }
        let locked = (!keys.is_empty()).then_some(highest);
        let reply = self.reply(TxnAnswer::Deleted { keys, resume: rows.resume }, locked);
        Ok(Evaluated::edit(edits, reply))
    }

    /// Whether nobody else has written, or is about to write, what was read.
    fn refresh(&self, span: &KeySpan, from: Timestamp, to: Timestamp) -> Result<Evaluated, Failed> {
        if let Some((key, version)) = mvcc::changed_in(self.reader, span, from, to)? {
            return refuse(TxnRefusal::RefreshFailed { key, other: writer(&version) });
        }
        let window = ReadWindow::exactly(to);
        let (blockers, _) = self.meets_in(span, |key, lock| self.blocks_read(key, lock, window))?;
        if let Some(first) = blockers.into_iter().next() {
            return refuse(TxnRefusal::RefreshFailed { key: first.key, other: Some(first.txn.id) });
        }
        Ok(Evaluated::Answer(self.reply(TxnAnswer::Refreshed, None)))
    }
}

/// Whether a lock is the intent of this write, at or below a timestamp.
pub(crate) fn proves(lock: &LockRecord, seq: Seq, at: Timestamp) -> bool {
    lock.strength == Strength::Intent && lock.seq == seq && lock.ts <= at
}

/// Who wrote a version: a transaction that its client drives is known by its own id, everybody else by the request's.
fn writer(version: &Version) -> Option<TxnId> {
    version.request.map(TxnId::from)
}

fn visible(key: &Key, version: Option<Version>) -> Option<Row> {
    let version = version?;
    version.value.map(|value| Row { key: key.clone(), value, timestamp: version.timestamp })
}

/// What a scan has looked at: all of its span, or up to where it goes on.
pub(crate) fn covered(span: &KeySpan, reverse: bool, resume: Option<&Key>) -> KeySpan {
    match resume {
        None => span.clone(),
        Some(key) if reverse => KeySpan { start: key.clone(), end: span.end.clone() },
        Some(key) => KeySpan { start: span.start.clone(), end: key.clone() },
    }
}
