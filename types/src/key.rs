//! Logical keys: what clients address and what ranges are cut by. Their physical form is storage's matter.

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

/// A logical key: one byte of keyspace, then the body. The empty key lies before all others.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Key(Bytes);

impl Key {
    /// The key before all others.
    pub const MIN: Self = Self(Bytes::from_static(b""));
    /// The key after all others: an end, never the key of a value.
    pub const MAX: Self = Self(Bytes::from_static(b"\xff"));

    /// Takes the bytes of a logical key as they are, keyspace byte included.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// The bytes, keyspace byte included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, keyspace byte included, without copying.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The smallest key above this one.
    #[must_use]
    pub fn next(&self) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len() + 1);
        bytes.extend_from_slice(&self.0);
        bytes.push(0);
        Self(bytes.into())
    }

    /// The smallest key above every key that starts with this one; `MAX` if there is none.
    #[must_use]
    pub fn prefix_end(&self) -> Self {
        let mut bytes = self.0.to_vec();
        while let Some(last) = bytes.pop() {
            if last < 0xff {
                bytes.push(last + 1);
                return Self(bytes.into());
            }
        }
        Self::MAX
    }

    /// Which part of the keyspace the key lies in.
    #[must_use]
    pub fn keyspace(&self) -> Keyspace {
        match self.0.first() {
            None | Some(0x00 | 0x01) => Keyspace::Meta1,
            Some(0x02) => Keyspace::Meta2,
            Some(0x03..=0x07) => Keyspace::System,
            Some(0x08..=0x0f) => Keyspace::Sql,
            Some(_) => Keyspace::User,
        }
    }
}

impl fmt::Display for Key {
    /// Printable bytes as they are, others as `\xNN`; `Min` and `Max` by name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::MIN {
            return f.write_str("Min");
        }
        if *self == Self::MAX {
            return f.write_str("Max");
        }
        let (name, body) = match (self.keyspace(), &self.0[..]) {
            (Keyspace::Meta1, [0x01, body @ ..]) => ("/meta1/", body),
            (Keyspace::Meta2, [0x02, body @ ..]) => ("/meta2/", body),
            (Keyspace::System, [0x03, body @ ..]) => ("/system/", body),
            (Keyspace::Sql, [0x08, body @ ..]) => ("/sql/", body),
            (Keyspace::User, [0x10, 0, 0, 0, 0, body @ ..]) => ("/user/", body),
            (_, all) => ("", all),
        };
        f.write_str(name)?;
        body.iter().try_for_each(|byte| match byte {
            b'\\' => f.write_str("\\\\"),
            0x20..=0x7e => write!(f, "{}", *byte as char),
            _ => write!(f, "\\x{byte:02x}"),
        })
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The parts of the keyspace, in key order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keyspace {
    /// Where the ranges of `Meta2` are. Never splits.
    Meta1,
    /// Where all other ranges are.
    Meta2,
    /// The cluster's own facts: nodes, id blocks, settings, placement.
    System,
    /// SQL tables.
    Sql,
    /// Keys of applications.
    User,
}

/// The places in the keyspace that have names.
pub mod keys {
    use super::{Key, KeySpan, Keyspace};

    /// Start of meta2.
    pub const META2: Key = Key(bytes::Bytes::from_static(b"\x02"));
    /// Start of the system keyspace.
    pub const SYSTEM: Key = Key(bytes::Bytes::from_static(b"\x03"));
    /// Start of SQL tables.
    pub const SQL: Key = Key(bytes::Bytes::from_static(b"\x08"));
    /// Start of user keys.
    pub const USER: Key = Key(bytes::Bytes::from_static(b"\x10"));

    const USER_KEYSPACE: [u8; 5] = [0x10, 0, 0, 0, 0];

    /// The logical key of an application's key in the default keyspace.
    #[must_use]
    pub fn user(body: &[u8]) -> Key {
        Key::new([&USER_KEYSPACE, body].concat())
    }

    /// The application's own bytes of a logical key in the default keyspace.
    #[must_use]
    pub fn user_body(key: &Key) -> Option<bytes::Bytes> {
        key.0.starts_with(&USER_KEYSPACE).then(|| key.0.slice(USER_KEYSPACE.len()..))
    }

