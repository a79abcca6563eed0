//! One of each that transactions say.

use bytes::Bytes;
use flotilla_types::{
    Claim, Command, Compare, Edge, EndKind, EndTxn, Increment, Isolation, Key, KeySpan, LockedBy, OneShot, Outcome,
    Priority, PushKind, PushResult, PushTxn, QueryTxn, RangeError, RecordOp, Reply, RequestId, Resolve, ResolveTarget,
    Row, ScanResult, Seq, SeqRange, Staged, Strength, Timestamp, TxnAnswer, TxnHeader, TxnId, TxnMeta, TxnOp,
    TxnRefusal, TxnState, Wait, Waiter, Whole, Write, WriteResult, keys,
};

fn key(n: u8) -> Key {
    keys::user(&[n])
}

fn at(n: u64) -> Timestamp {
    Timestamp { wall: n, logical: n as u32 }
}

fn span() -> KeySpan {
    KeySpan { start: key(1), end: key(9) }
}

fn meta(isolation: Isolation, priority: Priority) -> TxnMeta {
    let (id, commit_id) = (TxnId([3; 16]), RequestId([4; 16]));
    TxnMeta { id, anchor: key(1), anchored: at(2), min_ts: at(1), isolation, priority, commit_id }
}

fn header(wait: Wait) -> TxnHeader {
    TxnHeader {
        meta: meta(Isolation::Serializable, Priority::Normal),
        read: at(5),
        write: at(6),
        limit: at(9),
        seq: Seq(7),
        ignored: vec![SeqRange { from: Seq(2), to: Seq(4) }],
        keep_from: Seq(1),
        can_forward: true,
        wait,
        pipelined: wait == Wait::Error,
    }
}

fn edges() -> Vec<Edge> {
    let waiter = Waiter { id: TxnId([5; 16]), anchor: key(4), priority: Priority::Low, min_ts: at(3) };
    vec![Edge { waiter, holder: TxnId([6; 16]) }]
}

fn staged() -> Staged {
    Staged { at: at(4), in_flight: vec![Claim { key: key(2), seq: Seq(3) }] }
}

fn whole() -> Whole {
    let compares = vec![
        Compare { key: key(1), expected: None },
        Compare { key: key(2), expected: Some(Bytes::from_static(b"x")) },
    ];
    let then = vec![OneShot::Write(key(1), Some(Bytes::from_static(b"y"))), OneShot::Increment(key(3), -2)];
    Whole { compares, then, otherwise: vec![OneShot::Get(key(1)), OneShot::Write(key(2), None)] }
}

pub(super) fn commands() -> Vec<Command> {
    let value = Bytes::from_static(b"value");
    let op = |op| Command::Txn { header: Box::new(header(Wait::Block)), op };
    let record = |op| Command::Record(Box::new(op));
    let resolve = |outcome, target| {
        let (meta, ignored) = (meta(Isolation::Snapshot, Priority::High), vec![SeqRange { from: Seq(1), to: Seq(1) }]);
        Command::Resolve(Box::new(Resolve { meta, outcome, ignored, target }))
    };
    let end = |kind, local| {
        let (meta, lock_spans) = (meta(Isolation::ReadCommitted, Priority::Low), vec![span()]);
        let proofs = vec![Claim { key: key(2), seq: Seq(8) }];
        record(RecordOp::End(EndTxn { meta, kind, lock_spans, ignored: Vec::new(), local, proofs, held: Some(true) }))
    };
    let push = |kind, pusher| {
        let (pushee, priority) = (meta(Isolation::Serializable, Priority::Normal), Priority::High);
        record(RecordOp::Push(PushTxn { pushee, kind, pusher, priority, seen: at(8), edges: edges() }))
    };
    let own = || meta(Isolation::Serializable, Priority::Normal);
    vec![
        op(TxnOp::Get { key: key(1), lock: None }),
        op(TxnOp::Get { key: key(1), lock: Some(Strength::Shared) }),
        op(TxnOp::Get { key: key(1), lock: Some(Strength::Exclusive) }),
        op(TxnOp::Scan { span: span(), reverse: true, rows_max: 3, bytes_max: 4 }),
        op(TxnOp::Write { key: key(1), value: Some(value.clone()), was_read: true }),
        op(TxnOp::Write { key: key(1), value: None, was_read: false }),
        op(TxnOp::CompareAndSet { key: key(1), expected: Some(value), new: None }),
        op(TxnOp::Increment(Increment { key: key(1), by: -7 })),
        op(TxnOp::DeleteRange { span: span(), keys_max: 7 }),
        op(TxnOp::Refresh { span: span(), from: at(3), to: at(4) }),
        op(TxnOp::Batch { writes: vec![(key(1), None), (key(2), Some(Bytes::from_static(b"two")))] }),
        op(TxnOp::Prove { key: key(1), seq: Seq(3), at: at(4) }),
        end(EndKind::Stage(staged()), Vec::new()),
        record(RecordOp::Recover { meta: own(), at: at(4), proven: true }),
        Command::Write { id: RequestId([7; 16]), write: Write::Whole(Box::new(whole())) },
        Command::Txn { header: Box::new(header(Wait::Error)), op: TxnOp::Get { key: key(1), lock: None } },
        Command::Txn { header: Box::new(header(Wait::Skip)), op: TxnOp::Get { key: key(1), lock: None } },
        end(EndKind::Commit(at(9)), vec![key(1), key(2)]),
        end(EndKind::Abort, Vec::new()),
        record(RecordOp::Heartbeat { meta: own(), lock_spans: vec![span()] }),
        push(PushKind::Timestamp { above: at(1), limit: at(2) }, None),
        push(PushKind::Ask { limit: at(2) }, Some(edges()[0].waiter.clone())),
        push(PushKind::End, None),
        record(RecordOp::Query(QueryTxn { meta: own(), settle: true })),
        record(RecordOp::Collect { meta: own() }),
        resolve(Outcome::Committed { at: at(9) }, ResolveTarget::Keys(vec![key(1), key(3)])),
        resolve(Outcome::Aborted, ResolveTarget::Span(span())),
        Command::Write { id: RequestId([7; 16]), write: Write::Increment(Increment { key: key(1), by: i64::MIN }) },
    ]
}

