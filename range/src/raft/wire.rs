//! Raft bytes from the network: checked before they are parsed.
//!
//! HAZARD (RUSTSEC-2024-0437): the protobuf library recurses without bound on nested groups in unknown fields. Raft's
//! messages use no groups, so any group is refused before the parser sees it; so are bytes above the size bound.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::Message;

/// Which message's fields are walked; decides which fields are messages themselves.
#[derive(Clone, Copy)]
enum Kind {
    Message,
    Entry,
    Snapshot,
    Metadata,
    ConfState,
}

impl Kind {
    const fn nested(self, field: u64) -> Option<Self> {
        match (self, field) {
            (Self::Message, 7) => Some(Self::Entry),
            (Self::Message, 9) => Some(Self::Snapshot),
            (Self::Snapshot, 2) => Some(Self::Metadata),
            (Self::Metadata, 1) => Some(Self::ConfState),
            _ => None,
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn skip<'a>(bytes: &mut &'a [u8], count: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(count).ok()?)?;
    *bytes = rest;
    Some(taken)
}

/// Walks the fields; `None` if a group, an unknown wire type, or a torn field is met.
fn walk(mut bytes: &[u8], kind: Kind) -> Option<()> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        match tag & 7 {
            0 => {
                varint(&mut bytes)?;
            }
            1 => {
                skip(&mut bytes, 8)?;
            }
            2 => {
                let length = varint(&mut bytes)?;
                let body = skip(&mut bytes, length)?;
                if let Some(nested) = kind.nested(tag >> 3) {
                    walk(body, nested)?;
                }
            }
            5 => {
                skip(&mut bytes, 4)?;
            }
            _ => return None,
        }
    }
    Some(())
}

/// Parses a raft message; `None` if it is too large, nested, torn, or not one.
pub(crate) fn parse(bytes: &Bytes, bytes_max: usize) -> Option<Message> {
    if bytes.len() > bytes_max {
        return None;
    }
    walk(bytes, Kind::Message)?;
    let mut message = Message::default();
    message.merge_from_bytes(bytes).ok()?;
    Some(message)
}

/// Serializes a raft message.
pub(crate) fn write(message: &Message) -> Bytes {
    // Writing to memory fails only for missing required fields, and this schema has none.
    message.write_to_bytes().map(Bytes::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::{Entry, MessageType};

    #[test]
    fn a_message_survives_the_wire() {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.term = 300;
        let data = Bytes::from_static(b"\x0b\x0c not a group, but data");
        let entry = Entry { data, ..Entry::default() };
        message.set_entries(vec![entry].into());
        let bytes = write(&message);
        assert_eq!(parse(&bytes, 1 << 20), Some(message));
        assert_eq!(parse(&bytes, bytes.len() - 1), None, "too large");
        assert_eq!(parse(&bytes.slice(..bytes.len() - 1), 1 << 20), None, "torn");
    }

    #[test]
    fn groups_are_refused_wherever_they_stand() {
        let group = [0xa3u8, 0x06].repeat(10_000);
        assert_eq!(parse(&Bytes::from(group.clone()), 1 << 20), None);
        let mut inside = vec![7 << 3 | 2, 2];
        inside.extend_from_slice(&group[..2]);
        assert_eq!(parse(&Bytes::from(inside), 1 << 20), None, "in an entry");
    }
}
