//! Judges of histories: what clients saw, and whether a correct store could have shown it. Pure.
//!
//! [`linearizable`] judges the operations on one key. A history of many keys is linearizable if that of each key is
//! (Herlihy and Wing, 1990: locality), so the caller cuts it by key. [`transactions`] judges histories of transactions.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod register;
pub mod transactions;

pub use register::{Operation, Outcome, Seen, Verdict, Violation, linearizable};
