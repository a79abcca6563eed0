//! One replicated range, and the fleet of replicas that one worker thread drives. Pure: no IO, no clock, no chance.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod entry;
pub mod event;
pub mod latches;
pub mod liveness;
pub mod message;
pub mod raft;
pub mod snapshot;
pub mod timestamp_cache;
