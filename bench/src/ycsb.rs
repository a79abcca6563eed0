//! `flotilla-bench ycsb`: the core workloads of the Yahoo Cloud Serving Benchmark (Cooper et al., "Benchmarking Cloud
//! Serving Systems with YCSB", 2010, section 4).
//!
//! A record is one value, where YCSB's have ten fields: an update writes the whole record. Keys are hashes of numbers, so
//! that new records spread over the keyspace as YCSB's hashed insert order does.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flotilla_client::{Client, Error, ScanOptions, Span};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::Failure;
use crate::args::{Distribution, Mix, Ycsb as Args};
use crate::keys::{Chooser, Values, hash};
use crate::load::{Rows, load};
use crate::record::Kind;
use crate::report::{Findings, Run};
use crate::run::{Done, Turn, Workload, connect, measure};

/// The longest scan, in records.
const SCAN_MAX: u64 = 100;
const PREFIX: &str = "ycsb/";

/// What else was seen.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct YcsbFindings {
    /// Reads, of all that were made, that found no record.
    misses: u64,
    /// Records in the end.
    records_now: u64,
}

impl YcsbFindings {
    pub(crate) fn line(&self) -> String {
        format!("misses={} records={}", self.misses, self.records_now)
    }
}

/// Runs the workload once for each number of clients.
pub(crate) async fn run(args: &Args) -> Result<Vec<Run>, Failure> {
    let client = connect(&args.run.cluster).await?;
    let values = Arc::new(Values::new(args.value_size, &mut StdRng::seed_from_u64(args.run.seed)));
    if !args.skip_load {
        client.delete_range(Span::prefix(PREFIX)).await?;
        load(&client, Arc::new(Records(Arc::clone(&values))), args.records).await?;
    }
    let mut runs = Vec::new();
    let mut records = args.records;
    for clients in &args.run.clients {
        let work = Ycsb::new(args, records, &values);
        let (measured, work) = measure(&client, work, &args.run, *clients).await?;
        records = work.inserted().next;
        let findings = YcsbFindings { misses: work.misses.into_inner(), records_now: records };
        runs.push(Run::new(&measured, Some(Findings::Ycsb(findings))));
    }
    Ok(runs)
}

fn record_key(number: u64) -> Bytes {
    format!("{PREFIX}{:016x}", hash(number)).into()
}

/// The records that are loaded.
struct Records(Arc<Values>);

impl Rows for Records {
    fn row(&self, number: u64) -> (Bytes, Bytes) {
        (record_key(number), self.0.next(&mut StdRng::seed_from_u64(number)))
    }

    fn value_size(&self) -> u32 {
        self.0.size()
    }
}

/// Which records there are: those below `there` for certain, those below `next` soon.
struct Inserted {
    next: u64,
    there: u64,
    ahead: BTreeSet<u64>,
}

impl Inserted {
    const fn new(records: u64) -> Self {
        Self { next: records, there: records, ahead: BTreeSet::new() }
    }

    /// The number of a new record.
    const fn begin(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The insert ended. One that failed leaves a hole, which reads may miss.
    fn end(&mut self, number: u64) {
        self.ahead.insert(number);
        while self.ahead.remove(&self.there) {
            self.there += 1;
        }
    }
}

struct Ycsb {
    args: Args,
    chooser: Chooser,
    values: Arc<Values>,
    inserted: Mutex<Inserted>,
    misses: AtomicU64,
}

impl Workload for Ycsb {
    async fn operate(&self, client: &Client, turn: Turn<'_>) -> Done {
        let random = turn.random;
        let percent = random.random_range(0..100);
        match self.args.workload {
            Mix::A if percent < 50 => self.update(client, random).await,
            Mix::B if percent < 5 => self.update(client, random).await,
            Mix::D | Mix::E if percent < 5 => self.insert(client, random).await,
            Mix::E => self.scan(client, random).await,
            Mix::F if percent < 50 => self.modify(client, random).await,
            Mix::A | Mix::B | Mix::C | Mix::D | Mix::F => self.read(client, random).await,
        }
    }
}

impl Ycsb {
    fn new(args: &Args, records: u64, values: &Arc<Values>) -> Self {
        Self {
            args: args.clone(),
            chooser: Chooser::new(Distribution::Zipf, records),
            values: Arc::clone(values),
            inserted: Mutex::new(Inserted::new(records)),
            misses: AtomicU64::new(0),
        }
    }

    fn inserted(&self) -> MutexGuard<'_, Inserted> {
        self.inserted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A record that exists: a popular one, or in workload D a new one.
    fn choose(&self, random: &mut StdRng) -> Bytes {
        let number = match self.args.workload {
            Mix::D => {
                let newest = self.inserted().there - 1;
                newest.saturating_sub(self.chooser.rank(random))
            }
            _ => self.chooser.choose(random),
        };
        record_key(number)
    }

    async fn read(&self, client: &Client, random: &mut StdRng) -> Done {
        let found = client.get(self.choose(random)).await;
        if matches!(found, Ok(None)) {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        Done::plain(Kind::Get, found)
    }

    async fn update(&self, client: &Client, random: &mut StdRng) -> Done {
        Done::plain(Kind::Put, client.put(self.choose(random), self.values.next(random)).await)
    }

    async fn insert(&self, client: &Client, random: &mut StdRng) -> Done {
        let number = self.inserted().begin();
        let done = client.put(record_key(number), self.values.next(random)).await;
        self.inserted().end(number);
        Done::plain(Kind::Insert, done)
    }

    async fn scan(&self, client: &Client, random: &mut StdRng) -> Done {
        let span = Span { start: self.choose(random), ..Span::prefix(PREFIX) };
        let rows_max = random.random_range(1..=SCAN_MAX);
        let rows = client.scan(span, ScanOptions { rows_max, ..ScanOptions::default() }).collect().await;
        if matches!(&rows, Ok(rows) if rows.is_empty()) {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        Done::plain(Kind::Scan, rows)
    }

    /// Reads, modifies and writes a record in a transaction.
    async fn modify(&self, client: &Client, random: &mut StdRng) -> Done {
        let (key, value, mut attempts) = (&self.choose(random), &self.values.next(random), 0_u64);
        let modified = client.run(self.args.txn.options(), |txn| {
            attempts += 1;
            async move {
                let found = match self.args.txn.lock {
                    true => txn.get_for_update(key.clone()).await?,
                    false => txn.get(key.clone()).await?,
                };
                txn.put(key.clone(), value.clone()).await?;
                Ok::<_, Error>(found.is_some())
            }
        });
        let modified = modified.await;
        if matches!(&modified, Ok(committed) if !committed.value) {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
        Done { kind: Kind::Modify, restarts: attempts.saturating_sub(1), result: modified.map(|_| ()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_as_there_when_all_before_it_are() {
        let mut inserted = Inserted::new(10);
        let (first, second) = (inserted.begin(), inserted.begin());
        assert_eq!((first, second), (10, 11));
        inserted.end(second);
        assert_eq!(inserted.there, 10);
        inserted.end(first);
        assert_eq!((inserted.there, inserted.next), (12, 12));
        assert!(inserted.ahead.is_empty());
    }
}
