//! What goes on behind the caller's back: locks of ended transactions are cleared, records collected, lost answers found out.
//! All of it may be lost with the node: whoever meets what is left finishes it.

use std::time::Duration;

use flotilla_types::{
    Command, EndKind, EndTxn, Isolation, Key, KeySpan, Outcome, Priority, QueryTxn, RangeDescriptor, RangeReply,
    RecordOp, Reply, Resolve, ResolveTarget, SeqRange, Timestamp, TxnMeta, TxnState,
};
use futures::FutureExt;

use super::TxnHandle;
use super::heartbeat::spans;
use crate::backoff::Backoff;
use crate::send::{Cut, Place};
use crate::{KvError, Router};

/// How long a clean-up goes on trying.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one try may take.
const TRY: Duration = Duration::from_secs(10);
/// Keys that one request resolves.
const KEYS_MAX: usize = 256;

impl Router {
    /// Clears the locks of a committed transaction and collects its record.
    pub(crate) fn clean_up(&self, meta: TxnMeta, outcome: Outcome, ignored: Vec<SeqRange>, locks: Vec<Key>) {
        let router = self.clone();
        self.shared.tasks.spawn(
            async move {
                let until = router.shared.clock.mono() + PATIENCE;
                if router.resolve_keys(&meta, outcome, &ignored, &locks, until).await.is_ok() {
                    let collect = RecordOp::Collect { meta: meta.clone() };
                    let collected = router.ask_record(collect, until).await;
                    // Else the record stays until somebody looks for old ones.
                    drop(collected);
                }
            }
            .boxed(),
        );
    }

    /// A transaction is committed by what was staged: its record is told so, and its locks go, in the same step if all lie there.
    pub(crate) fn finish_staged(&self, meta: TxnMeta, at: Timestamp, ignored: Vec<SeqRange>, locks: Vec<Key>) {
        let router = self.clone();
        self.shared.tasks.spawn(
            async move {
                let until = router.shared.clock.mono() + PATIENCE;
                let lock_spans = spans(&locks.iter().cloned().collect());
                let few = locks.len() <= KEYS_MAX && router.shared.config.txn.local;
                let mut local = false;
                let cut = |owner: &RangeDescriptor| {
                    local = few && locks.iter().all(|key| owner.span.contains(key));
                    let end = EndTxn {
                        meta: meta.clone(),
                        kind: EndKind::Commit(at),
                        lock_spans: lock_spans.clone(),
                        ignored: ignored.clone(),
                        local: if local { locks.clone() } else { Vec::new() },
                        proofs: Vec::new(),
                        held: None,
                    };
                    Cut::Ask(Command::Record(Box::new(RecordOp::End(end))))
                };
                let ended = router.send(&Place::Of(meta.anchor.clone()), until, cut).await;
                // Else whoever meets the locks, or the record, proves it.
                if let Ok((RangeReply { reply: Reply::Ended(outcome), .. }, _)) = ended
                    && !local
                {
                    router.clean_up(meta, outcome, ignored, locks);
                }
            }
            .boxed(),
        );
    }

    /// Ends a transaction whose caller has gone, or was told that its end is not known, and clears its locks. It may have been
    /// committed already: then its record says so.
    pub(crate) fn abandon(&self, meta: TxnMeta, ignored: Vec<SeqRange>, locks: Vec<Key>) {
        let router = self.clone();
        self.shared.tasks.spawn(
            async move {
                let until = router.shared.clock.mono() + PATIENCE;
                let lock_spans = spans(&locks.iter().cloned().collect());
                let end = EndTxn {
                    meta: meta.clone(),
                    kind: EndKind::Abort,
                    lock_spans,
                    ignored: Vec::new(),
                    local: Vec::new(),
                    proofs: Vec::new(),
                    held: None,
                };
                let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
                while router.shared.clock.mono() < until {
                    let deadline = router.shared.clock.mono() + TRY;
                    match router.ask_record(RecordOp::End(end.clone()), deadline).await {
                        Ok(Reply::Ended(outcome @ Outcome::Committed { .. })) => {
                            return router.clean_up(meta, outcome, ignored, locks);
                        }
                        Ok(Reply::Ended(Outcome::Aborted)) => {
                            // What is left is cleared by whoever meets it.
                            drop(router.resolve_keys(&meta, Outcome::Aborted, &ignored, &locks, until).await);
                            return;
                        }
                        _ => router.pause(backoff.pause(&router.shared.dice), until).await,
                    }
                }
            }
            .boxed(),
        );
    }

