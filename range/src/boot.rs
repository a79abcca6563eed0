//! How a store's ranges begin: the first ones of a cluster, and those that a restart finds.

use std::collections::BTreeMap;

use bytes::Bytes;
use flotilla_storage::engine::{EngineError, Reader, WriteBatch};
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::log::{HardState, LogHead, LogOp, LogPos};
use flotilla_storage::mvcc;
use flotilla_storage::state::{Applied, LeaseState, Thresholds, decode_replica_id, encode_replica_id};
use flotilla_types::{
    Generation, Key, KeySpan, RangeDescriptor, RangeId, RecordError, ReplicaDescriptor, ReplicaId, ReplicaKind,
    StoreId, Timestamp, keys as logical,
};
use thiserror::Error;

use crate::apply::State;
use crate::raft::LogRead;

/// The store cannot start.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BootError {
    /// The engine could not be read.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record could not be read.
    #[error("{range}: {source}")]
    Record {
        /// Of which range.
        range: RangeId,
        /// What is wrong with it.
        source: RecordError,
    },
    /// What lies there contradicts itself in a way that no crash explains.
    #[error("{range}: {what}")]
    Contradiction {
        /// Which range.
        range: RangeId,
        /// What.
        what: &'static str,
    },
}

/// Where every range begins.
pub(crate) const INITIAL: LogPos =
    LogPos { index: RangeDescriptor::INITIAL_INDEX, term: RangeDescriptor::INITIAL_TERM };

/// The first ranges of a cluster, on these stores: meta1, meta2, system, SQL, and the applications' keys. Every store
/// writes its own part: changes for the engine (to be flushed), then operations for the log.
#[must_use]
pub fn bootstrap(stores: &[StoreId], here: StoreId) -> (WriteBatch, Vec<LogOp>) {
    let bounds = [Key::MIN, logical::META2, logical::SYSTEM, logical::SQL, logical::USER, Key::MAX];
    let replicas = stores.iter().zip(1..).map(|(store, replica)| ReplicaDescriptor {
        replica: ReplicaId(replica),
        store: *store,
        kind: ReplicaKind::Voter,
    });
    let descriptors: Vec<_> = bounds
        .windows(2)
        .zip(1..)
        .map(|(ends, range)| RangeDescriptor {
            range: RangeId(range),
            span: KeySpan { start: ends[0].clone(), end: ends[1].clone() },
            generation: Generation(1),
            replicas: replicas.clone().collect(),
            next_replica: ReplicaId(stores.len() as u64 + 1),
        })
        .collect();
    let (mut batch, mut ops) = (WriteBatch::default(), Vec::new());
    for descriptor in &descriptors {
        if let Some(key) = logical::meta_record(&descriptor.span.start, &descriptor.span.end) {
            mvcc::write(&mut batch, &key, Timestamp { wall: 1, logical: 0 }, Some(&descriptor.encode()), None);
        }
        let Some(me) = descriptor.on_store(here) else { continue };
        let record = |record| keys::range_record(descriptor.range, record);
        let applied = Applied { pos: INITIAL, ..Applied::default() };
        batch.put(record(RangeRecord::Descriptor), descriptor.encode());
        batch.put(record(RangeRecord::Applied), applied.encode());
        batch.put(record(RangeRecord::Lease), LeaseState::default().encode());
        batch.put(record(RangeRecord::ReplicaId), encode_replica_id(me.replica));
        let hard = HardState { term: INITIAL.term, vote: ReplicaId(0), commit: INITIAL.index };
        ops.push(LogOp::Create { range: descriptor.range, replica: me.replica, birth: None, trunc: INITIAL, hard });
    }
    (batch, ops)
}

/// A replica that a restart found in the engine.
pub(crate) struct Found {
    pub(crate) me: ReplicaId,
    pub(crate) state: State,
    /// What the log knows of it, or why it must not go on.
    pub(crate) head: Result<LogHead, &'static str>,
    /// The log's part of a snapshot or of a split that a crash interrupted.
    pub(crate) repair: Option<LogOp>,
}

