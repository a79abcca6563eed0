//! The harness's command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Puts and gets of single keys, each client one after the other (closed loop).
    Kv(Kv),
}

/// `flotilla-bench kv`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Kv {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
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
    /// How many clients at once; several numbers are run one after the other.
    #[arg(long, default_value = "64", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: Vec<u32>,
    /// How long to measure.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long to run before it counts.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// Write all keys first, in batches.
    #[arg(long)]
    pub(crate) load: bool,
    /// Chooses the same keys for the same number.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Also write the report as JSON into this file.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,
}

/// The cluster, and where its own figures come from.
#[derive(Debug, Clone, Args)]
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
