//! Random clients: each sends one operation after the other through the router of some node, and tells what it saw.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_check::Seen;
use flotilla_kv::{KvError, Router, ScanRequest};
use flotilla_types::{BatchOp, Key, KeySpan, RequestId, Row, Timestamp, Write, WriteResult, keys};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::history::Told;
use crate::time::lock;

/// Keys of the workload: few, so that clients meet.
pub(crate) const KEYS: u8 = 12;
/// How long a client waits for one operation.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a client tries again with the same id after an unknown outcome.
const RETRIES: u32 = 2;

/// A retry with the same id found out what became of the first try.
pub(crate) const SETTLED: &str = "settled by a retry";
/// A scan of the past saw what it had seen before.
pub(crate) const SAME: &str = "the past is the same";
/// It was refused.
pub(crate) const PASSED: &str = "the past has passed";
/// Scans that are remembered: more than a minute of them.
const PASTS_MAX: usize = 256;

/// The workload's key with a number.
pub(crate) fn key(n: u8) -> Key {
    keys::user(&[b'k', b'a' + n])
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Get(Key),
    Write(Write),
    Scan(KeySpan, bool, u64),
    DeleteRange(KeySpan),
    /// A former scan once more, at its time.
    Again(Past),
}

/// What a scan showed, in the order of keys. Nobody writes there any more: it is seen again, or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Past {
    span: KeySpan,
    at: Timestamp,
    rows: Vec<Row>,
}

/// Scans that may be made again.
pub(crate) type Pasts = Arc<Mutex<VecDeque<Past>>>;

/// How an operation ended: what it means, whether the outcome is known, and when what it saw was true at the latest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) client: usize,
    pub(crate) told: Told,
    pub(crate) known: bool,
    pub(crate) at: Duration,
    pub(crate) why: Option<String>,
}

/// Where clients leave what they saw.
pub(crate) type Answers = Arc<Mutex<Vec<Ended>>>;

/// Draws an operation. `n` makes its value unique.
pub(crate) fn draw(random: &mut ChaCha8Rng, n: u64) -> Op {
    let any = |random: &mut ChaCha8Rng| key(random.random_range(0..KEYS));
    let value = |part: u64| Bytes::from(format!("{n}.{part}"));
    let span = |random: &mut ChaCha8Rng| {
        let start = random.random_range(0..KEYS);
        KeySpan { start: key(start), end: key(random.random_range(start..KEYS) + 1) }
    };
    match random.random_range(0..100) {
        0..30 => Op::Get(any(random)),
        30..55 => Op::Write(Write::Put { key: any(random), value: value(0) }),
        55..63 => Op::Write(Write::Delete { key: any(random) }),
        63..78 => {
            // Expects nothing, or what some operation of late may have written.
            let lately = n.saturating_sub(random.random_range(1..40));
            let expected = random.random_bool(0.6).then(|| Bytes::from(format!("{lately}.0")));
            Op::Write(Write::CompareAndSwap { key: any(random), expected, new: Some(value(0)) })
        }
        78..86 => {
            let first = random.random_range(0..KEYS - 1);
            let ops = (first..KEYS.min(first + 3)).zip(0..);
            let ops = ops.map(|(at, part)| BatchOp::Put { key: key(at), value: value(part) });
            Op::Write(Write::Batch { ops: ops.collect() })
        }
        86..97 => Op::Scan(span(random), random.random_bool(0.4), random.random_range(0..4)),
        _ => Op::DeleteRange(span(random)),
    }
}

/// What an operation of unknown outcome may have done.
pub(crate) fn in_doubt(op: &Op) -> Told {
    let wrote = |keys: Vec<(Key, Option<Bytes>)>| {
        Told::Keys(keys.into_iter().map(|(key, value)| (key, Seen::Wrote(value))).collect())
    };
    match op {
        Op::Get(_) | Op::Scan(..) | Op::Again(_) => Told::Nothing,
        Op::Write(write) => written(write, None),
        Op::DeleteRange(span) => wrote(keys_of(span).into_iter().map(|key| (key, None)).collect()),
    }
}

fn keys_of(span: &KeySpan) -> Vec<Key> {
    (0..KEYS).map(key).filter(|key| span.contains(key)).collect()
}

