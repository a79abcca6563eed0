//! The key map: where everything of a store lies in its engine. This file is the only one that knows.
//!
//! ```text
//! 00 name                              store-local        flush mark, copy of the identity
//! 01 range be64, kind                  id-local           A applied, D descriptor, L lease, G thresholds, S statistics
//! 01 range be64, z kind                replica-local      zi own replica id; never leaves the store
//! 02 range be64                        tombstone          replica ids below are gone for good
//! 03 enc(anchor), kind, id 16          key-local          t transaction record, f finished record
//! 04 enc(key), kind 1, transaction 16  locks              1 exclusive, 2 shared
//! 05 enc(key), !wall be64, !logical be32   versions       newest first
//! ```
//! `enc` writes `00` as `00 FF` and ends with `00 01`: order-preserving and prefix-free, so that suffixes never mix with
//! longer keys and plain byte order is key order.

use flotilla_types::{Key, KeySpan, RangeId, RequestId, Strength, Timestamp, TxnId};
use thiserror::Error;

const STORE: u8 = 0x00;
const RANGE: u8 = 0x01;
const TOMBSTONE: u8 = 0x02;
const ANCHOR: u8 = 0x03;
const LOCK: u8 = 0x04;
const VERSION: u8 = 0x05;
const LOCK_EXCLUSIVE: u8 = 1;
const LOCK_SHARED: u8 = 2;

/// Bytes that follow `enc(key)` in a version's key.
pub const VERSION_SUFFIX: usize = 12;
/// Bytes that follow `enc(key)` in a lock's key.
pub const LOCK_SUFFIX: usize = 17;

/// A start and an end (excluded) in physical keys.
pub type PhysicalSpan = (Vec<u8>, Vec<u8>);

/// A physical key that this map did not write.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a physical key of {expected}: {key:02x?}")]
pub struct KeyError {
    expected: &'static str,
    key: Vec<u8>,
}

/// The flush mark (docs/durability.md, "Apply").
#[must_use]
pub fn flush_mark() -> Vec<u8> {
    store_local("mark")
}

/// A store-local fact.
#[must_use]
pub fn store_local(name: &str) -> Vec<u8> {
    [&[STORE], name.as_bytes()].concat()
}

/// What is kept once per range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RangeRecord {
    /// `state::Applied`.
    Applied,
    /// The descriptor.
    Descriptor,
    /// `state::LeaseState`.
    Lease,
    /// `state::Thresholds`.
    Thresholds,
    /// Room for figures of a range; nobody writes it yet.
    Stats,
    /// The replica id of this store's replica. Replica-local.
    ReplicaId,
}

impl RangeRecord {
    const ALL: [Self; 6] =
        [Self::Applied, Self::Descriptor, Self::Thresholds, Self::Lease, Self::Stats, Self::ReplicaId];

    const fn suffix(self) -> &'static [u8] {
        match self {
            Self::Applied => b"A",
            Self::Descriptor => b"D",
            Self::Lease => b"L",
            Self::Thresholds => b"G",
            Self::Stats => b"S",
            Self::ReplicaId => b"zi",
        }
    }

    /// Whether the record belongs to one replica, and so never travels and is never hashed.
    #[must_use]
    pub const fn is_replica_local(self) -> bool {
        matches!(self, Self::ReplicaId)
    }
}

/// The key of a range's record.
#[must_use]
pub fn range_record(range: RangeId, record: RangeRecord) -> Vec<u8> {
    let mut key = range_prefix(RANGE, range);
    key.extend_from_slice(record.suffix());
    key
}

/// Which record of which range a key of region 01 is.
///
/// # Errors
/// It is none.
pub fn decode_range_record(key: &[u8]) -> Result<(RangeId, RangeRecord), KeyError> {
    let refused = || KeyError { expected: "a range's record", key: key.to_vec() };
    let (region, rest) = key.split_first().ok_or_else(refused)?;
    let (id, suffix) = rest.split_first_chunk::<8>().ok_or_else(refused)?;
    let record = RangeRecord::ALL.into_iter().find(|record| record.suffix() == suffix).ok_or_else(refused)?;
    if *region != RANGE {
        return Err(refused());
    }
    Ok((RangeId(u64::from_be_bytes(*id)), record))
}

