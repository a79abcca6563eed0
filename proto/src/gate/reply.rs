//! What a range answers.

use flotilla_types::{
    Edge, Key, PushResult, RangeReply, Reply, Row, ScanResult, Timestamp, TxnAnswer, TxnState, WriteResult,
};

use super::{WireError, key_out, needed, txn};
use crate::internal::{self as wire, push_reply, query_reply::State, range_reply, txn_reply, write_reply};
use crate::v1;

impl From<Row> for v1::Row {
    /// With the logical key; the public API cuts the keyspace off.
    fn from(row: Row) -> Self {
        Self { key: row.key.into_bytes(), value: row.value, timestamp: Some(row.timestamp.into()) }
    }
}

impl TryFrom<v1::Row> for Row {
    type Error = WireError;

    fn try_from(row: v1::Row) -> Result<Self, WireError> {
        let timestamp = needed(row.timestamp, "a row's timestamp")?.into();
        Ok(Self { key: Key::new(row.key), value: row.value, timestamp })
    }
}

impl From<RangeReply> for wire::RangeReply {
    fn from(reply: RangeReply) -> Self {
        let body = match reply.reply {
            Reply::Get(row) => range_reply::Reply::Get(wire::GetReply { row: row.map(Into::into) }),
            Reply::Scan(scan) => range_reply::Reply::Scan(scan.into()),
            Reply::Write(result) => range_reply::Reply::Write(wire::WriteReply { result: Some(result_out(result)) }),
            Reply::Txn { answer, locked } => range_reply::Reply::Txn(wire::TxnReply {
                locked: locked.map(Into::into),
                answer: Some(answer_out(answer)),
            }),
            Reply::Ended(outcome) => range_reply::Reply::Ended(txn::outcome_out(outcome)),
            Reply::Staged => range_reply::Reply::Staged(wire::Nothing {}),
            Reply::Alive => range_reply::Reply::Alive(wire::Nothing {}),
            Reply::Pushed(result) => range_reply::Reply::Pushed(wire::PushReply { result: Some(pushed_out(result)) }),
            Reply::Queried { status, edges } => range_reply::Reply::Queried(queried_out(status, &edges)),
            Reply::Collected => range_reply::Reply::Collected(wire::Nothing {}),
            Reply::Resolved { resume } => {
                range_reply::Reply::Resolved(wire::ResolveReply { resume: resume.map(Key::into_bytes) })
            }
            Reply::Admin(descriptors) => range_reply::Reply::Admin(wire::AdminReply {
                descriptors: descriptors.iter().map(Into::into).collect(),
            }),
        };
        Self { timestamp: Some(reply.timestamp.into()), reply: Some(body) }
    }
}

fn result_out(result: WriteResult) -> write_reply::Result {
    match result {
        WriteResult::Done => write_reply::Result::Done(wire::Nothing {}),
        WriteResult::ConditionFailed { actual } => {
            write_reply::Result::ConditionFailed(wire::ConditionFailed { actual })
        }
        WriteResult::Number(value) => write_reply::Result::Number(value),
        WriteResult::Whole { held, rows } => {
            let row = |row: Option<Row>| wire::GetReply { row: row.map(Into::into) };
            let rows = rows.map(|rows| wire::WholeRows { rows: rows.into_iter().map(row).collect() });
            write_reply::Result::Whole(wire::WholeDone { held, rows })
        }
        WriteResult::Deleted { keys, resume } => {
            write_reply::Result::Deleted(wire::Deleted { keys, resume: resume.as_ref().map(key_out) })
        }
    }
}

impl TryFrom<wire::RangeReply> for RangeReply {
    type Error = WireError;

