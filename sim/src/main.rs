//! `flotilla-sim`: runs seeds and says what came of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use flotilla_sim::{Options, Report, run};

/// Runs simulated clusters with faults, each from one seed, and judges them.
#[derive(Debug, Parser)]
#[command(name = "flotilla-sim", version)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Virtual seconds with clients and faults, per seed.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Threads, each with seeds of its own.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Print what happens.
    #[arg(long)]
    trace: bool,
}

#[derive(Default)]
struct Totals {
    failed: u64,
    operations: u64,
    transactions: u64,
    committed: u64,
    virtual_time: Duration,
    counts: BTreeMap<&'static str, u64>,
}

#[allow(clippy::print_stdout, reason = "the result is for standard output")]
fn main() -> ExitCode {
    let args = Args::parse();
    // The raft library panics over a damaged entry; the range takes it as what it is, and this run counts it.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|at| at.file().contains("/raft-")) {
            usual(panic);
        }
    }));
    let options = Options { seconds: args.seconds, trace: args.trace };
    let (next, totals) = (AtomicU64::new(args.first), Mutex::new(Totals::default()));
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.first + args.seeds {
                        return;
                    }
                    let report = run(seed, options);
                    take(&totals, &report, args.seconds);
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (what, count) in &totals.counts {
        println!("{count:>12}  {what}");
    }
    let (failed, operations, time) = (totals.failed, totals.operations, totals.virtual_time.as_secs());
    let (transactions, committed) = (totals.transactions, totals.committed);
    println!(
        "result seeds={} failed={failed} operations={operations} virtual_seconds={time} transactions={transactions} \
         committed={committed}",
        args.seeds
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Adds a seed to the totals, and says at once if it failed.
#[allow(clippy::print_stdout, reason = "the result is for standard output")]
fn take(totals: &Mutex<Totals>, report: &Report, seconds: u64) {
    let mut totals = totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    totals.operations += report.operations;
    totals.transactions += report.transactions.0;
    totals.committed += report.transactions.1;
    totals.virtual_time += report.virtual_time;
    for (what, count) in &report.counts {
        *totals.counts.entry(what).or_default() += count;
    }
    if report.failures.is_empty() {
        return;
    }
    totals.failed += 1;
    println!("seed {} FAILED:", report.seed);
    report.failures.iter().for_each(|why| println!("  {why}"));
    println!("  the last of its trace:");
    report.tail.iter().for_each(|line| println!("    {line}"));
    println!("  replay: flotilla-sim --first {} --seeds 1 --seconds {seconds} --trace", report.seed);
}
