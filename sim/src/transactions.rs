//! Random transactions, and what must be true of them: each serializable one, run alone in the order of the commit timestamps,
//! reads what it read; what was told to be committed is there, and what was told to be aborted is not; money is neither made
//! nor lost; and what the clients saw shows none of Adya's phenomena.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flotilla_check::transactions::{Act, Ended, Level, Transaction, violation};
use flotilla_kv::{KvError, Router, ScanRequest, Txn, TxnHandle, TxnOptions};
use flotilla_types::{
    Isolation, Key, KeySpan, Outcome, RequestId, Strength, Timestamp, Wait, Whole, keys, nanoseconds,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::one_shots;
use crate::time::lock;

/// Lists, accounts and counters of the workload.
const LISTS: u8 = 8;
const ACCOUNTS: u8 = 6;
const COUNTERS: u8 = 2;
/// What every account holds at first.
const OPENING: i64 = 100;
/// How long one step of a transaction may take, and its commit.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);

/// A key of the workload: lists, accounts and counters lie apart, so that cuts between them make several ranges.
pub(crate) fn key(kind: u8, n: u8) -> Key {
    keys::user(&[b't', kind, b'0' + n])
}

/// Where ranges are cut so that transactions meet several.
pub(crate) fn cuts() -> Vec<Key> {
    let mut cuts = vec![key(b'b', 0), key(b'b', 3), key(b'l', 4)];
    cuts.extend(one_shots::cuts());
    cuts
}

/// How far a transaction came, as its client was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its client works on it, or has died.
    Open,
    Committed(Timestamp),
    Aborted,
    /// The answer to its commit was lost.
    Unknown,
}

/// One transaction, as its client saw it.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) client: u64,
    pub(crate) began: Duration,
    pub(crate) told: Duration,
    pub(crate) fate: Fate,
    pub(crate) handle: Option<TxnHandle>,
    pub(crate) isolation: Isolation,
    /// What it saw of others.
    pub(crate) reads: Vec<(Key, Option<Bytes>)>,
    /// What it wrote at last; `None`: it removed the key.
    pub(crate) writes: BTreeMap<Key, Option<Bytes>>,
    pub(crate) acts: Vec<Act>,
    pub(crate) wrong: Option<String>,
    /// If it was known as a whole: its id, and what it was.
    pub(crate) whole: Option<(RequestId, Whole)>,
    /// An answer to it was lost.
    pub(crate) doubted: bool,
}

/// All transactions of a run, shared with their clients.
pub(crate) type Log = Arc<Mutex<Vec<Record>>>;

/// A transaction under way at its client.
struct Session {
    router: Router,
    txn: Txn,
    record: Record,
    random: ChaCha8Rng,
    element: u64,
}

impl Session {
    fn deadline(&self) -> Duration {
        self.router.clock().mono() + PATIENCE
    }

    fn saw(&mut self, key: &Key, value: Option<&Bytes>) {
        if let Some(own) = self.record.writes.get(key) {
            if value != own.as_ref() {
                self.record.wrong = Some(format!("it wrote {own:?} to {key} and read {value:?}"));
            }
        } else {
            self.record.reads.push((key.clone(), value.cloned()));
        }
    }

    async fn read(&mut self, key: &Key, lock: Option<Strength>) -> Result<Option<Bytes>, KvError> {
        let deadline = self.deadline();
        let row = match lock {
            None => self.txn.get(key.clone(), Wait::Block, deadline).await?,
            Some(strength) => self.txn.get_and_lock(key.clone(), strength, Wait::Block, deadline).await?,
        };
        let value = row.map(|row| row.value);
        self.saw(key, value.as_ref());
        Ok(value)
    }

    async fn write(&mut self, key: &Key, value: Bytes) -> Result<(), KvError> {
        let deadline = self.deadline();
        // Noted first: what is not answered may be there.
        self.txn.write(key.clone(), Some(value.clone()), Wait::Block, deadline).await?;
        self.record.writes.insert(key.clone(), Some(value));
        Ok(())
    }

    /// Whether it locks what it reads before it writes. Under READ COMMITTED an update would be lost else.
    fn locks(&mut self) -> bool {
        self.random.random_bool(0.4) || self.record.isolation == Isolation::ReadCommitted
    }

