//! Snapshots: the content of a range on its way to a replica that the log cannot bring up to date any more.

pub mod frames;