/// All records of all ranges.
#[must_use]
pub fn all_range_records() -> PhysicalSpan {
    (vec![RANGE], vec![RANGE + 1])
}

/// The key of a range's tombstone.
#[must_use]
pub fn tombstone(range: RangeId) -> Vec<u8> {
    range_prefix(TOMBSTONE, range)
}

/// All tombstones.
#[must_use]
pub fn all_tombstones() -> PhysicalSpan {
    (vec![TOMBSTONE], vec![TOMBSTONE + 1])
}

/// The range of a tombstone's key.
///
/// # Errors
/// It is none.
pub fn decode_tombstone(key: &[u8]) -> Result<RangeId, KeyError> {
    match key.split_first() {
        Some((&TOMBSTONE, id)) => id.try_into().map(|id| RangeId(u64::from_be_bytes(id))).ok(),
        _ => None,
    }
    .ok_or_else(|| KeyError { expected: "a tombstone", key: key.to_vec() })
}

/// The key of a finished record: what became of a request that wrote several keys.
#[must_use]
pub fn finished(anchor: &Key, id: RequestId) -> Vec<u8> {
    let mut key = encoded(ANCHOR, anchor);
    key.push(b'f');
    key.extend_from_slice(&id.0);
    key
}

/// The key of a transaction's record.
#[must_use]
pub fn txn_record(anchor: &Key, id: TxnId) -> Vec<u8> {
    let mut key = encoded(ANCHOR, anchor);
    key.push(b't');
    key.extend_from_slice(&id.0);
    key
}

/// Anchor and transaction of a transaction record's key.
///
/// # Errors
/// It is none.
pub fn decode_txn_record(physical: &[u8]) -> Result<(Key, TxnId), KeyError> {
    let refused = || KeyError { expected: "a transaction's record", key: physical.to_vec() };
    let body = physical.strip_prefix(&[ANCHOR]).ok_or_else(refused)?;
    let (body, id) = body.split_last_chunk::<16>().ok_or_else(refused)?;
    let key = body.strip_suffix(b"t").and_then(decode_escaped).ok_or_else(refused)?;
    Ok((key, TxnId(*id)))
}

/// The key of a transaction's lock on a key.
#[must_use]
pub fn lock(key: &Key, strength: Strength, id: TxnId) -> Vec<u8> {
    let mut physical = encoded(LOCK, key);
    physical.push(if strength == Strength::Shared { LOCK_SHARED } else { LOCK_EXCLUSIVE });
    physical.extend_from_slice(&id.0);
    physical
}

/// What all locks on a key start with, and nothing else does.
#[must_use]
pub fn lock_prefix(key: &Key) -> Vec<u8> {
    encoded(LOCK, key)
}

/// Where a search for the locks on a key begins: not above any of them, and of their form, so that the filter over prefixes takes
/// it for one of them.
#[must_use]
pub fn lock_seek(key: &Key) -> Vec<u8> {
    let mut seek = lock_prefix(key);
    seek.extend_from_slice(&[0; LOCK_SUFFIX]);
    seek
}

/// All locks on all keys of a span.
#[must_use]
pub fn lock_span(span: &KeySpan) -> PhysicalSpan {
    (encoded(LOCK, &span.start), encoded(LOCK, &span.end))
}

/// Key and transaction of a lock's key.
///
/// # Errors
/// It is none.
pub fn decode_lock(physical: &[u8]) -> Result<(Key, TxnId), KeyError> {
    let refused = || KeyError { expected: "a lock", key: physical.to_vec() };
    let body = physical.strip_prefix(&[LOCK]).ok_or_else(refused)?;
    let (body, id) = body.split_last_chunk::<16>().ok_or_else(refused)?;
    let (kind, body) = body.split_last().ok_or_else(refused)?;
    if !matches!(*kind, LOCK_EXCLUSIVE | LOCK_SHARED) {
        return Err(refused());
    }
    Ok((decode_escaped(body).ok_or_else(refused)?, TxnId(*id)))
}

/// All finished records, and records of transactions, of a range.
#[must_use]
pub fn finished_span(span: &KeySpan) -> PhysicalSpan {
    (encoded(ANCHOR, &span.start), encoded(ANCHOR, &span.end))
}

