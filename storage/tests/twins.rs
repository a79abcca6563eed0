//! The engine on a disk and the one in memory give the same answers to the same random operations; and multi-version
//! reads agree, on both, with a model that keeps every version in a list.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_storage::engine::{Engine, Reader, WriteBatch};
use flotilla_storage::memory::MemoryEngine;
use flotilla_storage::mvcc::{self, MvccError, ReadWindow, ScanBounds};
use flotilla_storage::rocks::{RocksEngine, RocksOptions};
use flotilla_storage::{SstFile, keys, locks};
use flotilla_types::{
    Isolation, Key, KeySpan, LockRecord, Priority, RequestId, Seq, Strength, Timestamp, TxnId, TxnMeta,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const OPTIONS: RocksOptions = RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 };

fn small_key(random: &mut StdRng) -> Key {
    let length = random.random_range(1..4);
    Key::new((0..length).map(|_| *[0u8, 1, b'a', b'b', 0xff].choose(random).unwrap()).collect::<Vec<_>>())
}

fn physical_key(random: &mut StdRng) -> Vec<u8> {
    keys::version(&small_key(random), Timestamp::from_wall(random.random_range(1..6)))
}

fn ordered(a: Vec<u8>, b: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    if a <= b { (a, b) } else { (b, a) }
}

/// All pairs of [lower, upper), walked in both directions and by both ways of starting.
fn walk(reader: &dyn Reader, lower: &[u8], upper: &[u8], from: &[u8]) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut walks = Vec::new();
    for backward in [false, true] {
        let mut cursor = reader.cursor(lower, upper);
        let mut pairs = Vec::new();
        let mut there = if backward { cursor.seek_before(from).unwrap() } else { cursor.seek(from).unwrap() };
        while there {
            pairs.push((cursor.key().to_vec(), cursor.value().to_vec()));
            there = if backward { cursor.prev().unwrap() } else { cursor.next().unwrap() };
        }
        walks.push(pairs);
    }
    walks
}

fn compare(a: &dyn Reader, b: &dyn Reader, random: &mut StdRng) {
    let key = physical_key(random);
    assert_eq!(a.get(&key).unwrap(), b.get(&key).unwrap());
    let (lower, upper) = ordered(physical_key(random), physical_key(random));
    let from = physical_key(random);
    assert_eq!(walk(a, &lower, &upper, &from), walk(b, &lower, &upper, &from));
    let user = small_key(random);
    let (seek, end) = (keys::version(&user, Timestamp::from_wall(3)), keys::prefix_end(&keys::version_prefix(&user)));
    assert_eq!(a.first_in_prefix(&seek, &end).unwrap(), b.first_in_prefix(&seek, &end).unwrap());
}

fn random_batch(random: &mut StdRng) -> WriteBatch {
    let mut batch = WriteBatch::default();
    for _ in 0..random.random_range(1..6) {
        match random.random_range(0..8) {
            0 => batch.delete(physical_key(random)),
            1 => {
                let (start, end) = ordered(physical_key(random), physical_key(random));
                batch.delete_range(start, end);
            }
            _ => batch.put(physical_key(random), random.random::<u64>().to_be_bytes().to_vec()),
        }
    }
    batch
}

fn random_file(random: &mut StdRng) -> SstFile {
    let (start, end) = ordered(physical_key(random), physical_key(random));
    let pairs: BTreeMap<_, _> = (0..random.random_range(1..5))
        .map(|_| (physical_key(random), Bytes::from_static(b"ingested")))
        .filter(|(key, _)| start <= *key && *key < end)
        .collect();
    SstFile { start, end, pairs: pairs.into_iter().collect() }
}