/// Everything that lives on the store, held against the log (docs/durability.md, laws 2 and 3).
pub(crate) fn find(
    engine: &dyn Reader,
    log: &dyn LogRead,
    heads: &[(RangeId, LogHead)],
) -> Result<BTreeMap<RangeId, Found>, BootError> {
    let heads: BTreeMap<_, _> = heads.iter().copied().collect();
    let mut found = BTreeMap::new();
    for range in ranges(engine)? {
        found.insert(range, load(engine, log, range, heads.get(&range))?);
    }
    // A log without entries and without state is of a replica that exists by name only.
    // One with a birth waits for the replay of its parent.
    let is_explained = |head: &LogHead| head.birth.is_some() || head.last == LogPos::default();
    let unexplained = |(range, head): &(&RangeId, &LogHead)| {
        !found.contains_key(range) && !is_explained(head) && !is_gone(engine, **range, head.replica)
    };
    if let Some((range, _)) = heads.iter().find(unexplained) {
        return Err(BootError::Contradiction {
            range: *range,
            what: "its log is here and its state is not: the engine has lost something flushed",
        });
    }
    let mut spans: Vec<_> = found.values().map(|found| &found.state.descriptor).collect();
    spans.sort_by(|a, b| a.span.start.cmp(&b.span.start));
    if let Some(pair) = spans.windows(2).find(|pair| pair[0].span.overlaps(&pair[1].span)) {
        return Err(BootError::Contradiction { range: pair[1].range, what: "its span overlaps another range's" });
    }
    Ok(found)
}

/// Whether a replica was destroyed here, and its log is merely left over.
pub(crate) fn is_gone(engine: &dyn Reader, range: RangeId, replica: ReplicaId) -> bool {
    let tombstone = engine.get(&keys::tombstone(range)).ok().flatten();
    tombstone.is_some_and(|next| decode_replica_id(&next).is_ok_and(|next| replica < next))
}

fn ranges(engine: &dyn Reader) -> Result<Vec<RangeId>, BootError> {
    let (start, end) = keys::all_range_records();
    let mut cursor = engine.cursor(&start, &end);
    let mut ranges = Vec::new();
    let mut there = cursor.seek(&start)?;
    while there {
        let Ok((range, _)) = keys::decode_range_record(cursor.key()) else {
            return Err(BootError::Contradiction { range: RangeId(0), what: "a record has a key of another version" });
        };
        ranges.push(range);
        there = cursor.seek(&keys::spans(range, &KeySpan::ALL)[0].1)?;
    }
    Ok(ranges)
}

fn load(engine: &dyn Reader, log: &dyn LogRead, range: RangeId, head: Option<&LogHead>) -> Result<Found, BootError> {
    let state = load_state(engine, range)?;
    let me = decode_replica_id(&record(engine, range, RangeRecord::ReplicaId)?);
    let me = me.map_err(|source| BootError::Record { range, source })?;
    if state.applied.pos == INITIAL && head.is_none_or(|head| head.replica == me && head.last == LogPos::default()) {
        let (head, create) = start_child(range, me, head);
        return Ok(Found { me, state, head: Ok(head), repair: Some(create) });
    }
    let unfinished = head.filter(|head| state.applied.via_snapshot && is_behind(log, range, head, state.applied.pos));
    if let Some(head) = unfinished.filter(|head| head.replica == me) {
        let (head, reset) = finish_snapshot(range, head, state.applied.pos);
        return Ok(Found { me, state, head: Ok(head), repair: Some(reset) });
    }
    let head = judge(head, me, state.applied.pos);
    Ok(Found { me, state, head, repair: None })
}

/// The engine was flushed with a split in it before the child's log was synced: it has promised nothing yet.
fn start_child(range: RangeId, me: ReplicaId, uninit: Option<&LogHead>) -> (LogHead, LogOp) {
    let voted = uninit.map(|head| head.hard).filter(|hard| hard.term >= INITIAL.term);
    let (term, vote) = voted.map_or((INITIAL.term, ReplicaId(0)), |hard| (hard.term, hard.vote));
    let hard = HardState { term, vote, commit: INITIAL.index };
    let (trunc, birth) = (INITIAL, None);
    let head = LogHead { replica: me, birth, hard, hard_last: trunc, promise: None, trunc, last: trunc };
    (head, LogOp::Create { range, replica: me, birth, trunc, hard })
}

/// Whether a log does not reach a snapshot's position, or holds something else there.
fn is_behind(log: &dyn LogRead, range: RangeId, head: &LogHead, at: LogPos) -> bool {
    if at == head.trunc || at == head.last {
        return false;
    }
    if at.index <= head.trunc.index || at.index >= head.last.index {
        return at.index >= head.last.index;
    }
    let found = log.entries(range, at.index, at.index.next(), 0);
    found.is_ok_and(|entries| entries.first().is_some_and(|entry| entry.pos != at))
}

/// A crash came between the ingest of a snapshot and the reset of the log (docs/durability.md, "Snapshots").
fn finish_snapshot(range: RangeId, head: &LogHead, at: LogPos) -> (LogHead, LogOp) {
    let vote = if head.hard.term >= at.term { head.hard.vote } else { ReplicaId(0) };
    let hard = HardState { term: head.hard.term.max(at.term), vote, commit: at.index };
    let head = LogHead { hard, hard_last: at, trunc: at, last: at, ..*head };
    (head, LogOp::Reset { range, at, hard })
}

