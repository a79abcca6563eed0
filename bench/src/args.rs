//! The harness's command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use flotilla_client::{Isolation, TxnOptions};
use serde::Serialize;

/// Puts load on a cluster and measures what comes of it.
#[derive(Debug, Parser)]
#[command(name = "flotilla-bench", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) workload: Workload,
}

/// What to do to the cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Workload {
    /// Puts and gets of single keys.
    Kv(Kv),
    /// Transfers between accounts in interactive transactions, while another client checks that no money comes or goes.
    Bank(Bank),
    /// Many clients add to one counter; in the end it must hold what was acknowledged.
    Counter(Counter),
    /// The mixes of the Yahoo Cloud Serving Benchmark.
    Ycsb(Ycsb),
    /// One-shot transactions over several ranges against plain puts, in turns.
    Txn(Txn),
}

/// What all workloads have. Each client sends its next operation when the last one was answered (closed loop).
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) cluster: ClusterArgs,
    /// How many clients at once; several numbers are run one after the other.
    #[arg(long, default_value = "64", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    #[serde(skip)]
    pub(crate) clients: Vec<u32>,
    /// How long to measure.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    #[serde(skip)]
    pub(crate) duration: Duration,
    /// How long to run before it counts.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    #[serde(skip)]
    pub(crate) warm_up: Duration,
    /// Chooses the same keys for the same number.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Also write the report as JSON into this file.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) json: Option<PathBuf>,
}

/// The cluster, and where its own figures come from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ClusterArgs {
    /// Client addresses of nodes, comma-separated.
    #[arg(long, env = "FLOTILLA_HOST", value_delimiter = ',', default_value = "127.0.0.1:26257")]
    pub(crate) host: Vec<String>,
    /// HTTP addresses of all nodes, comma-separated: CPU, fsyncs and the steps of a write are read from /metrics.
    #[arg(long, value_delimiter = ',')]
    pub(crate) http: Vec<String>,
    /// Process ids of all nodes, if they run on this machine: CPU is read from /proc.
    #[arg(long, value_delimiter = ',')]
    pub(crate) server_pids: Vec<u32>,
    /// Connections to each node.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// How long an operation may take, retries included.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

/// Interactive transactions.
#[derive(Debug, Clone, Copy, Args, Serialize)]
pub(crate) struct TxnArgs {
    /// Lock keys when they are read, if they will be written.
    #[arg(long)]
    pub(crate) lock: bool,
    /// What transactions may see of others.
    #[arg(long, value_enum, default_value_t = IsolationArg::Serializable)]
    pub(crate) isolation: IsolationArg,
}

impl TxnArgs {
    pub(crate) fn options(self) -> TxnOptions {
        let isolation = match self.isolation {
            IsolationArg::Serializable => Isolation::Serializable,
            IsolationArg::Snapshot => Isolation::Snapshot,
            IsolationArg::ReadCommitted => Isolation::ReadCommitted,
        };
        TxnOptions { isolation, ..TxnOptions::default() }
    }
}

/// What transactions may see of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IsolationArg {
    /// As if all transactions ran one after the other.
    Serializable,
    /// All steps see what was committed before the first.
    Snapshot,
    /// Each step sees what was committed before it.
    ReadCommitted,
}

/// `flotilla-bench kv`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Kv {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) run: RunArgs,
    /// The share of gets, 0 to 1; the rest are puts.
    #[arg(long, default_value_t = 0.5, value_parser = share)]
    pub(crate) read_share: f64,
    /// Which keys are chosen.
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub(crate) distribution: Distribution,
    /// Bytes of a value; they do not compress.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=8 << 20))]
    pub(crate) value_size: u32,
    /// How many keys there are.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,
    /// Write all keys first, in batches.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) load: bool,
}

/// `flotilla-bench bank`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Bank {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) txn: TxnArgs,
    /// How many accounts there are. They are opened anew first.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(2..=100_000))]
    pub(crate) accounts: u64,
    /// What lies on each at first.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=1_000_000_000))]
    pub(crate) balance: i64,
}

/// `flotilla-bench counter`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Counter {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) txn: TxnArgs,
    /// Add in interactive transactions, with a get and a put, instead of the request that adds.
    #[arg(long)]
    pub(crate) interactive: bool,
}

/// `flotilla-bench ycsb`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Ycsb {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) run: RunArgs,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) txn: TxnArgs,
    /// Which mix.
    #[arg(long, value_enum, ignore_case = true, default_value_t = Mix::A)]
    #[serde(rename = "mix")]
    pub(crate) workload: Mix,
    /// How many records there are at first.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: u64,
    /// Bytes of a record.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(0..=8 << 20))]
    pub(crate) value_size: u32,
    /// The records are there already, from an earlier run with the same numbers.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) skip_load: bool,
}

/// YCSB's core workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(crate) enum Mix {
    /// 50 reads, 50 updates.
    A,
    /// 95 reads, 5 updates.
    B,
    /// Reads.
    C,
    /// 95 reads of what is new, 5 inserts.
    D,
    /// 95 scans of up to 100 records, 5 inserts.
    E,
    /// 50 reads, 50 times read, modify and write in a transaction.
    F,
}

/// `flotilla-bench txn`.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct Txn {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) run: RunArgs,
    /// How many keys a transaction writes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) keys: u32,
    /// Over how many ranges they are spread.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) ranges: u32,
    /// Split the cluster's ranges first, so that there are so many.
    #[arg(long)]
    #[serde(skip)]
    pub(crate) split: bool,
    /// How many keys there are in each.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) records: u64,
    /// Bytes of a value; they do not compress.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub(crate) value_size: u32,
    /// How often transactions and puts take turns, at least once each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) turns: u32,
}

/// Which keys are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Distribution {
    /// All alike.
    Uniform,
    /// A few much more often than most (exponent 0.99), spread over the keyspace.
    Zipf,
    /// One after the other, all clients together.
    Sequential,
    /// Nine of ten operations on one key of a hundred.
    Hot,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("between 0 and 1".to_owned()) }
}
