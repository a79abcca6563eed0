//! Hashing a replica, so that replicas can be compared (docs/durability.md, "Checking that replicas agree").
//!
//! The hash covers what a range must hold alike everywhere, and leaves out by definition what it need not: replica-local
//! records, the `via_snapshot` flag, and versions that garbage collection may remove whenever it likes. It is made of
//! chunks, so that two replicas that differ can say where. Reading checks the engine's own checksums on the way.

use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::mvcc;
use flotilla_storage::state::{Applied, Thresholds};
use flotilla_types::{Key, LogIndex, RangeDescriptor, RangeId, ReplicaHash, ReplicaId, Timestamp};

/// Bytes of keys and values in a chunk.
const CHUNK_BYTES: usize = 1 << 20;

/// The hash of one stretch of a replica's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its first physical key.
    pub first: Vec<u8>,
    /// Over its keys and values.
    pub hash: u64,
    /// How many it holds.
    pub pairs: u64,
}

/// Hashes a replica's content as a reader, an engine snapshot, shows it.
///
/// # Errors
/// The content cannot be read: the replica is damaged.
pub fn hash(
    reader: &dyn Reader,
    descriptor: &RangeDescriptor,
    replica: ReplicaId,
    applied: LogIndex,
) -> Result<ReplicaHash, EngineError> {
    survey(reader, descriptor, replica, applied, &mut |_| {}).map(|survey| survey.hash)
}

/// A replica's hash and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Over all of it.
    pub hash: ReplicaHash,
    /// In key order.
    pub chunks: Vec<Chunk>,
}

/// What the hashes of a range's replicas say about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Not all that matter have reported, or some at another index: nothing is said.
    Nothing,
    /// All that reported are the same.
    Same,
    /// These differ from what more than half of the range's replicas hold.
    Wrong(Vec<ReplicaId>),
    /// They differ, and no more than half of the range's replicas are the same.
    NoMajority,
}

/// Compares what the replicas of a range hashed for one check. Learners count like voters: what they hold they got by the
/// same log.
#[must_use]
pub fn compare(descriptor: &RangeDescriptor, hashes: &[ReplicaHash]) -> Finding {
    let of_range = |hash: &&ReplicaHash| descriptor.replica(hash.replica).is_some();
    let hashes: Vec<_> = hashes.iter().filter(of_range).collect();
    let Some(first) = hashes.first() else { return Finding::Nothing };
    if hashes.iter().any(|hash| hash.applied != first.applied) {
        return Finding::Nothing;
    }
    if hashes.iter().all(|hash| hash.hash == first.hash) {
        let alone = descriptor.replicas.len() == 1;
        return if hashes.len() > 1 || alone { Finding::Same } else { Finding::Nothing };
    }
    let holders = |hash: u64| hashes.iter().filter(|other| other.hash == hash).count();
    match hashes.iter().find(|hash| holders(hash.hash) * 2 > descriptor.replicas.len()) {
        Some(right) => {
            let wrong = hashes.iter().filter(|hash| hash.hash != right.hash);
            Finding::Wrong(wrong.map(|hash| hash.replica).collect())
        }
        // Somebody who has not reported may make a majority.
        None if hashes.len() < descriptor.replicas.len() => Finding::Nothing,
        None => Finding::NoMajority,
    }
}

/// Where two replicas that differ begin to differ: the first physical key of the first chunk that is not the same.
#[must_use]
pub fn first_difference(one: &[Chunk], other: &[Chunk]) -> Option<Vec<u8>> {
    let differs = one.iter().zip(other).find(|(one, other)| one != other);
    let longer = || one.get(other.len()).or_else(|| other.get(one.len()));
    differs.map(|(one, other)| one.first.clone().min(other.first.clone())).or_else(|| Some(longer()?.first.clone()))
}

/// The same as `hash`, with `pause` called after each chunk, with about as many bytes as it took: for a caller that must
/// leave the disk to others.
///
/// # Errors
/// The content cannot be read: the replica is damaged.
pub fn survey(
    reader: &dyn Reader,
    descriptor: &RangeDescriptor,
    replica: ReplicaId,
    applied: LogIndex,
    pause: &mut dyn FnMut(usize),
) -> Result<Survey, EngineError> {
    let (mut whole, mut pairs, mut found) = (Hasher::default(), 0, Vec::new());
    chunks(reader, descriptor, &mut |chunk| {
        whole.add(&chunk.hash.to_be_bytes());
        pairs += chunk.pairs;
        found.push(chunk);
        pause(CHUNK_BYTES);
    })?;
    Ok(Survey { hash: ReplicaHash { replica, applied, hash: whole.end(), pairs }, chunks: found })
}

