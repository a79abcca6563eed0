//! The nouns of Flotilla: ids, keys, spans, timestamps, descriptors, requests and errors.
//!
//! The ground floor of the house: every other crate names these, and this one names none of them. Nothing
//! here does IO, waits, or asks a clock. Values that came from a network, a disk or a user become these
//! types at the door, so that the rooms behind it need not check again.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod descriptor;
mod descriptor_record;
mod error;
mod hlc;
mod id;
mod key;
mod limits;
mod locality;
mod record;
mod request;
mod txn;

pub use descriptor::{DescriptorError, RangeDescriptor, ReplicaDescriptor, ReplicaKind};
pub use error::{Actor, RangeError};
pub use hlc::{ClockError, Hlc, Timestamp, nanoseconds};
pub use id::{
    ClusterId, Generation, IdError, LogIndex, NodeId, RangeId, ReplicaId, RequestId, StoreId, StoreUuid, Term, TxnId,
};
pub use key::{Key, KeySpan, Keyspace, SpanError, keys};
pub use limits::Limits;
pub use locality::{Locality, LocalityError, Tier};
pub use record::{RecordError, RecordReader, RecordWriter};
pub use request::{
    Admin, BatchOp, CheckId, Command, ConfTarget, RangeReply, RangeRequest, Read, ReadAt, ReplicaHash, Reply, Row,
    ScanResult, TxnState, Write, WriteResult,
};
pub use txn::{
    Claim, Compare, Edge, EndKind, EndTxn, FinishedTxn, HISTORY_MAX, Increment, Isolation, LockRecord, LockedBy,
    OneShot, Outcome, OwnValue, Priority, PushKind, PushResult, PushTxn, QueryTxn, RecordOp, Resolve, ResolveTarget,
    Seq, SeqRange, Staged, Strength, TxnAnswer, TxnHeader, TxnMeta, TxnOp, TxnRecord, TxnRefusal, TxnStatus, Wait,
    Waiter, Whole, is_ignored,
};
