//! `flotilla kv import`: the rows of a file, many under way at once.
//!
//! ```text
//!  thread: read, parse ─► queue of lines ─► writes under way (bounded) ─► done up to line N
//! ```
//!
//! Writes of the same key stay in the order of the file: the second waits for the first. An import that stops says from
//! which line to go on: all lines before it are written. Some behind it may be too; writing them again changes nothing.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use bytes::Bytes;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};

use super::args::{Form, Import};
use super::failure::{Failure, Outcome};
use super::output::Output;
use super::progress;
use super::rows::{self, Line};
use crate::{Client, Error};

/// Lines read ahead of the writes: enough that parsing never keeps them waiting, little enough that large rows fit into
/// memory.
const LINES_AHEAD: usize = 64;

pub(crate) async fn run(
    client: &Client,
    form: Form,
    args: &Import,
    output: &mut Output<'_>,
) -> Result<Outcome, Failure> {
    let (reader, bytes) = open(&args.file)?;
    let format = rows::format_of(args.format, &args.file);
    let (sender, mut lines) = mpsc::channel(LINES_AHEAD);
    let reading = spawn_blocking(move || rows::read(reader, form, format, |line| sender.blocking_send(line).is_ok()));
    let bar = progress::bar(bytes, output.json);
    let mut writes = Writes::new(client, usize::from(args.in_flight), bar.clone());
    let mut bad = 0_u64;
    let mut stop = None;
    while let Some(line) = lines.recv().await {
        let Line { number, end, row } = line;
        if number < args.from_line {
            continue;
        }
        bar.set_position(end);
        let stopped = match row {
            Ok((key, value)) => writes.add(number, key, value).await.err(),
            Err(why) => {
                bad += 1;
                bar.suspend(|| eprintln!("line {number}: {why}"));
                (!args.skip_bad_lines).then(|| (number, format!("line {number} is no row: {why}")))
            }
        };
        if stopped.is_some() {
            stop = stopped;
            break;
        }
    }
    // Ends the reading thread: its next line finds nobody.
    drop(lines);
    let stop = writes.finish().await.or(stop);
    bar.finish_and_clear();
    let read = reading.await.map_err(|error| Failure::Data(error.to_string()))?;
    let rows = writes.rows;
    if let Some((line, why)) = stop {
        let line = writes.failed.first().copied().unwrap_or(line).min(line);
        return Err(Failure::Data(format!(
            "{why}\n{rows} rows were written; all before line {line} are: go on with --from-line {line}"
        )));
    }
    read.map_err(Failure::file(format!("read {}", args.file.display())))?;
    output.answer(&json!({ "rows": rows, "bad_lines": bad }), || match bad {
        0 => format!("{rows} rows written"),
        _ => format!("{rows} rows written, {bad} lines were no rows"),
    })?;
    Ok(if bad == 0 { Outcome::Done } else { Outcome::No })
}

fn open(file: &Path) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(BufReader::new(std::io::stdin())), None));
    }
    let failed = || Failure::file(format!("open {}", file.display()));
    let opened = File::open(file).map_err(failed())?;
    let bytes = opened.metadata().map_err(failed())?.len();
    Ok((Box::new(BufReader::with_capacity(1 << 20, opened)), Some(bytes)))
}

/// A write that ended: its line, its key, and how.
type Ended = (u64, Bytes, Result<(), Error>);

/// The writes under way.
struct Writes<'a> {
    client: &'a Client,
    at_once: usize,
    tasks: JoinSet<Ended>,
    keys: HashSet<Bytes>,
    /// Lines that failed, or that nobody knows about.
    failed: BTreeSet<u64>,
    error: Option<String>,
    rows: u64,
    bar: ProgressBar,
}

impl<'a> Writes<'a> {
    fn new(client: &'a Client, at_once: usize, bar: ProgressBar) -> Self {
        Self {
            client,
            at_once,
            tasks: JoinSet::new(),
            keys: HashSet::new(),
            failed: BTreeSet::new(),
            error: None,
            rows: 0,
            bar,
        }
    }

    /// Starts a write when there is room. The error is the line to go on from, and why.
    async fn add(&mut self, line: u64, key: Bytes, value: Bytes) -> Result<(), (u64, String)> {
        while self.tasks.len() >= self.at_once || self.keys.contains(&key) {
            self.one_ended().await;
        }
        if let Some(why) = &self.error {
            return Err((line, why.clone()));
        }
        self.keys.insert(key.clone());
        let client = self.client.clone();
        self.tasks.spawn(async move {
            let result = client.put(key.clone(), value).await.map(|_| ());
            (line, key, result)
        });
        Ok(())
    }

    /// Waits for all; the line to go on from if one failed, and why.
    async fn finish(&mut self) -> Option<(u64, String)> {
        while !self.tasks.is_empty() {
            self.one_ended().await;
        }
        self.failed.first().copied().zip(self.error.clone())
    }

    async fn one_ended(&mut self) {
        let Some(Ok((line, key, result))) = self.tasks.join_next().await else { return };
        self.keys.remove(&key);
        match result {
            Ok(()) => {
                self.rows += 1;
                self.bar.set_message(format!("{} rows", self.rows));
            }
            Err(error) => {
                self.failed.insert(line);
                self.error.get_or_insert_with(|| format!("line {line} was not written: {error}"));
            }
        }
    }
}
