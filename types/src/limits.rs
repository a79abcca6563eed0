//! How large a key, a value and a request may be. Checked at the door, once.

/// Bounds on what a client may send and what an answer may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest key of an application.
    pub key_bytes: usize,
    /// Largest value.
    pub value_bytes: usize,
    /// Largest request, all its keys and values together.
    pub request_bytes: usize,
    /// Most keys that a batch or a transaction known as a whole may name: it is evaluated in one step.
    pub request_keys: usize,
    /// Largest chunk of a scan's answer, unless one row is larger.
    pub scan_chunk_bytes: usize,
}

impl Limits {
    /// What a gRPC message may weigh so that the largest request and its envelope fit.
    #[must_use]
    pub const fn message_bytes(&self) -> usize {
        self.request_bytes + (1 << 20)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_bytes: 16 << 10,
            value_bytes: 8 << 20,
            request_bytes: 16 << 20,
            request_keys: 4096,
            scan_chunk_bytes: 1 << 20,
        }
    }
}
