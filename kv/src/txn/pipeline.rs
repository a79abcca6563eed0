//! Writes that are answered early: the leaseholder has taken them, and nobody knows yet whether they come to pass. Each is proven
//! before anything rests on it: before a step that touches its key, and at the commit.

use std::time::Duration;

use flotilla_types::{
    Claim, Command, Key, KeySpan, RangeDescriptor, Reply, Seq, Timestamp, TxnAnswer, TxnHeader, TxnMeta, TxnOp, Wait,
};
use futures::future::{join, try_join_all};

use super::at_once::{IN_FLIGHT_BYTES, IN_FLIGHT_MAX, stage};
use super::{Phase, Txn};
use crate::error::RetryReason;
use crate::send::{Cut, Place};
use crate::{KvError, Router};

/// Writes that one transaction may have under way.
const UNDER_WAY_MAX: usize = 1024;
/// Writes that are looked for at once.
const PROOFS_AT_ONCE: usize = 64;

impl Router {
    /// Looks for writes of a transaction, each at or below the header's timestamp. The first that is not there, and never will be.
    pub(super) async fn prove(
        &self,
        header: &TxnHeader,
        claims: &[Claim],
        deadline: Duration,
    ) -> Result<Option<Key>, KvError> {
        for claims in claims.chunks(PROOFS_AT_ONCE) {
            let proofs = claims.iter().map(|claim| {
                let op = TxnOp::Prove { key: claim.key.clone(), seq: claim.seq, at: header.read };
                let header = Box::new(header.clone());
                let cut = move |_: &RangeDescriptor| Cut::Ask(Command::Txn { header: header.clone(), op: op.clone() });
                let place = Place::Of(claim.key.clone());
                async move { self.send(&place, deadline, cut).await }
            });
            let proofs = try_join_all(proofs).await?;
            let is_missing = |reply: &Reply| !matches!(reply, Reply::Txn { answer: TxnAnswer::Proven(true), .. });
            let missing = claims.iter().zip(proofs).find(|(_, (reply, _))| is_missing(&reply.reply));
            if let Some((claim, _)) = missing {
                return Ok(Some(claim.key.clone()));
            }
        }
        Ok(None)
    }
}

impl Txn {
    /// Whether a write of a key may be answered early.
    pub(super) fn may_pipeline(&self) -> bool {
        self.router.shared.config.txn.pipelining && self.is_serializable() && self.in_flight.len() < UNDER_WAY_MAX
    }

    /// The writes under way in a span.
    fn under_way(&self, span: &KeySpan) -> Vec<Claim> {
        if self.in_flight.is_empty() || span.start >= span.end {
            return Vec::new();
        }
        let inside = self.in_flight.range(span.start.clone()..span.end.clone());
        inside.map(|(key, seq)| Claim { key: key.clone(), seq: *seq }).collect()
    }

    /// All writes under way.
    pub(super) fn claims(&self) -> Vec<Claim> {
        self.in_flight.iter().map(|(key, seq)| Claim { key: key.clone(), seq: *seq }).collect()
    }

    /// Makes sure of the writes under way in a span.
    pub(super) async fn prove_in(&mut self, span: &KeySpan, deadline: Duration) -> Result<(), KvError> {
        let claims = self.under_way(span);
        self.prove_these(&claims, deadline).await
    }

    pub(super) async fn prove_these(&mut self, claims: &[Claim], deadline: Duration) -> Result<(), KvError> {
        let Some(first) = claims.first() else { return Ok(()) };
        let at = self.stamps()?.write;
        let header = self.proving(&first.key, at)?;
        let missing = self.router.prove(&header, claims, deadline).await?;
        if let Some(key) = missing {
            self.phase = Phase::Failed;
            return Err(lost(key));
        }
        for claim in claims {
            self.in_flight.remove(&claim.key);
        }
        Ok(())
    }

    fn proving(&mut self, first: &Key, at: Timestamp) -> Result<TxnHeader, KvError> {
        let header = self.header(first, Seq::default(), Wait::Error)?;
        Ok(TxnHeader { read: at, write: at, limit: at, can_forward: false, ..header })
    }

    /// Writes the record beside the proofs of what is under way (parallel commit). `Some`: it is committed. After an error the
    /// record has to be asked before anything is told.
    pub(super) async fn commit_in_parallel(
        &mut self,
        meta: &TxnMeta,
        at: Timestamp,
        deadline: Duration,
    ) -> Result<Option<Timestamp>, KvError> {
        let claims = self.claims();
        let bytes: usize = claims.iter().map(|claim| claim.key.as_bytes().len()).sum();
        let many = claims.len() > IN_FLIGHT_MAX || bytes > IN_FLIGHT_BYTES;
        if many || self.staged || !self.router.shared.config.txn.parallel_commit {
            return self.prove_these(&claims, deadline).await.map(|()| None);
        }
        let header = self.proving(&meta.anchor, at)?;
        self.staged = true;
        let router = self.router.clone();
        let (ignored, lock_spans) = (self.ignored.clone(), super::heartbeat::spans(&self.beating.locks()));
        let record = stage(&router, meta, at, claims.clone(), ignored, lock_spans, deadline);
        let (record, missing) = join(record, router.prove(&header, &claims, deadline)).await;
        let staged = self.judge_record(Some(record))?;
        if let Some(key) = missing? {
            return Err(lost(key));
        }
        self.in_flight.clear();
        Ok(staged.then_some(at))
    }
}

fn lost(key: Key) -> KvError {
    let why = format!("its write of {key} was lost");
    KvError::RetryTxn { reason: RetryReason::WriteLost, why, key: Some(key), other: None }
}
