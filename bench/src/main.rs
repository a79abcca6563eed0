//! The load harness: puts load on a running cluster and measures throughput, latency, and what it costs the servers.
//!
//! Exit status: 0 if all is well, 1 if the cluster could not be measured or did not keep its promises, 2 for a command line
//! that makes no sense. Workloads that look for no promise (kv, ycsb, txn) want all operations to succeed; those that do
//! (bank, counter) may be run while nodes are killed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod bank;
mod counter;
mod keys;
mod kv;
mod load;
mod record;
mod report;
mod run;
mod scrape;
mod txn;
mod ycsb;

use std::process::ExitCode;

use clap::Parser;
use thiserror::Error;

use args::{Arguments, Workload};

/// Why there is no report.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Cluster(#[from] flotilla_client::Error),
    #[error(transparent)]
    Scrape(#[from] scrape::ScrapeError),
    #[error("a client of the harness ended: {0}")]
    Task(String),
    #[error("write the report: {0}")]
    Report(#[from] std::io::Error),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all runs were good.
async fn run(arguments: Arguments) -> Result<bool, Failure> {
    Ok(match arguments.workload {
        Workload::Kv(args) => report::tell("kv", &args, &args.run, &kv::run(&args).await?)?,
        Workload::Bank(args) => report::tell("bank", &args, &args.run, &bank::run(&args).await?)?,
        Workload::Counter(args) => report::tell("counter", &args, &args.run, &counter::run(&args).await?)?,
        Workload::Ycsb(args) => report::tell("ycsb", &args, &args.run, &ycsb::run(&args).await?)?,
        Workload::Txn(args) => report::tell("txn", &args, &args.run, &txn::run(&args).await?)?,
    })
}
