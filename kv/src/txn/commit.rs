//! The end of a transaction.

use std::time::Duration;

use flotilla_types::{
    Command, EndKind, EndTxn, KeySpan, Outcome, RangeDescriptor, RecordOp, Reply, Timestamp, TxnMeta, TxnRefusal,
};

use super::heartbeat::spans;
use super::{Phase, Txn, TxnHandle, aborted, meters};
use crate::send::{Cut, Failed, Place};
use crate::{KvError, RetryReason};

/// How often a commit is moved up.
const PUSHED_MAX: u32 = 10;
/// Locks that are resolved in the step that commits, if all lie in the record's range.
const LOCAL_MAX: usize = 256;

/// The answer to a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// When: all its writes have this timestamp. For a transaction that only read, what it read.
    pub at: Timestamp,
}

impl Txn {
    /// Commits. An error other than `CommitUnknown` means that nothing of it remains.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn commit(mut self, deadline: Duration) -> Result<Committed, KvError> {
        let done = self.commit_now(deadline).await;
        if let Err(error) = &done {
            self.fails_by(error);
        }
        done
    }

    pub(super) async fn commit_now(&mut self, deadline: Duration) -> Result<Committed, KvError> {
        if self.phase == Phase::Failed {
            return Err(KvError::TxnFailed);
        }
        let at = match self.meta.clone() {
            None => {
                super::count_commit("read_only");
                self.stamps()?.read
            }
            Some(meta) => match self.commit_record(&meta, deadline).await {
                Err(error) if !matches!(error, KvError::CommitUnknown { .. }) => {
                    self.give_up_staged(error, deadline).await?
                }
                done => done?,
            },
        };
        self.phase = Phase::Ended;
        self.await_clock(at, deadline).await?;
        Ok(Committed { at })
    }

    /// Rolls back. What it had locked is free soon after.
    pub async fn rollback(mut self) {
        self.phase = Phase::Ended;
        self.give_up("rollback");
    }

    /// Nobody is told of a timestamp that his clock has not reached; strictly, that not all clocks have passed.
    pub(super) async fn await_clock(&self, at: Timestamp, deadline: Duration) -> Result<(), KvError> {
        let clock = &self.router.shared.clock;
        let mut since = None;
        loop {
            let (reading, target) = if self.options.strict {
                (clock.physical(), at.plus(clock.max_offset()))
            } else {
                // A clock that may not be read now may be read again soon; what is committed stays so.
                (clock.now().unwrap_or_default(), at)
            };
            if reading >= target {
                if let Some(since) = since {
                    meters::waited_for_clock(clock.mono().saturating_sub(since));
                }
                return Ok(());
            }
            since.get_or_insert_with(|| clock.mono());
            if clock.mono() >= deadline {
                let why = format!("it is committed at {at}, which this node's clock has not reached in time");
                return Err(match self.handle() {
                    Some(handle) => KvError::CommitUnknown { handle: Box::new(handle), why },
                    None => KvError::DeadlineExceeded { why: "waiting for the clock".to_owned() },
                });
            }
            let wait = target.since(reading).clamp(Duration::from_millis(1), clock.max_offset());
            self.router.pause(wait, deadline).await;
        }
    }

    async fn commit_record(&mut self, meta: &TxnMeta, deadline: Duration) -> Result<Timestamp, KvError> {
        for _ in 0..PUSHED_MAX {
            if self.beating.is_aborted() {
                return Err(aborted());
            }
            let stamps = self.stamps()?;
            let at = stamps.write.max(stamps.read);
            if self.is_serializable() {
                self.refresh_to(at, deadline).await?;
            }
            if !self.in_flight.is_empty() && !self.is_in_one_range(deadline).await? {
                let committed = self.commit_in_parallel(meta, at, deadline).await?;
                if let Some(at) = committed {
                    self.committed_by_stage(at);
                    super::count_commit("parallel");
                    return Ok(at);
                }
                continue;
            }
            match self.end(meta, EndKind::Commit(at), deadline).await {
                Err(Failed::Kv(KvError::CrossesRanges { .. })) => {
                    // It was cut meanwhile.
                    self.prove_in(&KeySpan::ALL, deadline).await?;
                }
                Ok(Outcome::Committed { at }) => {
                    self.beating.stop();
                    return Ok(at);
                }
                Ok(Outcome::Aborted) => return Err(aborted()),
                Err(Failed::Refused(TxnRefusal::Pushed { above })) => {
                    if let Some(clock) = &mut self.clock {
                        clock.write = clock.write.max(above.next());
                    }
                }
                Err(Failed::Kv(KvError::Ambiguous { why })) => {
                    self.phase = Phase::Ended;
                    return Err(self.settle(meta, why));
                }
                Err(failed) => return Err(failed.into()),
            }
        }
        let why = "others read what it writes, at ever later timestamps".to_owned();
        Err(KvError::RetryTxn { reason: RetryReason::Pushed, why, key: None, other: None })
    }

    /// Ends the record. Clears the locks with it or behind it.
    pub(super) async fn end(&mut self, meta: &TxnMeta, kind: EndKind, deadline: Duration) -> Result<Outcome, Failed> {
        let locks: Vec<_> = self.beating.locks().iter().cloned().collect();
        let lock_spans = spans(&self.beating.locks());
        let all = locks.first().zip(locks.last());
        let all = all.map(|(first, last)| KeySpan { start: first.clone(), end: last.next() });
        let few = locks.len() <= LOCAL_MAX && self.router.shared.config.txn.local;
        let mut local = false;
        let proofs = if matches!(kind, EndKind::Commit(_)) { self.claims() } else { Vec::new() };
        let cut = |owner: &RangeDescriptor| {
            local = few && all.as_ref().is_some_and(|all| owner.span.covers(all));
            if !local && !proofs.is_empty() {
                return Cut::Refuse(KvError::CrossesRanges { boundary: owner.span.end.clone() });
            }
            let end = EndTxn {
                meta: meta.clone(),
                kind: kind.clone(),
                proofs: proofs.clone(),
                held: self.held,
                lock_spans: lock_spans.clone(),
                ignored: self.ignored.clone(),
                local: if local { locks.clone() } else { Vec::new() },
            };
            Cut::Ask(Command::Record(Box::new(RecordOp::End(end))))
        };
        let (reply, _) = self.router.send(&Place::Of(meta.anchor.clone()), deadline, cut).await?;
        let Reply::Ended(outcome) = reply.reply else { return Err(self.strange().into()) };
        if matches!(outcome, Outcome::Committed { .. }) {
            super::count_commit(if local { "local" } else { "explicit" });
            if !local {
                self.router.clean_up(meta.clone(), outcome, self.ignored.clone(), locks);
            }
        }
        Ok(outcome)
    }

    /// Whether all its locks can be resolved with the record, and what is under way be proven there.
    async fn is_in_one_range(&self, deadline: Duration) -> Result<bool, KvError> {
        let hull = {
            let locks = self.beating.locks();
            let few = locks.len() <= LOCAL_MAX && self.router.shared.config.txn.local;
            let (Some(first), Some(last)) = (locks.first(), locks.last()) else { return Ok(true) };
            few.then(|| KeySpan { start: first.clone(), end: last.next() })
        };
        match hull {
            Some(hull) => self.router.is_one_range(&hull, deadline).await,
            None => Ok(false),
        }
    }

    /// A commit was sent and no answer came: somebody finds out behind the caller's back.
    pub(super) fn settle(&self, meta: &TxnMeta, why: String) -> KvError {
        meters::count_abort(None, "unknown");
        self.abandon();
        KvError::CommitUnknown { handle: Box::new(TxnHandle::from(meta)), why }
    }

    /// It cannot be committed because of this, unless it goes back to a savepoint.
    pub(super) fn fails_by(&mut self, error: &KvError) {
        // An error that follows from an earlier one tells nothing.
        if *error != KvError::TxnFailed {
            self.cause = Some(error.into());
        }
    }

    /// Gives the transaction up, behind the caller's back; `otherwise` names the reason if there was no error.
    pub(super) fn give_up(&self, otherwise: &'static str) {
        if self.clock.is_some() {
            meters::count_abort(self.cause, otherwise);
        }
        self.abandon();
    }

    fn abandon(&self) {
        self.beating.stop();
        let sending = self.sending.as_ref();
        if let Some(meta) = self.meta.as_ref().or(sending.map(|(meta, _)| meta)) {
            let locks = self.beating.locks().iter().chain(sending.map(|(_, key)| key)).cloned().collect();
            self.router.abandon(meta.clone(), self.ignored.clone(), locks);
        }
    }
}
