//! Resolution: the locks of an ended transaction become versions or go (docs/transactions.md, "Clean-up"). Whoever resolves
//! has read the outcome from the record. Doing it twice changes nothing.

use flotilla_storage::engine::Reader;
use flotilla_storage::locks;
use flotilla_types::{
    Key, KeySpan, LockRecord, Outcome, OwnValue, RangeReply, Reply, Resolve, ResolveTarget, SeqRange, Timestamp, TxnId,
};

use crate::edit::Edit;
use crate::evaluate::{Evaluated, Failed};

/// Locks that one command resolves.
pub(crate) const BATCH: usize = 512;
/// Locks that one command looks at.
const LOOKS_MAX: usize = 8 * BATCH;

/// What resolves one lock. A lock above the commit timestamp is a stray copy, and one whose writes were all taken back leaves
/// nothing: both only go.
pub(crate) fn lock(key: &Key, lock: &LockRecord, outcome: Outcome, ignored: &[SeqRange], edits: &mut Vec<Edit>) {
    if let Outcome::Committed { at } = outcome
        && lock.ts <= at
        && let OwnValue::Value(value) = lock.final_value(ignored)
    {
        edits.push(Edit::Version { key: key.clone(), timestamp: at, value, request: lock.txn.commit_id });
    }
    edits.push(Edit::release(key, lock));
}

/// What resolves the locks of a transaction on these keys.
pub(crate) fn keys<'a>(
    reader: &dyn Reader,
    txn: TxnId,
    outcome: Outcome,
    ignored: &[SeqRange],
    keys: impl IntoIterator<Item = &'a Key>,
) -> Result<Vec<Edit>, Failed> {
    let mut edits = Vec::new();
    for key in keys {
        for found in locks::of_key(reader, key)?.iter().filter(|found| found.txn.id == txn) {
            lock(key, found, outcome, ignored, &mut edits);
        }
    }
    Ok(edits)
}

/// Evaluates a resolution: at most `BATCH` locks at a time.
pub(crate) fn evaluate(reader: &dyn Reader, resolve: &Resolve, now: Timestamp) -> Result<Evaluated, Failed> {
    let reply = |resume| RangeReply { timestamp: now, reply: Reply::Resolved { resume } };
    let (edits, resume) = match &resolve.target {
        ResolveTarget::Keys(keys) => {
            (self::keys(reader, resolve.meta.id, resolve.outcome, &resolve.ignored, keys)?, None)
        }
        ResolveTarget::Span(span) => in_span(reader, resolve, span)?,
    };
    Ok(Evaluated::edit(edits, reply(resume)))
}

fn in_span(reader: &dyn Reader, resolve: &Resolve, span: &KeySpan) -> Result<(Vec<Edit>, Option<Key>), Failed> {
    let (mut edits, mut resolved, mut looked, mut resume) = (Vec::new(), 0, 0, None);
    locks::each(reader, span, |key, record| {
        if resolved == BATCH || looked == LOOKS_MAX {
            resume = Some(key);
            return false;
        }
        looked += 1;
        if record.txn.id == resolve.meta.id {
            lock(&key, &record, resolve.outcome, &resolve.ignored, &mut edits);
            resolved += 1;
        }
        true
    })?;
    Ok((edits, resume))
}
