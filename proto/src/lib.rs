//! The wire: what clients and nodes say to each other. So far the public API, generated from `proto/flotilla/v1`.

pub mod v1;
