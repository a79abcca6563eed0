//! The router: from a key to the replica that serves it, and on through whatever stands in the way.
//!
//! ```text
//!   get, write, scan, delete_range, split, …          (read.rs, write.rs, admin.rs)
//!        │  cut by range
//!        ▼
//!   send ── which range? ──► cache ── miss ──► meta2 ──► meta1 ──► Transport::root     (lookup.rs, cache.rs)
//!    │  ▲
//!    │  └── wrong place, bad moment: same request id, next replica or later           (send.rs, backoff.rs)
//!    ▼
//!   which replica? ──► leader hints, breakers                                         (replicas.rs)
//!    ▼
//!   Transport::send
//! ```
//!
//! It speaks to the world through two traits, `Transport` and `Clock`, and is tied to no runtime, so that the simulator
//! runs the same code in virtual time. Everything here is a hint: what a range owns and who leads it is checked by the
//! range itself.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin;
mod backoff;
mod cache;
mod error;
mod lookup;
mod ports;
mod read;
mod replicas;
mod router;
mod send;
mod txn;
mod write;

pub use admin::Halves;
pub use error::{KvError, RetryReason};
pub use ports::{Clock, SendError, Tasks, Transport};
pub use read::{GetAnswer, ScanChunk, ScanRequest};
pub use router::{Router, RouterConfig};
pub use txn::{Committed, LockWait, OpenTxn, Savepoint, Txn, TxnConfig, TxnHandle, TxnOptions, TxnResult};
pub use write::DeleteAnswer;