    /// Reads a list, and perhaps appends to it.
    async fn list(&mut self) -> Result<(), KvError> {
        let n = self.random.random_range(0..LISTS);
        let (key, name) = (key(b'l', n), u64::from(n));
        let appends = self.random.random_bool(0.6);
        let lock = (appends && self.locks()).then_some(Strength::Exclusive);
        let value = self.read(&key, lock).await?.unwrap_or_default();
        let list = elements(&value);
        self.record.acts.push(Act::Read { key: name, list, by_predicate: false });
        if appends {
            self.element += 1;
            let longer = [&value[..], &self.element.to_be_bytes()].concat();
            self.write(&key, longer.into()).await?;
            self.record.acts.push(Act::Append { key: name, element: self.element });
        }
        Ok(())
    }

    async fn transfer(&mut self) -> Result<(), KvError> {
        let from = self.random.random_range(0..ACCOUNTS);
        let to = (from + self.random.random_range(1..ACCOUNTS)) % ACCOUNTS;
        let amount = self.random.random_range(1..30);
        let lock = self.locks().then_some(Strength::Exclusive);
        let (from, to) = (key(b'b', from), key(b'b', to));
        let has = money(self.read(&from, lock).await?.as_ref());
        let gets = money(self.read(&to, lock).await?.as_ref());
        if has >= amount {
            self.write(&from, (has - amount).to_string().into()).await?;
            self.write(&to, (gets + amount).to_string().into()).await?;
        }
        Ok(())
    }

    /// Reads all accounts and adds them up.
    async fn audit(&mut self) -> Result<(), KvError> {
        let span = KeySpan { start: key(b'b', 0), end: key(b'b', ACCOUNTS) };
        let mut found = BTreeMap::new();
        if self.random.random_bool(0.5) {
            for n in 0..ACCOUNTS {
                let key = key(b'b', n);
                found.insert(key.clone(), self.read(&key, None).await?);
            }
        } else {
            let (deadline, reverse) = (self.deadline(), self.random.random_bool(0.3));
            let mut rest = span;
            loop {
                let rows_max = self.random.random_range(0..4);
                let request = ScanRequest { span: rest.clone(), reverse, rows_max, bytes_max: 1 << 16, at: None };
                let chunk = self.txn.scan(request, Wait::Block, deadline).await?;
                found.extend(chunk.rows.into_iter().map(|row| (row.key, Some(row.value))));
                match chunk.resume {
                    Some(key) if reverse => rest.end = key,
                    Some(key) => rest.start = key,
                    None => break,
                }
            }
            for n in 0..ACCOUNTS {
                let key = key(b'b', n);
                let value = found.get(&key).cloned().flatten();
                self.saw(&key, value.as_ref());
                found.insert(key, value);
            }
        }
        let total: i64 = found.values().map(|value| money(value.as_ref())).sum();
        if total != OPENING * i64::from(ACCOUNTS) && self.record.isolation != Isolation::ReadCommitted {
            self.record.wrong = Some(format!("the accounts hold {total}: {found:?}"));
        }
        Ok(())
    }

    async fn count(&mut self) -> Result<(), KvError> {
        let key = key(b'n', self.random.random_range(0..COUNTERS));
        let deadline = self.deadline();
        let now = self.txn.increment(key.clone(), 1, Wait::Block, deadline).await?;
        let before = now - 1;
        let value = (before != 0).then(|| Bytes::copy_from_slice(&before.to_be_bytes()));
        self.saw(&key, value.as_ref());
        self.record.writes.insert(key, Some(Bytes::copy_from_slice(&now.to_be_bytes())));
        Ok(())
    }

    /// Does something and takes it back.
    async fn regret(&mut self) -> Result<(), KvError> {
        let savepoint = self.txn.savepoint();
        let (writes, acts) = (self.record.writes.clone(), self.record.acts.clone());
        let done = self.list().await;
        let done = if done.is_ok() { self.list().await } else { done };
        self.txn.rollback_to(savepoint)?;
        // What was read stays read, if it was not its own.
        self.record.writes = writes;
        self.record.acts = acts;
        done
    }

