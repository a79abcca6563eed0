//! Pushes, for requests that wait in a range of this node for the locks of a transaction.

use std::time::Duration;

use flotilla_types::{
    Isolation, Key, Priority, PushResult, PushTxn, QueryTxn, RecordOp, Reply, RequestId, Timestamp, TxnMeta, Waiter,
};
use futures::FutureExt;

use crate::{KvError, Router};

/// How long a push may take; whoever waits pushes again.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the locks of an abandoned transaction are being cleared.
const CLEARED_WITHIN: Duration = Duration::from_secs(60);

impl Router {
    /// Asks the record of a transaction that has these keys locked to let the pusher pass. If it has ended, its locks on the
    /// keys are cleared before this returns.
    ///
    /// # Errors
    /// See `KvError`: it may be tried again.
    pub async fn push(&self, mut push: PushTxn, keys: Vec<Key>) -> Result<PushResult, KvError> {
        let deadline = self.shared.clock.mono() + PATIENCE;
        if let Some(pusher) = &push.pusher {
            // Without them a deadlock is found later.
            push.edges = self.edges(pusher, deadline).await.unwrap_or_default();
        }
        let pushee = push.pushee.clone();
        let Reply::Pushed(result) = self.ask_record(RecordOp::Push(push), deadline).await? else {
            return Err(KvError::Unavailable { range: None, why: "a push was answered by something else".to_owned() });
        };
        if let PushResult::Final { outcome, ignored, lock_spans } = &result {
            self.resolve_keys(&pushee, *outcome, ignored, &keys, deadline).await?;
            if !lock_spans.is_empty() {
                let (router, outcome, ignored, spans) = (self.clone(), *outcome, ignored.clone(), lock_spans.clone());
                let task = async move {
                    let until = router.shared.clock.mono() + CLEARED_WITHIN;
                    for span in spans {
                        // What is left is cleared by whoever meets it.
                        drop(router.resolve_span(&pushee, outcome, &ignored, span, until).await);
                    }
                };
                self.shared.tasks.spawn(task.boxed());
            }
        }
        Ok(result)
    }

    /// Who waits for a transaction.
    async fn edges(&self, waiter: &Waiter, deadline: Duration) -> Result<Vec<flotilla_types::Edge>, KvError> {
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
            Reply::Queried { edges, .. } => Ok(edges),
            _ => Ok(Vec::new()),
        }
    }
}
