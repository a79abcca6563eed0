//! The boundary of the fleet: all that can happen to it, and all that it can want.
//!
//! One turn of the shell's loop: take every waiting event, call `Fleet::step` once, carry out the effects in order.
//! If `Fleet::has_work` says so, step again at once; else wait for an event or until `Fleet::next_wake`.

use std::time::Duration;

use flotilla_storage::SstFile;
use flotilla_storage::engine::WriteBatch;
use flotilla_storage::log::LogOp;
use flotilla_types::{
    CheckId, Key, KeySpan, PushResult, PushTxn, RangeDescriptor, RangeError, RangeId, RangeReply, RangeRequest,
    ReplicaHash, ReplicaId, StoreId, Timestamp,
};

use crate::message::{PeerMessage, SnapshotHeader, SnapshotId};

/// The time of one step, as values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// A fresh reading of the store's HLC, at or below its durable bound.
    pub hlc: Timestamp,
    /// Monotonic time since the process started; paces retries, decides nothing about safety (leases 1.5).
    pub mono: Duration,
}

/// Names a request so that its answer finds the caller. Chosen by the shell; unique while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Names a submission to the log writer. Ascends by one with each `Effect::Append`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// Counts the engine changes of one boot: the first `Effect::Write` or `Effect::Ingest` that is carried out makes it 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FlushMark(pub u64);

/// What can happen to a fleet.
#[derive(Debug)]
pub enum Event {
    /// Another store's message; its clock reading was taken in already.
    Message {
        /// The sender.
        from: StoreId,
        /// What it said.
        message: PeerMessage,
    },
    /// A client's request, from this node's gateway or another's.
    Request {
        /// Where the answer goes.
        token: Token,
        /// What is asked.
        request: RangeRequest,
    },
    /// The log writer synced all submissions up to and including this one.
    Persisted(Ticket),
    /// All engine writes up to this mark would survive a crash now.
    Flushed(FlushMark),
    /// The old log entries of these ranges keep log files from being deleted (`LogStore::purge`).
    Pinned(Vec<RangeId>),
    /// The liveness of this store durably left its support of a peer's epoch (leases 2.5): promises that rest on it may
    /// be broken from now on.
    SupportLeft {
        /// Whose.
        peer: StoreId,
        /// Which epoch.
        epoch: u64,
    },
    /// Epochs or hints changed: look at elections and sleep again.
    SupportChanged,
    /// The connection of a lane to a peer broke, or messages to it were dropped because its queue was full.
    Unreachable(StoreId),
    /// The frames of a snapshot arrived whole and lie in sorted files, ready to be ingested.
    SnapshotReceived {
        /// What was announced.
        header: SnapshotHeader,
        /// Names given to `Engine::build_sst`, ready for `Effect::Ingest`.
        files: Vec<String>,
    },
    /// A snapshot that this store sent ended.
    SnapshotSent {
        /// Which transfer.
        id: SnapshotId,
        /// The receiver has verified all frames.
        delivered: bool,
    },
    /// `Effect::Ingest` ended: the files are part of the engine, durably.
    Ingested(SnapshotId),
    /// `Effect::Hash` ended.
    Hashed {
        /// Range.
        range: RangeId,
        /// Which check.
        check: CheckId,
        /// The result.
        hash: ReplicaHash,
    },
    /// A range's content could not be read, by a hash or a snapshot: its replica here is damaged.
    Damaged {
        /// Which range.
        range: RangeId,
        /// What was found.
        why: String,
    },
    /// A check found the replica here to hold something else than most of its range (docs/durability.md, "Checking that
    /// replicas agree").
    Wrong {
        /// Which range.
        range: RangeId,
        /// Which replica: another one is not meant.
        replica: ReplicaId,
        /// What was found.
        why: String,
    },
    /// A check found no majority among the replicas of a range, or found them the same again.
    Diverged {
        /// Which range.
        range: RangeId,
        /// Whether nobody may be served.
        diverged: bool,
    },
    /// `Effect::Confirm` was answered.
    Confirmed {
        /// Whose key was asked for.
        range: RangeId,
        /// The range that owns it, read consistently.
        current: RangeDescriptor,
    },
    /// `Effect::Push` was answered, or given up. If the transaction has ended, its locks on the keys named were cleared.
    Pushed {
        /// Whose request pushed.
        range: RangeId,
        /// Names the push.
        number: u64,
        /// `None`: no answer came in time.
        result: Option<PushResult>,
    },
    /// The disk's watermark was passed, one way or the other.
    DiskFull(bool),
    /// The store is suspended or serves again (leases 1.4).
    Suspended(bool),
    /// The process is about to stop: hand all leaderships over. `Fleet::led` tells when it is done.
    Drain,
}

