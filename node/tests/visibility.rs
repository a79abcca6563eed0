//! What an operator sees of transactions: the list of those that are open, and `/metrics`. Two nodes in one process, asked through
//! the command line's own code and through their pages.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::future::Future;
use std::time::{Duration, Instant};

use clap::Parser;
use flotilla_client::cli::{Command, Outcome, execute};
use flotilla_client::{Client, Options, TxnOptions};
use flotilla_node::config::NodeConfig;
use flotilla_node::http::install_metrics;
use flotilla_node::run::{Node, Progress};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(60);

async fn eventually<T, F: Future<Output = Result<T, String>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) => assert!(start.elapsed() < PATIENCE, "a minute passed without: {what}; last: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// What `flotilla txn ls` prints.
async fn listed(node: &Node, options: &[&str]) -> Result<String, String> {
    let host = format!("--host={}", node.client_address());
    let words = ["flotilla", "txn", "ls", &host].into_iter().chain(options.iter().copied());
    let command = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).command;
    let mut text = Vec::new();
    match execute(command, &mut text).await {
        Ok(Outcome::Done) => Ok(String::from_utf8(text).unwrap()),
        other => Err(format!("{other:?}")),
    }
}

async fn open(node: &Node) -> Result<Vec<Value>, String> {
    let text = listed(node, &["--json"]).await?;
    Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A sample on a node's page; both nodes of this process count into the same counters, each sets its gauges when it is asked.
async fn sample(node: &Node, name: &str) -> Result<f64, String> {
    let mut stream = TcpStream::connect(node.http_address().unwrap()).await.map_err(|error| error.to_string())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.map_err(|error| error.to_string())?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    line.ok_or_else(|| format!("no {name} on the page"))
}

async fn at_least(node: &Node, name: &str, least: f64) {
    let look = || async {
        let value = sample(node, name).await?;
        if value >= least { Ok(()) } else { Err(format!("{name} {value}")) }
    };
    eventually(name, look).await;
}

async fn start(dir: &std::path::Path, join: &[&Node], metrics: metrics_exporter_prometheus::PrometheusHandle) -> Node {
    let mut config = NodeConfig::local(dir.to_owned());
    config.join = join.iter().map(|node| node.peer_address().to_string()).collect();
    Node::start(config, Some(metrics)).await.unwrap()
}

/// A client of one node alone: its transactions have that node for their gateway.
async fn client(node: &Node) -> Client {
    let mut options = Options::default();
    options.learn_nodes = false;
    Client::connect_with([node.client_address().to_string()], options).await.unwrap().with_timeout(PATIENCE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_transactions_their_waits_and_their_ends_are_seen() {
    let metrics = install_metrics().unwrap();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let one = start(dirs[0].path(), &[], metrics.clone()).await;
    one.init().await.unwrap();
    let two = start(dirs[1].path(), &[&one], metrics).await;
    let mut progress = two.progress();
    let member = progress.wait_for(|progress| matches!(progress, Progress::Member(_)));
    tokio::time::timeout(PATIENCE, member).await.unwrap().unwrap();
    let (first, second) = (client(&one).await, client(&two).await);
    for client in [&first, &second] {
        let put = || async { client.put("warm", "up").await.map(drop).map_err(|error| error.to_string()) };
        eventually("a write", put).await;
    }

    // One holds two keys, the other one key, and wants one of the first's.
    let holder = first.begin(TxnOptions::default()).await.unwrap();
    holder.put("account/1", "held").await.unwrap();
    holder.put("account/2", "held").await.unwrap();
    let waiter = second.begin(TxnOptions::default()).await.unwrap();
    waiter.put("account/3", "held, too").await.unwrap();
    let waiting = tokio::spawn(async move {
        let done = waiter.put("account/2", "mine").await;
        (waiter, done)
    });
    let (old, young) = eventually("a list of both, and who waits", || async {
        let open = open(&two).await?;
        match &open[..] {
            [old, young] if young["waits_for"].as_array().is_some_and(|waits| !waits.is_empty()) => {
                Ok((old.clone(), young.clone()))
            }
            _ => Err(format!("{open:?}")),
        }
    })
    .await;
    assert_eq!((&old["node"], &young["node"]), (&1.into(), &2.into()), "each at its gateway, the oldest first");
    assert_eq!(old["keys"], serde_json::json!(["/user/account/1", "/user/account/2"]));
    assert_eq!((&old["locks"], &old["anchor"], &young["locks"]), (&2.into(), &"/user/account/1".into(), &1.into()));
    assert_eq!((&old["isolation"], &old["priority"]), (&"serializable".into(), &"normal".into()));
    assert_eq!(old["waits_for"], serde_json::json!([]));
    let wait = &young["waits_for"][0];
    assert_eq!((&wait["holder"], &wait["key"]), (&old["txn"], &"/user/account/2".into()));
    let table = listed(&two, &[]).await.unwrap();
    let last = table.lines().nth(2).unwrap();
    assert!(last.contains(&format!("/user/account/2 of {}", old["txn"].as_str().unwrap())), "{table}");
    assert_eq!(listed(&two, &["--node", "1", "--json"]).await.unwrap().lines().count(), 1);
    assert_eq!(sample(&one, "flotilla_txn_open").await, Ok(1.0));
    assert_eq!(sample(&one, "flotilla_txn_locks_held").await, Ok(2.0));
    assert_eq!(sample(&two, "flotilla_txn_locks_held").await, Ok(1.0));
    // As the leader's walk over its locks meets them.
    at_least(&one, "flotilla_locks", 3.0).await;
    at_least(&one, "flotilla_lock_age_seconds", 0.001).await;

    holder.commit().await.unwrap();
    let (waiter, done) = waiting.await.unwrap();
    done.unwrap();
    waiter.commit().await.unwrap();
    let strict = first.begin(TxnOptions { strict: true, ..TxnOptions::default() }).await.unwrap();
    strict.put("account/4", "seen by all").await.unwrap();
    strict.commit().await.unwrap();
    at_least(&one, "flotilla_txn_commit_wait_seconds_count", 1.0).await;
    let empty = || async {
        let open = open(&one).await?;
        if open.is_empty() { Ok(()) } else { Err(format!("{open:?}")) }
    };
    eventually("an empty list", empty).await;
    assert_eq!(sample(&two, "flotilla_txn_open").await, Ok(0.0));
    assert_eq!(sample(&two, "flotilla_txn_locks_held").await, Ok(0.0));
    at_least(&one, "flotilla_txn_lock_wait_seconds_count", 1.0).await;
    at_least(&one, "flotilla_txn_lock_wait_seconds_sum", 0.02).await;

    // What it read was written by others before it writes it.
    let reader = first.begin(TxnOptions::default()).await.unwrap();
    reader.get("account/1").await.unwrap();
    second.put("account/1", "newer").await.unwrap();
    reader.put("account/1", "too late").await.unwrap_err();
    drop(reader);
    at_least(&one, "flotilla_txn_refreshes_total{outcome=\"failed\"}", 1.0).await;
    at_least(&one, "flotilla_txn_restarts_total{why=\"refresh_failed\"}", 1.0).await;
    at_least(&one, "flotilla_txn_aborts_total{why=\"restart\"}", 1.0).await;
    let idle = first.begin(TxnOptions::default()).await.unwrap();
    idle.put("account/1", "taken back").await.unwrap();
    idle.rollback().await.unwrap();
    at_least(&one, "flotilla_txn_aborts_total{why=\"rollback\"}", 1.0).await;

    // Each waits for the other: one is told to begin again.
    let (a, b) =
        (first.begin(TxnOptions::default()).await.unwrap(), second.begin(TxnOptions::default()).await.unwrap());
    a.put("account/1", "a").await.unwrap();
    b.put("account/2", "b").await.unwrap();
    let ends = tokio::join!(async { (a.put("account/2", "a").await.is_ok(), a.rollback().await.is_ok()).0 }, async {
        (b.put("account/1", "b").await.is_ok(), b.rollback().await.is_ok()).0
    },);
    assert_ne!(ends.0, ends.1, "one of them gives way");
    at_least(&one, "flotilla_txn_deadlocks_total", 1.0).await;
    at_least(&one, "flotilla_txn_restarts_total{why=\"aborted\"}", 1.0).await;
    for node in [two, one] {
        node.stop().await.unwrap();
    }
}
