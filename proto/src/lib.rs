//! The wire: generated messages and services, and (with the feature `grpc`) the descriptors that reflection serves.
//!
//! Without `grpc` only the log's format is built, so that `range` names it without the network.

#[cfg(feature = "grpc")]
pub mod v1;

#[cfg(feature = "grpc")]
pub use v1::DESCRIPTOR_SET;
