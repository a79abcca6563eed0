//! The load harness: puts load on a running cluster and measures throughput, latency, and what it costs the servers.
//!
//! Exit status: 0 if all operations succeeded, 1 if the cluster could not be measured or operations failed, 2 for a
//! command line that makes no sense.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod args;
mod keys;
mod kv;
mod record;
mod report;
mod scrape;

use std::fs::File;
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

/// Whether all operations succeeded.
async fn run(arguments: Arguments) -> Result<bool, Failure> {
    let Workload::Kv(args) = arguments.workload;
    let runs = kv::run(&args).await?;
    report::print(&runs, &mut std::io::stdout())?;
    if let Some(path) = &args.json {
        report::write_json(&args, &runs, File::create(path)?)?;
    }
    Ok(!runs.iter().any(report::Run::failed))
}
