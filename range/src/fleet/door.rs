//! What a store refuses before any range looks at it.

use flotilla_types::{BatchOp, Command, Increment, Key, RangeError, RangeRequest, TxnOp, Write, keys};

use super::Fleet;

impl Fleet {
    /// Why the store takes no such request at this moment.
    pub(super) fn refusal(&self, request: &RangeRequest) -> Option<RangeError> {
        let store = self.config.store;
        if self.suspended {
            let why = "its clock or its disk is not trusted at this moment".to_owned();
            return Some(RangeError::StoreNotServing { store, why });
        }
        // The cluster's own records stay writable: they are few, and how ranges move away.
        (self.disk_full && adds_data(&request.command)).then_some(RangeError::DiskFull { store })
    }
}

/// Whether it makes the applications' data grow. Deletes pass: they are how a person makes room.
fn adds_data(command: &Command) -> bool {
    let write = match command {
        Command::Write { write, .. } => write,
        Command::Txn { op, .. } => return locks_for_data(op).is_some_and(|key| *key >= keys::SQL),
        _ => return false,
    };
    let key = match write {
        Write::Put { key, .. } | Write::CompareAndSwap { key, new: Some(_), .. } => Some(key),
        Write::Increment(Increment { key, .. }) => Some(key),
        Write::Batch { ops } => ops.iter().find(|op| matches!(op, BatchOp::Put { .. })).map(BatchOp::key),
        _ => None,
    };
    key.is_some_and(|key| *key >= keys::SQL)
}

/// The key that an operation of a transaction gives a value to.
fn locks_for_data(op: &TxnOp) -> Option<&Key> {
    match op {
        TxnOp::Write { key, value: Some(_) }
        | TxnOp::CompareAndSet { key, new: Some(_), .. }
        | TxnOp::Increment(Increment { key, .. }) => Some(key),
        _ => None,
    }
}
