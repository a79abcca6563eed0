//! The public API, `flotilla.v1`: messages, clients and servers of `Kv` and `Admin`.
//!
//! All of it is generated from `proto/flotilla/v1/*.proto`, whose comments are the documentation of the API. What came
//! in these messages has not been checked: lengths, ids and absent fields are as the peer sent them.

#![allow(missing_docs, unused_qualifications, clippy::all, clippy::unwrap_used)]

tonic::include_proto!("flotilla.v1");

/// The encoded descriptors of all services, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flotilla_descriptor.bin"));
