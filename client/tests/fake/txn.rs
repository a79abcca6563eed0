//! Transactions over a map, without locks: writes are kept aside, and at the commit whatever was read must still be there.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::MutexGuard;

use bytes::Bytes;
use flotilla_client::Reason;
use flotilla_client::messages::{self as v1, txn_request::Step, txn_response::Answer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Fault, Node, World, number};

/// Answers the steps of one transaction, in a task of its own.
pub(super) fn converse(
    node: Node,
    mut steps: Streaming<v1::TxnRequest>,
) -> ReceiverStream<Result<v1::TxnResponse, Status>> {
    let (to, answers) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut session = Session::new(node);
        loop {
            let step = tokio::select! {
                step = steps.message() => step,
                () = to.closed() => break,
            };
            let Ok(Some(v1::TxnRequest { step: Some(step), .. })) = step else { break };
            let ends = matches!(step, Step::Commit(_) | Step::Rollback(_));
            match session.step(step) {
                Some(Ok(answer)) => drop(to.send(Ok(answer)).await),
                Some(Err(status)) => {
                    drop(to.send(Err(status)).await);
                    break;
                }
                None => to.closed().await,
            }
            if ends {
                break;
            }
        }
        session.end();
    });
    ReceiverStream::new(answers)
}

type Span = (Bound<Bytes>, Bound<Bytes>);
type Writes = BTreeMap<Bytes, Option<Bytes>>;

struct Session {
    node: Node,
    id: Bytes,
    writes: Writes,
    /// What was looked at, and when what was there had been written.
    reads: Vec<(Span, Vec<(Bytes, u64)>)>,
    savepoints: Vec<(String, Writes)>,
    locked: bool,
    failed: bool,
}

impl Session {
    fn new(node: Node) -> Self {
        let tick = node.world.lock().unwrap().now().wall;
        let id = Bytes::copy_from_slice(&u128::from(tick).to_be_bytes());
        let (writes, reads, savepoints) = (Writes::new(), Vec::new(), Vec::new());
        Self { node, id, writes, reads, savepoints, locked: false, failed: false }
    }

    /// The answer to a step, the stream's end, or silence.
    fn step(&mut self, step: Step) -> Option<Result<v1::TxnResponse, Status>> {
        let world = std::sync::Arc::clone(&self.node.world);
        let mut world = world.lock().unwrap();
        let name = name(&step);
        world.asked.push((self.node.number, name, self.id.clone()));
        let fault = match world.step_faults.front() {
            Some((at, _)) if *at == name => world.step_faults.pop_front().map(|(_, fault)| fault),
            _ => None,
        };
        let lost = || Some(Err(Status::unavailable("connection reset")));
        let answer = match fault {
            Some(Fault::Refuse(reason)) => Err(reason),
            Some(Fault::LoseRequest) => return lost(),
            Some(Fault::LoseWrite) => {
                self.writes.pop_last();
                self.work(&mut world, step)
            }
            Some(Fault::LoseAnswer | Fault::Hang | Fault::BreakAfter(_)) | None => self.work(&mut world, step),
        };
        match fault {
            Some(Fault::LoseAnswer) => return lost(),
            Some(Fault::Hang) => return None,
            _ => {}
        }
        let answer = answer.unwrap_or_else(|reason| {
            self.failed |= !matches!(reason, Reason::Locked | Reason::Invalid);
            let (reason, message) = (reason.word().to_owned(), "refused".to_owned());
            Answer::Failure(v1::TxnFailure { reason, message, key: Some("met".into()), other: None })
        });
        let handle = self.locked.then(|| self.id.clone());
        Some(Ok(v1::TxnResponse { answer: Some(answer), handle }))
    }

