//! Which locks are in a request's way (docs/transactions.md, "Locks").

use std::collections::BTreeMap;

use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::locks;
use flotilla_storage::mvcc::ReadWindow;
use flotilla_types::{Increment, Key, KeySpan, LockRecord, PushKind, Strength, Timestamp, TxnId, Write};

use super::Blocker;

/// A request that meets more of them waits for these first.
const BLOCKERS_MAX: usize = 8;

/// Transactions that are out of one request's way although their locks are there: their records said so, to this request.
///
/// Serves nobody else: a reader that was born later may not rest on an earlier answer, since the transaction may have been
/// acknowledged meanwhile.
#[derive(Debug, Clone, Default)]
pub(crate) struct Passes(BTreeMap<TxnId, (Timestamp, Timestamp)>);

impl Passes {
    /// The transaction commits above the kind's timestamp, or was not acknowledged up to its limit.
    pub(crate) fn insert(&mut self, txn: TxnId, kind: PushKind) {
        let (above, limit) = match kind {
            PushKind::Timestamp { above, limit } => (above, limit),
            PushKind::Ask { limit } => (Timestamp::ZERO, limit),
            PushKind::End => return,
        };
        let known = self.0.entry(txn).or_default();
        *known = (known.0.max(above), known.1.max(limit));
    }

    fn allow(&self, txn: TxnId, kind: PushKind) -> bool {
        let Some((above, limit)) = self.0.get(&txn) else { return false };
        match kind {
            PushKind::Timestamp { above: wanted, limit: upto } => wanted <= *above && upto <= *limit,
            PushKind::Ask { limit: upto } => upto <= *limit,
            PushKind::End => false,
        }
    }
}

fn blocker(key: &Key, lock: &LockRecord, kind: PushKind) -> Blocker {
    Blocker { key: key.clone(), txn: lock.txn.clone(), seen: lock.local_ts, kind }
}

/// Whether a lock is in the way of a plain read in a window. Locks without a value, and values above the window, are passed.
pub(crate) fn of_read(
    key: &Key,
    lock: &LockRecord,
    window: ReadWindow,
    reader: Option<TxnId>,
    passes: &Passes,
) -> Option<Blocker> {
    let kind = if lock.ts <= window.at {
        PushKind::Timestamp { above: window.at, limit: window.limit }
    } else {
        PushKind::Ask { limit: window.limit }
    };
    let blocks = Some(lock.txn.id) != reader
        && lock.strength == Strength::Intent
        && lock.ts <= window.limit
        && !passes.allow(lock.txn.id, kind);
    blocks.then(|| blocker(key, lock, kind))
}

/// Whether a lock is in the way of a request that writes or locks: every foreign one, but shared ones if it only shares.
pub(crate) fn of_lock(key: &Key, lock: &LockRecord, writer: Option<TxnId>, shares: bool) -> Option<Blocker> {
    let blocks = Some(lock.txn.id) != writer && !(shares && lock.strength == Strength::Shared);
    blocks.then(|| blocker(key, lock, PushKind::End))
}

/// What a request meets on one key.
pub(crate) fn on_key(
    reader: &dyn Reader,
    key: &Key,
    judge: impl Fn(&Key, &LockRecord) -> Option<Blocker>,
) -> Result<Vec<Blocker>, EngineError> {
    Ok(locks::of_key(reader, key)?.iter().filter_map(|lock| judge(key, lock)).take(BLOCKERS_MAX).collect())
}

/// What a request meets in a span.
pub(crate) fn in_span(
    reader: &dyn Reader,
    span: &KeySpan,
    judge: impl Fn(&Key, &LockRecord) -> Option<Blocker>,
) -> Result<Vec<Blocker>, EngineError> {
    let mut met = Vec::new();
    locks::each(reader, span, |key, lock| {
        met.extend(judge(&key, &lock));
        met.len() < BLOCKERS_MAX
    })?;
    Ok(met)
}

/// What a request without a transaction meets that writes: every lock.
pub(crate) fn of_write(reader: &dyn Reader, write: &Write) -> Result<Vec<Blocker>, EngineError> {
    let judge = |key: &Key, lock: &LockRecord| of_lock(key, lock, None, false);
    match write {
        Write::Put { key, .. }
        | Write::Delete { key }
        | Write::CompareAndSwap { key, .. }
        | Write::Increment(Increment { key, .. })
        | Write::PutMeta { key, .. } => on_key(reader, key, judge),
        Write::DeleteRange { span, .. } => in_span(reader, span, judge),
        Write::Whole(whole) => {
            let mut met = Vec::new();
            for (key, writes) in whole.named() {
                // What is only read passes locks without a value.
                met.extend(on_key(reader, key, |key, lock| {
                    judge(key, lock).filter(|_| writes || lock.strength == Strength::Intent)
                })?);
                if met.len() >= BLOCKERS_MAX {
                    break;
                }
            }
            Ok(met)
        }
        Write::Batch { ops } => {
            let mut met = Vec::new();
            for op in ops {
                met.extend(on_key(reader, op.key(), judge)?);
                if met.len() >= BLOCKERS_MAX {
                    break;
                }
            }
            Ok(met)
        }
    }
}
