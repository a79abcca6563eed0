//! The command line against nodes that are none: what is printed, and how a command ends.

#![allow(clippy::unwrap_used)]

mod fake;

use std::fs;

use clap::Parser;
use fake::{Cluster, Fault};
use flotilla_client::Reason;
use flotilla_client::cli::{Command, Failure, Outcome, execute};
use tempfile::TempDir;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

struct Answer {
    outcome: Result<Outcome, Failure>,
    text: String,
}

async fn flotilla(cluster: &Cluster, line: &[&str]) -> Answer {
    let host = format!("--host={}", cluster.addresses.join(","));
    let words = ["flotilla"].into_iter().chain(line.iter().copied()).chain([host.as_str()]);
    let command = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).command;
    let mut text = Vec::new();
    let outcome = execute(command, &mut text).await;
    Answer { outcome, text: String::from_utf8(text).unwrap() }
}

fn done(answer: &Answer) -> &str {
    assert!(matches!(answer.outcome, Ok(Outcome::Done)), "{:?}", answer.outcome);
    &answer.text
}

#[tokio::test]
async fn one_key_at_a_time() {
    let cluster = Cluster::start(2).await;
    done(&flotilla(&cluster, &["kv", "put", "apple", "red"]).await);
    assert_eq!(done(&flotilla(&cluster, &["kv", "get", "apple"]).await), "red\n");
    done(&flotilla(&cluster, &["kv", "put", "--hex", "ff00", "0a"]).await);
    assert_eq!(done(&flotilla(&cluster, &["kv", "get", "--hex", "ff00"]).await), "0a\n");
    let json = flotilla(&cluster, &["kv", "get", "apple", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(done(&json)).unwrap();
    assert_eq!(json["value"], "red");
    let scanned = flotilla(&cluster, &["kv", "scan"]).await;
    assert_eq!(done(&scanned), "apple\tred\n\\xff\\x00\t\\n\n");
    let swapped = flotilla(&cluster, &["kv", "cas", "apple", "--expect", "blue", "--set", "green"]).await;
    assert!(matches!(swapped.outcome, Ok(Outcome::No)));
    assert_eq!(swapped.text, "not swapped: the value is red\n");
    done(&flotilla(&cluster, &["kv", "cas", "apple", "--expect", "red", "--set", "green"]).await);
    done(&flotilla(&cluster, &["kv", "del", "apple"]).await);
    assert!(matches!(flotilla(&cluster, &["kv", "get", "apple"]).await.outcome, Ok(Outcome::No)));
}

#[tokio::test]
async fn what_makes_no_sense_is_a_usage_error_and_refusals_come_with_advice() {
    let cluster = Cluster::start(1).await;
    for line in [&["kv", "put", "--hex", "xy", "00"][..], &["kv", "del", "b", "--to", "a"]] {
        let failure = flotilla(&cluster, line).await.outcome.unwrap_err();
        assert_eq!(failure.status(), 2, "{failure}");
    }
    cluster.will([Fault::Refuse(Reason::AlreadyInitialized)]);
    let failure = flotilla(&cluster, &["init"]).await.outcome.unwrap_err();
    assert_eq!(failure.status(), 1);
    assert!(failure.advice().unwrap().contains("flotilla status"));
}

#[tokio::test]
async fn the_cluster_is_shown() {
    let cluster = Cluster::start(3).await;
    assert!(done(&flotilla(&cluster, &["init"]).await).contains("07070707"));
    assert!(done(&flotilla(&cluster, &["status"]).await).contains("1 of 3 live"));
    let nodes = flotilla(&cluster, &["node", "ls"]).await;
    assert_eq!(done(&nodes).lines().count(), 4);
    let ranges = flotilla(&cluster, &["range", "ls"]).await;
    let second: Vec<_> = done(&ranges).lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(second, ["2", "/user/m", "Max", "1", "1,2,3", "1", "12", "4096"]);
    let halves = flotilla(&cluster, &["range", "split", "t", "--json"]).await;
    assert!(done(&halves).lines().nth(1).unwrap().contains("\"start\":\"/user/t\""));
    done(&flotilla(&cluster, &["range", "transfer", "2", "--to", "3"]).await);
    done(&flotilla(&cluster, &["range", "replicas", "2", "--voters", "1,2,3"]).await);
}

#[tokio::test]
async fn open_transactions_of_all_nodes_are_listed_oldest_first_with_whom_they_wait_for() {
    let mut cluster = Cluster::start(2).await;
    let listed = flotilla(&cluster, &["txn", "ls"]).await;
    let lines: Vec<Vec<&str>> = done(&listed).lines().map(|line| line.split_whitespace().collect()).collect();
    let (older, younger) = ("01010101010101010101010101010101", "00000000000000000000000000000000");
    let of = |txn, age, node| [txn, age, "snapshot", "high", node, "5", "/user/a,/user/b,…", "/user/a"];
    assert_eq!(lines[1], [&of(older, "2.0s", "2")[..], &["/user/b", "of", younger]].concat());
    assert_eq!(lines[2], [&of(younger, "1.0s", "1")[..], &["-"]].concat());
    assert_eq!(lines.len(), 3);
    let one = flotilla(&cluster, &["txn", "ls", "--node", "2", "--json"]).await;
    let one: serde_json::Value = serde_json::from_str(done(&one)).unwrap();
    assert_eq!((&one["txn"], &one["waits_for"][0]["holder"]), (&older.into(), &younger.into()));
    assert_eq!(flotilla(&cluster, &["txn", "ls", "--node", "3"]).await.outcome.unwrap_err().status(), 2);
    cluster.kill(1);
    let part = flotilla(&cluster, &["txn", "ls"]).await;
    let failure = part.outcome.unwrap_err();
    assert_eq!((failure.status(), failure.to_string().contains("node 2")), (1, true), "{failure}");
    assert_eq!(part.text.lines().count(), 2, "what is known is shown all the same");
}

#[tokio::test]
async fn replicas_that_disagree_are_one_line_each_and_a_failure() {
    let cluster = Cluster::start(1).await;
    let answer = flotilla(&cluster, &["debug", "checksum"]).await;
    let failure = answer.outcome.unwrap_err();
    assert_eq!((failure.status(), failure.to_string().contains("[2]")), (1, true), "{failure}");
    let lines: Vec<Vec<&str>> = answer.text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["range", "replica", "store", "applied", "hash", "pairs", "error"]);
    assert_eq!(lines[4], ["2", "2", "2", "12", "0000000000000def", "3", "-"]);
    assert_eq!(lines.len(), 5);
}

#[tokio::test]
async fn what_is_imported_is_exported() {
    let cluster = Cluster::start(3).await;
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let rows: Vec<String> = (0..500).map(|i| format!("{{\"key\":\"k{i:03}\",\"value\":\"v{i}\"}}\n")).collect();
    // The last word on a key is the one that counts, however many writes are under way.
    let text = rows.concat() + "{\"key\":\"k007\",\"value\":\"again\"}\n";
    fs::write(path("in.jsonl"), text).unwrap();
    let answer = flotilla(&cluster, &["kv", "import", &path("in.jsonl")]).await;
    assert_eq!(done(&answer), "501 rows written\n");
    for file in ["out.jsonl", "out.csv"] {
        assert!(done(&flotilla(&cluster, &["kv", "export", &path(file)]).await).starts_with("500 rows"));
        let exported = fs::read_to_string(path(file)).unwrap();
        assert!(exported.lines().any(|line| line.contains("k007") && line.contains("again")));
        done(&flotilla(&cluster, &["kv", "del", "k", "--to", "l"]).await);
        done(&flotilla(&cluster, &["kv", "import", &path(file)]).await);
    }
    assert_eq!(cluster.world().rows.len(), 500);
    let piped = flotilla(&cluster, &["kv", "export", "--prefix", "k00", "--format", "csv"]).await;
    assert_eq!(done(&piped).lines().next(), Some("key,value"));
    assert_eq!(done(&piped).lines().count(), 11);
}

#[tokio::test]
async fn an_import_that_stops_says_where_to_go_on() {
    let cluster = Cluster::start(1).await;
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("rows.csv").display().to_string();
    fs::write(&file, "key,value\na,1\nb,2\nbad\nc,3\n").unwrap();
    let failure = flotilla(&cluster, &["kv", "import", &file]).await.outcome.unwrap_err();
    assert!(failure.to_string().contains("line 4 is no row"), "{failure}");
    assert!(failure.to_string().contains("--from-line 4"), "{failure}");
    done(&flotilla(&cluster, &["kv", "import", &file, "--from-line", "5"]).await);
    assert_eq!(cluster.world().rows.len(), 3);
    let skipped = flotilla(&cluster, &["kv", "import", &file, "--skip-bad-lines"]).await;
    assert!(matches!(skipped.outcome, Ok(Outcome::No)));
    assert_eq!(skipped.text, "3 rows written, 1 lines were no rows\n");

    cluster.will([Fault::Refuse(Reason::TooLarge)]);
    let failure = flotilla(&cluster, &["kv", "import", &file, "--in-flight", "1"]).await.outcome.unwrap_err();
    assert!(failure.to_string().contains("--from-line 2"), "{failure}");
}
