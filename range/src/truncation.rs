//! How much of its log a replica gives up (docs/durability.md, "Log truncation").
//!
//! Never above what is applied and flushed. Below that the entries serve others only: a leader keeps what a replica still
//! lacks, as long as the log is small; then what a live replica lacks; then nothing, and who is behind gets a snapshot.
//! A follower does what its leader says in the beats.

use std::collections::VecDeque;

use flotilla_storage::log::LogEntry;
use flotilla_types::LogIndex;

use crate::event::FlushMark;

/// Bytes of log that are kept for a replica that is away.
const KEEP_BYTES: u64 = 16 << 20;
/// Bytes of log that are kept for a replica that is here and slow.
const KEEP_BYTES_MAX: u64 = 64 << 20;
/// Fewer entries are not worth a log operation.
const STEP: u64 = 64;
/// What an entry weighs beyond its content.
const ENTRY_OVERHEAD: u64 = 48;

/// Marks that are remembered between two flushes: more would only say more exactly what one of them covers.
const MARKS: usize = 16;

/// What one replica knows for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogKeeping {
    /// Applied and flushed.
    pub(crate) flushed: LogIndex,
    /// What was applied by which mark, not known to be flushed yet. Ascends.
    marks: VecDeque<(FlushMark, LogIndex)>,
    /// The log keeps old files from being deleted: give up what can be given up.
    pub(crate) urgent: bool,
    /// What the leader said is needed, and above.
    pub(crate) keep_from: LogIndex,
    /// Bytes appended since the last truncation, and what it left: an estimate, and low after a restart.
    bytes: u64,
}

/// What a leader knows of another replica.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder {
    pub(crate) matched: LogIndex,
    pub(crate) live: bool,
    /// It gets a snapshot, which has a hold of its own.
    pub(crate) in_snapshot: bool,
}

impl LogKeeping {
    /// Up to here everything was applied by this mark. Says whether nothing waited for a flush before.
    pub(crate) fn applied(&mut self, mark: FlushMark, applied: LogIndex) -> bool {
        let first = self.marks.is_empty();
        if self.marks.len() == MARKS {
            let mut even = false;
            self.marks.retain(|_| {
                even = !even;
                even
            });
        }
        self.marks.push_back((mark, applied));
        first
    }

    /// The engine is flushed through this mark. Says which mark to wait for next.
    pub(crate) fn flushed_through(&mut self, through: FlushMark) -> Option<FlushMark> {
        while let Some((_, applied)) = self.marks.front().copied().filter(|(mark, _)| *mark <= through) {
            self.flushed = self.flushed.max(applied);
            self.marks.pop_front();
        }
        self.marks.front().map(|(mark, _)| *mark)
    }

    /// Entries were appended.
    pub(crate) fn appended(&mut self, entries: &[LogEntry]) {
        let weight = |entry: &LogEntry| (entry.data.len() + entry.context.len()) as u64 + ENTRY_OVERHEAD;
        self.bytes += entries.iter().map(weight).sum::<u64>();
    }

    /// Up to here nobody needs the entries of this leader's log any more. Not yet held against what is flushed.
    pub(crate) fn needless(&self, holders: &[Holder], held: Option<LogIndex>, last: LogIndex) -> LogIndex {
        let small = self.bytes <= KEEP_BYTES && !self.urgent;
        let counts = |holder: &&Holder| {
            let wanted = small || (holder.live && self.bytes <= KEEP_BYTES_MAX);
            wanted && !holder.in_snapshot
        };
        let matched = holders.iter().filter(counts).map(|holder| holder.matched).min().unwrap_or(last);
        // The replica that gets a snapshot of `held` goes on with the entry after it.
        matched.min(held.map_or(last, |at| LogIndex(at.0.saturating_sub(1))))
    }

    /// What a follower may give up; without news of its leader it keeps the log while it is small.
    pub(crate) fn needless_here(&self) -> LogIndex {
        if self.urgent || self.bytes > KEEP_BYTES {
            return LogIndex(u64::MAX);
        }
        LogIndex(self.keep_from.0.saturating_sub(1))
    }

    /// Up to where to truncate now, if it is worth it.
    pub(crate) fn through(&self, needless: LogIndex, truncated: LogIndex) -> Option<LogIndex> {
        let through = needless.min(self.flushed);
        let step = if self.urgent { 1 } else { STEP };
        (through.0 >= truncated.0.saturating_add(step)).then_some(through)
    }

