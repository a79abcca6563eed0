//! Application: committed entries become engine changes, the same on every replica.

use bytes::Bytes;
use flotilla_storage::engine::WriteBatch;
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::log::LogEntry;
use flotilla_storage::mvcc;
use flotilla_storage::state::{Applied, LeaseState, Thresholds};
use flotilla_types::{CheckId, Key, LogIndex, RangeDescriptor, RequestId, Term, Timestamp, TxnId};
use protobuf::Message as _;
use raft::eraftpb::ConfChangeV2;

use crate::boot::INITIAL;
use crate::command::Command;
use crate::edit::Edit;
use crate::entry::Payload;

/// The replicated state of a range that application reads and moves.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) applied: Applied,
    pub(crate) lease: LeaseState,
    pub(crate) thresholds: Thresholds,
}

/// The right half of a split that was just applied.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Born {
    /// The entry that made it.
    pub(crate) at: LogIndex,
    pub(crate) state: State,
}

/// A threshold that was raised, and what the leader said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raised {
    pub(crate) threshold: Timestamp,
    pub(crate) garbage: u64,
    pub(crate) sweep: bool,
}

/// What an entry did, beside its changes.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Effects {
    /// Its commands took effect; else the entry was a no-op.
    pub(crate) accepted: bool,
    /// The lease changed.
    pub(crate) lease: bool,
    /// The library's side of a membership change: to be applied to the group.
    pub(crate) conf: Option<ConfChangeV2>,
    /// The range was cut.
    pub(crate) split: Option<Box<Born>>,
    /// The state as of this entry is to be hashed.
    pub(crate) check: Option<CheckId>,
    /// What happened to transactions.
    pub(crate) txns: TxnEffects,
    /// The threshold of old versions was raised.
    pub(crate) gc: Option<Raised>,
}

/// What an entry did to transactions.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct TxnEffects {
    /// Locks were laid.
    pub(crate) laid: bool,
    /// A record was written.
    pub(crate) recorded: bool,
    /// Locks were removed.
    pub(crate) released: Vec<(Key, TxnId)>,
    /// Transactions that ended, under their ids or those of their intentions.
    pub(crate) finished: Vec<TxnId>,
}

impl TxnEffects {
    fn note(&mut self, edit: &Edit) {
        match edit {
            Edit::Lay { .. } => self.laid = true,
            Edit::Release { key, txn, .. } => self.released.push((key.clone(), *txn)),
            Edit::Finish { id, .. } => self.finished.push((*id).into()),
            Edit::Record { .. } => self.recorded = true,
            Edit::DropRecord { txn, .. } => self.finished.push(*txn),
            Edit::Version { .. } => {}
        }
    }
}

impl State {
    /// Applies one entry to the state and adds its changes to the batch; the caller ends the range's part of the batch
    /// with `write_applied`.
    ///
    /// # Errors
    /// The entry cannot be read: the replica is lost.
    pub(crate) fn apply(&mut self, entry: &LogEntry, batch: &mut WriteBatch) -> Result<Effects, String> {
        let before = self.lease;
        let mut effects = Effects::default();
        // A new leader's empty entry carries nothing.
        if entry.kind != 0 {
            self.apply_conf(entry, batch, &mut effects)?;
        } else if !entry.data.is_empty() {
            self.apply_payload(entry.pos.term, entry.data.clone(), batch, &mut effects)?;
        }
        self.applied.pos = entry.pos;
        if let Some(born) = &mut effects.split {
            born.at = entry.pos.index;
        }
        if self.lease != before {
            effects.lease = true;
            batch.put(keys::range_record(self.descriptor.range, RangeRecord::Lease), self.lease.encode());
        }
        Ok(effects)
    }

    /// Ends the range's part of a batch. Whoever applies has a durable log behind a snapshot.
    pub(crate) fn write_applied(&mut self, batch: &mut WriteBatch) {
        self.applied.via_snapshot = false;
        batch.put(keys::range_record(self.descriptor.range, RangeRecord::Applied), self.applied.encode());
    }

    fn apply_payload(
        &mut self,
        term: Term,
        data: Bytes,
        batch: &mut WriteBatch,
        effects: &mut Effects,
    ) -> Result<(), String> {
        let sum = crc32c::crc32c(&data);
        let payload = Payload::decode(self.descriptor.range, data).map_err(|error| error.to_string())?;
        for command in payload.commands {
            let decoded = Command::decode(&command.body).map_err(|error| error.to_string())?;
            let valid = term == payload.term && self.admits(&decoded, term);
            if valid {
                effects.accepted = true;
                self.apply_command(command.request, decoded, term, batch, effects);
            }
        }
        if effects.accepted {
            self.add_to_sum(sum);
        }
        Ok(())
    }