/// What a fleet can want. Carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Write to the engine before the next effect is carried out. A failure stops the store.
    Write(WriteBatch),
    /// Give to the log writer; tell `Event::Persisted` when it is durable.
    Append {
        /// Names the submission.
        ticket: Ticket,
        /// What to write, atomically.
        ops: Vec<LogOp>,
    },
    /// Send on the message's lane. May be dropped; then tell `Event::Unreachable`.
    Send {
        /// To which store.
        to: StoreId,
        /// What.
        message: PeerMessage,
    },
    /// Answer a request. Exactly one for each `Event::Request`.
    Reply {
        /// Whose.
        token: Token,
        /// The answer.
        result: Result<RangeReply, RangeError>,
    },
    /// Take an engine snapshot now, and stream its replicated spans to a store on the bulk lane. Tell
    /// `Event::SnapshotSent` whatever happens.
    SendSnapshot {
        /// To which store.
        to: StoreId,
        /// Goes ahead of the frames.
        header: SnapshotHeader,
    },
    /// On the IO pool: flush the engine, then ingest the files. Tell `Event::Ingested`. A failure stops the store.
    Ingest {
        /// Which transfer.
        id: SnapshotId,
        /// The files of `Event::SnapshotReceived`.
        files: Vec<String>,
        /// Files without pairs to be built first and ingested with the others: what the replica held beyond the
        /// snapshot's span.
        cleared: Vec<SstFile>,
    },
    /// The files of a refused snapshot may be deleted.
    Discard {
        /// The files of `Event::SnapshotReceived`.
        files: Vec<String>,
    },
    /// Take an engine snapshot now, hash the range's replicated spans in the background, tell `Event::Hashed`.
    Hash {
        /// What to hash.
        descriptor: RangeDescriptor,
        /// By which replica.
        replica: ReplicaId,
        /// For which check.
        check: CheckId,
        /// Applied index that the snapshot shows.
        applied: flotilla_types::LogIndex,
    },
    /// A replica of this span was destroyed, durably: its space may come back. Whoever lives there by now keeps all of it.
    Reclaim {
        /// The logical keys.
        span: KeySpan,
    },
    /// A range's threshold would survive a crash: give it to `Engine::gc`, and have the span collected if the garbage is
    /// worth it.
    PublishGc {
        /// The logical keys.
        span: KeySpan,
        /// Reads at or below are refused.
        threshold: Timestamp,
        /// About how many bytes the range's leader thinks will go; 0 if nobody looked.
        garbage: u64,
    },
    /// A replica of this span is destroyed: nothing in it goes by a threshold, until the next one is published.
    WithdrawGc {
        /// The logical keys.
        span: KeySpan,
    },
    /// Flush the engine soon: something waits for a mark.
    Flush,
    /// This store leads the range and its descriptor is new, or it just became leader: keep the addressing records true.
    Lead {
        /// The descriptor.
        descriptor: RangeDescriptor,
    },
    /// Read the addressing record of the range that owns the key, consistently, and tell `Event::Confirmed`. If it cannot
    /// be read, tell nothing: the fleet asks again.
    Confirm {
        /// Who asks.
        range: RangeId,
        /// Its start key.
        key: Key,
    },
    /// A transaction stands in the way of a request: ask the record at its anchor, bringing along who waits for the pusher.
    /// If it has ended, clear its locks on these keys. Tell `Event::Pushed`; it may be lost: the fleet pushes again.
    Push {
        /// Whose request pushes.
        range: RangeId,
        /// Names the push.
        number: u64,
        /// Where the transaction stands in the way.
        keys: Vec<Key>,
        /// What to ask.
        push: Box<PushTxn>,
    },
    /// The set of stores that share a range with this one changed: liveness must know.
    Peers(std::collections::BTreeSet<StoreId>),
    /// A replica is out of order and waits to be replaced; a person may want to know.
    Lost {
        /// Range.
        range: RangeId,
        /// What happened.
        why: String,
    },
    /// Something to be counted: a metric's name and by how much.
    Count(&'static str, u64),
    /// Something that took time: a histogram's name and how long.
    Took(&'static str, Duration),
}
