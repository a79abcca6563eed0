//! Locks of transactions, in a region of their own beside the versions.

use flotilla_types::{Key, KeySpan, LockRecord, Strength};

use crate::engine::{EngineError, Reader};
use crate::keys;

/// All locks on a key: one exclusive one, or any number of shared ones.
///
/// # Errors
/// A read error.
pub fn of_key(reader: &dyn Reader, key: &Key) -> Result<Vec<LockRecord>, EngineError> {
    let (seek, upper) = (keys::lock_seek(key), keys::prefix_end(&keys::lock_prefix(key)));
    // The common answers are none and an exclusive one: neither needs a cursor.
    let Some((_, first)) = reader.first_in_prefix(&seek, &upper)? else { return Ok(Vec::new()) };
    let first = decode(&first)?;
    if first.strength != Strength::Shared {
        return Ok(vec![first]);
    }
    let mut cursor = reader.cursor(&seek, &upper);
    let (mut locks, mut there) = (Vec::new(), cursor.seek(&seek)?);
    while there {
        locks.push(decode(cursor.value())?);
        there = cursor.next()?;
    }
    Ok(locks)
}

/// Shows the locks on keys of a span, in key order, until `look` says that it has seen enough.
///
/// # Errors
/// A read error.
pub fn each(
    reader: &dyn Reader,
    span: &KeySpan,
    mut look: impl FnMut(Key, LockRecord) -> bool,
) -> Result<(), EngineError> {
    let (lower, upper) = keys::lock_span(span);
    if lower >= upper {
        return Ok(());
    }
    let mut cursor = reader.cursor(&lower, &upper);
    let mut there = cursor.seek(&lower)?;
    while there {
        let (key, _) = keys::decode_lock(cursor.key()).map_err(|error| corrupt(error.to_string()))?;
        there = look(key, decode(cursor.value())?) && cursor.next()?;
    }
    Ok(())
}

/// Whether any key of a span is locked.
///
/// # Errors
/// A read error.
pub fn any(reader: &dyn Reader, span: &KeySpan) -> Result<bool, EngineError> {
    let (lower, upper) = keys::lock_span(span);
    reader.cursor(&lower, &upper).seek(&lower)
}

fn decode(bytes: &[u8]) -> Result<LockRecord, EngineError> {
    LockRecord::decode(bytes).map_err(|error| corrupt(error.to_string()))
}

const fn corrupt(cause: String) -> EngineError {
    EngineError::Corrupt { action: "read a lock", cause }
}
