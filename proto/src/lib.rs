//! The wire: what clients and nodes say to each other. So far the public API, generated from `proto/flotilla/v1`, and the
//! stable words of its errors.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod reason;
pub mod v1;
