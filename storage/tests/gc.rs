//! Old versions go by compaction: nothing that a read above the threshold sees changes, on either engine.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_storage::engine::{Engine, Reader, WriteBatch};
use flotilla_storage::memory::MemoryEngine;
use flotilla_storage::mvcc::{self, ReadWindow, ScanBounds};
use flotilla_storage::rocks::{RocksEngine, RocksOptions};
use flotilla_storage::{SstFile, keys};
use flotilla_types::{Key, KeySpan, Timestamp};
use proptest::prelude::*;

const OPTIONS: RocksOptions = RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 };
const KEYS: u8 = 6;

const fn at(wall: u64) -> Timestamp {
    Timestamp::from_wall(wall)
}

fn key(n: u8) -> Key {
    // One is the start of another, and zeros are escaped.
    Key::new([&[0x10, b'a'][..], &vec![0; usize::from(n)][..]].concat())
}

fn write(engine: &dyn Engine, n: u8, wall: u64, value: Option<&str>) {
    let mut batch = WriteBatch::default();
    mvcc::write(&mut batch, &key(n), at(wall), value.map(str::as_bytes), None);
    engine.write(&batch).unwrap();
}

fn get(reader: &dyn Reader, n: u8, wall: u64) -> Option<String> {
    let row = mvcc::get(reader, &key(n), ReadWindow::exactly(at(wall))).unwrap();
    row.map(|row| String::from_utf8(row.value.to_vec()).unwrap())
}

/// All versions of a key, deletions marked with `x`, newest first.
fn versions(reader: &dyn Reader, n: u8) -> String {
    let prefix = keys::version_prefix(&key(n));
    let mut cursor = reader.cursor(&prefix, &keys::prefix_end(&prefix));
    let (mut there, mut found) = (cursor.seek(&prefix).unwrap(), Vec::new());
    while there {
        let (_, timestamp) = keys::decode_version(cursor.key()).unwrap();
        let deleted = mvcc::is_deletion(cursor.value()).unwrap();
        found.push(format!("{}{}", timestamp.wall, if deleted { "x" } else { "" }));
        there = cursor.next().unwrap();
    }
    found.join(" ")
}

fn all() -> keys::PhysicalSpan {
    keys::version_span(&KeySpan::ALL)
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        n: u8,
        deletes: bool,
    },
    Flush,
    /// So much below the newest write, over these keys.
    Publish {
        behind: u64,
        from: u8,
        to: u8,
    },
    /// The keys and versions that take part are drawn from this.
    Part(u64),
    Full,
    View,
    Close,
    /// What is there goes, and comes back by a file, as another store that collected otherwise sends it.
    Reinstall {
        destroys: bool,
    },
    /// Delete markers at or below a threshold go together with what they hide, by deletes.
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (0..KEYS, prop::bool::weighted(0.3)).prop_map(|(n, deletes)| Step::Write { n, deletes }),
        3 => Just(Step::Flush),
        2 => (0u64..20, 0..KEYS, 1..=KEYS).prop_map(|(behind, from, length)| {
            Step::Publish { behind, from, to: KEYS.min(from + length) }
        }),
        3 => any::<u64>().prop_map(Step::Part),
        1 => Just(Step::Full),
        1 => Just(Step::View),
        1 => Just(Step::Close),
        1 => Just(Step::Sweep),
        1 => any::<bool>().prop_map(|destroys| Step::Reinstall { destroys }),
    ];
    prop::collection::vec(step, 1..120)
}

/// What was written, and what may be asked.
#[derive(Default)]
struct Model {
    clock: u64,
    versions: BTreeMap<u8, Vec<(u64, Option<String>)>>,
    thresholds: BTreeMap<u8, u64>,
}

impl Model {
    fn get(&self, n: u8, wall: u64) -> Option<String> {
        let versions = self.versions.get(&n)?;
        versions.iter().rev().find(|(at, _)| *at <= wall).and_then(|(_, value)| value.clone())
    }