    fn try_from(reply: wire::RangeReply) -> Result<Self, WireError> {
        use range_reply::Reply as R;
        let timestamp: Timestamp = needed(reply.timestamp, "a reply's timestamp")?.into();
        let reply = match needed(reply.reply, "a reply's content")? {
            R::Get(get) => Reply::Get(get.row.map(Row::try_from).transpose()?),
            R::Scan(scan) => Reply::Scan(scan.try_into()?),
            R::Write(write) => Reply::Write(match needed(write.result, "a write's result")? {
                write_reply::Result::Done(wire::Nothing {}) => WriteResult::Done,
                write_reply::Result::ConditionFailed(failed) => WriteResult::ConditionFailed { actual: failed.actual },
                write_reply::Result::Number(value) => WriteResult::Number(value),
                write_reply::Result::Whole(whole) => {
                    let row = |get: wire::GetReply| get.row.map(Row::try_from).transpose();
                    let rows = whole.rows.map(|rows| rows.rows.into_iter().map(row).collect::<Result<_, _>>());
                    WriteResult::Whole { held: whole.held, rows: rows.transpose()? }
                }
                write_reply::Result::Deleted(deleted) => {
                    WriteResult::Deleted { keys: deleted.keys, resume: deleted.resume.map(Key::new) }
                }
            }),
            R::Txn(reply) => Reply::Txn {
                answer: answer_in(needed(reply.answer, "a transaction's answer")?)?,
                locked: reply.locked.map(Into::into),
            },
            R::Ended(outcome) => Reply::Ended(txn::outcome_in(Some(outcome))?),
            R::Staged(wire::Nothing {}) => Reply::Staged,
            R::Alive(wire::Nothing {}) => Reply::Alive,
            R::Pushed(pushed) => Reply::Pushed(pushed_in(needed(pushed.result, "a push's result")?)?),
            R::Queried(queried) => queried_in(queried)?,
            R::Collected(wire::Nothing {}) => Reply::Collected,
            R::Resolved(resolved) => Reply::Resolved { resume: resolved.resume.map(Key::new) },
            R::Admin(admin) => {
                Reply::Admin(admin.descriptors.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { timestamp, reply })
    }
}

impl From<ScanResult> for wire::ScanReply {
    fn from(scan: ScanResult) -> Self {
        Self { rows: scan.rows.into_iter().map(Into::into).collect(), resume: scan.resume.map(Key::into_bytes) }
    }
}

impl TryFrom<wire::ScanReply> for ScanResult {
    type Error = WireError;

    fn try_from(scan: wire::ScanReply) -> Result<Self, WireError> {
        let rows = scan.rows.into_iter().map(Row::try_from).collect::<Result<_, _>>()?;
        Ok(Self { rows, resume: scan.resume.map(Key::new) })
    }
}

fn answer_out(answer: TxnAnswer) -> txn_reply::Answer {
    use txn_reply::Answer;
    match answer {
        TxnAnswer::Row(row) => Answer::Row(wire::GetReply { row: row.map(Into::into) }),
        TxnAnswer::Rows(scan) => Answer::Rows(scan.into()),
        TxnAnswer::Written => Answer::Written(wire::Nothing {}),
        TxnAnswer::Compared { swapped, actual } => Answer::Compared(wire::Compared { swapped, actual }),
        TxnAnswer::Number(value) => Answer::Number(value),
        TxnAnswer::Deleted { keys, resume } => Answer::Deleted(wire::DeletedKeys {
            keys: keys.into_iter().map(Key::into_bytes).collect(),
            resume: resume.map(Key::into_bytes),
        }),
        TxnAnswer::Refreshed => Answer::Refreshed(wire::Nothing {}),
        TxnAnswer::Proven(there) => Answer::Proven(there),
    }
}

fn answer_in(answer: txn_reply::Answer) -> Result<TxnAnswer, WireError> {
    use txn_reply::Answer;
    Ok(match answer {
        Answer::Row(get) => TxnAnswer::Row(get.row.map(Row::try_from).transpose()?),
        Answer::Rows(scan) => TxnAnswer::Rows(scan.try_into()?),
        Answer::Written(wire::Nothing {}) => TxnAnswer::Written,
        Answer::Compared(wire::Compared { swapped, actual }) => TxnAnswer::Compared { swapped, actual },
        Answer::Number(value) => TxnAnswer::Number(value),
        Answer::Deleted(deleted) => TxnAnswer::Deleted {
            keys: deleted.keys.into_iter().map(Key::new).collect(),
            resume: deleted.resume.map(Key::new),
        },
        Answer::Refreshed(wire::Nothing {}) => TxnAnswer::Refreshed,
        Answer::Proven(there) => TxnAnswer::Proven(there),
    })
}

fn pushed_out(result: PushResult) -> push_reply::Result {
    match result {
        PushResult::Passed => push_reply::Result::Passed(wire::Nothing {}),
        PushResult::Waiting => push_reply::Result::Waiting(wire::Nothing {}),
        PushResult::PusherAborted => push_reply::Result::PusherAborted(wire::Nothing {}),
        PushResult::Indeterminate(staged) => push_reply::Result::Indeterminate(txn::staged_out(&staged)),
        PushResult::Final { outcome, ignored, lock_spans } => push_reply::Result::Final(wire::PushFinal {
            outcome: Some(txn::outcome_out(outcome)),
            ignored: txn::ignored_out(&ignored),
            lock_spans: txn::spans_out(&lock_spans),
        }),
    }
}

fn pushed_in(result: push_reply::Result) -> Result<PushResult, WireError> {
    Ok(match result {
        push_reply::Result::Passed(wire::Nothing {}) => PushResult::Passed,
        push_reply::Result::Waiting(wire::Nothing {}) => PushResult::Waiting,
        push_reply::Result::PusherAborted(wire::Nothing {}) => PushResult::PusherAborted,
        push_reply::Result::Indeterminate(staged) => PushResult::Indeterminate(txn::staged_in(staged)?),
        push_reply::Result::Final(ended) => PushResult::Final {
            outcome: txn::outcome_in(ended.outcome)?,
            ignored: txn::ignored_in(ended.ignored),
            lock_spans: txn::spans_in(ended.lock_spans)?,
        },
    })
}

fn queried_out(status: Option<TxnState>, edges: &[Edge]) -> wire::QueryReply {
    let of = |state: State| wire::QueryReply {
        state: state.into(),
        edges: txn::edges_out(edges),
        ..wire::QueryReply::default()
    };
    match status {
        None => of(State::Unspecified),
        Some(TxnState::Open { recorded: false }) => of(State::Open),
        Some(TxnState::Open { recorded: true }) => of(State::Recorded),
        Some(TxnState::Staging(staged)) => {
            wire::QueryReply { staged: Some(txn::staged_out(&staged)), ..of(State::Staging) }
        }
        Some(TxnState::Ended { outcome, held }) => {
            wire::QueryReply { outcome: Some(txn::outcome_out(outcome)), held, ..of(State::Ended) }
        }
    }
}

fn queried_in(queried: wire::QueryReply) -> Result<Reply, WireError> {
    let status = match queried.state() {
        State::Unspecified => None,
        State::Open => Some(TxnState::Open { recorded: false }),
        State::Recorded => Some(TxnState::Open { recorded: true }),
        State::Staging => {
            let staged = needed(queried.staged, "what a transaction staged")?;
            Some(TxnState::Staging(txn::staged_in(staged)?))
        }
        State::Ended => Some(TxnState::Ended { outcome: txn::outcome_in(queried.outcome)?, held: queried.held }),
    };
    Ok(Reply::Queried { status, edges: txn::edges_in(queried.edges)? })
}