    async fn steps(&mut self) -> Result<(), KvError> {
        match self.random.random_range(0..100) {
            0..45 => {
                for _ in 0..self.random.random_range(1..5) {
                    self.list().await?;
                    if self.random.random_bool(0.1) {
                        self.regret().await?;
                    }
                }
                Ok(())
            }
            45..75 => self.transfer().await,
            75..88 => self.audit().await,
            _ => {
                self.count().await?;
                self.count().await
            }
        }
    }
}

fn elements(list: &[u8]) -> Vec<u64> {
    list.chunks_exact(8).map(|chunk| u64::from_be_bytes(chunk.try_into().unwrap_or_default())).collect()
}

fn money(value: Option<&Bytes>) -> i64 {
    value.map_or(OPENING, |value| String::from_utf8_lossy(value).parse().unwrap_or(i64::MIN / 1000))
}

/// Runs one transaction; its place in the log is `index`, and `seed` decides all that it does. `strict`: all of the run are.
pub(crate) async fn perform(router: Router, client: u64, seed: u64, strict: bool, log: Log, index: usize) {
    if seed.is_multiple_of(4) {
        return one_shots::perform(router, client, seed, log, index).await;
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let isolation = match random.random_range(0..10) {
        _ if strict => Isolation::Serializable,
        0 => Isolation::ReadCommitted,
        1 => Isolation::Snapshot,
        _ => Isolation::Serializable,
    };
    let options = TxnOptions { isolation, strict: strict || random.random_bool(0.05), ..TxnOptions::default() };
    let record = opened(client, router.clock().mono(), isolation);
    let Ok(txn) = router.begin(options) else {
        return end(&log, index, &router, Record { fate: Fate::Aborted, ..record });
    };
    // An element names its transaction, so that nobody else appends it.
    let element = (index as u64 + 1) << 8;
    let mut session = Session { router: router.clone(), txn, record, random, element };
    let done = session.steps().await;
    let gives_up = session.random.random_bool(0.05);
    let deadline = session.deadline();
    let Session { txn, mut record, .. } = session;
    record.handle = txn.handle();
    if done.is_err() || gives_up {
        record.fate = Fate::Aborted;
        if let Err(KvError::Unavailable { .. } | KvError::Ambiguous { .. }) = &done {
            // Its locks are cleared when they are met.
        }
        txn.rollback().await;
        return end(&log, index, &router, record);
    }
    // What the client will not hear of is in the log already.
    lock(&log)[index] = Record { fate: Fate::Open, ..record.clone() };
    record.fate = match txn.commit(deadline).await {
        Ok(committed) => Fate::Committed(committed.at),
        Err(KvError::CommitUnknown { .. }) => Fate::Unknown,
        Err(_) => Fate::Aborted,
    };
    end(&log, index, &router, record);
}

/// A transaction of which nothing is known yet.
pub(crate) fn opened(client: u64, began: Duration, isolation: Isolation) -> Record {
    Record {
        client,
        began,
        told: began,
        fate: Fate::Open,
        handle: None,
        isolation,
        reads: Vec::new(),
        writes: BTreeMap::new(),
        acts: Vec::new(),
        wrong: None,
        whole: None,
        doubted: false,
    }
}

pub(crate) fn end(log: &Log, index: usize, router: &Router, record: Record) {
    lock(log)[index] = Record { told: router.clock().mono(), ..record };
}

/// Asks what became of a transaction whose client was not told.
pub(crate) async fn settle(router: Router, log: Log, index: usize) {
    let whole = lock(&log)[index].whole.clone();
    if let Some((id, whole)) = whole {
        return one_shots::settle(router, log, index, id, whole).await;
    }
    let Some(handle) = lock(&log)[index].handle.clone() else {
        // It locked nothing before its gateway died, so nothing of it is anywhere.
        lock(&log)[index].fate = Fate::Aborted;
        return;
    };
    let deadline = router.clock().mono() + PATIENCE;
    if let Ok(Some(outcome)) = router.outcome(&handle, deadline).await {
        let fate = match outcome {
            Outcome::Committed { at } => Fate::Committed(at),
            Outcome::Aborted => Fate::Aborted,
        };
        // Told now, and not when its client gave up.
        let record = lock(&log)[index].clone();
        end(&log, index, &router, Record { fate, ..record });
    }
}

/// Judges all transactions of a run; in `strict` ones also the order in real time. Says what is wrong, and how many committed.
pub(crate) fn judge(log: &[Record], strict: bool) -> (Vec<String>, u64) {
    let mut wrong: Vec<String> = Vec::new();
    let committed = log.iter().filter_map(|record| match record.fate {
        Fate::Committed(at) => Some((at, record)),
        _ => None,
    });
    let mut in_order: Vec<_> = committed.collect();
    in_order.sort_by_key(|(at, record)| (*at, record.writes.is_empty()));
    for (_, record) in &in_order {
        wrong.extend(record.wrong.iter().map(|why| format!("a transaction of client {}: {why}", record.client)));
    }
    wrong.extend(run_alone(&in_order, &one_shots::doubtful(log)));
    wrong.extend(outcomes(log));
    let history: Vec<Transaction> = log.iter().map(told).collect();
    // What the weak levels may show is not looked at here: their transactions write, too, and only what they read is left out.
    let level = if strict { Level::Strict } else { Level::Serializable };
    match violation(&history, level) {
        Ok(None) => {}
        Ok(Some(finding)) => wrong.push(format!("the clients saw {finding}")),
        Err(why) => wrong.push(format!("the history is none: {why}")),
    }
    (wrong, in_order.len() as u64)
}

/// Runs the committed transactions one after the other.
fn run_alone(in_order: &[(Timestamp, &Record)], doubtful: &BTreeSet<Key>) -> Vec<String> {
    let mut values: BTreeMap<&Key, &Option<Bytes>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (place, (at, record)) in in_order.iter().enumerate() {
        if record.isolation == Isolation::Serializable {
            for (key, seen) in record.reads.iter().filter(|(key, _)| !doubtful.contains(key)) {
                let expected = values.get(key).and_then(|value| value.as_ref());
                // Transactions of one timestamp have no order among them, but those of one key have.
                let beside = in_order.iter().enumerate().filter(|(other, (same, _))| *same == *at && *other != place);
                let by_another = beside.flat_map(|(_, (_, other))| other.writes.get(key)).any(|value| value == seen);
                if expected != seen.as_ref() && !by_another {
                    let (client, began) = (record.client, record.began);
                    wrong.push(format!(
                        "client {client}, began {began:?}, committed at {at}: read {seen:?} of {key}, but the \
                         transactions before leave {expected:?}"
                    ));
                }
            }
        }
        values.extend(record.writes.iter());
    }
    wrong.truncate(5);
    wrong
}

/// Nothing of an aborted transaction was seen.
fn outcomes(log: &[Record]) -> Vec<String> {
    let appended = |record: &Record| -> Vec<u64> {
        record
            .acts
            .iter()
            .filter_map(|act| if let Act::Append { element, .. } = act { Some(*element) } else { None })
            .collect()
    };
    let aborted: BTreeSet<u64> = log.iter().filter(|record| record.fate == Fate::Aborted).flat_map(appended).collect();
    let seen = log.iter().filter(|record| matches!(record.fate, Fate::Committed(_))).flat_map(|record| &record.acts);
    seen.filter_map(|act| match act {
        Act::Read { list, .. } => list.iter().find(|element| aborted.contains(element)),
        Act::Append { .. } => None,
    })
    .map(|element| format!("the element {element} of an aborted transaction was read"))
    .take(3)
    .collect()
}

/// A transaction as the judge of phenomena takes it. Left out is what was read under the weak levels, and by transactions that
/// were aborted: who loses its locks may miss its own writes before it learns of it.
fn told(record: &Record) -> Transaction {
    let weak = record.isolation != Isolation::Serializable || record.fate == Fate::Aborted;
    let acts = record.acts.iter().filter(|act| !(weak && matches!(act, Act::Read { .. }))).cloned().collect();
    let ended = match record.fate {
        Fate::Committed(_) => Ended::Committed(nanoseconds(record.told.max(record.began))),
        Fate::Aborted => Ended::Aborted,
        Fate::Open | Fate::Unknown => Ended::Unknown,
    };
    Transaction { client: record.client, began: nanoseconds(record.began), ended, acts }
}
