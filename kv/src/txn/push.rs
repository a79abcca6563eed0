//! Pushes, for requests that wait in a range of this node for the locks of a transaction.

use std::time::Duration;

use flotilla_types::{
    Edge, Isolation, Key, KeySpan, Outcome, Priority, PushResult, PushTxn, QueryTxn, RecordOp, Reply, RequestId, Seq,
    SeqRange, Staged, Timestamp, TxnHeader, TxnMeta, TxnState, Wait, Waiter,
};
use futures::FutureExt;

use crate::send::Place;
use crate::{KvError, Router};

/// How long a push may take; whoever waits pushes again.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the locks of an abandoned transaction are being cleared.
const CLEARED_WITHIN: Duration = Duration::from_secs(60);

/// So many locks of one transaction are probably not all that it left in their range.
const MANY: usize = 8;

impl Router {
    /// Asks the record of a transaction that has these keys locked to let the pusher pass. If it has ended, its locks on the
    /// keys are cleared before this returns.
    ///
    /// # Errors
    /// See `KvError`: it may be tried again.
    pub async fn push(&self, push: PushTxn, keys: Vec<Key>) -> Result<PushResult, KvError> {
        let waits = &self.shared.waits;
        let edge = waits.begins(&push, &keys, self.shared.clock.mono());
        let result = self.ask_to_pass(push, keys).await;
        if let Some(edge) = edge {
            waits.ends(&edge, &result);
        }
        result
    }

    async fn ask_to_pass(&self, mut push: PushTxn, keys: Vec<Key>) -> Result<PushResult, KvError> {
        let deadline = self.shared.clock.mono() + PATIENCE;
        if let Some(pusher) = &push.pusher {
            // Without an answer a deadlock is found later.
            if let Ok((ended, edges)) = self.edges(pusher, deadline).await {
                if ended {
                    return Ok(PushResult::PusherAborted);
                }
                push.edges = edges;
            }
        }
        let pushee = push.pushee.clone();
        let Reply::Pushed(result) = self.ask_record(RecordOp::Push(push), deadline).await? else {
            return Err(KvError::Unavailable { range: None, why: "a push was answered by something else".to_owned() });
        };
        let result = match result {
            PushResult::Indeterminate(staged) => {
                let Some(outcome) = self.recover(&pushee, &staged, deadline).await? else {
                    return Ok(PushResult::Waiting);
                };
                let lock_spans = staged.in_flight.iter().map(|claim| KeySpan::point(claim.key.clone())).collect();
                PushResult::Final { outcome, ignored: Vec::new(), lock_spans }
            }
            result => result,
        };
        if let PushResult::Final { outcome, ignored, lock_spans } = &result {
            self.resolve_keys(&pushee, *outcome, ignored, &keys, deadline).await?;
            let spans = self.left_behind(lock_spans, &keys, deadline).await?;
            self.clear_spans(pushee, *outcome, ignored.clone(), spans);
        }
        Ok(result)
    }

    /// Where locks of an ended transaction are looked for: where its record says, or, if that died before it could, in the range
    /// of those that were met, if they were many.
    async fn left_behind(
        &self,
        lock_spans: &[KeySpan],
        met: &[Key],
        deadline: Duration,
    ) -> Result<Vec<KeySpan>, KvError> {
        match met.first() {
            Some(first) if lock_spans.is_empty() && met.len() >= MANY => {
                Ok(vec![self.find(&Place::Of(first.clone()), deadline).await?.span.clone()])
            }
            _ => Ok(lock_spans.to_vec()),
        }
    }

    /// Clears what an ended transaction left, behind everybody's back, and then collects its record.
    fn clear_spans(&self, meta: TxnMeta, outcome: Outcome, ignored: Vec<SeqRange>, spans: Vec<KeySpan>) {
        if spans.is_empty() {
            return;
        }
        let router = self.clone();
        let task = async move {
            let until = router.shared.clock.mono() + CLEARED_WITHIN;
            for span in spans {
                if router.resolve_span(&meta, outcome, &ignored, span, until).await.is_err() {
                    // What is left is cleared by whoever meets it.
                    return;
                }
            }
            if matches!(outcome, Outcome::Committed { .. }) {
                drop(router.ask_record(RecordOp::Collect { meta }, until).await);
            }
        };
        self.shared.tasks.spawn(task.boxed());
    }

    /// Finds out whether all writes of a staged transaction are there, and has its record say so. Any number may do that at a
    /// time: the record obeys the first. `None`: it is not staged any more, and not ended either.
    pub(super) async fn recover(
        &self,
        meta: &TxnMeta,
        staged: &Staged,
        deadline: Duration,
    ) -> Result<Option<Outcome>, KvError> {
        let header = TxnHeader {
            meta: meta.clone(),
            read: staged.at,
            write: staged.at,
            limit: staged.at,
            seq: Seq::default(),
            ignored: Vec::new(),
            keep_from: Seq::default(),
            can_forward: false,
            wait: Wait::Error,
            pipelined: false,
        };
        let proven = self.prove(&header, &staged.in_flight, deadline).await?.is_none();
        let verdict = RecordOp::Recover { meta: meta.clone(), at: staged.at, proven };
        let what = if proven { "committed" } else { "aborted" };
        metrics::counter!("flotilla_txn_recoveries_total", "found" => what).increment(1);
        match self.ask_record(verdict, deadline).await? {
            Reply::Ended(outcome) => Ok(Some(outcome)),
            _ => Ok(None),
        }
    }

    /// Whether a transaction that waits was aborted, and who waits for it.
    async fn edges(&self, waiter: &Waiter, deadline: Duration) -> Result<(bool, Vec<Edge>), KvError> {
        let meta = TxnMeta {
            id: waiter.id,
            anchor: waiter.anchor.clone(),
            anchored: Timestamp::MAX,
            min_ts: waiter.min_ts,
            isolation: Isolation::default(),
            priority: Priority::default(),
            commit_id: RequestId::from(waiter.id),
        };
        match self.ask_record(RecordOp::Query(QueryTxn { meta, settle: false }), deadline).await? {
            Reply::Queried { status, edges } => {
                let aborted = TxnState::Ended { outcome: Outcome::Aborted, held: None };
                Ok((status == Some(aborted), edges))
            }
            _ => Ok((false, Vec::new())),
        }
    }
}
