//! Requests to one range, as one node forwards them to another.

use std::time::Duration;

use flotilla_types::{
    Admin, BatchOp, CheckId, Command, ConfTarget, Generation, Key, RangeId, RangeRequest, Read, ReadAt, RequestId,
    StoreId, Write, nanoseconds,
};

use super::{WireError, key_out, needed, txn};
use crate::internal::{self as wire, range_request, write};

impl From<&RangeRequest> for wire::RangeRequest {
    fn from(request: &RangeRequest) -> Self {
        let command = match &request.command {
            Command::Read { at, read } => read_out(*at, read),
            Command::Write { id, write } => range_request::Command::Write(write_out(*id, write)),
            Command::Txn { header, op } => txn::step_out(header, op),
            Command::Record(op) => txn::record_out(op),
            Command::Resolve(resolve) => txn::resolve_out(resolve),
            Command::Admin(admin) => admin_out(admin),
        };
        Self { range_id: request.range.0, timeout_ns: nanoseconds(request.timeout), command: Some(command) }
    }
}

fn read_out(at: ReadAt, read: &Read) -> range_request::Command {
    let at = match at {
        ReadAt::Leaseholder => None,
        ReadAt::Timestamp { timestamp, limit } => {
            Some(wire::ReadAt { timestamp: Some(timestamp.into()), limit: Some(limit.into()) })
        }
    };
    match read {
        Read::Get { key } => range_request::Command::Get(wire::Get { at, key: key_out(key) }),
        Read::Scan { span, reverse, rows_max, bytes_max } => range_request::Command::Scan(wire::Scan {
            at,
            span: Some(span.into()),
            reverse: *reverse,
            rows_max: *rows_max,
            bytes_max: *bytes_max,
        }),
    }
}

fn write_out(id: RequestId, write: &Write) -> wire::Write {
    let write = match write {
        Write::Put { key, value } => {
            write::Write::Put(wire::KeyValue { key: key_out(key), value: Some(value.clone()) })
        }
        Write::Delete { key } => write::Write::Delete(key_out(key)),
        Write::CompareAndSwap { key, expected, new } => write::Write::CompareAndSwap(wire::CompareAndSwap {
            key: key_out(key),
            expected: expected.clone(),
            new: new.clone(),
        }),
        Write::Batch { ops } => write::Write::Batch(wire::Batch { ops: ops.iter().map(op_out).collect() }),
        Write::DeleteRange { span, keys_max } => {
            write::Write::DeleteRange(wire::DeleteRange { span: Some(span.into()), keys_max: *keys_max })
        }
        Write::Increment(increment) => write::Write::Increment(increment.into()),
        Write::Whole(whole) => write::Write::Whole(txn::whole_out(whole)),
        Write::PutMeta { key, descriptor } => {
            write::Write::PutMeta(wire::PutMeta { key: key_out(key), descriptor: Some(descriptor.into()) })
        }
    };
    wire::Write { request_id: id.0.to_vec().into(), write: Some(write) }
}

fn op_out(op: &BatchOp) -> wire::KeyValue {
    match op {
        BatchOp::Put { key, value } => wire::KeyValue { key: key_out(key), value: Some(value.clone()) },
        BatchOp::Delete { key } => wire::KeyValue { key: key_out(key), value: None },
    }
}

fn admin_out(admin: &Admin) -> range_request::Command {
    match admin {
        Admin::Split { generation, key, right } => {
            range_request::Command::Split(wire::Split { generation: generation.0, key: key_out(key), right: right.0 })
        }
        Admin::TransferLeader { to } => range_request::Command::TransferLeader(wire::TransferLeader { to: to.0 }),
        Admin::ChangeReplicas { generation, target } => range_request::Command::ChangeReplicas(wire::ChangeReplicas {
            generation: generation.0,
            voters: target.voters.iter().map(|store| store.0).collect(),
            learners: target.learners.iter().map(|store| store.0).collect(),
        }),
        Admin::Check { check } => range_request::Command::Check(wire::Check { check_id: check.0 }),
    }
}

