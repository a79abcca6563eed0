//! `Kv.Txn`, `Kv.Transact` and `Kv.Outcome`: steps become calls of the router's transaction, one after the other; what fails is
//! told in the answer, and whoever leaves without a commit is rolled back.

use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{Committed, KvError, Savepoint, ScanRequest, Txn, TxnHandle, TxnOptions};
use flotilla_proto::reason::Reason;
use flotilla_proto::v1::{self, txn_request::Step, txn_response::Answer};
use flotilla_types::{
    Compare, Key, OneShot, Outcome, RecordReader, RecordWriter, RequestId, Strength, Timestamp, TxnId, Wait, Whole,
    keys,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tonic_types::StatusExt;

use super::door::{Door, Entered};
use super::kv::{message, wire};
use super::refusal::{of_kv, reason, refusal};

const HANDLE_VERSION: u8 = 1;
/// Savepoints that one transaction may have open.
const SAVEPOINTS_MAX: usize = 1024;

/// Why a step was not done.
enum Failed {
    /// The transaction says so, or the step makes no sense: told in the answer.
    Step(v1::TxnFailure),
}

impl From<KvError> for Failed {
    fn from(error: KvError) -> Self {
        let (key, other) = match &error {
            KvError::RetryTxn { key, other, .. } => (key.clone(), *other),
            KvError::Locked(by) => (Some(by.key.clone()), Some(by.holder)),
            _ => (None, None),
        };
        Self::Step(v1::TxnFailure {
            reason: reason(&error).word().to_owned(),
            message: error.to_string(),
            key: key.and_then(|key| keys::user_body(&key)),
            other: other.map(|other| Bytes::copy_from_slice(&other.0)),
        })
    }
}

impl From<Status> for Failed {
    /// What the door refuses makes no sense, whatever the transaction is.
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map_or(Reason::Invalid.word().to_owned(), |info| info.reason.clone());
        Self::Step(v1::TxnFailure { reason, message: status.message().to_owned(), key: None, other: None })
    }
}

/// A transaction and what its client calls things.
struct Conversation {
    door: Door,
    entered: Entered,
    txn: Option<Txn>,
    savepoints: Vec<(String, Savepoint)>,
    told_handle: bool,
}

/// Answers step after step until the transaction or the client's stream ends.
pub(super) async fn converse(
    door: Door,
    entered: Entered,
    mut steps: Streaming<v1::TxnRequest>,
    to: mpsc::Sender<Result<v1::TxnResponse, Status>>,
) {
    let mut conversation = Conversation { door, entered, txn: None, savepoints: Vec::new(), told_handle: false };
    loop {
        let step = tokio::select! {
            step = steps.message() => step,
            () = to.closed() => return,
        };
        // A broken stream and an ended one come to the same: what was not committed is rolled back.
        let Ok(Some(request)) = step else { return };
        let ends = matches!(request.step, Some(Step::Commit(_) | Step::Rollback(_)));
        let answer = tokio::select! {
            answer = conversation.step(request) => answer,
            () = to.closed() => return,
        };
        let answer = answer.unwrap_or_else(|Failed::Step(failure)| Answer::Failure(failure));
        let handle = conversation.new_handle();
        let response = v1::TxnResponse { answer: Some(answer), handle };
        if to.send(Ok(response)).await.is_err() || ends {
            return;
        }
    }
}

impl Conversation {
    async fn step(&mut self, request: v1::TxnRequest) -> Result<Answer, Failed> {
        let wait = Wait::from(known::<v1::WaitPolicy>(request.wait, "wait")?);
        let patience = match request.timeout_ms {
            0 => self.door.config.timeout,
            given => Duration::from_millis(given),
        };
        let deadline = self.entered.router.clock().mono() + patience;
        let Some(step) = request.step else {
            return Err(refusal(Reason::Invalid, "a step of a transaction says nothing").into());
        };
        if let Step::Begin(begin) = step {
            return self.begin(&begin);
        }
        if self.txn.is_none() {
            self.begin(&v1::TxnBegin::default())?;
        }
        let Some(mut txn) = self.txn.take() else {
            return Err(refusal(Reason::Invalid, "the transaction has ended").into());
        };
        match step {
            Step::Commit(v1::TxnCommit {}) => {
                let Committed { at } = txn.commit(deadline).await?;
                Ok(Answer::Committed(v1::TxnCommitted { timestamp: Some(wire(at)) }))
            }
            Step::Rollback(v1::TxnRollback {}) => {
                txn.rollback().await;
                Ok(Answer::Done(v1::TxnDone {}))
            }
            step => {
                let answer = self.work(&mut txn, step, wait, deadline).await;
                self.txn = Some(txn);
                answer
            }
        }
    }

