//! Transactions at a leaseholder (docs/transactions.md): what an operation meets, what it locks, and what a record decides.
//!
//! ```text
//!   operation ──► conflicts ──► ops ──► edits for the log          conflicts.rs, ops.rs
//!   end, heartbeat, push, query ──► record ──► edits               record.rs
//!   outcome known ──► resolve ──► versions in place of locks       resolve.rs
//!   known as a whole, one range ──► whole ──► versions             whole.rs
//! ```
//! Everything here is pure: state through a `Reader`, time and promises as values. What waits, and for whom, is the replica's
//! matter (replica/lock_waits.rs).

pub(crate) mod conflicts;
pub(crate) mod deadlock;
pub(crate) mod ops;
pub(crate) mod record;
pub(crate) mod resolve;
pub(crate) mod whole;

use flotilla_types::{Key, PushKind, Timestamp, TxnMeta};

/// A foreign lock in a request's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocker {
    /// On which key.
    pub(crate) key: Key,
    /// Whose.
    pub(crate) txn: TxnMeta,
    /// When it was laid: its owner lived then.
    pub(crate) seen: Timestamp,
    /// What would get it out of the way.
    pub(crate) kind: PushKind,
}
