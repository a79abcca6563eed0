//! The payload of a raft entry: all commands that one turn of the leader made for a range.
//!
//! ```text
//!  version 1, CRC32C 4, term of evaluation 8, count 4, count × { request id 16, length 4, body }
//! ```
//! Numbers are big-endian. The checksum covers the range's id and everything behind it, so that an entry that ends up
//! in another range's log is noticed. The proposer computes it; a follower checks it before the append, and drops the message
//! that does not match; every replica checks it before application, where a mismatch loses it instead of making it differ in
//! silence.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flotilla_types::{RangeId, RequestId, Term};
use thiserror::Error;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + 8 + 4;

/// A payload that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryError {
    /// Damaged, or of another range.
    #[error("the entry's checksum does not match")]
    Checksum,
    /// Written by a version that this one does not know.
    #[error("the entry has format {0}, which this version does not know")]
    Version(u8),
    /// Shorter or longer than it says.
    #[error("the entry is malformed")]
    Malformed,
}

/// One command of an entry: who wanted it, and what it does, as the log format encodes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryCommand {
    /// Names the intention, for the replies at the proposer and for deduplication.
    pub request: RequestId,
    /// The encoded command.
    pub body: Bytes,
}

/// A decoded payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The term in which its commands were evaluated; they are no-ops in any other (leases 3.5).
    pub term: Term,
    /// In the order of their effects.
    pub commands: Vec<EntryCommand>,
}

impl Payload {
    /// The bytes to propose.
    #[must_use]
    pub fn encode(&self, range: RangeId) -> Bytes {
        let bodies: usize = self.commands.iter().map(|command| 20 + command.body.len()).sum();
        let mut bytes = BytesMut::with_capacity(HEADER + bodies);
        bytes.put_u8(VERSION);
        bytes.put_u32(0);
        bytes.put_u64(self.term.0);
        bytes.put_u32(self.commands.len() as u32);
        for command in &self.commands {
            bytes.extend_from_slice(&command.request.0);
            bytes.put_u32(command.body.len() as u32);
            bytes.extend_from_slice(&command.body);
        }
        let crc = checksum(range, &bytes[5..]);
        bytes[1..5].copy_from_slice(&crc.to_be_bytes());
        bytes.freeze()
    }

    /// Reads a payload; bodies are slices of it, not copies.
    ///
    /// # Errors
    /// It cannot be applied: the replica that holds it is lost.
    pub fn decode(range: RangeId, mut bytes: Bytes) -> Result<Self, EntryError> {
        verify(range, &bytes)?;
        bytes.advance(5);
        let term = Term(bytes.get_u64());
        let count = bytes.get_u32();
        let mut commands = Vec::new();
        for _ in 0..count {
            if bytes.len() < 20 {
                return Err(EntryError::Malformed);
            }
            let mut request = [0; 16];
            bytes.copy_to_slice(&mut request);
            let length = bytes.get_u32() as usize;
            if bytes.len() < length {
                return Err(EntryError::Malformed);
            }
            commands.push(EntryCommand { request: RequestId(request), body: bytes.split_to(length) });
        }
        if bytes.is_empty() { Ok(Self { term, commands }) } else { Err(EntryError::Malformed) }
    }
}

/// Checks a payload without taking it apart: on every follower before the append.
///
/// # Errors
/// Drop the message: the sender will send it again.
pub fn verify(range: RangeId, bytes: &[u8]) -> Result<(), EntryError> {
    let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else { return Err(EntryError::Malformed) };
    if header[0] != VERSION {
        return Err(EntryError::Version(header[0]));
    }
    if checksum(range, &bytes[5..]).to_be_bytes() == header[1..5] { Ok(()) } else { Err(EntryError::Checksum) }
}

fn checksum(range: RangeId, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&range.0.to_be_bytes()), rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_payload() -> impl Strategy<Value = Payload> {
        let command = (any::<[u8; 16]>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(id, body)| EntryCommand { request: RequestId(id), body: body.into() });
        (any::<u64>(), prop::collection::vec(command, 0..5))
            .prop_map(|(term, commands)| Payload { term: Term(term), commands })
    }

    proptest! {
        #[test]
        fn a_payload_reads_back_as_written(payload in any_payload(), range in any::<u64>()) {
            let bytes = payload.encode(RangeId(range));
            prop_assert_eq!(Payload::decode(RangeId(range), bytes.clone()), Ok(payload));
            prop_assert_eq!(verify(RangeId(range.wrapping_add(1)), &bytes), Err(EntryError::Checksum));
        }

        #[test]
        fn a_flipped_bit_or_a_cut_is_noticed(payload in any_payload(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let bytes = payload.encode(RangeId(7));
            let mut flipped = bytes.to_vec();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            prop_assert!(Payload::decode(RangeId(7), flipped.into()).is_err());
            prop_assert!(Payload::decode(RangeId(7), bytes.slice(..at.index(bytes.len()))).is_err());
        }
    }
}
