//! One replicated range, and the fleet of replicas that one worker thread drives. Pure: no IO, no clock, no chance.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod event;
pub mod message;
pub mod raft;