impl TryFrom<wire::RangeRequest> for RangeRequest {
    type Error = WireError;

    fn try_from(request: wire::RangeRequest) -> Result<Self, WireError> {
        use range_request::Command as C;
        let command = match needed(request.command, "a request's command")? {
            C::Get(get) => Command::Read { at: at_in(get.at)?, read: Read::Get { key: key_in(get.key)? } },
            C::Scan(scan) => Command::Read {
                at: at_in(scan.at)?,
                read: Read::Scan {
                    span: needed(scan.span, "a scan's span")?.try_into()?,
                    reverse: scan.reverse,
                    rows_max: scan.rows_max,
                    bytes_max: scan.bytes_max,
                },
            },
            C::Write(write) => write_in(write)?,
            C::Txn(step) => txn::step_in(step)?,
            C::Record(step) => txn::record_in(step)?,
            C::Resolve(resolve) => txn::resolve_in(resolve)?,
            C::Split(split) => Command::Admin(Admin::Split {
                generation: Generation(split.generation),
                key: key_in(split.key)?,
                right: RangeId(split.right),
            }),
            C::TransferLeader(transfer) => Command::Admin(Admin::TransferLeader { to: StoreId(transfer.to) }),
            C::ChangeReplicas(change) => Command::Admin(Admin::ChangeReplicas {
                generation: Generation(change.generation),
                target: ConfTarget {
                    voters: change.voters.into_iter().map(StoreId).collect(),
                    learners: change.learners.into_iter().map(StoreId).collect(),
                },
            }),
            C::Check(check) => Command::Admin(Admin::Check { check: CheckId(check.check_id) }),
        };
        Ok(Self { range: RangeId(request.range_id), timeout: Duration::from_nanos(request.timeout_ns), command })
    }
}

fn at_in(at: Option<wire::ReadAt>) -> Result<ReadAt, WireError> {
    let Some(at) = at else { return Ok(ReadAt::Leaseholder) };
    let timestamp = needed(at.timestamp, "a read's timestamp")?.into();
    let limit = needed(at.limit, "a read's limit")?.into();
    if limit < timestamp {
        return Err(WireError::new("a read's limit lies below its timestamp"));
    }
    Ok(ReadAt::Timestamp { timestamp, limit })
}

pub(super) fn key_in(key: bytes::Bytes) -> Result<Key, WireError> {
    if key.is_empty() { Err(WireError::new("a key is empty")) } else { Ok(Key::new(key)) }
}

fn write_in(write: wire::Write) -> Result<Command, WireError> {
    use write::Write as W;
    let id = RequestId::try_from(&write.request_id[..]).map_err(|error| WireError::new(error.to_string()))?;
    let write = match needed(write.write, "a write's kind")? {
        W::Put(put) => Write::Put { key: key_in(put.key)?, value: needed(put.value, "a put's value")? },
        W::Delete(key) => Write::Delete { key: key_in(key)? },
        W::CompareAndSwap(swap) => {
            Write::CompareAndSwap { key: key_in(swap.key)?, expected: swap.expected, new: swap.new }
        }
        W::Batch(batch) => Write::Batch { ops: batch.ops.into_iter().map(op_in).collect::<Result<_, _>>()? },
        W::DeleteRange(delete) => Write::DeleteRange {
            span: needed(delete.span, "a range delete's span")?.try_into()?,
            keys_max: delete.keys_max,
        },
        W::Increment(increment) => Write::Increment(increment.try_into()?),
        W::Whole(whole) => Write::Whole(Box::new(txn::whole_in(whole)?)),
        W::PutMeta(put) => Write::PutMeta {
            key: key_in(put.key)?,
            descriptor: needed(put.descriptor, "an addressing record's descriptor")?.try_into()?,
        },
    };
    Ok(Command::Write { id, write })
}

fn op_in(op: wire::KeyValue) -> Result<BatchOp, WireError> {
    let key = key_in(op.key)?;
    Ok(match op.value {
        Some(value) => BatchOp::Put { key, value },
        None => BatchOp::Delete { key },
    })
}
