//! The store's log writer: what it tells when it synced, and when it cannot any more.

use std::sync::Arc;
use std::time::Instant;

use flotilla_range::raft::LogRead;
use flotilla_storage::log::{LogEntry, LogFatal, LogStore, ReadLogError};
use flotilla_storage::writer::LogObserver;
use flotilla_types::{LogIndex, RangeId};

use super::fatal::OnFailure;
use super::meters::LogMeters;

/// Hears of every batch.
pub(super) struct Observer {
    pub(super) meters: LogMeters,
    pub(super) on_failure: OnFailure,
}

impl LogObserver for Observer {
    fn synced(&mut self, submissions: usize, started: Instant) {
        self.meters.syncs.increment(1);
        self.meters.sync.record(started.elapsed());
        self.meters.submissions.record(submissions as f64);
    }

    fn failed(&mut self, error: LogFatal) {
        self.on_failure.meet(error);
    }
}

/// The log as groups read it: old entries for a follower that lags.
pub(super) struct LogReads(pub(super) Arc<dyn LogStore>);

impl LogRead for LogReads {
    fn entries(
        &self,
        range: RangeId,
        from: LogIndex,
        to: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<LogEntry>, ReadLogError> {
        self.0.entries(range, from, to, bytes_max)
    }
}