/// Anchor and request id of a finished record's key.
///
/// # Errors
/// It is none.
pub fn decode_finished(physical: &[u8]) -> Result<(Key, RequestId), KeyError> {
    let refused = || KeyError { expected: "a finished record", key: physical.to_vec() };
    let body = physical.strip_prefix(&[ANCHOR]).ok_or_else(refused)?;
    let (body, id) = body.split_last_chunk::<16>().ok_or_else(refused)?;
    let key = body.strip_suffix(b"f").and_then(decode_escaped).ok_or_else(refused)?;
    Ok((key, RequestId(*id)))
}

/// The key of one version.
#[must_use]
pub fn version(key: &Key, timestamp: Timestamp) -> Vec<u8> {
    let mut physical = encoded(VERSION, key);
    physical.extend_from_slice(&(!timestamp.wall).to_be_bytes());
    physical.extend_from_slice(&(!timestamp.logical).to_be_bytes());
    physical
}

/// What all versions of a key start with, and nothing else does.
#[must_use]
pub fn version_prefix(key: &Key) -> Vec<u8> {
    encoded(VERSION, key)
}

/// All versions of all keys of a span.
#[must_use]
pub fn version_span(span: &KeySpan) -> PhysicalSpan {
    (encoded(VERSION, &span.start), encoded(VERSION, &span.end))
}

/// The smallest physical key above all keys that start with `prefix`, which must not end in `FF` bytes alone.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// Key and timestamp of a version's key.
///
/// # Errors
/// It is none.
pub fn decode_version(physical: &[u8]) -> Result<(Key, Timestamp), KeyError> {
    let refused = || KeyError { expected: "a version", key: physical.to_vec() };
    let body = physical.strip_prefix(&[VERSION]).ok_or_else(refused)?;
    let (body, logical) = body.split_last_chunk::<4>().ok_or_else(refused)?;
    let (body, wall) = body.split_last_chunk::<8>().ok_or_else(refused)?;
    let key = decode_escaped(body).ok_or_else(refused)?;
    Ok((key, Timestamp { wall: !u64::from_be_bytes(*wall), logical: !u32::from_be_bytes(*logical) }))
}

/// What a version's key starts with, and its timestamp; nothing if it is no version's key.
#[must_use]
pub fn split_version(physical: &[u8]) -> Option<(&[u8], Timestamp)> {
    let (rest, logical) = physical.split_last_chunk::<4>()?;
    let (prefix, wall) = rest.split_last_chunk::<8>()?;
    let is_version = prefix.first() == Some(&VERSION) && prefix.len() > 2 && prefix.ends_with(&[0, 1]);
    let timestamp = Timestamp { wall: !u64::from_be_bytes(*wall), logical: !u32::from_be_bytes(*logical) };
    is_version.then_some((prefix, timestamp))
}

/// The four spans that hold all replicated state of a range, and its replica-local records beside it. Every scan,
/// snapshot, deletion and hash uses this one function; tombstones lie outside on purpose.
#[must_use]
pub fn spans(range: RangeId, span: &KeySpan) -> [PhysicalSpan; 4] {
    let in_region = |region| (encoded(region, &span.start), encoded(region, &span.end));
    [
        (range_prefix(RANGE, range), range_prefix(RANGE, range.next())),
        in_region(ANCHOR),
        in_region(LOCK),
        in_region(VERSION),
    ]
}

/// How many bytes at the start of a key its bloom filter covers: all of `05 enc(key)` for versions, all of
/// `04 enc(key)` for locks, and whole keys elsewhere.
#[must_use]
pub fn filter_prefix(key: &[u8]) -> &[u8] {
    let suffix = match key.first() {
        Some(&VERSION) => VERSION_SUFFIX,
        Some(&LOCK) => LOCK_SUFFIX,
        _ => 0,
    };
    // Bounds of spans are shorter than keys: they carry no suffix.
    if key.len() > suffix + 2 { &key[..key.len() - suffix] } else { key }
}

fn range_prefix(region: u8, range: RangeId) -> Vec<u8> {
    let mut key = Vec::with_capacity(11);
    key.push(region);
    key.extend_from_slice(&range.0.to_be_bytes());
    key
}

