//! Identifiers. Each is a type of its own, so that a store id cannot be passed where a range id is meant.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next larger value.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number! {
    /// A process of the cluster. Given out once, by consensus, when the node joins.
    NodeId(u64), "n"
}
number! {
    /// One directory with its two engines. In this version a node has one store, and both carry the same number.
    StoreId(u64), "s"
}
number! {
    /// One Raft group. Never reused.
    RangeId(u64), "r"
}
number! {
    /// One incarnation of a replica within its range. Never reused (durability: replica lifecycle).
    ReplicaId(u64), "p"
}
number! {
    /// Version of a range descriptor: grows with each split, merge and membership change.
    Generation(u64), "g"
}
number! {
    /// A Raft term.
    Term(u64), "t"
}
number! {
    /// A position in a Raft log. The first entry of a range has index 11 (see `RangeDescriptor::INITIAL_INDEX`).
    LogIndex(u64), "i"
}

impl From<NodeId> for StoreId {
    fn from(node: NodeId) -> Self {
        Self(node.0)
    }
}

impl From<StoreId> for NodeId {
    fn from(store: StoreId) -> Self {
        Self(store.0)
    }
}

/// A text that should have been an id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let refused = || IdError { text: text.to_owned(), expected: $expected };
                if text.len() != 32 || !text.is_ascii() {
                    return Err(refused());
                }
                let mut bytes = [0; 16];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| refused())?;
                }
                Ok(Self(bytes))
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| IdError { text: format!("{} bytes", bytes.len()), expected: $expected })
            }
        }
    };
}

sixteen_bytes! {
    /// Names one cluster for ever. Drawn at `flotilla init`.
    ClusterId, "a cluster id of 16 bytes (32 hex digits)"
}
sixteen_bytes! {
    /// Names one store directory for ever, so that a copied or restored directory is recognised.
    StoreUuid, "a store uuid of 16 bytes (32 hex digits)"
}
sixteen_bytes! {
    /// Names one intention of a client; the same on every retry, so that a command takes effect once.
    ///
    /// Layout: 48 bits of birth (cluster time, ms since 1970), 48 random bits of the client instance, a 32-bit
    /// counter; all big-endian. The birth lets a range forget ids that are too old to be retried.
    RequestId, "a request id of 16 bytes (32 hex digits)"
}

sixteen_bytes! {
    /// Names one transaction for ever. Laid out like a `RequestId`: birth, gateway instance, counter.
    TxnId, "a transaction id of 16 bytes (32 hex digits)"
}

impl From<RequestId> for TxnId {
    fn from(id: RequestId) -> Self {
        Self(id.0)
    }
}

impl From<TxnId> for RequestId {
    fn from(id: TxnId) -> Self {
        Self(id.0)
    }
}

impl RequestId {
    /// Builds an id from its three parts. Only the low 48 bits of `born_ms` and `instance` are kept.
    #[must_use]
    pub fn new(born_ms: u64, instance: u64, counter: u32) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&born_ms.to_be_bytes()[2..]);
        bytes[6..12].copy_from_slice(&instance.to_be_bytes()[2..]);
        bytes[12..].copy_from_slice(&counter.to_be_bytes());
        Self(bytes)
    }

    /// When the intention was born: cluster time in milliseconds since 1970.
    #[must_use]
    pub fn born_ms(&self) -> u64 {
        let mut wide = [0; 8];
        wide[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(wide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_keeps_its_birth() {
        let id = RequestId::new(1_790_000_000_123, 0xffff_1234_5678_9abc, 7);
        assert_eq!(id.born_ms(), 1_790_000_000_123);
        assert_eq!(id.to_string().parse::<RequestId>(), Ok(id));
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        assert!("xyz".parse::<ClusterId>().is_err());
        assert!("zz".repeat(16).parse::<ClusterId>().is_err());
        assert!(StoreUuid::try_from(&[0u8; 15][..]).is_err());
    }
}