/// What a write means for its keys. `swapped`: whether a compare-and-swap is known to have swapped.
fn written(write: &Write, swapped: Option<bool>) -> Told {
    Told::Keys(match write {
        Write::Put { key, value } => vec![(key.clone(), Seen::Wrote(Some(value.clone())))],
        Write::Delete { key } => vec![(key.clone(), Seen::Wrote(None))],
        Write::CompareAndSwap { key, expected, new } => {
            let (expected, new) = (expected.clone(), new.clone());
            vec![(key.clone(), Seen::CompareAndSwap { expected, new, swapped })]
        }
        Write::Batch { ops } => ops
            .iter()
            .map(|op| match op {
                BatchOp::Put { key, value } => (key.clone(), Seen::Wrote(Some(value.clone()))),
                BatchOp::Delete { key } => (key.clone(), Seen::Wrote(None)),
            })
            .collect(),
        Write::Increment(_) | Write::DeleteRange { .. } | Write::Whole(_) | Write::PutMeta { .. } => Vec::new(),
    })
}

/// Does one operation and leaves what came of it.
pub(crate) async fn perform(router: Router, client: usize, op: Op, answers: Answers, pasts: Pasts) {
    let (told, known, at, why) = match &op {
        Op::Get(key) => get(&router, key).await,
        Op::Scan(span, reverse, rows) => scan(&router, span, *reverse, *rows, &pasts).await,
        Op::Again(past) => again(&router, past).await,
        Op::Write(write) => self::write(&router, write).await,
        Op::DeleteRange(span) => delete_range(&router, &op, span).await,
    };
    lock(&answers).push(Ended { client, told, known, at, why });
}

type Outcome = (Told, bool, Duration, Option<String>);

fn nothing(router: &Router, why: &KvError) -> Outcome {
    (Told::Nothing, true, router.clock().mono(), Some(why.to_string()))
}

async fn get(router: &Router, key: &Key) -> Outcome {
    match router.get(key.clone(), router.clock().mono() + PATIENCE).await {
        Ok(answer) => {
            let seen = Seen::Read(answer.row.map(|row| row.value));
            (Told::Keys(vec![(key.clone(), seen)]), true, router.clock().mono(), None)
        }
        Err(why) => nothing(router, &why),
    }
}

/// All chunks of a scan show one moment. It lies before the first of them came by the gateway's clock, and before the last
/// by every clock: a leaseholder whose clock is behind may still write below it until it hears of it.
async fn scan(router: &Router, span: &KeySpan, reverse: bool, rows_max: u64, pasts: &Pasts) -> Outcome {
    let (rows, at) = match chunks(router, span, reverse, rows_max, None).await {
        Ok(scanned) => scanned,
        Err(why) => return nothing(router, &why),
    };
    let sorted =
        rows.windows(2).all(|pair| if reverse { pair[0].key > pair[1].key } else { pair[0].key < pair[1].key });
    let seen = |key: Key| {
        let value = rows.iter().find(|row| row.key == key).map(|row| row.value.clone());
        (key, Seen::Read(value))
    };
    let wrong = !sorted || torn(&rows);
    let why = wrong.then(|| format!("DISORDER: a scan of {span} returned {rows:?}"));
    remember(pasts, span, at, &rows);
    (Told::Keys(keys_of(span).into_iter().map(seen).collect()), true, router.clock().mono(), why)
}

/// All chunks of a scan, and the moment that they show.
async fn chunks(
    router: &Router,
    span: &KeySpan,
    reverse: bool,
    rows_max: u64,
    mut at: Option<Timestamp>,
) -> Result<(Vec<Row>, Timestamp), KvError> {
    let deadline = router.clock().mono() + PATIENCE;
    let (mut rest, mut rows) = (span.clone(), Vec::new());
    loop {
        let request = ScanRequest { span: rest.clone(), reverse, rows_max, bytes_max: 1 << 16, at };
        let chunk = router.scan(request, deadline).await?;
        at = Some(chunk.timestamp);
        rows.extend(chunk.rows);
        match chunk.resume {
            Some(key) if reverse => rest.end = key,
            Some(key) => rest.start = key,
            None => return Ok((rows, chunk.timestamp)),
        }
    }
}

