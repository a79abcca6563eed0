//! Sorted files: how a received snapshot enters the engine (docs/durability.md, "Snapshots").

use bytes::Bytes;

/// The content of one sorted file. One file never reaches over several regions of the key map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SstFile {
    /// Start of the span that is emptied first, and in which all pairs lie.
    pub start: Vec<u8>,
    /// End of that span, excluded.
    pub end: Vec<u8>,
    /// Keys and values, ascending by key.
    pub pairs: Vec<(Vec<u8>, Bytes)>,
}
