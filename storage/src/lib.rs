//! Ordered bytes on a disk: the engine that holds state, multi-version values on top of it, and the Raft log.
//!
//! Two engines per store, ordered by the three laws of docs/durability.md: KV is a prefix of its own history, Log is
//! ahead of KV, and each judges its own facts.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod doctor;
pub mod engine;
pub mod flush_mark;
pub mod gc;
pub mod keys;
pub mod locks;
pub mod log;
mod mark;
pub mod memory;
pub mod memory_log;
pub mod mvcc;
pub mod raft_log;
pub mod reserve;
pub mod rocks;
mod sst;
pub mod state;
pub mod writer;

pub use sst::SstFile;
