//! The workloads with transactions against nodes that are none: they measure, and they find what is wrong.

#![allow(clippy::unwrap_used)]

#[path = "../../client/tests/fake/mod.rs"]
mod fake;
mod harness;

use fake::{Cluster, Fault};
use harness::{bench, result};

fn number(value: &serde_json::Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The operations of one kind.
fn operations(report: &serde_json::Value, kind: &str) -> f64 {
    let kinds = report["runs"][0]["kinds"].as_array().unwrap();
    kinds.iter().find(|found| found["kind"] == kind).map_or(0.0, |found| number(&found["operations"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bank_in_which_commits_are_lost_and_found_again_keeps_its_money() {
    for lock in [&[][..], &["--lock"]] {
        let cluster = Cluster::start(2).await;
        let lost = [("commit", Fault::LoseAnswer), ("commit", Fault::LoseRequest)];
        cluster.will_at(lost.into_iter().cycle().take(10));
        let options = [&["--clients", "4", "--accounts", "20"], lock].concat();
        let (output, report) = bench(&cluster, "bank", &options).await;
        let line = result(&output);
        assert!(output.status.success(), "{line}");
        assert!(line.contains("ok=true") && line.contains("final_total=20000"), "{line}");
        let run = &report["runs"][0];
        assert!(number(&run["checks"]) > 1.0 && run["checks_wrong"] == 0, "{run}");
        assert!(operations(&report, "transfer") > 10.0, "{run}");
        assert_eq!(cluster.world().rows.len(), 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_a_cluster_loses_is_missed() {
    let cluster = Cluster::start(1).await;
    cluster.will_at(std::iter::repeat_n(("commit", Fault::LoseWrite), 50));
    let (output, report) = bench(&cluster, "bank", &["--clients", "4"]).await;
    let line = result(&output);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("ok=false"), "{line}");
    let run = &report["runs"][0];
    assert!(number(&run["checks_wrong"]) > 0.0 && run["final_total"] != run["total"], "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_holds_what_was_acknowledged_and_may_hold_what_is_unknown() {
    for interactive in [&[][..], &["--interactive"]] {
        let cluster = Cluster::start(2).await;
        let options = [&["--clients", "4"], interactive].concat();
        let (output, report) = bench(&cluster, "counter", &options).await;
        let run = &report["runs"][0];
        assert!(output.status.success(), "{run}");
        assert_eq!(run["grown"], run["acknowledged"]);
        assert!(run["slowest_client_share"].is_number(), "{run}");
    }
    // One client: nobody is in its way, so that what is lost has been done.
    let cluster = Cluster::start(2).await;
    cluster.world().forgetful = true;
    cluster.will_at(std::iter::repeat_n(("commit", Fault::LoseAnswer), 3));
    let (output, report) = bench(&cluster, "counter", &["--clients", "1", "--interactive"]).await;
    let run = &report["runs"][0];
    assert!(output.status.success(), "{run}");
    assert_eq!(run["unknown"], 3);
    assert_eq!(number(&run["grown"]), number(&run["acknowledged"]) + 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_addition_that_a_cluster_forgets_is_missed() {
    let cluster = Cluster::start(1).await;
    cluster.will_at([("commit", Fault::LoseWrite)]);
    let (output, report) = bench(&cluster, "counter", &["--clients", "2", "--interactive"]).await;
    let run = &report["runs"][0];
    assert_eq!(output.status.code(), Some(1), "{run}");
    assert_eq!(number(&run["grown"]) + 1.0, number(&run["acknowledged"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mix_of_ycsb_does_what_it_is_known_for() {
    let mixes: [(&str, &[&str]); 6] = [
        ("a", &["get", "put"]),
        ("b", &["get", "put"]),
        ("C", &["get"]),
        ("d", &["get", "insert"]),
        ("e", &["scan", "insert"]),
        ("f", &["get", "modify"]),
    ];
    let cluster = Cluster::start(2).await;
    for (mix, kinds) in mixes {
        let options = ["--workload", mix, "--records", "500", "--value-size", "64", "--clients", "4"];
        let (output, report) = bench(&cluster, "ycsb", &options).await;
        let line = result(&output);
        assert!(output.status.success(), "{line}");
        let run = &report["runs"][0];
        assert_eq!(run["kinds"].as_array().unwrap().len(), kinds.len(), "{run}");
        assert!(kinds.iter().all(|kind| operations(&report, kind) > 0.0), "{run}");
        assert_eq!(run["misses"], 0, "what is read is there: {run}");
        let inserted = number(&run["records_now"]) - 500.0;
        assert_eq!(inserted > 0.0, kinds.contains(&"insert"), "{run}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_and_puts_take_turns_over_ranges_of_their_own() {
    let cluster = Cluster::start(1).await;
    let options = ["--split", "--ranges", "3", "--keys", "4", "--clients", "2", "--turns", "2"];
    let (output, report) = bench(&cluster, "txn", &options).await;
    let line = result(&output);
    assert!(output.status.success(), "{line}");
    assert_eq!(cluster.world().count("split"), 3);
    let run = &report["runs"][0];
    assert!(operations(&report, "put") > 0.0 && operations(&report, "transact") > 0.0, "{run}");
    assert!(number(&run["p50_ratio"]) > 0.0 && number(&run["puts_per_second_alone"]) > 0.0, "{run}");
    let world = cluster.world();
    assert!((0..3).all(|range| world.rows.keys().any(|key| key.starts_with(format!("txn/000{range}/").as_bytes()))));
}