/// Hashes a replica's content chunk by chunk; a caller that must not take the whole disk waits between chunks.
///
/// # Errors
/// The content cannot be read: the replica is damaged.
pub fn chunks(
    reader: &dyn Reader,
    descriptor: &RangeDescriptor,
    found: &mut dyn FnMut(Chunk),
) -> Result<(), EngineError> {
    let range = descriptor.range;
    let thresholds = reader.get(&keys::range_record(range, RangeRecord::Thresholds))?;
    let thresholds = thresholds.map(|bytes| Thresholds::decode(&bytes)).transpose().map_err(damaged)?;
    let mut walk = Walk { gc: thresholds.unwrap_or_default().gc, ..Walk::default() };
    for (start, end) in keys::spans(range, &descriptor.span) {
        let mut cursor = reader.cursor(&start, &end);
        let mut there = cursor.seek(&start)?;
        while there {
            walk.take(range, cursor.key(), cursor.value(), found)?;
            there = cursor.next()?;
        }
    }
    walk.close(found);
    Ok(())
}

fn damaged(error: impl ToString) -> EngineError {
    EngineError::Corrupt { action: "hash a replica", cause: error.to_string() }
}

#[derive(Default)]
struct Walk {
    gc: Timestamp,
    /// The key whose newest version at or below the threshold was met already.
    settled: Option<Key>,
    first: Vec<u8>,
    hasher: Hasher,
    bytes: usize,
    pairs: u64,
}

impl Walk {
    fn take(
        &mut self,
        range: RangeId,
        key: &[u8],
        value: &[u8],
        found: &mut dyn FnMut(Chunk),
    ) -> Result<(), EngineError> {
        match keys::decode_range_record(key) {
            Ok((of, record)) if of == range && record.is_replica_local() => return Ok(()),
            Ok((of, RangeRecord::Applied)) if of == range => {
                let applied = Applied::decode(value).map_err(damaged)?;
                self.add(key, &Applied { via_snapshot: false, ..applied }.encode());
            }
            _ if self.is_collectable(key, value)? => return Ok(()),
            _ => self.add(key, value),
        }
        if self.bytes >= CHUNK_BYTES {
            self.close(found);
        }
        Ok(())
    }

    /// Of a key's versions at or below the threshold only the newest is read by anybody, and not even that if it says
    /// that the key is gone.
    fn is_collectable(&mut self, key: &[u8], value: &[u8]) -> Result<bool, EngineError> {
        let Ok((user, timestamp)) = keys::decode_version(key) else { return Ok(false) };
        if timestamp > self.gc {
            return Ok(false);
        }
        if self.settled.as_ref() == Some(&user) {
            return Ok(true);
        }
        self.settled = Some(user);
        mvcc::is_deletion(value)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        if self.pairs == 0 {
            self.first = key.to_vec();
        }
        for part in [key, value] {
            self.hasher.add(&(part.len() as u64).to_be_bytes());
            self.hasher.add(part);
        }
        self.bytes += key.len() + value.len();
        self.pairs += 1;
    }

    fn close(&mut self, found: &mut dyn FnMut(Chunk)) {
        if self.pairs > 0 {
            let first = std::mem::take(&mut self.first);
            found(Chunk { first, hash: std::mem::take(&mut self.hasher).end(), pairs: self.pairs });
            (self.bytes, self.pairs) = (0, 0);
        }
    }
}

/// Two checksums that run over the bytes and over the bytes' checksums: against accidents, not against malice.
#[derive(Default)]
struct Hasher {
    low: u32,
    high: u32,
}

impl Hasher {
    fn add(&mut self, bytes: &[u8]) {
        self.low = crc32c::crc32c_append(self.low, bytes);
        self.high = self.high.rotate_left(5).wrapping_mul(0x9e37_79b1) ^ crc32c::crc32c(bytes);
    }