pub(super) fn replies() -> Vec<Reply> {
    let row = Row { key: key(1), value: Bytes::from_static(b"v"), timestamp: at(3) };
    let txn = |answer| Reply::Txn { answer, locked: Some(at(4)) };
    let ended = |outcome| PushResult::Final {
        outcome,
        ignored: vec![SeqRange { from: Seq(1), to: Seq(2) }],
        lock_spans: vec![span()],
    };
    let queried = |status| Reply::Queried { status, edges: edges() };
    vec![
        Reply::Txn { answer: TxnAnswer::Row(None), locked: None },
        txn(TxnAnswer::Row(Some(row.clone()))),
        txn(TxnAnswer::Rows(ScanResult { rows: vec![row.clone()], resume: Some(key(2)) })),
        Reply::Write(WriteResult::Whole { held: Some(true), rows: Some(vec![None, Some(row)]) }),
        txn(TxnAnswer::Written),
        txn(TxnAnswer::Compared { swapped: false, actual: Some(Bytes::new()) }),
        txn(TxnAnswer::Number(-1)),
        txn(TxnAnswer::Deleted { keys: vec![key(1)], resume: Some(key(2)) }),
        txn(TxnAnswer::Refreshed),
        Reply::Ended(Outcome::Committed { at: at(3) }),
        Reply::Ended(Outcome::Aborted),
        Reply::Alive,
        Reply::Pushed(PushResult::Passed),
        Reply::Pushed(PushResult::Waiting),
        Reply::Pushed(ended(Outcome::Aborted)),
        Reply::Pushed(ended(Outcome::Committed { at: at(3) })),
        queried(None),
        queried(Some(TxnState::Open { recorded: false })),
        queried(Some(TxnState::Open { recorded: true })),
        queried(Some(TxnState::Ended { outcome: Outcome::Aborted, held: None })),
        queried(Some(TxnState::Ended { outcome: Outcome::Committed { at: at(3) }, held: Some(false) })),
        queried(Some(TxnState::Staging(staged()))),
        Reply::Staged,
        Reply::Pushed(PushResult::Indeterminate(staged())),
        Reply::Pushed(PushResult::PusherAborted),
        txn(TxnAnswer::Proven(true)),
        Reply::Write(WriteResult::Whole { held: None, rows: None }),
        Reply::Collected,
        Reply::Resolved { resume: Some(key(1)) },
        Reply::Resolved { resume: None },
        Reply::Write(WriteResult::Number(7)),
    ]
}

pub(super) fn errors() -> Vec<RangeError> {
    let by = || LockedBy { key: key(1), holder: TxnId([6; 16]) };
    let refusals = [
        TxnRefusal::WriteTooOld { key: key(1), existing: at(2), other: None },
        TxnRefusal::WriteTooOld { key: key(1), existing: at(2), other: Some(TxnId([6; 16])) },
        TxnRefusal::Pushed { above: at(2) },
        TxnRefusal::RefreshFailed { key: key(1), other: None },
        TxnRefusal::RefreshFailed { key: key(1), other: Some(TxnId([6; 16])) },
        TxnRefusal::Aborted,
        TxnRefusal::LockHeld(by()),
        TxnRefusal::LockTimeout(by()),
        TxnRefusal::StaleWrite { key: key(1) },
        TxnRefusal::IntentMissing { key: key(1) },
        TxnRefusal::AlreadyCommitted { at: at(2), held: None },
        TxnRefusal::AlreadyCommitted { at: at(2), held: Some(true) },
    ];
    refusals.into_iter().map(RangeError::Txn).collect()
}
