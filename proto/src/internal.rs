//! What nodes say to each other, `flotilla.internal.v1`, generated from `proto/flotilla/internal/v1`. Whatever comes in
//! these messages is checked by [`crate::gate`] before it becomes a noun of `types`.

#![allow(missing_docs, unused_qualifications, clippy::all, clippy::unwrap_used)]

include!(concat!(env!("OUT_DIR"), "/internal/flotilla.internal.v1.rs"));