#[test]
fn both_engines_answer_alike() {
    for seed in 0..4 {
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut disk = RocksEngine::open(dir.path(), OPTIONS).unwrap();
        let memory = MemoryEngine::new();
        let mut snapshots = Vec::new();
        for step in 0..600 {
            match random.random_range(0..40) {
                0 => {
                    disk.flush().unwrap();
                    memory.flush().unwrap();
                }
                1 => snapshots.push((disk.snapshot(), memory.snapshot())),
                2 => {
                    let file = random_file(&mut random);
                    if file.start < file.end {
                        let name = format!("file-{step}");
                        for engine in [&disk as &dyn Engine, &memory] {
                            engine.flush().unwrap();
                            engine.build_sst(&name, &file).unwrap();
                            engine.ingest(std::slice::from_ref(&name)).unwrap();
                        }
                    }
                }
                3 => {
                    snapshots.clear();
                    disk.flush().unwrap();
                    memory.flush().unwrap();
                    drop(disk);
                    disk = RocksEngine::open(dir.path(), OPTIONS).unwrap();
                    memory.crash();
                }
                _ => {
                    let batch = random_batch(&mut random);
                    disk.write(&batch).unwrap();
                    memory.write(&batch).unwrap();
                }
            }
            compare(&disk, &memory, &mut random);
            if let Some((a, b)) = snapshots.choose(&mut random) {
                compare(a.as_ref(), b.as_ref(), &mut random);
            }
        }
    }
}

#[test]
fn only_flushed_writes_are_seen_as_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let engines: [Box<dyn Engine>; 2] =
        [Box::new(RocksEngine::open(dir.path(), OPTIONS).unwrap()), Box::new(MemoryEngine::new())];
    for engine in engines {
        let mut batch = WriteBatch::default();
        batch.put(b"\x00mark".to_vec(), Bytes::from_static(b"1"));
        engine.write(&batch).unwrap();
        assert_eq!(engine.get_flushed(b"\x00mark").unwrap(), None);
        engine.flush().unwrap();
        assert_eq!(engine.get_flushed(b"\x00mark").unwrap().as_deref(), Some(&b"1"[..]));
    }
}

#[test]
fn a_crash_in_memory_loses_what_was_not_flushed_but_keeps_what_was_ingested() {
    let engine = MemoryEngine::new();
    let mut batch = WriteBatch::default();
    batch.put(b"lost".to_vec(), Bytes::from_static(b"1"));
    engine.write(&batch).unwrap();
    let file =
        SstFile { start: b"x".to_vec(), end: b"y".to_vec(), pairs: vec![(b"xk".to_vec(), Bytes::from_static(b"2"))] };
    engine.build_sst("f", &file).unwrap();
    engine.ingest(&["f".to_owned()]).unwrap();
    engine.crash();
    assert_eq!(engine.get(b"lost").unwrap(), None);
    assert_eq!(engine.get(b"xk").unwrap().as_deref(), Some(&b"2"[..]));
}

/// Every version of every key, newest last.
type Model = BTreeMap<Key, BTreeMap<Timestamp, Option<Bytes>>>;

fn model_get(model: &Model, key: &Key, window: ReadWindow) -> Result<Option<Bytes>, Timestamp> {
    let Some(versions) = model.get(key) else { return Ok(None) };
    let (timestamp, value) = match versions.range(..=window.limit).next_back() {
        Some(newest) => newest,
        None => return Ok(None),
    };
    if *timestamp > window.at { Err(*timestamp) } else { Ok(value.clone()) }
}

fn model_scan(model: &Model, span: &KeySpan, window: ReadWindow, bounds: ScanBounds) -> Result<Vec<(Key, Bytes)>, Key> {
    let mut rows = Vec::new();
    let mut all: Vec<_> = model.keys().filter(|key| span.contains(key)).collect();
    if bounds.reverse {
        all.reverse();
    }
    let mut bytes = 0;
    for key in all {
        if !rows.is_empty()
            && (bytes >= bounds.bytes_max || (bounds.rows_max > 0 && rows.len() as u64 >= bounds.rows_max))
        {
            break;
        }
        if let Some(value) = model_get(model, key, window).map_err(|_| key.clone())? {
            bytes += (key.as_bytes().len() + value.len()) as u64;
            rows.push((key.clone(), value));
        }
    }
    Ok(rows)
}