    /// All keys of the default keyspace.
    #[must_use]
    pub fn user_span() -> KeySpan {
        let start = user(b"");
        let end = start.prefix_end();
        KeySpan { start, end }
    }

    /// A key of the cluster's own facts.
    #[must_use]
    pub fn system(name: &str) -> Key {
        Key::new([b"\x03", name.as_bytes()].concat())
    }

    /// Where the descriptor of a range that ends at `end` is recorded: meta1 for ranges of meta2, meta2 for all
    /// others. A record sits under the *end* key, so that "the first record above K" names the owner of K.
    /// `None` for the range of meta1 itself, which every node knows.
    #[must_use]
    pub fn meta_record(start: &Key, end: &Key) -> Option<Key> {
        let level = match start.keyspace() {
            Keyspace::Meta1 => return None,
            Keyspace::Meta2 => 0x01,
            _ => 0x02,
        };
        Some(Key::new([&[level], end.as_bytes()].concat()))
    }

    /// Where to look for the owner of `key`: the first record in this span names it. `None` if that is the range of
    /// meta1 itself.
    #[must_use]
    pub fn meta_lookup(key: &Key) -> Option<KeySpan> {
        let level = match key.keyspace() {
            Keyspace::Meta1 => return None,
            Keyspace::Meta2 => 0x01,
            _ => 0x02,
        };
        let start = Key::new([&[level], key.as_bytes()].concat()).next();
        Some(KeySpan { start, end: Key::new(vec![level + 1]) })
    }
}

/// A span that is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the span [{start}, {end}) is empty: its end must lie above its start")]
pub struct SpanError {
    start: Key,
    end: Key,
}

/// The keys from `start`, included, to `end`, excluded. Invariant: `start < end` for spans made by `KeySpan::new`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeySpan {
    /// First key.
    pub start: Key,
    /// First key that is not in the span any more.
    pub end: Key,
}

impl KeySpan {
    /// Everything.
    pub const ALL: Self = Self { start: Key::MIN, end: Key::MAX };

    /// A span with at least room for one key.
    ///
    /// # Errors
    /// `SpanError` if `end` does not lie above `start`.
    pub fn new(start: Key, end: Key) -> Result<Self, SpanError> {
        if start < end { Ok(Self { start, end }) } else { Err(SpanError { start, end }) }
    }

    /// The span of one key.
    #[must_use]
    pub fn point(key: Key) -> Self {
        let end = key.next();
        Self { start: key, end }
    }

    /// Whether the key lies in the span.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.start <= *key && *key < self.end
    }

    /// Whether all of `other` lies in the span.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share a key.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The keys that both hold.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.clone().max(other.start.clone());
        let end = self.end.clone().min(other.end.clone());
        Self::new(start, end).ok()
    }
}

impl fmt::Display for KeySpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

impl fmt::Debug for KeySpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_key_is_the_first_record_above_it() {
        let end = keys::user(b"m");
        let record = keys::meta_record(&keys::USER, &end).unwrap();
        assert!(keys::meta_lookup(&keys::user(b"a")).unwrap().contains(&record));
        assert!(!keys::meta_lookup(&end).unwrap().contains(&record), "the end itself belongs to the next range");
        let last = keys::meta_record(&keys::USER, &Key::MAX).unwrap();
        assert!(keys::meta_lookup(&end).unwrap().contains(&last));
        assert!(keys::meta_lookup(&Key::new(&b"\x01x"[..])).is_none());
    }

    #[test]
    fn prefix_end_skips_bytes_that_cannot_grow() {
        assert_eq!(Key::new(&b"a\xff"[..]).prefix_end(), Key::new(&b"b"[..]));
        assert_eq!(Key::new(&b"\xff\xff"[..]).prefix_end(), Key::MAX);
    }

    #[test]
    fn spans_meet_only_where_they_share_a_key() {
        let span = |a: &[u8], b: &[u8]| KeySpan::new(keys::user(a), keys::user(b)).unwrap();
        assert!(!span(b"a", b"b").overlaps(&span(b"b", b"c")));
        assert!(span(b"a", b"c").overlaps(&span(b"b", b"d")));
        assert_eq!(span(b"a", b"c").intersection(&span(b"b", b"d")), Some(span(b"b", b"c")));
        assert!(KeySpan::new(keys::user(b"b"), keys::user(b"b")).is_err());
    }
}
