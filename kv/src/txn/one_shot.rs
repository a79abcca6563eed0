//! Transactions that are known as a whole: atomic batches over several ranges, and conditional transactions. Nothing is told
//! to the caller before the end, so that they are redone here until they pass.
//!
//! In one range: one request, evaluated there without locks. In several: all reads at once, then all writes at once, and
//! with them the record (parallel commit): one round of consensus. What has comparisons writes its record after its writes, since a
//! repetition might take the other branch, and then only the record tells that it was done. A branch that names a key twice
//! goes step by step.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{
    BatchOp, Command, Increment, Key, KeySpan, OneShot, Outcome, RangeDescriptor, Reply, RequestId, Row, Timestamp,
    TxnState, Wait, Whole, Write, WriteResult,
};

use super::at_once::Writes;
use super::{Committed, Txn, TxnHandle, TxnOptions};
use crate::backoff::Backoff;
use crate::send::{Cut, Place};
use crate::{DeleteAnswer, KvError, Router};

/// Tries that write everything at once. A transaction that others are in the way of fares better if it takes its locks in order.
const AT_ONCE_TRIES: u32 = 2;

/// What a conditional transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResult {
    /// Whether all comparisons held.
    pub held: bool,
    /// The answers to the steps of the branch that ran: rows that were read, `None` for writes and absent keys, counters as
    /// they stand then. Empty if an earlier try of the same request had done it.
    pub rows: Vec<Option<Row>>,
    /// When.
    pub at: Timestamp,
}

/// What goes at once of a branch that names no key twice.
struct Plan {
    reads: Vec<Key>,
    writes: Writes,
}

impl Plan {
    fn of(branch: &[OneShot]) -> Option<Self> {
        let (mut seen, mut plan) = (BTreeSet::new(), Self { reads: Vec::new(), writes: Writes::default() });
        for step in branch {
            if !seen.insert(step.key()) {
                return None;
            }
            match step.clone() {
                OneShot::Get(key) => plan.reads.push(key),
                OneShot::Write(key, value) => plan.writes.blind.push((key, value)),
                OneShot::Increment(key, by) => plan.writes.increments.push(Increment { key, by }),
            }
        }
        Some(plan)
    }
}

impl Router {
    /// Writes in several ranges, all or nothing.
    ///
    /// # Errors
    /// See `KvError`.
    pub(crate) async fn batch_over_ranges(
        &self,
        id: RequestId,
        ops: &[BatchOp],
        deadline: Duration,
    ) -> Result<Timestamp, KvError> {
        let steps = ops.iter().map(|op| match op {
            BatchOp::Put { key, value } => OneShot::Write(key.clone(), Some(value.clone())),
            BatchOp::Delete { key } => OneShot::Write(key.clone(), None),
        });
        let whole = Whole { then: steps.collect(), ..Whole::default() };
        Ok(self.over_ranges(id, &whole, deadline).await?.at)
    }