fn encoded(region: u8, key: &Key) -> Vec<u8> {
    let bytes = key.as_bytes();
    let mut physical = Vec::with_capacity(bytes.len() + 3 + LOCK_SUFFIX);
    physical.push(region);
    for byte in bytes {
        physical.push(*byte);
        if *byte == 0 {
            physical.push(0xff);
        }
    }
    physical.extend_from_slice(&[0, 1]);
    physical
}

/// Undoes `enc`; the terminator must be the last two bytes.
fn decode_escaped(escaped: &[u8]) -> Option<Key> {
    let body = escaped.strip_suffix(&[0, 1])?;
    let mut key = Vec::with_capacity(body.len());
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        key.push(*byte);
        if *byte == 0 && bytes.next() != Some(&0xff) {
            return None;
        }
    }
    Some(Key::new(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = Key> {
        // Few distinct bytes, so that keys share prefixes and meet the escaped ones.
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 0x7f, 0xfe, 0xff]), 0..8).prop_map(Key::new)
    }

    fn any_timestamp() -> impl Strategy<Value = Timestamp> {
        (any::<u64>(), any::<u32>()).prop_map(|(wall, logical)| Timestamp { wall, logical })
    }

    proptest! {
        #[test]
        fn versions_sort_by_key_then_newest_first(a in any_key(), b in any_key(), t in any_timestamp(), u in any_timestamp()) {
            let expected = a.cmp(&b).then(u.cmp(&t));
            prop_assert_eq!(version(&a, t).cmp(&version(&b, u)), expected);
        }

        #[test]
        fn a_version_key_says_what_it_was_made_of(key in any_key(), timestamp in any_timestamp()) {
            let physical = version(&key, timestamp);
            prop_assert_eq!(decode_version(&physical), Ok((key.clone(), timestamp)));
            prop_assert_eq!(filter_prefix(&physical), &version_prefix(&key)[..]);
            prop_assert_eq!(split_version(&physical), Some((&version_prefix(&key)[..], timestamp)));
        }

        #[test]
        fn no_prefix_is_the_start_of_another(a in any_key(), b in any_key()) {
            prop_assume!(a != b);
            prop_assert!(!version_prefix(&b).starts_with(&version_prefix(&a)));
        }

        #[test]
        fn a_span_holds_exactly_the_versions_of_its_keys(a in any_key(), b in any_key(), key in any_key(), t in any_timestamp()) {
            prop_assume!(a < b);
            let span = KeySpan::new(a, b).unwrap();
            let (start, end) = version_span(&span);
            let physical = version(&key, t);
            prop_assert_eq!(start <= physical && physical < end, span.contains(&key));
        }

        #[test]
        fn a_lock_key_says_what_it_was_made_of(key in any_key(), id in any::<[u8; 16]>(), shared in any::<bool>()) {
            let strength = if shared { Strength::Shared } else { Strength::Intent };
            let physical = lock(&key, strength, TxnId(id));
            prop_assert_eq!(decode_lock(&physical), Ok((key.clone(), TxnId(id))));
            prop_assert_eq!(filter_prefix(&physical), &lock_prefix(&key)[..]);
            let record = txn_record(&key, TxnId(id));
            prop_assert_eq!(decode_txn_record(&record), Ok((key, TxnId(id))));
            prop_assert!(decode_finished(&record).is_err());
        }

        #[test]
        fn bytes_that_are_no_key_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            if let Ok((key, timestamp)) = decode_version(&bytes) {
                prop_assert_eq!(version(&key, timestamp), bytes);
            }
        }
    }

    #[test]
    fn range_records_lie_in_their_ranges_span() {
        for record in RangeRecord::ALL {
            let key = range_record(RangeId(7), record);
            assert_eq!(decode_range_record(&key), Ok((RangeId(7), record)));
            let (start, end) = &spans(RangeId(7), &KeySpan::ALL)[0];
            assert!(start <= &key && &key < end);
        }
        assert!(decode_range_record(b"\x01short").is_err());
        assert_eq!(decode_tombstone(&tombstone(RangeId(9))), Ok(RangeId(9)));
    }
}
