//! What a range answers.

use flotilla_types::{Key, RangeReply, Reply, Row, ScanResult, Timestamp, WriteResult};

use super::{WireError, key_out, needed};
use crate::internal::{self as wire, range_reply, write_reply};
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
            Reply::Scan(scan) => range_reply::Reply::Scan(wire::ScanReply {
                rows: scan.rows.into_iter().map(Into::into).collect(),
                resume: scan.resume.map(Key::into_bytes),
            }),
            Reply::Write(result) => range_reply::Reply::Write(wire::WriteReply { result: Some(result_out(result)) }),
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
            R::Scan(scan) => Reply::Scan(ScanResult {
                rows: scan.rows.into_iter().map(Row::try_from).collect::<Result<_, _>>()?,
                resume: scan.resume.map(Key::new),
            }),
            R::Write(write) => Reply::Write(match needed(write.result, "a write's result")? {
                write_reply::Result::Done(wire::Nothing {}) => WriteResult::Done,
                write_reply::Result::ConditionFailed(failed) => WriteResult::ConditionFailed { actual: failed.actual },
                write_reply::Result::Deleted(deleted) => {
                    WriteResult::Deleted { keys: deleted.keys, resume: deleted.resume.map(Key::new) }
                }
            }),
            R::Admin(admin) => {
                Reply::Admin(admin.descriptors.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { timestamp, reply })
    }
}
