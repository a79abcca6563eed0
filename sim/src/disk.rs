//! A store's disk: the engine and the log that survive a crash, and the log writer, which takes time and can be lost.
//!
//! ```text
//!  submit ──► waiting ──(the disk is free)──► writing ──(the sync took its time)──► log, submitters are told
//!                │ crash: lost                    │ crash: whole or lost, nobody was told
//! ```

use std::sync::Arc;
use std::time::Duration;

use flotilla_range::event::Ticket;
use flotilla_range::liveness::LogTicket;
use flotilla_storage::log::{LogBatch, LogFatal, LogOp, LogSeq, LogStore};
use flotilla_storage::memory::MemoryEngine;
use flotilla_storage::memory_log::MemoryLog;
use flotilla_types::RangeId;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Who is told that a submission is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Submitter {
    Fleet(Ticket),
    Liveness(LogTicket),
}

#[derive(Debug, Default)]
struct Batch {
    ops: Vec<LogOp>,
    submitters: Vec<Submitter>,
}

/// See the module's page.
pub(crate) struct Disk {
    pub(crate) engine: MemoryEngine,
    pub(crate) log: Arc<MemoryLog>,
    waiting: Batch,
    writing: Option<Batch>,
    /// No sync ends before.
    pub(crate) stalled_until: Duration,
    /// A sync takes up to this long.
    pub(crate) sync_max: Duration,
    /// The newest batch that was synced: what `log.mark` remembers (durability, "Log").
    pub(crate) mark: LogSeq,
    /// The log as it was at some time: what is left of it when its tail rots.
    saved: Option<MemoryLog>,
    /// Starts so far.
    pub(crate) boot: u32,
}

impl Disk {
    /// The shortest sync. With this as `sync_max` all take just as long.
    pub(crate) const SYNC_MIN: Duration = Duration::from_micros(100);

    pub(crate) fn new() -> Self {
        Self {
            engine: MemoryEngine::new(),
            log: Arc::new(MemoryLog::new()),
            waiting: Batch::default(),
            writing: None,
            stalled_until: Duration::ZERO,
            sync_max: Duration::from_millis(2),
            mark: LogSeq(0),
            saved: None,
            boot: 0,
        }
    }

    /// Queues a submission. If the writer was idle it begins at once and the end of its sync is the answer.
    pub(crate) fn submit(
        &mut self,
        ops: Vec<LogOp>,
        submitter: Submitter,
        time: Duration,
        random: &mut ChaCha8Rng,
    ) -> Option<Duration> {
        self.waiting.ops.extend(ops);
        self.waiting.submitters.push(submitter);
        if self.writing.is_some() { None } else { self.begin(time, random) }
    }

    fn begin(&mut self, time: Duration, random: &mut ChaCha8Rng) -> Option<Duration> {
        if self.waiting.submitters.is_empty() {
            return None;
        }
        self.writing = Some(std::mem::take(&mut self.waiting));
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (shortest, longest) = (micros(Self::SYNC_MIN), micros(self.sync_max));
        let took = random.random_range(shortest..longest.max(shortest + 1));
        Some((time + Duration::from_micros(took)).max(self.stalled_until))
    }

    /// The sync ended: who is told, and when the next one ends.
    pub(crate) fn synced(
        &mut self,
        time: Duration,
        random: &mut ChaCha8Rng,
    ) -> Result<(Vec<Submitter>, Option<Duration>), LogFatal> {
        let Some(batch) = self.writing.take() else { return Ok((Vec::new(), None)) };
        self.mark = self.log.write(&LogBatch { ops: batch.ops })?;
        Ok((batch.submitters, self.begin(time, random)))
    }

    /// Remembers the log as it is.
    pub(crate) fn save(&mut self) {
        self.saved = Some(self.log.image());
    }

    /// All that was synced since `save` is gone. Only while the process is down.
    pub(crate) fn lose_tail(&mut self) {
        if let Some(saved) = self.saved.take() {
            self.log = Arc::new(saved);
        }
    }

    /// A bit flips in an entry that a start will read, if there is one. Says of which range.
    pub(crate) fn damage_an_entry(&self) -> Option<RangeId> {
        let heads = self.log.heads();
        let unapplied = heads.iter().rev().find(|(range, head)| self.log.damage(*range, head.last.index));
        unapplied.map(|(range, _)| *range)
    }

    /// The machine stops: a batch whose sync was under way is there whole or not at all, everything behind it is gone,
    /// and of the engine remains what was flushed. Says whether a batch was lost.
    pub(crate) fn crash(&mut self, random: &mut ChaCha8Rng) -> bool {
        let lost = !self.waiting.submitters.is_empty();
        self.waiting = Batch::default();
        self.engine.crash();
        let Some(batch) = self.writing.take() else { return lost };
        if random.random_bool(0.5) {
            return true;
        }
        // Written in time, and nobody was told.
        if let Ok(seq) = self.log.write(&LogBatch { ops: batch.ops }) {
            self.mark = seq;
        }
        lost
    }
}