    /// A membership change: the library's entry carries ours in its context. Both take effect, or neither.
    fn apply_conf(&mut self, entry: &LogEntry, batch: &mut WriteBatch, effects: &mut Effects) -> Result<(), String> {
        let mut change = ConfChangeV2::default();
        change.merge_from_bytes(&entry.data).map_err(|error| error.to_string())?;
        let payload = Payload::decode(self.descriptor.range, entry.context.clone());
        let payload = payload.map_err(|error| error.to_string())?;
        let [command] = &payload.commands[..] else { return Err("a membership change is not alone".to_owned()) };
        let Command::ChangeReplicas { descriptor } = Command::decode(&command.body).map_err(|e| e.to_string())? else {
            return Err("a membership change says nothing of the descriptor".to_owned());
        };
        let term = entry.pos.term;
        let current = term == payload.term && term == self.lease.term && !self.lease.ended;
        if !current || descriptor.generation != self.descriptor.generation.next() {
            return Ok(());
        }
        batch.put(keys::range_record(self.descriptor.range, RangeRecord::Descriptor), descriptor.encode());
        self.descriptor = descriptor;
        self.add_to_sum(crc32c::crc32c(&entry.context));
        (effects.accepted, effects.conf) = (true, Some(change));
        Ok(())
    }

    fn add_to_sum(&mut self, sum: u32) {
        self.applied.sum = self.applied.sum.rotate_left(7) ^ u64::from(sum);
    }

    /// Leases 3.5: a command of another term than the lease's is a no-op, and so is one outside the bounds.
    fn admits(&self, command: &Command, term: Term) -> bool {
        match command {
            Command::LeaseStart { .. } => term > self.lease.term,
            Command::Write(versions) => {
                let inside = versions.changes.iter().all(|(key, _)| self.descriptor.span.contains(key));
                term == self.lease.term && !self.lease.ended && inside
            }
            Command::Edit(edits) => {
                let inside = edits.iter().all(|edit| self.descriptor.span.contains(edit.key()));
                term == self.lease.term && !self.lease.ended && inside
            }
            Command::Split { left, right, .. } => {
                let fits = left.generation == self.descriptor.generation.next()
                    && self.descriptor.split(&right.span.start, right.range) == Some((left.clone(), right.clone()));
                term == self.lease.term && !self.lease.ended && fits
            }
            Command::Check { .. } | Command::EndLease { .. } | Command::Forget { .. } | Command::Gc { .. } => {
                term == self.lease.term && !self.lease.ended
            }
            // Only beside the library's own.
            Command::ChangeReplicas { .. } => false,
        }
    }

    fn apply_command(
        &mut self,
        request: RequestId,
        command: Command,
        term: Term,
        batch: &mut WriteBatch,
        effects: &mut Effects,
    ) {
        match command {
            Command::LeaseStart { replica, store, start } => {
                let LeaseState { read_floor, seq, .. } = self.lease;
                let start = start.max(read_floor.next()).max(self.applied.closed.next());
                // What is read and written in the present lies above what is refused, whatever this leader's clock says.
                let start = start.max(self.thresholds.gc.next());
                self.lease = LeaseState { term, replica, store, start, ended: false, read_floor, seq: seq + 1 };
            }
            Command::Write(versions) => {
                for (key, value) in &versions.changes {
                    mvcc::write(batch, key, versions.timestamp, value.as_deref(), Some(request));
                }
                if let Some((anchor, answer)) = versions.finished {
                    batch.put(keys::finished(&anchor, request), answer);
                }
            }
            Command::Edit(edits) => {
                for edit in edits {
                    effects.txns.note(&edit);
                    edit.apply(batch);
                }
            }
            Command::Split { left, right, floor } => {
                batch.put(keys::range_record(left.range, RangeRecord::Descriptor), left.encode());
                self.descriptor = left;
                let applied = Applied { pos: INITIAL, closed: self.applied.closed, ..Applied::default() };
                let lease = LeaseState { read_floor: floor, ..LeaseState::default() };
                // Finished records lie by key: what may be gone on the left may be gone on the right.
                let state = Self { descriptor: right, applied, lease, thresholds: self.thresholds };
                effects.split = Some(Box::new(Born { at: self.applied.pos.index, state }));
            }
            Command::Check { check } => effects.check = Some(check),
            Command::EndLease { floor } => {
                self.lease.ended = true;
                self.lease.read_floor = self.lease.read_floor.max(floor);
            }
            Command::Forget { floor_ms, finished } => {
                for (anchor, id) in finished {
                    batch.delete(keys::finished(&anchor, id));
                }
                self.thresholds.dedup_floor_ms = self.thresholds.dedup_floor_ms.max(floor_ms);
                let record = keys::range_record(self.descriptor.range, RangeRecord::Thresholds);
                batch.put(record, self.thresholds.encode());
            }
            Command::Gc { threshold, garbage, sweep } if threshold > self.thresholds.gc => {
                self.thresholds.gc = threshold;
                let record = keys::range_record(self.descriptor.range, RangeRecord::Thresholds);
                batch.put(record, self.thresholds.encode());
                effects.gc = Some(Raised { threshold, garbage, sweep });
            }
            Command::Gc { .. } | Command::ChangeReplicas { .. } => {}
        }
    }
}