    /// The log went from one beginning to another.
    pub(crate) fn truncated(&mut self, from: LogIndex, through: LogIndex, last: LogIndex) {
        let (before, gone) = (last.0.saturating_sub(from.0).max(1), through.0.saturating_sub(from.0));
        self.bytes -= (u128::from(self.bytes) * u128::from(gone.min(before)) / u128::from(before)) as u64;
        self.urgent = false;
    }

    /// A snapshot took the place of log and state.
    pub(crate) fn restart(&mut self, at: LogIndex) {
        // The ingest made it durable.
        let marks = std::mem::take(&mut self.marks);
        *self = Self { flushed: at, marks, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flotilla_storage::log::LogPos;

    use super::*;

    fn grown(bytes: usize) -> LogKeeping {
        let entry = LogEntry { pos: LogPos::default(), kind: 0, data: vec![0; bytes].into(), context: Bytes::new() };
        let mut keeping = LogKeeping { flushed: LogIndex(900), ..LogKeeping::default() };
        keeping.appended(&[entry]);
        keeping
    }

    fn holder(matched: u64, live: bool) -> Holder {
        Holder { matched: LogIndex(matched), live, in_snapshot: false }
    }

    #[test]
    fn a_leader_keeps_for_the_absent_while_the_log_is_small_then_for_the_slow_then_for_nobody() {
        let holders = [holder(100, false), holder(500, true)];
        let needless = |keeping: LogKeeping| keeping.needless(&holders, None, LogIndex(1000)).0;
        assert_eq!(needless(grown(1 << 20)), 100);
        assert_eq!(needless(grown(20 << 20)), 500);
        assert_eq!(needless(grown(70 << 20)), 1000);
        assert_eq!(needless(LogKeeping { urgent: true, ..grown(1 << 20) }), 500);
    }

    #[test]
    fn an_open_snapshot_holds_the_log_and_its_receiver_does_not_hold_it_twice() {
        let receiver = Holder { in_snapshot: true, ..holder(0, true) };
        let keeping = grown(1 << 20);
        assert_eq!(keeping.needless(&[receiver, holder(990, true)], Some(LogIndex(700)), LogIndex(1000)).0, 699);
        assert_eq!(keeping.needless(&[receiver, holder(990, true)], None, LogIndex(1000)).0, 990);
    }

    #[test]
    fn nothing_unflushed_goes_and_nothing_small() {
        let keeping = grown(1 << 20);
        assert_eq!(keeping.through(LogIndex(2000), LogIndex(100)), Some(LogIndex(900)));
        assert_eq!(keeping.through(LogIndex(150), LogIndex(100)), None);
        assert_eq!(
            LogKeeping { urgent: true, ..keeping.clone() }.through(LogIndex(101), LogIndex(100)),
            Some(LogIndex(101))
        );
        assert_eq!(keeping.through(LogIndex(50), LogIndex(100)), None);
    }

    #[test]
    fn a_flush_covers_the_newest_state_before_its_mark() {
        let mut keeping = LogKeeping::default();
        assert!(keeping.applied(FlushMark(1), LogIndex(11)));
        for n in 2..=100 {
            assert!(!keeping.applied(FlushMark(n), LogIndex(10 + n)));
        }
        let next = keeping.flushed_through(FlushMark(99)).unwrap();
        assert!(keeping.flushed > LogIndex(90) && keeping.flushed <= LogIndex(109), "{}", keeping.flushed);
        assert!(next > FlushMark(99));
        assert_eq!((keeping.flushed_through(FlushMark(100)), keeping.flushed), (None, LogIndex(110)));
    }

    #[test]
    fn a_follower_listens_to_its_leader_until_its_log_is_large() {
        let told = LogKeeping { keep_from: LogIndex(301), ..grown(1 << 20) };
        assert_eq!(told.through(told.needless_here(), LogIndex(10)), Some(LogIndex(300)));
        let large = grown(17 << 20);
        assert_eq!(large.through(large.needless_here(), LogIndex(10)), Some(LogIndex(900)));
        let mut cut = large.clone();
        cut.truncated(LogIndex(0), LogIndex(900), LogIndex(1000));
        assert!(cut.bytes < 2 << 20);
    }
}