    /// If all comparisons hold, does the first branch, else the second: all or nothing, at one timestamp. The same id on
    /// every retry makes it take effect once.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn transact(&self, id: RequestId, whole: &Whole, deadline: Duration) -> Result<TxnResult, KvError> {
        let write = Write::Whole(Box::new(whole.clone()));
        let Some(span) = write.span() else {
            return Err(KvError::Invalid { what: "a transaction is empty: name at least one key".to_owned() });
        };
        if self.shared.config.txn.one_phase && self.is_one_range(&span, deadline).await? {
            match self.in_one_range(id, write, &span, deadline).await {
                Err(KvError::CrossesRanges { .. }) => {}
                done => return done,
            }
        }
        self.over_ranges(id, whole, deadline).await
    }

    /// Whether a span lies in one range, as far as is known. A span that does not never will.
    pub(crate) async fn is_one_range(&self, span: &KeySpan, deadline: Duration) -> Result<bool, KvError> {
        Ok(self.find(&Place::Of(span.start.clone()), deadline).await?.span.covers(span))
    }

    async fn in_one_range(
        &self,
        id: RequestId,
        write: Write,
        span: &KeySpan,
        deadline: Duration,
    ) -> Result<TxnResult, KvError> {
        let cut = |owner: &RangeDescriptor| {
            if owner.span.covers(span) {
                Cut::Ask(Command::Write { id, write: write.clone() })
            } else {
                Cut::Refuse(KvError::CrossesRanges { boundary: owner.span.end.clone() })
            }
        };
        let (reply, _) = self.send(&Place::Of(span.start.clone()), deadline, cut).await?;
        let Reply::Write(WriteResult::Whole { held, rows }) = reply.reply else {
            return Err(KvError::Ambiguous { why: "a transaction was answered by something else".to_owned() });
        };
        super::count_commit("one_phase");
        Ok(TxnResult { held: held.unwrap_or(true), rows: rows.unwrap_or_default(), at: reply.timestamp })
    }

    async fn over_ranges(&self, id: RequestId, whole: &Whole, deadline: Duration) -> Result<TxnResult, KvError> {
        let Some(anchor) = whole.keys().min() else {
            return Err(KvError::Invalid { what: "a transaction is empty: name at least one key".to_owned() });
        };
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(100));
        for tries in 1.. {
            let own = self.request_id()?;
            let mut txn = self.begin_as(id, TxnOptions::default(), own.into());
            txn.anchor_at(anchor.clone());
            let done = txn.do_whole(whole, tries <= AT_ONCE_TRIES, deadline).await;
            if let Err(error) = &done {
                txn.fails_by(error);
            }
            let error = match done {
                Err(error @ (KvError::RetryTxn { .. } | KvError::TxnAborted { .. })) => error,
                Err(KvError::CommitUnknown { why, .. }) => return Err(KvError::Ambiguous { why }),
                Err(KvError::AlreadyCommitted { at, held }) => {
                    return self.done_before(id, anchor, whole, at, held, deadline).await;
                }
                done => return done,
            };
            drop(txn);
            if self.shared.clock.mono() >= deadline {
                return Err(error);
            }
            metrics::counter!("flotilla_txn_one_shots_redone_total").increment(1);
            self.pause(backoff.pause(&self.shared.dice), deadline).await;
        }
        Err(KvError::DeadlineExceeded { why: "it was tried too often".to_owned() })
    }

    /// Removes the keys of a span, at most `keys_max` of them (0 for all), all or none.
    ///
    /// # Errors
    /// See `KvError`; `TxnTooLarge` if there are more than a transaction may lock.
    pub async fn delete_at_once(
        &self,
        id: RequestId,
        span: KeySpan,
        keys_max: u64,
        deadline: Duration,
    ) -> Result<DeleteAnswer, KvError> {
        if span.start >= span.end {
            return Err(KvError::Invalid { what: format!("{span} is empty: its end must lie above its start") });
        }
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(100));
        loop {
            let error = match self.try_to_delete(id, &span, keys_max, deadline).await {
                Err(error @ (KvError::RetryTxn { .. } | KvError::TxnAborted { .. })) => error,
                Err(KvError::CommitUnknown { why, .. }) => return Err(KvError::Ambiguous { why }),
                // What the span holds changes: only the record tells that it was done, and not how much it was.
                Err(KvError::AlreadyCommitted { at, .. }) => {
                    self.await_commit(at, deadline).await?;
                    return Ok(DeleteAnswer { keys: None, resume: None, timestamp: at });
                }
                done => return done,
            };
            if self.shared.clock.mono() >= deadline {
                return Err(error);
            }
            metrics::counter!("flotilla_txn_one_shots_redone_total").increment(1);
            self.pause(backoff.pause(&self.shared.dice), deadline).await;
        }
    }

    async fn try_to_delete(
        &self,
        id: RequestId,
        span: &KeySpan,
        keys_max: u64,
        deadline: Duration,
    ) -> Result<DeleteAnswer, KvError> {
        if let Some((at, held)) = self.peek(id, &span.start, deadline).await? {
            return Err(KvError::AlreadyCommitted { at, held });
        }
        let mut txn = self.begin_as(id, TxnOptions::default(), self.request_id()?.into());
        txn.anchor_at(span.start.clone());
        let (keys, resume) = txn.delete_range(span.clone(), keys_max, Wait::Block, deadline).await?;
        let Committed { at: timestamp } = txn.commit(deadline).await?;
        Ok(DeleteAnswer { keys: Some(keys), resume, timestamp })
    }

    /// An earlier try has committed: which branch it took.
    async fn done_before(
        &self,
        id: RequestId,
        anchor: &Key,
        whole: &Whole,
        at: Timestamp,
        held: Option<bool>,
        deadline: Duration,
    ) -> Result<TxnResult, KvError> {
        let held = if whole.compares.is_empty() { Some(true) } else { held };
        let held = match held {
            Some(held) => held,
            None => match self.peek(id, anchor, deadline).await? {
                Some((_, Some(held))) => held,
                _ => {
                    let why =
                        format!("an earlier try was committed at {at}; which branch it took is not known any more");
                    return Err(KvError::Ambiguous { why });
                }
            },
        };
        self.await_commit(at, deadline).await?;
        Ok(TxnResult { held, rows: Vec::new(), at })
    }

    /// Nobody is told of a commit that his clock has not reached.
    async fn await_commit(&self, at: Timestamp, deadline: Duration) -> Result<(), KvError> {
        let done = self.reach(at, deadline).await;
        done.map_err(|error| KvError::Ambiguous {
            why: format!("it is committed at {at}, which is not reached: {error}"),
        })
    }

    /// When an intention was committed, if it was, and which branch was taken. Decides nothing.
    async fn peek(
        &self,
        id: RequestId,
        anchor: &Key,
        deadline: Duration,
    ) -> Result<Option<(Timestamp, Option<bool>)>, KvError> {
        let born = Timestamp::from_wall(id.born_ms().saturating_mul(1_000_000));
        let handle = TxnHandle { id: id.into(), anchor: anchor.clone(), anchored: born, commit_id: id };
        Ok(match self.peek_outcome(&handle, deadline).await? {
            Some(TxnState::Ended { outcome: Outcome::Committed { at }, held }) => Some((at, held)),
            // So old that it may have been done and forgotten.
            None => {
                let why = "the request is so old that its record may have been forgotten".to_owned();
                return Err(KvError::Ambiguous { why });
            }
            _ => None,
        })
    }
}