fn check_reads(engine: &dyn Engine, model: &Model, random: &mut StdRng) {
    let key = small_key(random);
    let at = Timestamp::from_wall(random.random_range(0..45));
    let window = ReadWindow { at, limit: Timestamp::from_wall(at.wall + random.random_range(0..4)) };
    match (mvcc::get(engine, &key, window), model_get(model, &key, window)) {
        (Ok(row), Ok(value)) => assert_eq!(row.map(|row| row.value), value),
        (Err(MvccError::Uncertain { existing, .. }), Err(expected)) => assert_eq!(existing, expected),
        (got, expected) => panic!("get of {key} in {window:?}: {got:?}, expected {expected:?}"),
    }
    let Ok(span) = KeySpan::new(small_key(random), small_key(random)) else { return };
    let bounds = ScanBounds {
        reverse: random.random(),
        rows_max: random.random_range(0..4),
        bytes_max: random.random_range(1..64),
    };
    match (mvcc::scan(engine, &span, window, bounds), model_scan(model, &span, window, bounds)) {
        (Ok(result), Ok(rows)) => {
            let got: Vec<_> = result.rows.iter().map(|row| (row.key.clone(), row.value.clone())).collect();
            assert_eq!(got, rows);
        }
        (Err(MvccError::Uncertain { key, .. }), Err(expected)) => assert_eq!(key, expected),
        (got, expected) => panic!("scan of {span} in {window:?}, {bounds:?}: {got:?}, expected {expected:?}"),
    }
}

fn check_resumed_scan(engine: &dyn Engine, model: &Model, random: &mut StdRng) {
    let window = ReadWindow::exactly(Timestamp::from_wall(random.random_range(0..45)));
    let reverse = random.random();
    let whole = ScanBounds { reverse, rows_max: 0, bytes_max: u64::MAX };
    let expected = model_scan(model, &KeySpan::ALL, window, whole).unwrap();
    let mut got = Vec::new();
    let mut rest = Some(KeySpan::ALL);
    while let Some(span) = rest {
        let piece = mvcc::scan(engine, &span, window, ScanBounds { rows_max: 2, ..whole }).unwrap();
        got.extend(piece.rows.into_iter().map(|row| (row.key, row.value)));
        rest = piece.resume.map(|at| {
            let KeySpan { start, end } = span;
            if reverse { KeySpan { start, end: at } } else { KeySpan { start: at, end } }
        });
    }
    assert_eq!(got, expected);
}

#[test]
fn reads_of_versions_agree_with_a_list_of_all_versions() {
    let dir = tempfile::tempdir().unwrap();
    let engines: [Box<dyn Engine>; 2] =
        [Box::new(RocksEngine::open(dir.path(), OPTIONS).unwrap()), Box::new(MemoryEngine::new())];
    for engine in engines {
        let mut random = StdRng::seed_from_u64(7);
        let mut model = Model::new();
        for step in 0..400u64 {
            let (key, timestamp) = (small_key(&mut random), Timestamp::from_wall(step / 10 + 1));
            let value = random.random_bool(0.8).then(|| Bytes::from(step.to_string()));
            let request = RequestId::new(step, 1, 1);
            let mut batch = WriteBatch::default();
            mvcc::write(&mut batch, &key, timestamp, value.as_deref(), Some(request));
            engine.write(&batch).unwrap();
            model.entry(key.clone()).or_default().insert(timestamp, value);
            let found = mvcc::find_request(engine.as_ref(), &key, request, Timestamp::ZERO).unwrap();
            assert_eq!(found.map(|version| version.timestamp), Some(timestamp));
            assert_eq!(mvcc::find_request(engine.as_ref(), &key, request, timestamp).unwrap(), None);
            check_reads(engine.as_ref(), &model, &mut random);
            check_resumed_scan(engine.as_ref(), &model, &mut random);
        }
    }
}