    /// What became of a transaction. One that has not ended is aborted, so that the answer is final. `None`: it ended so long
    /// ago that nobody knows any more.
    ///
    /// # Errors
    /// See `KvError`; asking again does no harm.
    pub async fn outcome(&self, handle: &TxnHandle, deadline: Duration) -> Result<Option<Outcome>, KvError> {
        let query = RecordOp::Query(QueryTxn { meta: described(handle), settle: true });
        loop {
            let Reply::Queried { status, .. } = self.ask_record(query.clone(), deadline).await? else {
                return Err(KvError::Unavailable { range: None, why: "its record was not settled".to_owned() });
            };
            match status {
                None => return Ok(None),
                Some(TxnState::Ended { outcome, .. }) => return Ok(Some(outcome)),
                // The record goes by what is found; then it is asked again.
                Some(TxnState::Staging(staged)) => drop(self.recover(&described(handle), &staged, deadline).await?),
                Some(TxnState::Open { .. }) => {}
            }
        }
    }

    /// What the record of an intention says. Decides nothing.
    pub(crate) async fn peek_outcome(
        &self,
        handle: &TxnHandle,
        deadline: Duration,
    ) -> Result<Option<TxnState>, KvError> {
        let query = QueryTxn { meta: described(handle), settle: false };
        match self.ask_record(RecordOp::Query(query), deadline).await? {
            Reply::Queried { status, .. } => Ok(status),
            _ => Ok(None),
        }
    }

    /// Asks a record.
    pub(crate) async fn ask_record(&self, op: RecordOp, deadline: Duration) -> Result<Reply, KvError> {
        let place = Place::Of(op.meta().anchor.clone());
        let cut = |_: &RangeDescriptor| Cut::Ask(Command::Record(Box::new(op.clone())));
        let (reply, _) = self.send(&place, deadline, cut).await?;
        Ok(reply.reply)
    }

    /// Clears a transaction's locks on keys, range by range.
    pub(crate) async fn resolve_keys(
        &self,
        meta: &TxnMeta,
        outcome: Outcome,
        ignored: &[SeqRange],
        locks: &[Key],
        deadline: Duration,
    ) -> Result<(), KvError> {
        let mut sorted: Vec<&Key> = locks.iter().collect();
        sorted.sort_unstable();
        let mut rest = &sorted[..];
        while let Some(first) = rest.first() {
            let mut done = 1;
            let cut = |owner: &RangeDescriptor| {
                let here: Vec<Key> = rest
                    .iter()
                    .take(KEYS_MAX)
                    .take_while(|key| owner.span.contains(key))
                    .map(|key| (*key).clone())
                    .collect();
                done = here.len().max(1);
                Cut::Ask(resolve(meta, outcome, ignored, ResolveTarget::Keys(here)))
            };
            self.send(&Place::Of((*first).clone()), deadline, cut).await?;
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Clears a transaction's locks in a span, range by range and piece by piece.
    pub(crate) async fn resolve_span(
        &self,
        meta: &TxnMeta,
        outcome: Outcome,
        ignored: &[SeqRange],
        mut rest: KeySpan,
        deadline: Duration,
    ) -> Result<(), KvError> {
        while rest.start < rest.end {
            let mut asked = rest.clone();
            let cut = |owner: &RangeDescriptor| match owner.span.intersection(&rest) {
                Some(span) => {
                    asked = span.clone();
                    Cut::Ask(resolve(meta, outcome, ignored, ResolveTarget::Span(span)))
                }
                None => Cut::Refuse(KvError::Unavailable { range: None, why: "it was cut meanwhile".to_owned() }),
            };
            let (reply, _) = self.send(&Place::Of(rest.start.clone()), deadline, cut).await?;
            rest.start = match reply.reply {
                Reply::Resolved { resume: Some(next) } => next,
                _ => asked.end,
            };
        }
        Ok(())
    }
}

/// A transaction as far as its handle knows it.
fn described(handle: &TxnHandle) -> TxnMeta {
    TxnMeta {
        id: handle.id,
        anchor: handle.anchor.clone(),
        anchored: handle.anchored,
        min_ts: handle.anchored,
        isolation: Isolation::default(),
        priority: Priority::default(),
        commit_id: handle.commit_id,
    }
}

fn resolve(meta: &TxnMeta, outcome: Outcome, ignored: &[SeqRange], target: ResolveTarget) -> Command {
    Command::Resolve(Box::new(Resolve { meta: meta.clone(), outcome, ignored: ignored.to_vec(), target }))
}
