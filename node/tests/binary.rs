//! The program as a person starts it: what is wrong is said, and the exit status tells which kind of wrong.

#![allow(clippy::unwrap_used, reason = "helpers of a test may unwrap as the test may")]

use std::path::Path;
use std::process::{Command, Output};

fn flotilla(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flotilla")).args(arguments).env_remove("FLOTILLA_INSECURE").output().unwrap()
}

fn start(store: &Path, more: &[&str]) -> Output {
    let any = "127.0.0.1:0";
    let store = store.to_str().unwrap();
    let all = ["start", "--store", store, "--listen", any, "--peer-listen", any, "--http", any];
    flotilla(&[&all[..], more].concat())
}

fn refused(output: &Output, status: i32, says: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.contains(says), "'{says}' is not in: {text}");
}

#[test]
fn without_tls_a_node_wants_to_hear_insecure() {
    let dir = tempfile::tempdir().unwrap();
    refused(&start(dir.path(), &[]), 2, "--insecure");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let start = |more: &[&str]| start(dir.path(), &[&["--insecure"], more].concat());
    refused(&start(&["--support-duration", "1s"]), 2, "heartbeat-interval");
    refused(&start(&["--locality", "here"]), 2, "region=eu");
    refused(&start(&["--join", "somewhere"]), 2, "host:port");
    refused(&start(&["--cache", "lots"]), 2, "--cache");
    refused(&flotilla(&["start", "--insecure"]), 2, "--store");
    refused(&flotilla(&["fly"]), 2, "fly");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_directory_of_other_things_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("holiday.jpg"), "beach").unwrap();
    refused(&start(dir.path(), &["--insecure"]), 3, "holiday.jpg");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let (dir, taken) = (tempfile::tempdir().unwrap(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let address = taken.local_addr().unwrap().to_string();
    let store = dir.path().to_str().unwrap();
    refused(&flotilla(&["start", "--insecure", "--store", store, "--listen", &address]), 1, &address);
}

/// The demo is the shortest whole story: a cluster of processes, one killed, nothing lost.
#[test]
fn the_demo_loses_nothing_and_its_last_line_is_for_programs() {
    let output = flotilla(&["demo"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let last = text.lines().last().unwrap();
    let figure = |name: &str| -> u64 {
        let found = last.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {name} in: {last}")).parse().unwrap()
    };
    assert!(last.starts_with("result "), "{last}");
    assert!(figure("acknowledged") >= 1000 && figure("verified") == figure("acknowledged"), "{last}");
    assert_eq!(figure("lost"), 0);
    assert!(figure("longest_gap_ms") > 0);
}