#[test]
fn how_much_lies_in_a_span_is_told_about_right() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = RocksEngine::open(dir.path(), OPTIONS).unwrap();
    let memory = MemoryEngine::new();
    let mut random = 1u64;
    let mut batch = WriteBatch::default();
    for n in 0..2000u32 {
        // Not compressible.
        let value = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 56) as u8
        });
        batch.put(format!("b{n:06}").into_bytes(), value.take(1000).collect::<Vec<_>>());
    }
    let spans = [("a", "b"), ("b", "b001000"), ("b", "c")];
    let spans = spans.map(|(start, end)| (start.as_bytes().to_vec(), end.as_bytes().to_vec()));
    for engine in [&rocks as &dyn Engine, &memory] {
        engine.write(&batch).unwrap();
        engine.flush().unwrap();
        let sizes = engine.approximate_bytes(&spans);
        assert_eq!(sizes[0], 0);
        assert!((900_000..1_200_000).contains(&sizes[1]), "{sizes:?}");
        assert!((1_900_000..2_300_000).contains(&sizes[2]), "{sizes:?}");
    }
}

#[test]
fn what_was_deleted_gives_its_room_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(dir.path(), OPTIONS).unwrap();
    let mut random = StdRng::seed_from_u64(3);
    let mut fill = |prefix: &str| {
        let mut batch = WriteBatch::default();
        for n in 0..8000u32 {
            let value: Vec<u8> = (0..1000).map(|_| random.random()).collect();
            batch.put(format!("{prefix}{n:06}").into_bytes(), value);
        }
        engine.write(&batch).unwrap();
        engine.flush().unwrap();
    };
    fill("a");
    fill("b");
    let full = engine.used_bytes();
    assert!(full > 15_000_000, "{full}");
    let mut batch = WriteBatch::default();
    batch.delete_range(b"a".to_vec(), b"b".to_vec());
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
    engine.reclaim(&(b"a".to_vec(), b"b".to_vec()));
    let left = engine.used_bytes();
    assert!(left < full * 6 / 10, "{left} of {full} bytes are left");
    assert!(engine.get(b"b000007").unwrap().is_some());
}

fn lock_on(key: &Key, strength: Strength, n: u8) -> LockRecord {
    let (id, at) = (TxnId([n; 16]), Timestamp::from_wall(7));
    let (isolation, priority) = (Isolation::Serializable, Priority::Normal);
    let commit_id = RequestId([n; 16]);
    let txn = TxnMeta { id, anchor: key.clone(), anchored: at, min_ts: at, isolation, priority, commit_id };
    let value = (strength == Strength::Intent).then(|| Bytes::from_static(b"v"));
    LockRecord { txn, ts: at, local_ts: at, seq: Seq(1), strength, value, history: Vec::new() }
}

/// Keys of all lengths: what a filter covers depends on how long a key is.
#[test]
fn locks_are_found_on_both_engines_whatever_the_length_of_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let rocks = RocksEngine::open(dir.path(), OPTIONS).unwrap();
    let memory = MemoryEngine::default();
    let engines: [&dyn Engine; 2] = [&rocks, &memory];
    let key = |length: usize, first: u8| Key::new([&[first][..], &vec![b'k'; length]].concat());
    let (mut batch, mut laid) = (WriteBatch::default(), Vec::new());
    for length in 0..48 {
        laid.push((key(length, 1), vec![lock_on(&key(length, 1), Strength::Intent, 1)]));
        laid.push((key(length, 2), (1..4).map(|n| lock_on(&key(length, 2), Strength::Shared, n)).collect()));
    }
    for (key, records) in &laid {
        for record in records {
            batch.put(keys::lock(key, record.strength, record.txn.id), record.encode());
        }
    }
    for engine in engines {
        engine.write(&batch).unwrap();
        for flushed in [false, true] {
            if flushed {
                engine.flush().unwrap();
            }
            for (key, records) in &laid {
                assert_eq!(locks::of_key(engine, key).unwrap(), *records, "{key} of {} bytes", key.as_bytes().len());
                assert_eq!(locks::of_key(engine, &key.next()).unwrap(), Vec::new());
            }
        }
    }
}
