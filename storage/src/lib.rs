//! Ordered bytes on a disk: the engine that holds state, multi-version values on top of it, and the Raft log.
//!
//! Two engines per store, ordered by the three laws of docs/durability.md: KV is a prefix of its own history, Log is
//! ahead of KV, and each judges its own facts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod codec;
pub mod engine;
pub mod keys;
pub mod log;
pub mod memory;
pub mod mvcc;
pub mod rocks;
mod sst;
pub mod state;

pub use sst::SstFile;