fn remember(pasts: &Pasts, span: &KeySpan, at: Timestamp, rows: &[Row]) {
    let mut rows = rows.to_vec();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let mut pasts = lock(pasts);
    pasts.push_back(Past { span: span.clone(), at, rows });
    if pasts.len() > PASTS_MAX {
        pasts.pop_front();
    }
}

/// A read of the past gets the right value, or is told that it comes too late. It is no part of the history.
async fn again(router: &Router, past: &Past) -> Outcome {
    let why = match chunks(router, &past.span, false, 0, Some(past.at)).await {
        Ok((rows, _)) if rows == past.rows => SAME.to_owned(),
        Ok((rows, _)) => format!("DISORDER: {past:?} became {rows:?}"),
        Err(KvError::BelowGcThreshold { timestamp, threshold }) if timestamp == past.at && timestamp <= threshold => {
            PASSED.to_owned()
        }
        Err(other) => other.to_string(),
    };
    (Told::Nothing, true, router.clock().mono(), Some(why))
}

/// Whether a scan shows one write of a batch and, at its neighbour of the same batch, something older.
fn torn(rows: &[Row]) -> bool {
    rows.iter().any(|row| {
        let text = String::from_utf8_lossy(&row.value);
        // Only batches have parts beyond the first, and their keys are neighbours.
        let is_later_part = text.split_once('.').is_some_and(|(_, part)| part != "0");
        let before = (1..KEYS).find(|n| key(*n) == row.key).map(|n| key(n - 1));
        let neighbour = rows.iter().find(|other| Some(&other.key) == before.as_ref());
        is_later_part && neighbour.is_some_and(|neighbour| neighbour.timestamp < row.timestamp)
    })
}

async fn write(router: &Router, write: &Write) -> Outcome {
    let id = match router.request_id() {
        Ok(id) => id,
        Err(why) => return nothing(router, &why),
    };
    let (mut doubt, mut why) = (false, None);
    for _ in 0..=RETRIES {
        let answer = router.write(id, write.clone(), router.clock().mono() + PATIENCE).await;
        let now = router.clock().mono();
        match answer {
            Ok((WriteResult::Done, _)) => {
                return (written(write, Some(true)), true, now, doubt.then(|| SETTLED.to_owned()));
            }
            Ok((WriteResult::ConditionFailed { actual }, _)) if !doubt => {
                return (failed(write, actual), true, now, None);
            }
            // The first try may still come to pass: a failed condition leaves no trace that would stop it.
            Ok(_) => break,
            Err(error @ KvError::Ambiguous { .. }) => (doubt, why) = (true, Some(error.to_string())),
            Err(error) if !doubt => return nothing(router, &error),
            Err(error) => {
                why = Some(error.to_string());
                break;
            }
        }
    }
    (written(write, None), false, router.clock().mono(), why)
}

/// A condition that failed tells what was there instead.
fn failed(write: &Write, actual: Option<Bytes>) -> Told {
    match write {
        Write::CompareAndSwap { key, expected, .. } if *expected != actual => {
            Told::Keys(vec![(key.clone(), Seen::Read(actual))])
        }
        // It says that the condition failed on the very value it expects: no register does that.
        other => written(other, Some(false)),
    }
}

async fn delete_range(router: &Router, op: &Op, span: &KeySpan) -> Outcome {
    let id: RequestId = match router.request_id() {
        Ok(id) => id,
        Err(why) => return nothing(router, &why),
    };
    let deadline = router.clock().mono() + PATIENCE * 2;
    if id.0[15].is_multiple_of(2) {
        return match router.delete_at_once(id, span.clone(), 0, deadline).await {
            Ok(_) => (in_doubt(op), true, router.clock().mono(), None),
            Err(why @ KvError::Ambiguous { .. }) => (in_doubt(op), false, router.clock().mono(), Some(why.to_string())),
            Err(why) => nothing(router, &why),
        };
    }
    match router.delete_range(id, span.clone(), 0, deadline).await {
        Ok(answer) if answer.resume.is_none() => (in_doubt(op), true, router.clock().mono(), None),
        Ok(_) => (in_doubt(op), false, router.clock().mono(), None),
        // What it says holds for the piece that failed: others may be done.
        Err(why) => (in_doubt(op), false, router.clock().mono(), Some(why.to_string())),
    }
}
