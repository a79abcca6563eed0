//! The wire: what clients and nodes say to each other, and the gate between it and the nouns of `types`. The public API
//! is generated from `proto/flotilla/v1`, what nodes say to each other from `proto/flotilla/internal/v1`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod gate;
pub mod internal;
pub mod reason;
pub mod v1;
