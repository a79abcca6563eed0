//! `flotilla-bench txn`: what a transaction over several ranges costs, against puts of one key.
//!
//! The two take turns within the measured time, so that whatever else goes on at the machines meets both. Operations that
//! are under way when the turn changes are paid by the next one; turns are long against them.

use flotilla_client::{Branch, Client, Transact};
use flotilla_types::{Key, KeySpan, keys};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use bytes::Bytes;

use crate::Failure;
use crate::args::Txn as Args;
use crate::keys::Values;
use crate::record::Kind;
use crate::report::{Findings, Run};
use crate::run::{Done, Measured, Turn, Workload, connect, measure};

const PUTS: usize = 0;
const TRANSACTIONS: usize = 1;
const PREFIX: &str = "txn/";

/// Transactions against puts.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct TxnFindings {
    /// Operations of each kind a second of its own turns, not of the whole run.
    puts_per_second_alone: f64,
    transactions_per_second_alone: f64,
    /// The latency of transactions as a multiple of that of puts.
    p50_ratio: Option<f64>,
    mean_ratio: Option<f64>,
    p99_ratio: Option<f64>,
    /// CPU of all nodes for one operation, in microseconds.
    server_cpu_us_per_put: Option<f64>,
    server_cpu_us_per_transaction: Option<f64>,
}

impl TxnFindings {
    #[allow(clippy::cast_precision_loss)]
    fn new(measured: &Measured) -> Self {
        let latency = |kind| measured.record.latency(kind, measured.over);
        let (put, transaction) = (latency(Kind::Put), latency(Kind::Transact));
        let both = put.as_ref().zip(transaction.as_ref());
        let ratio = |a: u64, b: u64| a as f64 / b.max(1) as f64;
        let operations = |kind| latency(kind).map_or(0, |latency| latency.operations) as f64;
        let rate = |kind, mode: usize| operations(kind) / measured.modes[mode].over.as_secs_f64().max(1e-9);
        let cpu = |kind, mode: usize| {
            let (seconds, operations) = (measured.modes[mode].server_cpu?, operations(kind));
            (operations > 0.0).then(|| seconds * 1e6 / operations)
        };
        Self {
            puts_per_second_alone: rate(Kind::Put, PUTS),
            transactions_per_second_alone: rate(Kind::Transact, TRANSACTIONS),
            p50_ratio: both.map(|(put, transaction)| ratio(transaction.p50_us, put.p50_us)),
            mean_ratio: both.map(|(put, transaction)| transaction.mean_us / put.mean_us.max(1.0)),
            p99_ratio: both.map(|(put, transaction)| ratio(transaction.p99_us, put.p99_us)),
            server_cpu_us_per_put: cpu(Kind::Put, PUTS),
            server_cpu_us_per_transaction: cpu(Kind::Transact, TRANSACTIONS),
        }
    }

    pub(crate) fn line(&self) -> String {
        let known = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.2}"));
        format!(
            "puts_per_second_alone={:.0} transactions_per_second_alone={:.0} p50_ratio={} mean_ratio={} p99_ratio={} \
             server_cpu_us_per_put={} server_cpu_us_per_transaction={}",
            self.puts_per_second_alone,
            self.transactions_per_second_alone,
            known(self.p50_ratio),
            known(self.mean_ratio),
            known(self.p99_ratio),
            known(self.server_cpu_us_per_put),
            known(self.server_cpu_us_per_transaction),
        )
    }
}

/// Runs the workload once for each number of clients.
pub(crate) async fn run(args: &Args) -> Result<Vec<Run>, Failure> {
    let client = connect(&args.run.cluster).await?;
    if args.split {
        split(&client, args.ranges).await?;
    }
    let mut runs = Vec::new();
    for clients in &args.run.clients {
        let values = Values::new(args.value_size, &mut StdRng::seed_from_u64(args.run.seed));
        let (measured, _) = measure(&client, Both { args: args.clone(), values }, &args.run, *clients).await?;
        runs.push(Run::new(&measured, Some(Findings::Txn(TxnFindings::new(&measured)))));
    }
    Ok(runs)
}

/// Cuts the keyspace where each of our ranges begins, unless it is cut there already.
async fn split(client: &Client, ranges: u32) -> Result<(), Failure> {
    for range in 0..ranges {
        let first = keys::user(prefix(range).as_bytes());
        let here = KeySpan { start: first.clone(), end: first.next() };
        let owner = client.ranges(&here, 1).await?;
        let starts =
            owner.first().and_then(|range| range.descriptor.as_ref()).map(|range| Key::new(range.start.to_vec()));
        if starts.as_ref() != Some(&first) {
            client.split(&first).await?;
        }
    }
    Ok(())
}

fn prefix(range: u32) -> String {
    format!("{PREFIX}{range:04}/")
}

struct Both {
    args: Args,
    values: Values,
}

impl Workload for Both {
    fn turns(&self) -> Vec<usize> {
        (0..self.args.turns).flat_map(|_| [PUTS, TRANSACTIONS]).collect()
    }

    async fn operate(&self, client: &Client, turn: Turn<'_>) -> Done {
        let random = turn.random;
        if turn.mode == PUTS {
            let range = random.random_range(0..self.args.ranges);
            let put = client.put(self.key(range, random), self.values.next(random)).await;
            return Done::plain(Kind::Put, put);
        }
        let first = random.random_range(0..self.args.ranges);
        let puts = (0..self.args.keys).fold(Branch::new(), |branch, n| {
            branch.put(self.key((first + n) % self.args.ranges, random), self.values.next(random))
        });
        Done::plain(Kind::Transact, client.transact(Transact::new().then(puts)).await)
    }
}

impl Both {
    fn key(&self, range: u32, random: &mut StdRng) -> Bytes {
        format!("{}{:09}", prefix(range), random.random_range(0..self.args.records)).into()
    }
}
