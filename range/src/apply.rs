//! Application: committed entries become engine changes, the same on every replica.

use bytes::Bytes;
use flotilla_storage::engine::WriteBatch;
use flotilla_storage::keys::{self, RangeRecord};
use flotilla_storage::log::LogEntry;
use flotilla_storage::mvcc;
use flotilla_storage::state::{Applied, LeaseState};
use flotilla_types::{RangeDescriptor, RequestId, Term};

use crate::command::Command;
use crate::entry::Payload;

/// The replicated state of a range that application reads and moves.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) descriptor: RangeDescriptor,
    pub(crate) applied: Applied,
    pub(crate) lease: LeaseState,
}

/// What an entry did, beside its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effects {
    /// Its commands took effect; else the entry was a no-op.
    pub(crate) accepted: bool,
    /// The lease changed.
    pub(crate) lease: bool,
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
        if !entry.data.is_empty() {
            effects.accepted = self.apply_payload(entry.pos.term, entry.data.clone(), batch)?;
        }
        self.applied.pos = entry.pos;
        if self.lease != before {
            effects.lease = true;
            batch.put(keys::range_record(self.descriptor.range, RangeRecord::Lease), self.lease.encode());
        }
        Ok(effects)
    }

    /// Ends the range's part of a batch.
    pub(crate) fn write_applied(&self, batch: &mut WriteBatch) {
        batch.put(keys::range_record(self.descriptor.range, RangeRecord::Applied), self.applied.encode());
    }

    fn apply_payload(&mut self, term: Term, data: Bytes, batch: &mut WriteBatch) -> Result<bool, String> {
        let sum = crc32c::crc32c(&data);
        let payload = Payload::decode(self.descriptor.range, data).map_err(|error| error.to_string())?;
        let mut accepted = false;
        for command in payload.commands {
            let decoded = Command::decode(&command.body).map_err(|error| error.to_string())?;
            let valid = term == payload.term && self.admits(&decoded, term);
            if valid {
                accepted = true;
                self.apply_command(command.request, decoded, term, batch);
            }
        }
        if accepted {
            self.applied.sum = self.applied.sum.rotate_left(7) ^ u64::from(sum);
        }
        Ok(accepted)
    }

    /// Leases 3.5: a command of another term than the lease's is a no-op, and so is one outside the bounds.
    fn admits(&self, command: &Command, term: Term) -> bool {
        match command {
            Command::LeaseStart { .. } => term > self.lease.term,
            Command::Write(versions) => {
                let inside = versions.changes.iter().all(|(key, _)| self.descriptor.span.contains(key));
                term == self.lease.term && !self.lease.ended && inside
            }
        }
    }

    fn apply_command(&mut self, request: RequestId, command: Command, term: Term, batch: &mut WriteBatch) {
        match command {
            Command::LeaseStart { replica, store, start } => {
                let LeaseState { read_floor, seq, .. } = self.lease;
                let start = start.max(read_floor.next()).max(self.applied.closed.next());
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
        }
    }
}
