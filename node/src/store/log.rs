//! The store's log writer: what it tells when it synced, and when it cannot any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
    pub(super) log: Arc<dyn LogStore>,
    /// The newest synced batch, for peers to remember (`peer::directory`).
    pub(super) synced: Arc<AtomicU64>,
}

impl LogObserver for Observer {
    fn synced(&mut self, submissions: usize, started: Instant) {
        self.synced.store(self.log.seq().0, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use flotilla_storage::log::{LogBatch, LogHead, LogSeq, MetaKey};
    use flotilla_storage::writer::{LogPriority, LogWriter, Submission};

    use super::*;
    use crate::store::Failure;

    /// A log whose disk reports an error at every sync.
    struct Broken(LogFatal);

    impl LogStore for Broken {
        fn write(&self, _: &LogBatch) -> Result<LogSeq, LogFatal> {
            Err(self.0.clone())
        }
        fn entries(&self, _: RangeId, from: LogIndex, _: LogIndex, _: usize) -> Result<Vec<LogEntry>, ReadLogError> {
            Err(ReadLogError::Gone(from))
        }
        fn heads(&self) -> Vec<(RangeId, LogHead)> {
            Vec::new()
        }
        fn meta(&self, _: MetaKey) -> Option<bytes::Bytes> {
            None
        }
        fn metas(&self) -> Vec<(MetaKey, bytes::Bytes)> {
            Vec::new()
        }
        fn seq(&self) -> LogSeq {
            LogSeq(0)
        }
        fn purge(&self) -> Result<Vec<RangeId>, LogFatal> {
            Ok(Vec::new())
        }
        fn used_bytes(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_failed_sync_acknowledges_nothing_and_ends_the_process_with_its_own_code() {
        for (error, code) in [(LogFatal::Io("fdatasync: EIO".to_owned()), 4), (LogFatal::DiskFull, 5)] {
            let (met, meets) = crossbeam::channel::bounded(1);
            let met = Mutex::new(met);
            let on_failure = OnFailure::new(move |failure: Failure| drop(met.lock().unwrap().send(failure)));
            let log: Arc<dyn LogStore> = Arc::new(Broken(error));
            let (meters, synced) = (LogMeters::new(), Arc::default());
            let observer = Observer { meters, on_failure, log: Arc::clone(&log), synced };
            let writer = LogWriter::spawn(log, LogPriority::Normal, observer).unwrap();
            let acknowledged = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let told = Arc::clone(&acknowledged);
            let done = Box::new(move |_| told.store(true, Ordering::SeqCst));
            writer.submit(Submission { ops: Vec::new(), done }).unwrap();
            let failure = meets.recv_timeout(Duration::from_secs(10)).unwrap();
            assert_eq!(failure.exit_code(), code, "{failure}");
            drop(writer);
            assert!(!acknowledged.load(Ordering::SeqCst));
        }
    }
}