impl Txn {
    /// One try.
    async fn do_whole(&mut self, whole: &Whole, at_once: bool, deadline: Duration) -> Result<TxnResult, KvError> {
        let compared: BTreeSet<Key> = whole.compares.iter().map(|compare| compare.key.clone()).collect();
        let found = self.read_at_once(compared.into_iter().collect(), deadline).await?;
        let value = |key: &Key| found.get(key).and_then(Option::as_ref).map(|row| &row.value);
        let held = whole.compares.iter().all(|compare| value(&compare.key) == compare.expected.as_ref());
        self.held = (!whole.compares.is_empty()).then_some(held);
        let branch = whole.branch(held);
        if self.held.is_some() && !branch.iter().any(OneShot::writes) {
            // An earlier try may have taken, or may yet take, the other branch: the record says which one counts.
            let anchor = whole.keys().min().cloned().unwrap_or_default();
            let header = self.header(&anchor, self.seq, Wait::Block)?;
            self.anchor(header.meta);
        }
        match Plan::of(branch) {
            Some(plan) if at_once => self.do_at_once(plan, branch, held, deadline).await,
            _ => self.do_in_order(branch, held, deadline).await,
        }
    }

    async fn do_at_once(
        &mut self,
        plan: Plan,
        branch: &[OneShot],
        held: bool,
        deadline: Duration,
    ) -> Result<TxnResult, KvError> {
        let found = self.read_at_once(plan.reads, deadline).await?;
        let stage = self.router.shared.config.txn.parallel_commit && self.held.is_none() && plan.writes.may_stage();
        let laid = match self.write_at_once(plan.writes, stage, deadline).await {
            Ok(laid) => laid,
            Err(error) => {
                let at = self.give_up_staged(error, deadline).await?;
                return Ok(TxnResult { held, rows: Vec::new(), at });
            }
        };
        let at = match laid.committed {
            Some(at) => {
                self.committed_by_stage(at);
                super::count_commit("parallel");
                self.await_clock(at, deadline).await?;
                at
            }
            None => self.commit_now(deadline).await?.at,
        };
        let rows = branch.iter().map(|step| match step {
            OneShot::Get(key) => found.get(key).cloned().flatten(),
            OneShot::Write(..) => None,
            OneShot::Increment(key, _) => laid.numbers.get(key).map(|value| counter(key, *value, at)),
        });
        Ok(TxnResult { held, rows: rows.collect(), at })
    }

    async fn do_in_order(&mut self, branch: &[OneShot], held: bool, deadline: Duration) -> Result<TxnResult, KvError> {
        let mut rows = Vec::new();
        for step in branch {
            rows.push(match step.clone() {
                OneShot::Get(key) => self.get(key, Wait::Block, deadline).await?,
                OneShot::Write(key, value) => {
                    self.write(key, value, Wait::Block, deadline).await?;
                    None
                }
                OneShot::Increment(key, by) => {
                    let value = self.increment(key.clone(), by, Wait::Block, deadline).await?;
                    Some(counter(&key, value, self.read_timestamp().unwrap_or_default()))
                }
            });
        }
        let at = self.commit_now(deadline).await?.at;
        Ok(TxnResult { held, rows, at })
    }
}

fn counter(key: &Key, value: i64, timestamp: Timestamp) -> Row {
    Row { key: key.clone(), value: Bytes::copy_from_slice(&value.to_be_bytes()), timestamp }
}
