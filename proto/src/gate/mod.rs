//! The gate between wire and nouns: `From` on the way out, `TryFrom` on the way in.
//!
//! Promises: what passes inward holds the invariants of `types`; what does not pass is told as a [`WireError`] and never
//! panics; values stay slices of the buffer that they came in.

mod descriptor;
mod error;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod txn;
#[cfg(test)]
mod txn_tests;

use bytes::Bytes;
use flotilla_types::{Key, KeySpan, Timestamp};
use thiserror::Error;

use crate::{internal, v1};

/// Bytes from the network that are no noun.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a message from the network is malformed: {what}")]
pub struct WireError {
    what: String,
}

impl WireError {
    /// Says what is wrong.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

/// What a message must have; `name` says what, for the error.
///
/// # Errors
/// It is not there.
pub fn needed<T>(field: Option<T>, name: &'static str) -> Result<T, WireError> {
    field.ok_or_else(|| WireError::new(format!("{name} is missing")))
}

impl From<Timestamp> for v1::Timestamp {
    fn from(timestamp: Timestamp) -> Self {
        Self { wall: timestamp.wall, logical: timestamp.logical }
    }
}

impl From<v1::Timestamp> for Timestamp {
    fn from(timestamp: v1::Timestamp) -> Self {
        Self { wall: timestamp.wall, logical: timestamp.logical }
    }
}

impl From<&KeySpan> for internal::KeySpan {
    fn from(span: &KeySpan) -> Self {
        Self { start: key_out(&span.start), end: key_out(&span.end) }
    }
}

impl TryFrom<internal::KeySpan> for KeySpan {
    type Error = WireError;

    fn try_from(span: internal::KeySpan) -> Result<Self, WireError> {
        Self::new(Key::new(span.start), Key::new(span.end)).map_err(|error| WireError::new(error.to_string()))
    }
}

pub(crate) fn key_out(key: &Key) -> Bytes {
    key.clone().into_bytes()
}
