//! Operations: each goes to the range of its key, or range by range over its span; what the range met is mended here if it can
//! be.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{
    Command, Increment, Isolation, Key, KeySpan, RangeDescriptor, RangeReply, Reply, Row, Seq, SeqRange, Strength,
    Timestamp, TxnAnswer, TxnHeader, TxnMeta, TxnOp, TxnRefusal, Wait,
};

use super::{Call, Phase, Stamps, Txn, aborted};
use crate::read::{ScanChunk, ScanRequest, after, begin, trim};
use crate::send::{Cut, Failed, Place};
use crate::{KvError, RetryReason};

/// How often one operation is mended and sent again.
pub(super) const MENDED_MAX: u32 = 10;
/// Keys that one piece of a range delete removes.
const PIECE_KEYS: u64 = 256;

impl Txn {
    /// Reads a key.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn get(&mut self, key: Key, wait: Wait, deadline: Duration) -> Result<Option<Row>, KvError> {
        self.get_with(key, None, Call::of(wait, deadline)).await
    }

    /// Reads a key and locks it, until the end of the transaction: `Shared` against writers, `Exclusive` against everybody who
    /// writes or locks. With `Wait::Skip` a key that is locked by others counts as absent.
    ///
    /// # Errors
    /// See `KvError`; `Locked` if others hold it and the wait policy or the deadline ends the wait.
    pub async fn get_and_lock(
        &mut self,
        key: Key,
        strength: Strength,
        wait: Wait,
        deadline: Duration,
    ) -> Result<Option<Row>, KvError> {
        self.get_with(key, Some(strength), Call::of(wait, deadline)).await
    }

    async fn get_with(&mut self, key: Key, lock: Option<Strength>, call: Call) -> Result<Option<Row>, KvError> {
        match self.point(TxnOp::Get { key, lock }, call).await? {
            TxnAnswer::Row(row) => Ok(row),
            _ => Err(self.strange()),
        }
    }

    /// Sets a key, or removes it with `None`.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn write(
        &mut self,
        key: Key,
        value: Option<Bytes>,
        wait: Wait,
        deadline: Duration,
    ) -> Result<(), KvError> {
        // Nobody else has written what this transaction holds locked.
        let was_read = self.reads.may_hold(&key) && !self.beating.locks().contains(&key);
        let pipelined = !was_read && self.may_pipeline();
        let call = Call { pipelined, ..Call::of(wait, deadline) };
        let TxnAnswer::Written = self.point(TxnOp::Write { key: key.clone(), value, was_read }, call).await? else {
            return Err(self.strange());
        };
        if pipelined {
            self.in_flight.insert(key, self.seq);
        }
        Ok(())
    }

    /// Sets or removes a key if its value is what the caller expects. Returns whether it was, and what was there if not.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn compare_and_set(
        &mut self,
        key: Key,
        expected: Option<Bytes>,
        new: Option<Bytes>,
        wait: Wait,
        deadline: Duration,
    ) -> Result<(bool, Option<Bytes>), KvError> {
        match self.point(TxnOp::CompareAndSet { key, expected, new }, Call::of(wait, deadline)).await? {
            TxnAnswer::Compared { swapped, actual } => Ok((swapped, actual)),
            _ => Err(self.strange()),
        }
    }

    /// Adds to a counter and returns what it holds then.
    ///
    /// # Errors
    /// See `KvError`; `Invalid` if the value is no counter.
    pub async fn increment(&mut self, key: Key, by: i64, wait: Wait, deadline: Duration) -> Result<i64, KvError> {
        match self.point(TxnOp::Increment(Increment { key, by }), Call::of(wait, deadline)).await? {
            TxnAnswer::Number(value) => Ok(value),
            _ => Err(self.strange()),
        }
    }

    /// Removes the keys of a span, at most `keys_max` of them (0 for all), and returns how many there were, and where to go on if
    /// that was not all.
    ///
    /// # Errors
    /// See `KvError`; `TxnTooLarge` if there are more than a transaction may lock.
    pub async fn delete_range(
        &mut self,
        span: KeySpan,
        keys_max: u64,
        wait: Wait,
        deadline: Duration,
    ) -> Result<(u64, Option<Key>), KvError> {
        self.prove_in(&span, deadline).await?;
        let (mut rest, mut removed) = (span, 0);
        let keys_max = if keys_max == 0 { u64::MAX } else { keys_max };
        while rest.start < rest.end {
            if removed == keys_max {
                return Ok((removed, Some(rest.start)));
            }
            let mut asked = rest.clone();
            let (reply, locked) = self
                .step(&rest.start.clone(), Call { locks: true, ..Call::of(wait, deadline) }, |owner| {
                    asked = owner.span.intersection(&rest)?;
                    let keys_max = PIECE_KEYS.min(keys_max - removed);
                    Some(TxnOp::DeleteRange { span: asked.clone(), keys_max })
                })
                .await?;
            let TxnAnswer::Deleted { keys, resume } = reply else { return Err(self.strange()) };
            let done = KeySpan { start: rest.start.clone(), end: resume.clone().unwrap_or_else(|| asked.end.clone()) };
            removed += keys.len() as u64;
            self.hold(keys, 0, locked)?;
            rest.start = done.end.clone();
            self.reads.insert(done);
        }
        Ok((removed, None))
    }

    /// Reads the next part of a span. Own writes are seen.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn scan(&mut self, request: ScanRequest, wait: Wait, deadline: Duration) -> Result<ScanChunk, KvError> {
        if request.span.start >= request.span.end {
            let what = format!("{} is empty: its end must lie above its start", request.span);
            return Err(KvError::Invalid { what });
        }
        self.check_active()?;
        self.stamps()?;
        self.prove_in(&request.span, deadline).await?;
        let by_statement = self.options.isolation == Isolation::ReadCommitted && self.options.at.is_none();
        loop {
            if by_statement {
                self.new_statement()?;
            }
            // Nothing that was told before has to agree with what is read now.
            let fresh = self.reads.spans.is_empty() && self.meta.is_none();
            match self.scan_once(&request, wait, deadline).await {
                Err(KvError::RetryTxn { .. })
                    if (fresh || by_statement) && self.router.shared.clock.mono() < deadline =>
                {
                    self.read_later()?;
                }
                done => return done,
            }
        }
    }

    /// Takes a later snapshot. What was acknowledged before the transaction began lies at or below the same limit as before: a
    /// snapshot that has come so far meets nothing uncertain any more.
    fn read_later(&mut self) -> Result<(), KvError> {
        let now = self.router.shared.clock.now()?;
        (self.phase, self.cause) = (Phase::Active, None);
        self.reads = super::Reads::default();
        if let Some(stamps) = &mut self.clock {
            stamps.read = stamps.read.max(now);
            stamps.write = stamps.write.max(stamps.read);
            stamps.limit = stamps.limit.max(stamps.read);
        }
        Ok(())
    }

    async fn scan_once(&mut self, request: &ScanRequest, wait: Wait, deadline: Duration) -> Result<ScanChunk, KvError> {
        let mut chunk = ScanChunk { rows: Vec::new(), resume: None, timestamp: Timestamp::ZERO };
        let (mut rest, mut bytes) = (request.span.clone(), 0u64);
        let call = Call { is_piece: true, ..Call::of(wait, deadline) };
        loop {
            let rows_max = request.rows_max.saturating_sub(chunk.rows.len() as u64);
            let bytes_max = request.bytes_max.saturating_sub(bytes).max(1);
            let mut asked = rest.clone();
            let place = begin(request, &rest);
            let (answer, _) = self
                .step_at(&place, &rest.start.clone(), call, |owner| {
                    asked = owner.span.intersection(&rest)?;
                    let (span, reverse) = (asked.clone(), request.reverse);
                    Some(TxnOp::Scan { span, reverse, rows_max, bytes_max })
                })
                .await?;
            let TxnAnswer::Rows(result) = answer else { return Err(self.strange()) };
            bytes += result.rows.iter().map(|row| (row.key.as_bytes().len() + row.value.len()) as u64).sum::<u64>();
            chunk.rows.extend(result.rows);
            let next = result.resume.or_else(|| after(&asked, &rest, request.reverse));
            // Each piece at once: the next one is read at the same timestamp, or all before are looked at again.
            let done = next.as_ref().map_or_else(|| rest.clone(), |key| passed(&rest, key, request.reverse));
            self.reads.insert(done);
            let rows_full = request.rows_max > 0 && chunk.rows.len() as u64 >= request.rows_max;
            match next {
                Some(key) if bytes >= request.bytes_max || rows_full => {
                    chunk.resume = Some(key);
                    break;
                }
                Some(key) if request.reverse => rest.end = key,
                Some(key) => rest.start = key,
                None => break,
            }
        }
        trim(&mut chunk, request);
        chunk.timestamp = self.clock.map(|clock| clock.read).unwrap_or_default();
        Ok(chunk)
    }

    /// An operation on one key.
    async fn point(&mut self, op: TxnOp, call: Call) -> Result<TxnAnswer, KvError> {
        let span = op.span();
        let weight = match &op {
            TxnOp::Write { value: Some(value), .. } | TxnOp::CompareAndSet { new: Some(value), .. } => value.len(),
            _ => 0,
        };
        let call = Call { locks: op.locks(), ..call };
        self.prove_in(&span, call.deadline).await?;
        let (answer, locked) = self.step(&span.start, call, |_| Some(op.clone())).await?;
        // What was skipped is no matter of this transaction.
        let skipped = call.wait == Wait::Skip && call.locks && locked.is_none();
        if op.reads() && !skipped {
            self.reads.insert(span.clone());
        }
        self.hold(if locked.is_some() { vec![span.start] } else { Vec::new() }, weight, locked)?;
        Ok(answer)
    }

    /// These keys are locked now.
    pub(super) fn hold(&mut self, keys: Vec<Key>, weight: usize, locked: Option<Timestamp>) -> Result<(), KvError> {
        if let (Some(clock), Some(locked)) = (&mut self.clock, locked) {
            clock.write = clock.write.max(locked);
        }
        self.bytes += weight;
        for key in keys {
            self.bytes += key.as_bytes().len();
            self.beating.locks().insert(key);
        }
        let limits = self.router.shared.config.txn;
        let what = if self.beating.locks().len() > limits.locks_max {
            format!("it has locked more than {} keys (--txn-locks-max)", limits.locks_max)
        } else if self.bytes > limits.bytes_max {
            format!("it has written more than {} bytes (--txn-bytes-max)", limits.bytes_max)
        } else {
            return Ok(());
        };
        let error = KvError::TxnTooLarge { what };
        self.phase = Phase::Failed;
        self.fails_by(&error);
        Err(error)
    }

    async fn step(
        &mut self,
        first: &Key,
        call: Call,
        cut: impl FnMut(&RangeDescriptor) -> Option<TxnOp>,
    ) -> Result<(TxnAnswer, Option<Timestamp>), KvError> {
        self.step_at(&Place::Of(first.clone()), first, call, cut).await
    }

    fn check_active(&self) -> Result<(), KvError> {
        match self.phase {
            Phase::Active => Ok(()),
            Phase::Failed => Err(KvError::TxnFailed),
            Phase::Ended => Err(KvError::Invalid { what: "the transaction has ended".to_owned() }),
        }
    }

    /// Sends an operation, and again at another timestamp if that helps.
    async fn step_at(
        &mut self,
        place: &Place,
        first: &Key,
        call: Call,
        cut: impl FnMut(&RangeDescriptor) -> Option<TxnOp>,
    ) -> Result<(TxnAnswer, Option<Timestamp>), KvError> {
        self.check_active()?;
        let done = self.try_step(place, first, call, cut).await;
        // A lock that is held, or a request that makes no sense, leaves the transaction as it was, as a failed statement
        // would in PostgreSQL after a rollback to the savepoint before it.
        match &done {
            // A copy of the request may arrive all the same: what it lays does not count.
            Err(KvError::Locked(_) | KvError::Invalid { .. }) if call.locks => {
                self.ignore(SeqRange { from: self.seq, to: self.seq });
                self.beating.locks().insert(first.clone());
            }
            Err(KvError::Locked(_) | KvError::Invalid { .. }) | Ok(_) => {}
            Err(error) => {
                self.phase = Phase::Failed;
                self.fails_by(error);
            }
        }
        done
    }

    async fn try_step(
        &mut self,
        place: &Place,
        first: &Key,
        call: Call,
        mut cut: impl FnMut(&RangeDescriptor) -> Option<TxnOp>,
    ) -> Result<(TxnAnswer, Option<Timestamp>), KvError> {
        self.stamps()?;
        if call.locks && self.options.at.is_some() {
            let what = "a transaction that reads the past locks and writes nothing".to_owned();
            return Err(KvError::Invalid { what });
        }
        let by_statement =
            self.options.isolation == Isolation::ReadCommitted && !call.is_piece && self.options.at.is_none();
        if by_statement {
            self.new_statement()?;
        }
        self.seq = self.seq.next();
        let statement = self.seq;
        let mut met = (RetryReason::Uncertain, first.clone(), None);
        for _ in 0..MENDED_MAX {
            if self.beating.is_aborted() {
                return Err(aborted());
            }
            let mut header = self.header(first, statement, call.wait)?;
            header.pipelined = call.pipelined;
            // Should the caller go in the middle, what was on its way is cleared, too.
            self.sending = call.locks.then(|| (header.meta.clone(), first.clone()));
            let sent = self.router.send(place, call.deadline, |owner| match cut(owner) {
                Some(op) => Cut::Ask(Command::Txn { header: Box::new(header.clone()), op }),
                None => Cut::Refuse(KvError::Unavailable { range: Some(owner.range), why: "it was cut".to_owned() }),
            });
            let sent = self.beating.unless_aborted(sent).await;
            let Some(sent) = sent else { return Err(aborted()) };
            self.sending = None;
            let newer = match sent {
                Ok((reply, _)) => {
                    self.began_to_lock(&header.meta, &reply);
                    return self.took(reply);
                }
                Err(Failed::Uncertain(existing)) => {
                    met = (RetryReason::Uncertain, first.clone(), None);
                    existing
                }
                Err(Failed::Refused(TxnRefusal::WriteTooOld { key, existing, other })) => {
                    met = (RetryReason::WriteTooOld, key, other);
                    existing
                }
                Err(failed) => {
                    // It may have locked something all the same. Nothing of it counts, as long as no commit was sent.
                    if let Failed::Kv(KvError::Ambiguous { why }) = failed {
                        self.doubt(&header.meta, first);
                        let (reason, key) = (RetryReason::AnswerLost, Some(first.clone()));
                        return Err(KvError::RetryTxn { reason, why, key, other: None });
                    }
                    return Err(failed.into());
                }
            };
            if by_statement {
                self.new_statement()?;
                continue;
            }
            let now = self.router.shared.clock.now()?;
            self.refresh_to(newer.max(now), call.deadline).await?;
        }
        let (reason, key, other) = met;
        let why = format!("others wrote {key}, which it reads, again and again");
        Err(KvError::RetryTxn { reason, why, key: Some(key), other })
    }

    /// A fresh snapshot, for the next statement.
    fn new_statement(&mut self) -> Result<(), KvError> {
        let clock = &self.router.shared.clock;
        let now = clock.now()?;
        if let Some(stamps) = &mut self.clock {
            stamps.read = stamps.read.max(now);
            stamps.write = stamps.write.max(stamps.read);
            stamps.limit = now.plus(clock.max_offset()).max(stamps.read);
            self.reads = super::Reads::default();
        }
        Ok(())
    }

    pub(super) fn header(&mut self, first: &Key, seq: Seq, wait: Wait) -> Result<TxnHeader, KvError> {
        let Stamps { born, read, write, limit } = self.stamps()?;
        let meta = match &self.meta {
            Some(meta) => meta.clone(),
            None => TxnMeta {
                id: self.id,
                anchor: self.anchor.clone().unwrap_or_else(|| first.clone()),
                anchored: self.router.shared.clock.now()?,
                min_ts: born,
                isolation: self.options.isolation,
                priority: self.options.priority,
                commit_id: self.commit_id,
            },
        };
        let can_forward = self.reads.spans.is_empty();
        let keep_from = self.savepoints.first().map_or(seq, |first| first.next());
        Ok(TxnHeader {
            meta,
            read,
            write: write.max(read),
            limit: limit.max(read),
            seq,
            ignored: self.ignored.clone(),
            keep_from,
            can_forward,
            wait,
            pipelined: false,
        })
    }

    pub(super) fn took(&mut self, reply: RangeReply) -> Result<(TxnAnswer, Option<Timestamp>), KvError> {
        let Reply::Txn { answer, locked } = reply.reply else { return Err(self.strange()) };
        if let Some(clock) = &mut self.clock {
            clock.read = clock.read.max(reply.timestamp);
            clock.write = clock.write.max(clock.read);
        }
        Ok((answer, locked))
    }

    /// The first lock may have been laid.
    fn began_to_lock(&mut self, meta: &TxnMeta, reply: &RangeReply) {
        if matches!(reply.reply, Reply::Txn { locked: Some(_), .. }) {
            self.anchor(meta.clone());
        }
    }

    /// A lock may have been laid.
    fn doubt(&mut self, meta: &TxnMeta, key: &Key) {
        self.anchor(meta.clone());
        self.beating.locks().insert(key.clone());
    }

    /// The anchor is fixed, and heartbeats begin.
    pub(super) fn anchor(&mut self, meta: TxnMeta) {
        if self.meta.is_some() {
            return;
        }
        self.meta = Some(meta.clone());
        self.beating.begin(&self.router, meta);
    }

    pub(super) fn strange(&self) -> KvError {
        KvError::Unavailable { range: None, why: "a transaction was answered by something else".to_owned() }
    }
}

/// What a scan has looked at when it goes on at a key.
fn passed(rest: &KeySpan, next: &Key, reverse: bool) -> KeySpan {
    if reverse {
        KeySpan { start: next.clone(), end: rest.end.clone() }
    } else {
        KeySpan { start: rest.start.clone(), end: next.clone() }
    }
}
