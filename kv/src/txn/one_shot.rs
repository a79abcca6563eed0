//! Transactions that are known as a whole: atomic batches over several ranges, and conditional transactions. Nothing is told
//! to the caller before the end, so that they are redone here until they pass.

use std::time::Duration;

use bytes::Bytes;
use flotilla_types::{BatchOp, Key, Outcome, RequestId, Row, Timestamp, Wait};

use super::{TxnHandle, TxnOptions};
use crate::backoff::Backoff;
use crate::{KvError, Router};

/// What must hold for the first branch of a conditional transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Which key.
    pub key: Key,
    /// The value it must have; `None`: it must be absent.
    pub expected: Option<Bytes>,
}

/// One step of a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OneShot {
    /// Reads a key.
    Get(Key),
    /// Sets a key, or removes it with `None`.
    Write(Key, Option<Bytes>),
    /// Adds to a counter.
    Increment(Key, i64),
}

impl OneShot {
    const fn key(&self) -> &Key {
        match self {
            Self::Get(key) | Self::Write(key, _) | Self::Increment(key, _) => key,
        }
    }
}

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
        let steps: Vec<_> = ops
            .iter()
            .map(|op| match op {
                BatchOp::Put { key, value } => OneShot::Write(key.clone(), Some(value.clone())),
                BatchOp::Delete { key } => OneShot::Write(key.clone(), None),
            })
            .collect();
        Ok(self.transact(id, &[], &steps, &[], deadline).await?.at)
    }

    /// If all comparisons hold, does the first branch, else the second: all or nothing, at one timestamp. The same id on
    /// every retry makes it take effect once.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn transact(
        &self,
        id: RequestId,
        compares: &[Compare],
        then: &[OneShot],
        otherwise: &[OneShot],
        deadline: Duration,
    ) -> Result<TxnResult, KvError> {
        let named = compares.iter().map(|compare| &compare.key);
        let Some(anchor) = named.chain(then.iter().chain(otherwise).map(OneShot::key)).min() else {
            return Err(KvError::Invalid { what: "a transaction is empty: name at least one key".to_owned() });
        };
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(100));
        loop {
            let error = match self.try_once(id, anchor, compares, then, otherwise, deadline).await {
                Err(error @ (KvError::RetryTxn { .. } | KvError::TxnAborted { .. })) => error,
                Err(KvError::CommitUnknown { why, .. }) => return Err(KvError::Ambiguous { why }),
                done => return done,
            };
            if self.shared.clock.mono() >= deadline {
                return Err(error);
            }
            self.pause(backoff.pause(&self.shared.dice), deadline).await;
        }
    }

    async fn try_once(
        &self,
        id: RequestId,
        anchor: &Key,
        compares: &[Compare],
        then: &[OneShot],
        otherwise: &[OneShot],
        deadline: Duration,
    ) -> Result<TxnResult, KvError> {
        let own = self.request_id()?;
        let mut txn = self.begin_as(id, TxnOptions::default(), own.into());
        txn.anchor_at(anchor.clone());
        let mut held = true;
        for Compare { key, expected } in compares {
            let row = txn.get(key.clone(), deadline).await?;
            held &= row.map(|row| row.value) == *expected;
        }
        let (mut rows, mut writes) = (Vec::new(), false);
        for step in if held { then } else { otherwise } {
            let row = match step {
                OneShot::Get(key) => txn.get(key.clone(), deadline).await,
                OneShot::Write(key, value) => {
                    writes = true;
                    txn.write(key.clone(), value.clone(), Wait::Block, deadline).await.map(|()| None)
                }
                OneShot::Increment(key, by) => {
                    writes = true;
                    let sum = txn.increment(key.clone(), *by, Wait::Block, deadline).await;
                    sum.map(|sum| {
                        let value = Bytes::copy_from_slice(&sum.to_be_bytes());
                        Some(Row { key: key.clone(), value, timestamp: Timestamp::ZERO })
                    })
                }
            };
            match row {
                Ok(row) => rows.push(row),
                Err(KvError::AlreadyCommitted { at }) => return Ok(TxnResult { held, rows: Vec::new(), at }),
                Err(error) => return Err(error),
            }
        }
        let fixed = writes || (then.is_empty() && compares.is_empty());
        if !fixed {
            // What it writes depends on what it read, and an earlier try may have written and so changed that.
            let born = Timestamp::from_wall(id.born_ms().saturating_mul(1_000_000));
            let handle = TxnHandle { id: own.into(), anchor: anchor.clone(), anchored: born, commit_id: id };
            if let Some(Outcome::Committed { at }) = self.peek_outcome(&handle, deadline).await? {
                return Ok(TxnResult { held: !held, rows: Vec::new(), at });
            }
        }
        let committed = txn.commit(deadline).await?;
        Ok(TxnResult { held, rows, at: committed.at })
    }
}
