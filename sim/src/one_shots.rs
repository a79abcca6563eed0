//! Transactions that are known as a whole, over registers that lie in several ranges: in one of them or over many, with
//! comparisons and without, sent again with the same id when their outcome is in doubt.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use flotilla_kv::{KvError, Router, TxnResult};
use flotilla_types::{Compare, Isolation, Key, OneShot, RequestId, Row, Whole};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::time::lock;
use crate::transactions::{Fate, Log, PATIENCE, Record, end, key, opened};

const REGISTERS: u8 = 8;
/// How often a client sends it again before somebody else does.
const TRIES: u32 = 3;

/// Where the registers are cut.
pub(crate) fn cuts() -> Vec<Key> {
    vec![register(2), register(5)]
}

fn register(n: u8) -> Key {
    key(b'r', n)
}

/// Draws a transaction. `seen`: what some register was seen to hold.
fn draw(random: &mut ChaCha8Rng, index: usize, seen: (Key, Option<Bytes>)) -> Whole {
    let mut values = 0;
    let mut branch = |random: &mut ChaCha8Rng, steps: u8| -> Vec<OneShot> {
        // Now and then a key comes twice.
        let from = random.random_range(0..REGISTERS);
        let close = random.random_bool(0.4);
        let step = |n| {
            let far = if close { n % 2 } else { n * 3 };
            let at = register((from + far) % REGISTERS);
            match random.random_range(0..10) {
                0..3 => OneShot::Get(at),
                3..9 => {
                    values += 1;
                    OneShot::Write(at, Some(format!("{index}.{values}").into()))
                }
                _ => OneShot::Write(at, None),
            }
        };
        (0..steps).map(step).collect()
    };
    let steps = random.random_range(1..5);
    let then = branch(random, steps);
    if !random.random_bool(0.3) {
        return Whole { then, ..Whole::default() };
    }
    let (key, expected) = seen;
    let steps = random.random_range(0..3);
    let otherwise = branch(random, steps);
    Whole { compares: vec![Compare { key, expected }], then, otherwise }
}

/// Runs one; its place in the log is `index`, and `seed` decides all that it does.
pub(crate) async fn perform(router: Router, client: u64, seed: u64, log: Log, index: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut record = opened(client, router.clock().mono(), Isolation::Serializable);
    let looked = register(random.random_range(0..REGISTERS));
    let seen = router.get(looked.clone(), router.clock().mono() + PATIENCE).await;
    let Ok(id) = router.request_id() else {
        return end(&log, index, &router, Record { fate: Fate::Aborted, ..record });
    };
    let value = seen.ok().and_then(|answer| answer.row).map(|row| row.value);
    let whole = draw(&mut random, index, (looked, value));
    record.whole = Some((id, whole.clone()));
    // What the client will not hear of is in the log already.
    lock(&log)[index] = record.clone();
    for _ in 0..TRIES {
        let deadline = router.clock().mono() + PATIENCE;
        let done = router.transact(id, &whole, deadline).await;
        if note(&mut record, &whole, done) {
            return end(&log, index, &router, record);
        }
    }
    end(&log, index, &router, Record { fate: Fate::Unknown, ..record });
}

/// Takes the answer in; says whether it settles the matter.
fn note(record: &mut Record, whole: &Whole, done: Result<TxnResult, KvError>) -> bool {
    match done {
        Ok(TxnResult { held, rows, at }) => {
            record.fate = Fate::Committed(at);
            tell(record, whole, held, &rows);
        }
        Err(KvError::Ambiguous { .. }) => {
            record.doubted = true;
            return false;
        }
        // An error says that this try did nothing, and nothing of an earlier one.
        Err(_) if record.doubted => return false,
        Err(_) => record.fate = Fate::Aborted,
    }
    true
}

/// What a transaction that was done has read and written.
fn tell(record: &mut Record, whole: &Whole, held: bool, rows: &[Option<Row>]) {
    if held {
        record.reads.extend(whole.compares.iter().map(|compare| (compare.key.clone(), compare.expected.clone())));
    }
    let branch = whole.branch(held);
    for (place, step) in branch.iter().enumerate() {
        match step {
            OneShot::Get(key) => {
                // Nothing is told of the reads of an earlier try.
                let Some(row) = rows.get(place) else { continue };
                let value = row.as_ref().map(|row| row.value.clone());
                match record.writes.get(key) {
                    Some(own) if value.as_ref() != own.as_ref() => {
                        record.wrong = Some(format!("it wrote {own:?} to {key} and read {value:?}"));
                    }
                    Some(_) => {}
                    None => record.reads.push((key.clone(), value)),
                }
            }
            OneShot::Write(key, value) => {
                record.writes.insert(key.clone(), value.clone());
            }
            OneShot::Increment(..) => {}
        }
    }
    // A comparison that came after a doubt may have met what an earlier try had written.
    if rows.is_empty() && branch.iter().any(|step| !step.writes()) {
        record.reads.retain(|(key, _)| !record.writes.contains_key(key));
    }
}

/// Sends one again whose outcome is in doubt.
pub(crate) async fn settle(router: Router, log: Log, index: usize, id: RequestId, whole: Whole) {
    let mut record = lock(&log)[index].clone();
    let done = router.transact(id, &whole, router.clock().mono() + PATIENCE).await;
    record.doubted = true;
    if note(&mut record, &whole, done) {
        lock(&log)[index] = record;
    }
}

/// Keys that transactions of unknown outcome may have written: what they held at which time is not known.
pub(crate) fn doubtful(log: &[Record]) -> BTreeSet<Key> {
    let unknown = log.iter().filter(|record| matches!(record.fate, Fate::Unknown | Fate::Open));
    let wholes = unknown.filter_map(|record| record.whole.as_ref());
    let written = |whole: &Whole| -> Vec<Key> {
        whole.named().into_iter().filter(|(_, writes)| *writes).map(|(key, _)| key.clone()).collect()
    };
    wholes.flat_map(|(_, whole)| written(whole)).collect()
}

/// How many were over several ranges is of interest, and how many were in doubt.
pub(crate) fn count(log: &[Record]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for record in log.iter().filter(|record| record.whole.is_some()) {
        let what = match record.fate {
            Fate::Committed(_) if record.doubted => "one-shots settled by a retry with the same id",
            Fate::Committed(_) => "one-shots committed",
            Fate::Aborted => "one-shots refused",
            Fate::Open | Fate::Unknown => "one-shots of unknown outcome",
        };
        *counts.entry(what).or_default() += 1;
    }
    counts
}
