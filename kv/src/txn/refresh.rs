//! Refresh: what was read at one timestamp is looked at again at a later one. If nobody has written it since, the transaction
//! might as well have read it there.

use std::time::Duration;

use flotilla_types::{Command, KeySpan, RangeDescriptor, Seq, Timestamp, TxnHeader, TxnOp, TxnRefusal, Wait};
use futures::future::try_join_all;

use super::{Stamps, Txn, meters};
use crate::send::{Cut, Failed, Place};
use crate::{KvError, RetryReason, Router};

/// Spans that are looked at at once.
const AT_ONCE: usize = 16;

impl Txn {
    /// Moves the snapshot up to a timestamp.
    ///
    /// # Errors
    /// `RetryTxn` if something that was read has changed.
    pub(super) async fn refresh_to(&mut self, to: Timestamp, deadline: Duration) -> Result<(), KvError> {
        let Stamps { read, .. } = self.stamps()?;
        if to <= read {
            return Ok(());
        }
        if let Some(first) = self.reads.spans.first() {
            let header = self.header(&first.start.clone(), Seq::default(), Wait::Error)?;
            self.reads.condense();
            for spans in self.reads.spans.chunks(AT_ONCE) {
                let all = spans.iter().map(|span| refresh(&self.router, &header, span.clone(), to, deadline));
                if let Err(error) = try_join_all(all).await {
                    meters::count_refresh(false);
                    return Err(error);
                }
            }
            meters::count_refresh(true);
        }
        if let Some(clock) = &mut self.clock {
            clock.read = to;
            clock.write = clock.write.max(to);
            clock.limit = clock.limit.max(to);
        }
        Ok(())
    }
}

async fn refresh(
    router: &Router,
    header: &TxnHeader,
    mut rest: KeySpan,
    to: Timestamp,
    deadline: Duration,
) -> Result<(), KvError> {
    while rest.start < rest.end {
        let mut done = rest.end.clone();
        let cut = |owner: &RangeDescriptor| {
            let Some(span) = owner.span.intersection(&rest) else {
                let why = "it was cut meanwhile".to_owned();
                return Cut::Refuse(KvError::Unavailable { range: Some(owner.range), why });
            };
            done = span.end.clone();
            Cut::Ask(Command::Txn {
                header: Box::new(header.clone()),
                op: TxnOp::Refresh { span, from: header.read, to },
            })
        };
        match router.send(&Place::Of(rest.start.clone()), deadline, cut).await {
            Ok(_) => rest.start = done,
            Err(Failed::Refused(TxnRefusal::RefreshFailed { key, other })) => {
                let why = format!("{key} was written since this transaction read it");
                return Err(KvError::RetryTxn { reason: RetryReason::RefreshFailed, why, key: Some(key), other });
            }
            Err(failed) => return Err(failed.into()),
        }
    }
    Ok(())
}