    /// Every read above the threshold of its key sees what it would have seen ever before.
    fn compare(&self, reader: &dyn Reader, thresholds: &BTreeMap<u8, u64>, upto: u64, what: &str) {
        for n in 0..KEYS {
            let from = thresholds.get(&n).copied().unwrap_or_default();
            for wall in from + 1..=upto {
                assert_eq!(get(reader, n, wall), self.get(n, wall), "{what}: key {n} at {wall}, threshold {from}");
            }
        }
        let from = thresholds.values().copied().max().unwrap_or_default();
        for (wall, reverse) in [(from + 1, false), (upto, true)].into_iter().filter(|_| from < upto) {
            let bounds = ScanBounds { reverse, rows_max: 0, bytes_max: u64::MAX };
            let found = mvcc::scan(reader, &KeySpan::ALL, ReadWindow::exactly(at(wall)), bounds).unwrap();
            let expected = (0..KEYS).filter(|n| self.get(*n, wall).is_some()).count();
            assert_eq!(found.rows.len(), expected, "{what}: a scan at {wall}");
        }
    }
}

/// What `range/src/fleet/sweep.rs` does, all at once.
fn sweep(engine: &dyn Engine, thresholds: &BTreeMap<u8, u64>) {
    let mut batch = WriteBatch::default();
    for (n, threshold) in thresholds {
        let newest = mvcc::newest_at(engine, &key(*n), at(*threshold)).unwrap();
        if newest.is_none_or(|newest| newest.value.is_some()) {
            continue;
        }
        let prefix = keys::version_prefix(&key(*n));
        let mut cursor = engine.cursor(&prefix, &keys::prefix_end(&prefix));
        let mut there = cursor.seek(&keys::version(&key(*n), at(*threshold))).unwrap();
        while there {
            batch.delete(cursor.key().to_vec());
            there = cursor.next().unwrap();
        }
    }
    engine.write(&batch).unwrap();
}

/// Both engines get what one of them holds.
fn reinstall(engines: &[&dyn Engine], from: &dyn Reader, destroys: bool) {
    let (start, end) = all();
    let mut pairs = Vec::new();
    {
        let mut cursor = from.cursor(&start, &end);
        let mut there = cursor.seek(&start).unwrap();
        while there {
            pairs.push((cursor.key().to_vec(), Bytes::copy_from_slice(cursor.value())));
            there = cursor.next().unwrap();
        }
    }
    let file = SstFile { start, end, pairs };
    for engine in engines {
        if destroys {
            let mut batch = WriteBatch::default();
            batch.delete_range(file.start.clone(), file.end.clone());
            engine.write(&batch).unwrap();
        }
        engine.flush().unwrap();
        engine.build_sst("all", &file).unwrap();
        engine.ingest(&["all".to_owned()]).unwrap();
    }
}

/// Whether a version takes part in a compaction that was drawn as `dice`.
fn takes(dice: u64, key: &[u8]) -> bool {
    let mixed = key.iter().fold(dice, |mixed, byte| mixed.wrapping_mul(0x100_0000_01b3) ^ u64::from(*byte));
    mixed.count_ones() % 2 == 0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn reads_above_the_threshold_never_notice(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RocksEngine::open(dir.path(), OPTIONS).unwrap();
        let memory = MemoryEngine::new();
        let engines = [&disk as &dyn Engine, &memory];
        let (mut model, mut views) = (Model::default(), Vec::new());
        for step in steps {
            match step {
                Step::Write { n, deletes } => {
                    model.clock += 1;
                    let value = (!deletes).then(|| model.clock.to_string());
                    engines.iter().for_each(|engine| write(*engine, n, model.clock, value.as_deref()));
                    model.versions.entry(n).or_default().push((model.clock, value));
                    continue;
                }
                Step::Flush => engines.iter().for_each(|engine| engine.flush().unwrap()),
                Step::Publish { behind, from, to } => {
                    // Only what is flushed is promised.
                    engines.iter().for_each(|engine| engine.flush().unwrap());
                    let threshold = model.clock.saturating_sub(behind);
                    let span = KeySpan { start: key(from), end: if to == KEYS { Key::MAX } else { key(to) } };
                    engines.iter().for_each(|engine| engine.gc().publish(&span, at(threshold)));
                    for n in from..to {
                        let known = model.thresholds.entry(n).or_default();
                        *known = threshold.max(*known);
                    }
                }
                Step::Part(dice) => {
                    memory.compact_part(&mut |key| takes(dice, key));
                    let first = (dice % u64::from(KEYS)) as u8;
                    disk.collect(&keys::version_span(&KeySpan { start: key(first), end: key(first + 2) }));
                }
                Step::Full => {
                    memory.compact_all();
                    disk.collect(&all());
                }
                Step::View => {
                    let thresholds = model.thresholds.clone();
                    views.push((engines.map(|engine| engine.snapshot()), thresholds, model.clock));
                }
                Step::Close => views.clear(),
                Step::Sweep => engines.iter().for_each(|engine| sweep(*engine, &model.thresholds)),
                Step::Reinstall { destroys } => reinstall(&engines, &memory, destroys),
            }
            for engine in engines {
                model.compare(engine, &model.thresholds, model.clock + 1, "live");
            }
            for (both, thresholds, clock) in &views {
                for view in both {
                    model.compare(view.as_ref(), thresholds, *clock, "a view");
                }
            }
        }
    }
}