/// The replicated state of a range that lives here.
pub(crate) fn load_state(engine: &dyn Reader, range: RangeId) -> Result<State, BootError> {
    let failed = |source| BootError::Record { range, source };
    let descriptor = RangeDescriptor::decode(&record(engine, range, RangeRecord::Descriptor)?).map_err(failed)?;
    let applied = Applied::decode(&record(engine, range, RangeRecord::Applied)?).map_err(failed)?;
    let lease = LeaseState::decode(&record(engine, range, RangeRecord::Lease)?).map_err(failed)?;
    let thresholds = engine.get(&keys::range_record(range, RangeRecord::Thresholds))?;
    let thresholds = thresholds.map(|bytes| Thresholds::decode(&bytes)).transpose().map_err(failed)?;
    Ok(State { descriptor, applied, lease, thresholds: thresholds.unwrap_or_default() })
}

fn record(engine: &dyn Reader, range: RangeId, record: RangeRecord) -> Result<Bytes, BootError> {
    let missing = BootError::Contradiction { range, what: "one of its records is missing" };
    engine.get(&keys::range_record(range, record))?.ok_or(missing)
}

/// The table of docs/durability.md for replicas that live in the engine.
fn judge(head: Option<&LogHead>, me: ReplicaId, applied: LogPos) -> Result<LogHead, &'static str> {
    let head = head.ok_or("its state is here and its log is not")?;
    if head.replica != me {
        return Err("its log belongs to another incarnation");
    }
    if head.trunc.index > applied.index {
        return Err("its log begins above what is applied: truncation ran ahead of a flush");
    }
    if applied.index > head.last.index || head.last.index < head.hard_last.index {
        return Err("its log has lost a synced part");
    }
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use flotilla_storage::engine::Engine;
    use flotilla_storage::log::{LogBatch, LogStore};
    use flotilla_storage::memory::MemoryEngine;
    use flotilla_storage::memory_log::MemoryLog;
    use flotilla_types::{LogIndex, Term};

    use super::*;

    /// Not asked for in these tests.
    struct NoLog;

    impl LogRead for NoLog {
        fn entries(
            &self,
            _: RangeId,
            from: LogIndex,
            _: LogIndex,
            _: usize,
        ) -> Result<Vec<flotilla_storage::log::LogEntry>, flotilla_storage::log::ReadLogError> {
            Err(flotilla_storage::log::ReadLogError::Gone(from))
        }
    }

    fn new_store() -> (MemoryEngine, MemoryLog) {
        let (engine, log) = (MemoryEngine::new(), MemoryLog::new());
        let (batch, ops) = bootstrap(&[StoreId(1)], StoreId(1));
        engine.write(&batch).unwrap();
        log.write(&LogBatch { ops }).unwrap();
        (engine, log)
    }

    #[test]
    fn a_new_store_holds_the_whole_keyspace_without_hole_or_overlap() {
        let (engine, log) = new_store();
        let found = find(&engine, &NoLog, &log.heads()).unwrap();
        let mut at = Key::MIN;
        for found in found.values() {
            assert_eq!(found.state.descriptor.span.start, at);
            at = found.state.descriptor.span.end.clone();
            assert!(found.head.is_ok());
        }
        assert_eq!((at, found.len()), (Key::MAX, 5));
    }

    #[test]
    fn what_the_log_and_the_state_say_is_held_against_each_other() {
        let at = |index| LogPos { index: LogIndex(index), term: Term(5) };
        let head = |trunc, last| LogHead {
            replica: ReplicaId(1),
            birth: None,
            hard: HardState::default(),
            hard_last: at(trunc),
            promise: None,
            trunc: at(trunc),
            last: at(last),
        };
        assert!(judge(Some(&head(10, 20)), ReplicaId(1), at(15)).is_ok());
        assert!(judge(Some(&head(10, 20)), ReplicaId(2), at(15)).is_err(), "another incarnation");
        assert!(judge(Some(&head(16, 20)), ReplicaId(1), at(15)).is_err(), "a gap");
        assert!(judge(Some(&head(10, 14)), ReplicaId(1), at(15)).is_err(), "a lost tail");
        assert!(judge(None, ReplicaId(1), at(15)).is_err(), "a lost log");
        assert!(
            judge(Some(&LogHead { hard_last: at(21), ..head(10, 20) }), ReplicaId(1), at(15)).is_err(),
            "a lost file"
        );
    }

    #[test]
    fn a_log_without_state_stops_the_store() {
        let (_, log) = new_store();
        assert!(matches!(find(&MemoryEngine::new(), &NoLog, &log.heads()), Err(BootError::Contradiction { .. })));
    }
}
