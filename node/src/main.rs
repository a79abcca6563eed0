//! The `flotilla` binary: a node, the demo, and the command line of a running cluster.
//!
//! Exit status: 0 done; 1 failed; 2 the command line makes no sense; 3 the store's directory is refused; 4 the log could
//! not be written or synced; 5 the disk is full; 6 the clock is of no use.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use flotilla_node::config::{LogFormat, NodeConfig, StartArgs};
use flotilla_node::demo::{self, DemoArgs};
use flotilla_node::run::{Node, NodeError, Progress};
use flotilla_node::{http, logs};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// How long tasks that are left may take at the very end.
const LAST: Duration = Duration::from_secs(2);

/// A key-value store that stays correct and reachable while machines, disks and datacenters fail.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Start(Box<StartArgs>),
    /// Run a whole cluster on this machine, kill one of its nodes under load, and verify that nothing is lost.
    Demo(DemoArgs),
    #[command(flatten)]
    Client(flotilla_client::cli::Command),
}

fn main() -> ExitCode {
    let line = Line::parse();
    let runtime = match Builder::new_multi_thread().enable_all().thread_name("runtime").build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("start the runtime: {error}"), 1),
    };
    let status = match line.command {
        Command::Start(args) => start(&runtime, *args),
        Command::Demo(args) => {
            logs::start_quiet();
            runtime.block_on(demo::run(args))
        }
        Command::Client(command) => runtime.block_on(flotilla_client::cli::run(command)),
    };
    runtime.shutdown_timeout(LAST);
    status
}

fn fail(what: &str, status: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {what}");
    ExitCode::from(status)
}

fn start(runtime: &Runtime, args: StartArgs) -> ExitCode {
    let (format, until_stdin_closes) = (args.log_format, args.until_stdin_closes);
    let config = match NodeConfig::try_from(args) {
        Ok(config) => config,
        Err(error) => return fail(&error.to_string(), 2),
    };
    logs::start(format);
    if until_stdin_closes && let Err(error) = end_with_stdin() {
        return fail(&format!("watch standard input: {error}"), 1);
    }
    let metrics = match http::install_metrics() {
        Ok(metrics) => metrics,
        Err(error) => return fail(&format!("keep metrics: {error}"), 1),
    };
    let ended = runtime.block_on(async {
        let mut node = Node::start(config, Some(metrics)).await?;
        tracing::info!(
            clients = %node.client_address(),
            nodes = %node.peer_address(),
            pages = node.http_address().map(tracing::field::display),
            version = env!("CARGO_PKG_VERSION"),
            "the node listens"
        );
        tell_progress(&node, format);
        tokio::select! {
            () = stop_asked() => tracing::info!("asked to stop: leaderships are handed over first"),
            () = node.ended() => {}
        }
        node.stop().await
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ NodeError::Config(_)) => fail(&error.to_string(), 2),
        Err(error) => fail(&error.to_string(), error.exit_code()),
    }
}

/// Whoever started a node by hand wants to know what to do next.
fn tell_progress(node: &Node, format: LogFormat) {
    let mut progress = node.progress();
    if *progress.borrow() == Progress::Fresh && format == LogFormat::Text {
        tracing::info!(
            "the node belongs to no cluster yet: run `flotilla init --host {}` once for a new cluster, or it joins one \
             that --join reaches",
            node.client_address()
        );
    }
    tokio::spawn(async move {
        let member = progress.wait_for(|progress| matches!(progress, Progress::Member(_))).await;
        if let Ok(Progress::Member(cluster)) = member.as_deref() {
            tracing::info!(%cluster, "the node is a member");
        }
    });
}

/// Comes back at SIGTERM or SIGINT.
async fn stop_asked() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heard: the node stops only when it is killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Ends this process when standard input closes: who started it is gone.
fn end_with_stdin() -> std::io::Result<()> {
    let watch = || {
        let mut rest = [0; 64];
        while std::io::stdin().read(&mut rest).is_ok_and(|read| read > 0) {}
        std::process::exit(1);
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(watch).map(drop)
}
