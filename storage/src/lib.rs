//! Ordered bytes on a disk: the engine that holds state, MVCC on top of it, and the Raft log.
//!
//! Two engines per store, ordered by the three laws of docs/durability.md: KV is a prefix of its own history, Log is
//! ahead of KV, and each judges its own facts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod engine;
pub mod log;
mod sst;

pub use sst::SstFile;