    fn begin(&mut self, begin: &v1::TxnBegin) -> Result<Answer, Failed> {
        if self.txn.is_some() {
            return Err(refusal(Reason::Invalid, "begin comes first, and once").into());
        }
        let options = TxnOptions {
            isolation: known::<v1::Isolation>(begin.isolation, "isolation")?.into(),
            priority: known::<v1::Priority>(begin.priority, "priority")?.into(),
            strict: begin.strict,
            token: begin.token.map(Into::into),
            at: self.past(begin)?,
        };
        let txn = self.entered.router.begin(options)?;
        let txn_id = Bytes::copy_from_slice(&txn.id().0);
        self.txn = Some(txn);
        Ok(Answer::Begun(v1::TxnBegun { txn_id }))
    }

    /// When a transaction reads, if not now.
    fn past(&self, begin: &v1::TxnBegin) -> Result<Option<Timestamp>, Failed> {
        match (begin.at, begin.staleness_ms) {
            (Some(_), 1..) => Err(refusal(Reason::Invalid, "at and staleness_ms exclude each other").into()),
            (Some(at), 0) => Ok(Some(at.into())),
            (None, 0) => Ok(None),
            (None, ago) => {
                let now = self.entered.router.clock().now().map_err(KvError::from)?;
                Ok(Some(now.minus(Duration::from_millis(ago))))
            }
        }
    }

    async fn work(&mut self, txn: &mut Txn, step: Step, wait: Wait, deadline: Duration) -> Result<Answer, Failed> {
        let door = &self.door;
        Ok(match step {
            Step::Get(get) => {
                let key = door.key(&get.key)?;
                let row = match known::<v1::LockStrength>(get.lock, "lock")? {
                    v1::LockStrength::Unspecified => txn.get(key, wait, deadline).await?,
                    v1::LockStrength::Share => txn.get_and_lock(key, Strength::Shared, wait, deadline).await?,
                    v1::LockStrength::Update => txn.get_and_lock(key, Strength::Exclusive, wait, deadline).await?,
                };
                let (value, written) = row.map(|row| (row.value, wire(row.timestamp))).unzip();
                Answer::Value(v1::TxnValue { value, written })
            }
            Step::Put(put) => {
                door.value(&put.value)?;
                txn.write(door.key(&put.key)?, Some(put.value), wait, deadline).await?;
                Answer::Done(v1::TxnDone {})
            }
            Step::Delete(delete) => {
                txn.write(door.key(&delete.key)?, None, wait, deadline).await?;
                Answer::Done(v1::TxnDone {})
            }
            Step::Scan(scan) => {
                let span = door.span(&scan.start, scan.end.as_ref())?;
                let most = door.config.limits.scan_chunk_bytes as u64;
                let bytes_max = if scan.chunk_bytes == 0 { most } else { scan.chunk_bytes.min(most) };
                let (reverse, rows_max) = (scan.reverse, scan.rows_max);
                let request = ScanRequest { span, reverse, rows_max, bytes_max, at: None };
                let chunk = txn.scan(request, wait, deadline).await?;
                Answer::Scan(message(chunk)?)
            }
            Step::DeleteRange(delete) => {
                let span = door.span(&delete.start, delete.end.as_ref())?;
                Answer::Deleted(txn.delete_range(span, 0, wait, deadline).await?.0)
            }
            Step::CompareAndSet(v1::TxnCompareAndSet { key, expected, new }) => {
                expected.iter().chain(&new).try_for_each(|value| door.value(value))?;
                let (swapped, actual) = txn.compare_and_set(door.key(&key)?, expected, new, wait, deadline).await?;
                Answer::Compared(v1::TxnCompared { swapped, actual })
            }
            Step::Increment(v1::TransactIncrement { key, by }) => {
                Answer::Number(txn.increment(door.key(&key)?, by, wait, deadline).await?)
            }
            Step::Savepoint(name) => {
                if self.savepoints.len() == SAVEPOINTS_MAX {
                    let what = format!("{SAVEPOINTS_MAX} savepoints are open: release some");
                    return Err(refusal(Reason::Invalid, &what).into());
                }
                self.savepoints.push((name, txn.savepoint()));
                Answer::Done(v1::TxnDone {})
            }
            Step::RollbackTo(name) => {
                let at = self.savepoint(&name)?;
                txn.rollback_to(self.savepoints[at].1)?;
                self.savepoints.truncate(at + 1);
                Answer::Done(v1::TxnDone {})
            }
            Step::Release(name) => {
                let at = self.savepoint(&name)?;
                txn.release(self.savepoints[at].1);
                self.savepoints.truncate(at);
                Answer::Done(v1::TxnDone {})
            }
            Step::Begin(_) | Step::Commit(_) | Step::Rollback(_) => {
                return Err(refusal(Reason::Internal, "a step was taken for another").into());
            }
        })
    }

    /// The newest savepoint of a name.
    fn savepoint(&self, name: &str) -> Result<usize, Failed> {
        let found = self.savepoints.iter().rposition(|(known, _)| known == name);
        found.ok_or_else(|| refusal(Reason::Invalid, &format!("there is no savepoint '{name}'")).into())
    }