#[test]
fn a_delete_marker_outlives_partial_compactions_and_goes_with_a_full_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RocksEngine::open(dir.path(), OPTIONS).unwrap();
    let memory = MemoryEngine::new();
    for engine in [&disk as &dyn Engine, &memory] {
        // In files of their own, so that a compaction of one span leaves the other's out.
        write(engine, 5, 1, Some("elsewhere"));
        engine.flush().unwrap();
        write(engine, 0, 3, Some("old"));
        engine.flush().unwrap();
        write(engine, 0, 5, None);
        engine.flush().unwrap();
        engine.gc().publish(&KeySpan::ALL, at(9));
    }
    // The marker alone: what it covers is not part of it.
    memory.compact_part(&mut |physical| keys::split_version(physical).is_some_and(|(_, at)| at.wall == 5));
    assert_eq!(versions(&memory, 0), "5x 3");
    for engine in [&disk as &dyn Engine, &memory] {
        engine.collect(&keys::version_span(&KeySpan { start: key(0), end: key(1) }));
        assert_eq!((versions(engine, 0), versions(engine, 5)), ("5x".to_owned(), "1".to_owned()));
    }
    memory.compact_all();
    // The first brings all files down to one level, and only the second takes in all of them.
    disk.collect(&all());
    disk.collect(&all());
    for engine in [&disk as &dyn Engine, &memory] {
        assert_eq!((versions(engine, 0), versions(engine, 5)), (String::new(), "1".to_owned()));
        assert_eq!(engine.gc().collected().0, 2);
    }
}

#[test]
fn what_was_overwritten_goes_and_the_newest_at_the_threshold_stays() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RocksEngine::open(dir.path(), OPTIONS).unwrap();
    let memory = MemoryEngine::new();
    for engine in [&disk as &dyn Engine, &memory] {
        (1..=9).for_each(|wall| write(engine, 1, wall, Some("v")));
        engine.flush().unwrap();
        engine.collect(&all());
        assert_eq!(versions(engine, 1), "9 8 7 6 5 4 3 2 1", "nothing was published");
        let view = engine.snapshot();
        engine.gc().publish(&KeySpan::ALL, at(6));
        engine.collect(&all());
        assert_eq!(versions(view.as_ref(), 1), "9 8 7 6 5 4 3 2 1", "by a cursor that was opened later");
        assert_eq!(versions(engine, 1), "9 8 7 6 5 4 3 2 1");
        drop(view);
        engine.collect(&all());
        assert_eq!(versions(engine, 1), "9 8 7 6");
        engine.gc().forget(&KeySpan::ALL);
        engine.gc().publish(&KeySpan { start: key(2), end: Key::MAX }, at(9));
        engine.collect(&all());
        assert_eq!(versions(engine, 1), "9 8 7 6", "another span's threshold");
    }
}

#[test]
fn nothing_is_published_after_a_start() {
    let memory = MemoryEngine::new();
    (1..=3).for_each(|wall| write(&memory, 1, wall, Some("v")));
    memory.flush().unwrap();
    memory.gc().publish(&KeySpan::ALL, at(3));
    memory.crash();
    memory.compact_all();
    assert_eq!(versions(&memory, 1), "3 2 1");
}