    fn end(self) -> u64 {
        u64::from(self.high) << 32 | u64::from(self.low)
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::engine::{Engine, WriteBatch};
    use flotilla_storage::memory::MemoryEngine;
    use flotilla_storage::state::encode_replica_id;
    use flotilla_types::{Generation, KeySpan, ReplicaDescriptor, ReplicaKind, StoreId};

    use super::*;

    fn descriptor() -> RangeDescriptor {
        let replica = ReplicaDescriptor { replica: ReplicaId(1), store: StoreId(1), kind: ReplicaKind::Voter };
        RangeDescriptor {
            range: RangeId(7),
            span: KeySpan::ALL,
            generation: Generation(1),
            replicas: [replica].into_iter().collect(),
            next_replica: ReplicaId(2),
        }
    }

    fn user(n: u64) -> Key {
        flotilla_types::keys::user(format!("k{n:04}").as_bytes())
    }

    fn replica(me: u64) -> MemoryEngine {
        let engine = MemoryEngine::new();
        let mut batch = WriteBatch::default();
        let record = |record| keys::range_record(RangeId(7), record);
        batch.put(record(RangeRecord::ReplicaId), encode_replica_id(ReplicaId(me)));
        batch.put(record(RangeRecord::Applied), Applied { via_snapshot: me == 2, ..Applied::default() }.encode());
        let gc = Thresholds { gc: Timestamp::from_wall(10), dedup_floor_ms: 0 };
        batch.put(record(RangeRecord::Thresholds), gc.encode());
        for n in 0..3000 {
            mvcc::write(&mut batch, &user(n), Timestamp::from_wall(20), Some(&vec![n as u8; 1000]), None);
        }
        engine.write(&batch).unwrap();
        engine
    }

    fn hashed(engine: &MemoryEngine) -> (u64, u64) {
        let found = hash(engine, &descriptor(), ReplicaId(1), LogIndex(5)).unwrap();
        (found.hash, found.pairs)
    }

    fn write(engine: &MemoryEngine, n: u64, at: u64, value: Option<&[u8]>) {
        let mut batch = WriteBatch::default();
        mvcc::write(&mut batch, &user(n), Timestamp::from_wall(at), value, None);
        engine.write(&batch).unwrap();
    }

    #[test]
    fn equal_replicas_hash_alike_and_one_flipped_value_is_found_in_its_chunk() {
        let (one, other) = (replica(1), replica(2));
        assert_eq!(hashed(&one), hashed(&other));
        assert_eq!(hashed(&one).1, 3002);
        write(&other, 2500, 20, Some(b"flipped"));
        assert_ne!(hashed(&one).0, hashed(&other).0);
        let list = |engine: &MemoryEngine| {
            let mut list = Vec::new();
            chunks(engine, &descriptor(), &mut |chunk| list.push(chunk)).unwrap();
            list
        };
        let (one, other) = (list(&one), list(&other));
        let differ: Vec<_> = one.iter().zip(&other).filter(|(a, b)| a.hash != b.hash).map(|(a, _)| a).collect();
        assert!(one.len() == 3 && differ.len() == 1);
        assert!(differ[0].first <= keys::version(&user(2500), Timestamp::from_wall(20)));
    }

    #[test]
    fn a_replica_that_only_lags_in_collecting_garbage_is_not_accused() {
        let (one, other) = (replica(1), replica(2));
        write(&other, 7, 9, Some(b"kept: the newest at the threshold"));
        assert_ne!(hashed(&one), hashed(&other));
        write(&one, 7, 9, Some(b"kept: the newest at the threshold"));
        assert_eq!(hashed(&one), hashed(&other));
        write(&other, 7, 8, Some(b"collected on one, not yet on the other"));
        write(&other, 9999, 6, None);
        write(&other, 9999, 5, Some(b"below a deletion"));
        assert_eq!(hashed(&one), hashed(&other));
        write(&other, 9999, 11, None);
        assert_ne!(hashed(&one), hashed(&other), "above the threshold everything counts");
    }

    fn three() -> RangeDescriptor {
        let replica = |n| ReplicaDescriptor { replica: ReplicaId(n), store: StoreId(n), kind: ReplicaKind::Voter };
        RangeDescriptor { replicas: [replica(1), replica(2), replica(3)].into_iter().collect(), ..descriptor() }
    }

    fn said(hashes: &[(u64, u64, u64)]) -> Finding {
        let hash = |(replica, applied, hash): &(u64, u64, u64)| ReplicaHash {
            replica: ReplicaId(*replica),
            applied: LogIndex(*applied),
            hash: *hash,
            pairs: 1,
        };
        compare(&three(), &hashes.iter().map(hash).collect::<Vec<_>>())
    }

    #[test]
    fn most_of_a_ranges_replicas_say_which_are_wrong() {
        assert_eq!(said(&[(1, 9, 7), (2, 9, 7), (3, 9, 7)]), Finding::Same);
        assert_eq!(said(&[(1, 9, 7), (2, 9, 8), (3, 9, 7)]), Finding::Wrong(vec![ReplicaId(2)]));
        assert_eq!(said(&[(1, 9, 6), (2, 9, 8), (3, 9, 7)]), Finding::NoMajority);
        assert_eq!(said(&[(1, 9, 7), (3, 9, 7)]), Finding::Same, "as far as they were asked");
        assert_eq!(said(&[(1, 9, 7), (3, 9, 8)]), Finding::Nothing, "the third will tell");
        assert_eq!(said(&[(1, 9, 7), (2, 8, 7), (3, 9, 7)]), Finding::Nothing, "not at one index");
        assert_eq!(said(&[(1, 9, 7)]), Finding::Nothing);
        let only = ReplicaHash { replica: ReplicaId(1), applied: LogIndex(9), hash: 7, pairs: 1 };
        assert_eq!(compare(&descriptor(), &[only]), Finding::Same, "the only one is the same as itself");
        assert_eq!(said(&[(1, 9, 7), (4, 9, 8), (2, 9, 7)]), Finding::Same, "a stranger says nothing");
    }

    #[test]
    fn the_first_chunk_that_differs_says_where() {
        let (one, other) = (replica(1), replica(2));
        let chunks = |engine: &MemoryEngine| {
            let survey = survey(engine, &descriptor(), ReplicaId(1), LogIndex(5), &mut |_| {}).unwrap();
            assert!(survey.chunks.len() > 2);
            survey.chunks
        };
        assert_eq!(first_difference(&chunks(&one), &chunks(&other)), None);
        write(&other, 2500, 20, Some(b"flipped"));
        let found = first_difference(&chunks(&one), &chunks(&other)).unwrap();
        let (key, _) = keys::decode_version(&found).unwrap();
        assert!(key <= user(2500) && key > user(1000), "{key}");
    }
}