    fn work(&mut self, world: &mut MutexGuard<'_, World>, step: Step) -> Result<Answer, Reason> {
        let done = Ok(Answer::Done(v1::TxnDone {}));
        let point = |key: &Bytes| (Bound::Included(key.clone()), Bound::Included(key.clone()));
        if self.failed && !matches!(step, Step::RollbackTo(_) | Step::Rollback(_)) {
            return Err(Reason::TxnFailed);
        }
        match step {
            Step::Begin(_) => Ok(Answer::Begun(v1::TxnBegun { txn_id: self.id.clone() })),
            Step::Get(get) => {
                self.locked |= get.lock != 0;
                let row = self.read(world, point(&get.key)).pop();
                let written = row.as_ref().and_then(|row| row.timestamp);
                Ok(Answer::Value(v1::TxnValue { value: row.map(|row| row.value), written }))
            }
            Step::Put(put) => {
                self.write(put.key, Some(put.value));
                done
            }
            Step::Delete(delete) => {
                self.write(delete.key, None);
                done
            }
            Step::Scan(scan) => {
                let end = scan.end.map_or(Bound::Unbounded, Bound::Excluded);
                let mut rows = self.read(world, (Bound::Included(scan.start), end));
                if scan.reverse {
                    rows.reverse();
                }
                // Small chunks, so that clients have to go on.
                let most = if scan.rows_max == 0 { 2 } else { scan.rows_max.min(2) } as usize;
                let more = rows.len() > most;
                rows.truncate(most);
                let next = |last: &v1::Row| match scan.reverse {
                    true => last.key.clone(),
                    false => [&last.key[..], b"\0"].concat().into(),
                };
                let resume = rows.last().filter(|_| more).map(next);
                Ok(Answer::Scan(v1::ScanResponse { rows, resume, timestamp: Some(world.now()) }))
            }
            Step::DeleteRange(delete) => {
                let end = delete.end.map_or(Bound::Unbounded, Bound::Excluded);
                let rows = self.read(world, (Bound::Included(delete.start), end));
                let count = rows.len() as u64;
                rows.into_iter().for_each(|row| self.write(row.key, None));
                Ok(Answer::Deleted(count))
            }
            Step::CompareAndSet(set) => {
                let actual = self.read(world, point(&set.key)).pop().map(|row| row.value);
                let swapped = actual == set.expected;
                if swapped {
                    self.write(set.key, set.new);
                }
                Ok(Answer::Compared(v1::TxnCompared { swapped, actual: actual.filter(|_| !swapped) }))
            }
            Step::Increment(v1::TransactIncrement { key, by }) => {
                let value = self.read(world, point(&key)).pop().map(|row| row.value);
                let sum = number(value.as_ref()).map_err(|_| Reason::Invalid)? + by;
                self.write(key, Some(Bytes::copy_from_slice(&sum.to_be_bytes())));
                Ok(Answer::Number(sum))
            }
            Step::Savepoint(name) => {
                self.savepoints.push((name, self.writes.clone()));
                done
            }
            Step::RollbackTo(name) => {
                let at = self.savepoint(&name)?;
                self.savepoints.truncate(at + 1);
                self.writes = self.savepoints[at].1.clone();
                self.failed = false;
                done
            }
            Step::Release(name) => {
                let at = self.savepoint(&name)?;
                self.savepoints.truncate(at);
                done
            }
            Step::Commit(_) => self.commit(world),
            Step::Rollback(_) => done,
        }
    }

    fn savepoint(&self, name: &str) -> Result<usize, Reason> {
        self.savepoints.iter().rposition(|(known, _)| known == name).ok_or(Reason::Invalid)
    }

    /// The rows of a span with the transaction's own writes over them.
    fn read(&mut self, world: &World, span: Span) -> Vec<v1::Row> {
        let row = |key: &Bytes, value: &Bytes, timestamp| v1::Row { key: key.clone(), value: value.clone(), timestamp };
        let there = world.rows.range(span.clone());
        let mut rows: BTreeMap<Bytes, v1::Row> =
            there.map(|(key, (value, written))| (key.clone(), row(key, value, Some(*written)))).collect();
        self.reads.push((span.clone(), versions(world, &span)));
        for (key, value) in self.writes.range(span) {
            match value {
                Some(value) => rows.insert(key.clone(), row(key, value, None)),
                None => rows.remove(key),
            };
        }
        rows.into_values().collect()
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>) {
        self.locked = true;
        self.writes.insert(key, value);
    }

    fn commit(&mut self, world: &mut World) -> Result<Answer, Reason> {
        if world.ended.contains_key(&self.id) {
            return Err(Reason::TxnAborted);
        }
        if self.reads.iter().any(|(span, seen)| versions(world, span) != *seen) {
            return Err(Reason::RetryTxn);
        }
        let now = world.now();
        for (key, value) in std::mem::take(&mut self.writes) {
            world.set(key, value, now);
        }
        world.ended.insert(self.id.clone(), Some(now));
        Ok(Answer::Committed(v1::TxnCommitted { timestamp: Some(now) }))
    }

    /// What was not committed is rolled back.
    fn end(self) {
        self.node.world.lock().unwrap().ended.entry(self.id).or_default();
    }
}

fn versions(world: &World, span: &Span) -> Vec<(Bytes, u64)> {
    world.rows.range(span.clone()).map(|(key, (_, written))| (key.clone(), written.wall)).collect()
}

/// What a step is noted as.
const fn name(step: &Step) -> &'static str {
    match step {
        Step::Begin(_) => "begin",
        Step::Get(get) if get.lock != 0 => "txn get with lock",
        Step::Get(_) => "txn get",
        Step::Put(_) => "txn put",
        Step::Delete(_) => "txn delete",
        Step::Scan(_) => "txn scan",
        Step::DeleteRange(_) => "txn delete_range",
        Step::CompareAndSet(_) => "txn compare_and_set",
        Step::Increment(_) => "txn increment",
        Step::Savepoint(_) => "savepoint",
        Step::RollbackTo(_) => "rollback_to",
        Step::Release(_) => "release",
        Step::Commit(_) => "commit",
        Step::Rollback(_) => "rollback",
    }
}
