//! What a store refuses before any range looks at it.

use flotilla_types::{BatchOp, Command, Increment, Key, OneShot, RangeError, RangeRequest, TxnOp, Write, keys};

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
        Write::Whole(whole) => {
            let mut steps = whole.then.iter().chain(&whole.otherwise);
            steps.find(|step| matches!(step, OneShot::Write(_, Some(_)) | OneShot::Increment(..))).map(OneShot::key)
        }
        Write::Delete { .. } | Write::CompareAndSwap { .. } | Write::DeleteRange { .. } | Write::PutMeta { .. } => None,
    };
    key.is_some_and(|key| *key >= keys::SQL)
}

/// The key that an operation of a transaction gives a value to.
fn locks_for_data(op: &TxnOp) -> Option<&Key> {
    match op {
        TxnOp::Write { key, value: Some(_), .. }
        | TxnOp::CompareAndSet { key, new: Some(_), .. }
        | TxnOp::Increment(Increment { key, .. }) => Some(key),
        TxnOp::Batch { writes } => writes.iter().find(|(_, value)| value.is_some()).map(|(key, _)| key),
        TxnOp::Get { .. }
        | TxnOp::Scan { .. }
        | TxnOp::Write { .. }
        | TxnOp::CompareAndSet { .. }
        | TxnOp::DeleteRange { .. }
        | TxnOp::Refresh { .. }
        | TxnOp::Prove { .. } => None,
    }
}