    /// What to ask with about the commit, once there is something to ask about.
    fn new_handle(&mut self) -> Option<Bytes> {
        if self.told_handle {
            return None;
        }
        let handle = self.txn.as_ref()?.handle()?;
        self.told_handle = true;
        Some(encode(&handle))
    }
}

/// A choice that this version knows. Others are refused: guessing what a newer client meant could lose what it relies on.
fn known<E: TryFrom<i32>>(value: i32, name: &str) -> Result<E, Status> {
    E::try_from(value).map_err(|_| refusal(Reason::Invalid, &format!("{name} {value} is none that this node knows")))
}

/// With a checksum: a damaged handle would name a transaction that never was, and be told that nothing of it is there.
fn encode(handle: &TxnHandle) -> Bytes {
    let record = RecordWriter::new(HANDLE_VERSION).bytes(&handle.id.0).bytes(handle.anchor.as_bytes());
    let mut bytes = record.timestamp(handle.anchored).bytes(&handle.commit_id.0).finish();
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.into()
}

fn decode(bytes: &[u8]) -> Result<TxnHandle, Status> {
    let read = || {
        let (bytes, sum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(bytes).to_be_bytes() != *sum {
            return None;
        }
        let mut record = RecordReader::new("handle", HANDLE_VERSION, bytes).ok()?;
        let id = TxnId(record.bytes().ok()?.try_into().ok()?);
        let anchor = Key::new(record.bytes().ok()?.to_vec());
        let anchored = record.timestamp().ok()?;
        let commit_id = RequestId(record.bytes().ok()?.try_into().ok()?);
        record.end().ok()?;
        keys::user_body(&anchor).map(|_| TxnHandle { id, anchor, anchored, commit_id })
    };
    read().ok_or_else(|| refusal(Reason::Invalid, "this is no handle of a transaction: send it as it came"))
}

/// What became of a transaction.
pub(super) async fn outcome(entered: &Entered, handle: &[u8]) -> Result<v1::OutcomeResponse, Status> {
    let handle = decode(handle)?;
    let outcome = entered.router.outcome(&handle, entered.deadline).await.map_err(|error| of_kv(&error))?;
    let (outcome, timestamp) = match outcome {
        Some(Outcome::Committed { at }) => (v1::outcome_response::Outcome::Committed, Some(wire(at))),
        Some(Outcome::Aborted) => (v1::outcome_response::Outcome::Aborted, None),
        None => (v1::outcome_response::Outcome::Forgotten, None),
    };
    Ok(v1::OutcomeResponse { outcome: outcome.into(), timestamp })
}

/// A conditional transaction.
pub(super) async fn transact(
    door: &Door,
    entered: &Entered,
    request: v1::TransactRequest,
) -> Result<v1::TransactResponse, Status> {
    let v1::TransactRequest { compare, then, otherwise, request_id, after } = request;
    entered.after(after).await?;
    door.keys(compare.len() + then.len() + otherwise.len())?;
    let mut bytes = 0;
    let compares = compare.into_iter().map(|v1::Compare { key, expected }| {
        expected.iter().try_for_each(|value| door.value(value))?;
        bytes += key.len() + expected.as_ref().map_or(0, Bytes::len);
        Ok(Compare { key: door.key(&key)?, expected })
    });
    let compares = compares.collect::<Result<Vec<_>, Status>>()?;
    let mut branch = |ops: Vec<v1::TransactOp>| {
        let ops = ops.into_iter().map(|op| {
            let (step, weight) = one_shot(door, op)?;
            bytes += weight;
            Ok(step)
        });
        ops.collect::<Result<Vec<_>, Status>>()
    };
    let (then, otherwise) = (branch(then)?, branch(otherwise)?);
    let _room = door.request(bytes)?;
    let id = entered.request_id(request_id.as_ref())?;
    let done = entered.router.transact(id, &Whole { compares, then, otherwise }, entered.deadline).await;
    let done = done.map_err(|error| of_kv(&error))?;
    let results = done.rows.into_iter().map(|row| v1::TransactResult { value: row.map(|row| row.value) });
    Ok(v1::TransactResponse { held: done.held, results: results.collect(), timestamp: Some(wire(done.at)) })
}

/// One step of a branch, and what it weighs.
fn one_shot(door: &Door, op: v1::TransactOp) -> Result<(OneShot, usize), Status> {
    use v1::transact_op::Op;
    Ok(match op.op {
        Some(Op::Get(key)) => (OneShot::Get(door.key(&key)?), key.len()),
        Some(Op::Put(put)) => {
            door.value(&put.value)?;
            let weight = put.key.len() + put.value.len();
            (OneShot::Write(door.key(&put.key)?, Some(put.value)), weight)
        }
        Some(Op::Delete(key)) => (OneShot::Write(door.key(&key)?, None), key.len()),
        Some(Op::Increment(increment)) => {
            (OneShot::Increment(door.key(&increment.key)?, increment.by), increment.key.len())
        }
        None => return Err(refusal(Reason::Invalid, "a step of a branch says nothing")),
    })
}
