//! The harness against nodes that are none: it loads, measures, and reports what can be read by programs.

#![allow(clippy::unwrap_used)]

#[path = "../../client/tests/fake/mod.rs"]
mod fake;
mod harness;

use fake::{Cluster, Fault};
use flotilla_client::Reason;
use harness::bench;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A node's figures, which grow by the same with every look.
async fn metrics() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        for look in 1.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await.unwrap();
            let body = format!(
                "process_cpu_seconds_total {look}\nflotilla_fsyncs_total {}\n\
                 flotilla_write_step_seconds_sum{{step=\"apply\"}} {look}\n\
                 flotilla_write_step_seconds_count{{step=\"apply\"}} {}\n",
                look * 100,
                look * 1000
            );
            let answer = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn it_loads_measures_and_reports() {
    let cluster = Cluster::start(2).await;
    let http = metrics().await;
    let options = ["--load", "--keys", "1000", "--clients", "1,8", "--read-share", "0.5", "--http", &http];
    let (output, report) = bench(&cluster, "kv", &options).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(cluster.world().rows.len(), 1000);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[1]["clients"], 8);
    assert!(runs[1]["kinds"].as_array().unwrap().iter().all(|kind| kind["operations"].as_u64() > Some(10)));
    assert_eq!(runs[0]["write_steps"][0]["mean_us"], 1000.0);
    assert!(runs[0]["server_cpu_us_per_operation"].as_f64() > Some(0.0));
    let fsyncs = runs[0]["fsyncs_per_second"].as_f64().unwrap();
    assert!((100.0..=200.0).contains(&fsyncs), "100 in half a second, or a little longer: {fsyncs}");
    assert!(text.contains("p99.9"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_operations_are_named_and_fail_the_run() {
    let cluster = Cluster::start(1).await;
    cluster.will(std::iter::repeat_n(Fault::Refuse(Reason::DiskFull), 1_000_000));
    let (output, report) = bench(&cluster, "kv", &["--read-share", "0", "--clients", "2"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(report["runs"][0]["errors"]["DISK_FULL"].as_u64() > Some(0), "{report}");
}
