//! One replicated range, and the fleet of replicas that one worker thread drives. Pure: no IO, no clock, no chance.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod apply;
pub mod boot;
mod cache_budget;
pub mod check;
pub mod command;
pub mod edit;
pub mod entry;
mod evaluate;
pub mod event;
pub mod fleet;
mod flush;
pub mod gc;
pub mod latches;
pub mod liveness;
mod membership;
pub mod message;
pub mod raft;
mod replica;
pub mod snapshot;
mod sums;
pub mod timestamp_cache;
mod transact;
mod truncation;
mod turn;
