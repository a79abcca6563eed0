//! Runs the harness against a cluster that is none.

#![allow(unreachable_pub, dead_code, clippy::unwrap_used)]

use std::process::Output;

use serde_json::Value;
use tokio::process::Command;

use crate::fake::Cluster;

/// What it printed, and the report that it wrote.
pub async fn bench(cluster: &Cluster, workload: &str, options: &[&str]) -> (Output, Value) {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_flotilla-bench"))
        .args([workload, "--host", &cluster.addresses.join(","), "--duration", "500ms", "--warm-up", "100ms"])
        .args(options)
        .arg("--json")
        .arg(&json)
        .output()
        .await
        .unwrap();
    let report = std::fs::read(&json).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    (output, report)
}

/// The last line, which is for programs.
pub fn result(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let line = text.lines().last().unwrap_or_default().to_owned();
    assert!(line.starts_with("result workload="), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    line
}
