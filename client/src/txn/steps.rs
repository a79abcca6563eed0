//! What can be done within a transaction. All steps see what earlier ones wrote.

use bytes::Bytes;
use flotilla_proto::v1::{self, txn_request::Step, txn_response::Answer};

use super::{Txn, TxnScan, Wait};
use crate::kv::timestamp;
use crate::{Error, Span, Value};

/// How a get locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nobody else writes the key until the transaction has ended; others may lock it the same way.
    Share,
    /// Nobody else writes or locks the key until the transaction has ended.
    Update,
}

/// What a compare-and-set within a transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// The key had the expected value, and has the new one in this transaction.
    Set,
    /// The key had another value, or none; nothing was written.
    Met(Option<Bytes>),
}

impl Txn {
    /// Reads a key, without a lock: if others write it before this transaction commits, that may cost a `RETRY_TXN`.
    ///
    /// # Errors
    /// See [`Txn`] and [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Value>, Error> {
        let key = key.into();
        let waits = matches!(self.wait, Wait::Block | Wait::BlockFor(_));
        let lock = if waits && self.conversation.lock().await.contended.contains(&key) {
            v1::LockStrength::Update
        } else {
            v1::LockStrength::Unspecified
        };
        self.read(key, lock).await
    }

    /// Reads a key and locks it against others that write or lock it: for a key that will be written next. Where many
    /// write the same key, waiting here costs less than doing the whole again.
    ///
    /// # Errors
    /// `LOCKED` as the wait policy says; else see [`Txn`] and [`Error`].
    pub async fn get_for_update(&self, key: impl Into<Bytes>) -> Result<Option<Value>, Error> {
        self.get_with_lock(key, Lock::Update).await
    }

    /// Reads a key and locks it against others that write it.
    ///
    /// # Errors
    /// `LOCKED` as the wait policy says; else see [`Txn`] and [`Error`].
    pub async fn get_for_share(&self, key: impl Into<Bytes>) -> Result<Option<Value>, Error> {
        self.get_with_lock(key, Lock::Share).await
    }

    /// Reads a key and locks it.
    ///
    /// # Errors
    /// `LOCKED` as the wait policy says; else see [`Txn`] and [`Error`].
    pub async fn get_with_lock(&self, key: impl Into<Bytes>, lock: Lock) -> Result<Option<Value>, Error> {
        let strength = match lock {
            Lock::Share => v1::LockStrength::Share,
            Lock::Update => v1::LockStrength::Update,
        };
        self.read(key.into(), strength).await
    }

    async fn read(&self, key: Bytes, lock: v1::LockStrength) -> Result<Option<Value>, Error> {
        let take = |answer| match answer {
            Answer::Value(found) => {
                let written = timestamp(found.written.as_ref());
                Some(found.value.map(|value| Value { value, written }))
            }
            _ => None,
        };
        self.ask(Step::Get(v1::TxnGet { key, lock: lock.into() }), take).await
    }

    /// Sets a key.
    ///
    /// # Errors
    /// See [`Txn`] and [`Error`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<(), Error> {
        self.just(Step::Put(v1::BatchPut { key: key.into(), value: value.into() })).await
    }

    /// Removes a key. Removing an absent key succeeds.
    ///
    /// # Errors
    /// See [`Txn`] and [`Error`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<(), Error> {
        self.just(Step::Delete(v1::BatchDelete { key: key.into() })).await
    }

    /// Reads the rows of a span in key order. Nothing is asked before the first row is.
    pub fn scan(&self, span: Span) -> TxnScan {
        TxnScan::new(self.clone(), span)
    }

    /// Removes all keys of a span, and says how many there were.
    ///
    /// # Errors
    /// `TXN_TOO_LARGE` if there are more than a transaction may lock; else see [`Txn`] and [`Error`].
    pub async fn delete_range(&self, span: Span) -> Result<u64, Error> {
        let delete = v1::TxnDeleteRange { start: span.start, end: span.end };
        let take = |answer| match answer {
            Answer::Deleted(keys) => Some(keys),
            _ => None,
        };
        self.ask(Step::DeleteRange(delete), take).await
    }

    /// Sets a key, or with `new` absent removes it, if its value is the expected one (`None`: if it has none).
    ///
    /// # Errors
    /// See [`Txn`] and [`Error`]. That another value was met is an answer, not an error.
    pub async fn compare_and_set(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<Compared, Error> {
        let set = v1::TxnCompareAndSet { key: key.into(), expected, new };
        let take = |answer| match answer {
            Answer::Compared(v1::TxnCompared { swapped: true, .. }) => Some(Compared::Set),
            Answer::Compared(v1::TxnCompared { swapped: false, actual }) => Some(Compared::Met(actual)),
            _ => None,
        };
        self.ask(Step::CompareAndSet(set), take).await
    }

    /// Adds to a counter, and says what it holds then. See [`Client::increment`](crate::Client::increment).
    ///
    /// # Errors
    /// `INVALID` if the value is no counter, or would not fit; else see [`Txn`] and [`Error`].
    pub async fn increment(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, Error> {
        let take = |answer| match answer {
            Answer::Number(value) => Some(value),
            _ => None,
        };
        self.ask(Step::Increment(v1::TransactIncrement { key: key.into(), by }), take).await
    }

    /// Marks this moment under a name; an older one of the same name is hidden until this one is released.
    ///
    /// # Errors
    /// See [`Txn`] and [`Error`].
    pub async fn savepoint(&self, name: impl Into<String>) -> Result<(), Error> {
        self.just(Step::Savepoint(name.into())).await
    }

    /// Takes back all writes since the savepoint, which stays, and makes a transaction usable again of which a step
    /// failed.
    ///
    /// # Errors
    /// `INVALID` if there is no savepoint of this name; else see [`Txn`] and [`Error`].
    pub async fn rollback_to(&self, savepoint: impl Into<String>) -> Result<(), Error> {
        self.just(Step::RollbackTo(savepoint.into())).await?;
        // What failed was taken back.
        self.conversation.lock().await.redoable = false;
        Ok(())
    }

    /// Forgets a savepoint; what was written since stays.
    ///
    /// # Errors
    /// `INVALID` if there is no savepoint of this name; else see [`Txn`] and [`Error`].
    pub async fn release(&self, savepoint: impl Into<String>) -> Result<(), Error> {
        self.just(Step::Release(savepoint.into())).await
    }

    /// A step that is answered by its being done.
    pub(super) async fn just(&self, step: Step) -> Result<(), Error> {
        let take = |answer| match answer {
            Answer::Done(v1::TxnDone {}) => Some(()),
            _ => None,
        };
        self.ask(step, take).await
    }
}
