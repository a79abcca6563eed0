//! Old versions: what the leader knows of them, and when it raises the threshold (docs/durability.md, "Old versions").
//!
//! What a write hides the leader learns while it evaluates the write, at no cost. What was hidden before its term it looks
//! for, page by page, while the range is awake anyway. If enough of it is older than versions have to be kept, the leader
//! proposes a higher threshold. It never wakes a range for that.

use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::engine::{Cursor, EngineError, Reader};
use flotilla_storage::{keys, locks, mvcc};
use flotilla_types::{KeySpan, RangeError, RequestId, Timestamp, Write};

use super::Replica;
use crate::apply::Raised;
use crate::command::{Command, Versions};
use crate::edit::Edit;
use crate::evaluate::{BIRTH_SLACK, Failed};
use crate::event::Effect;
use crate::gc::{Ages, GcConfig, highest};
use crate::raft::Ctx;

/// Versions that one page takes in, pages of one pass, and the time between two of them. After a restart many ranges look
/// at the same time, in one thread: a page takes a tenth of a millisecond.
const PAGE: usize = 256;
const PAGES_PER_PASS: u32 = 32;
const PAGE_EVERY: Duration = Duration::from_secs(1);
/// Writes that are told apart between two looks; more of them count as one, of the age of the last.
const HIDDEN_MAX: usize = 64;
/// Locks that one look takes in.
const LOCKS_MAX: usize = 4096;
/// A version's record beyond its key and payload, about.
const OVERHEAD: u64 = 40;

/// What a leader knows of its range's garbage.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    ages: Ages,
    /// Delete markers that no walk went for.
    markers: Ages,
    /// Bytes hidden by this replica's writes, and markers that it wrote, that are not yet among the ages.
    hidden: Vec<(Timestamp, u64, u64)>,
    /// What was there before the term began, as far as nobody looked yet.
    look: Option<Look>,
    /// The term just began.
    fresh: bool,
    look_at: Duration,
    /// For how long versions are kept; zero until the first turn.
    ttl: Duration,
}

/// A walk over the range's versions, many pages long.
#[derive(Debug, Default)]
struct Look {
    /// Where it goes on; nothing: at the start.
    cursor: Option<Vec<u8>>,
    /// The key whose versions it stands in, and the one of them that it met last.
    above: Option<(Vec<u8>, Timestamp)>,
    pages: u32,
}

impl Garbage {
    /// A new term: what is there is not known.
    pub(super) fn starts(&mut self, mono: Duration) {
        *self = Self { fresh: true, look: Some(Look::default()), look_at: mono, ttl: self.ttl, ..Self::default() };
    }

    /// When to look next, if there is anything to look at.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        let any = self.look.is_some() || !self.hidden.is_empty() || !self.ages.is_empty();
        any.then_some(self.look_at)
    }

    /// A write of this leader hides so much.
    fn hides(&mut self, at: Timestamp, bytes: u64, markers: u64) {
        let full = self.hidden.len() >= HIDDEN_MAX;
        match self.hidden.last_mut() {
            Some(last) if full => *last = (at.max(last.0), last.1 + bytes, last.2 + markers),
            _ => self.hidden.push((at, bytes, markers)),
        }
    }

    /// The threshold is in force: what it lets go is no matter of this leader any more.
    pub(super) fn passed(&mut self, raised: Raised) {
        self.ages.forget(raised.threshold);
        if raised.sweep {
            self.markers.forget(raised.threshold);
        }
    }
}

impl Look {
    /// Counts what a page holds; says whether it was the last.
    fn page(
        &mut self,
        engine: &dyn Reader,
        span: &KeySpan,
        counts: &mut dyn FnMut(Timestamp, u64, bool),
    ) -> Result<bool, EngineError> {
        let (start, end) = keys::version_span(span);
        let mut cursor = engine.cursor(&start, &end);
        let mut there = cursor.seek(self.cursor.as_ref().unwrap_or(&start))?;
        for _ in 0..PAGE {
            if !there {
                return Ok(true);
            }
            let bytes = (cursor.key().len() + cursor.value().len()) as u64;
            if let Some((prefix, at)) = keys::split_version(cursor.key()) {
                // A delete marker hides itself.
                let deletes = mvcc::is_deletion(cursor.value())?;
                let hider = self.above.as_ref().filter(|(key, _)| key == prefix).map(|(_, at)| *at);
                if let Some(since) = if deletes { Some(at) } else { hider } {
                    counts(since, bytes, deletes);
                }
                self.above = Some((prefix.to_vec(), at));
            }
            there = cursor.next()?;
        }
        self.cursor = there.then(|| cursor.key().to_vec());
        Ok(!there)
    }
}

/// The engine as one write's evaluation sees it, which counts what it finds on its way.
pub(super) struct Hiding<'a> {
    engine: &'a dyn Reader,
    /// Of newest versions that are no delete markers.
    found: Cell<u64>,
    /// Of what a scan took in.
    walked: Cell<u64>,
}

impl<'a> Hiding<'a> {
    pub(super) const fn new(engine: &'a dyn Reader) -> Self {
        Self { engine, found: Cell::new(0), walked: Cell::new(0) }
    }

    /// About how many bytes these versions hide, their own delete markers included, and how many markers they are.
    fn sizes(&self, write: &Write, versions: &Versions) -> (u64, u64) {
        let hidden = if matches!(write, Write::DeleteRange { .. }) { &self.walked } else { &self.found };
        let markers = versions.changes.iter().filter(|(_, value)| value.is_none());
        let sizes = markers.map(|(key, _)| key.as_bytes().len() as u64 + OVERHEAD);
        sizes.fold((hidden.get(), 0), |(bytes, markers), size| (bytes + size, markers + 1))
    }
}

impl Reader for Hiding<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn cursor<'a>(&'a self, lower: &[u8], upper: &[u8]) -> Box<dyn Cursor + 'a> {
        Box::new(Walked { cursor: self.engine.cursor(lower, upper), bytes: &self.walked })
    }

    fn first_in_prefix(&self, seek: &[u8], upper: &[u8]) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let found = self.engine.first_in_prefix(seek, upper)?;
        if let Some((key, value)) = &found
            && !mvcc::is_deletion(value)?
        {
            self.found.set(self.found.get() + (key.len() + value.len()) as u64);
        }
        Ok(found)
    }
}

struct Walked<'a> {
    cursor: Box<dyn Cursor + 'a>,
    bytes: &'a Cell<u64>,
}

impl Cursor for Walked<'_> {
    fn seek(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.cursor.seek(key)
    }

    fn seek_before(&mut self, key: &[u8]) -> Result<bool, EngineError> {
        self.cursor.seek_before(key)
    }

    fn next(&mut self) -> Result<bool, EngineError> {
        self.cursor.next()
    }

    fn prev(&mut self) -> Result<bool, EngineError> {
        self.cursor.prev()
    }

    fn key(&self) -> &[u8] {
        self.cursor.key()
    }

    fn value(&self) -> &[u8] {
        let value = self.cursor.value();
        self.bytes.set(self.bytes.get() + (self.cursor.key().len() + value.len()) as u64);
        value
    }
}

impl Replica {
    /// Refuses what is asked of a time that was given up. A read exactly at the threshold is refused, too: of a key that
    /// was deleted at or below nothing may be left that says so.
    pub(super) fn check_threshold(&self, timestamp: Timestamp) -> Result<(), RangeError> {
        let threshold = self.state.thresholds.gc;
        if timestamp <= threshold && threshold > Timestamp::ZERO {
            return Err(RangeError::BelowGcThreshold { timestamp, threshold });
        }
        Ok(())
    }

    /// Refuses a write that might have been done by a version that is gone.
    pub(super) fn check_known(&self, id: RequestId) -> Result<(), RangeError> {
        let threshold = self.state.thresholds.gc;
        let floor = threshold.plus(BIRTH_SLACK);
        if threshold > Timestamp::ZERO && id.born_ms().saturating_mul(1_000_000) < floor.wall {
            return Err(RangeError::TooOld { range: self.state.descriptor.range, floor });
        }
        Ok(())
    }

    /// A write was evaluated, on this engine, and goes into the log.
    pub(super) fn note_hidden(&mut self, hiding: &Hiding<'_>, write: &Write, versions: &Versions) {
        let (bytes, markers) = hiding.sizes(write, versions);
        if bytes > 0 {
            self.garbage.hides(versions.timestamp, bytes, markers);
        }
    }

    /// The lowest timestamp of the range's locks: the threshold stays below. `Err` if there are too many to look at.
    fn oldest_lock(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader) -> Result<Option<Timestamp>, Failed> {
        if !self.may_be_locked(ctx, engine)? {
            return Ok(None);
        }
        let (mut oldest, mut looked) = (None::<Timestamp>, 0);
        locks::each(engine, &self.state.descriptor.span, |_, lock| {
            oldest = Some(oldest.map_or(lock.ts, |oldest| oldest.min(lock.ts)));
            looked += 1;
            looked < LOCKS_MAX
        })?;
        if looked == LOCKS_MAX { Err(Failed::Engine("too many locks to look at".to_owned())) } else { Ok(oldest) }
    }

    /// Locks are laid above: a threshold that is proposed before such a lock is applied does not see it, and lies so far in
    /// the past that it need not.
    pub(super) fn lock_floor(&self, ctx: &Ctx<'_>) -> Timestamp {
        ctx.now.minus(self.garbage.ttl / 2).max(self.state.thresholds.gc.next())
    }

    /// Locks were laid that hide so much once their transaction commits. Those of one that is aborted count, too: few are.
    pub(super) fn note_laid(&mut self, hiding: &Hiding<'_>, edits: &[Edit], at: Timestamp) {
        if hiding.found.get() > 0 && edits.iter().any(|edit| matches!(edit, Edit::Lay { .. })) {
            self.garbage.hides(at, hiding.found.get(), 0);
        }
    }

    /// The least timestamp that is protected in the range. Nobody protects any yet.
    #[allow(clippy::unused_self, reason = "protected timestamps come with backups")]
    const fn least_protected(&self) -> Option<Timestamp> {
        None
    }

    /// Looked at once a turn of an awake leader.
    pub(crate) fn collect_garbage(
        &mut self,
        ctx: &Ctx<'_>,
        config: &GcConfig,
        engine: &dyn Reader,
        effects: &mut Vec<Effect>,
    ) {
        self.garbage.ttl = config.ttl;
        let due = self.garbage.next_wake().is_some_and(|at| at <= ctx.mono);
        if !due || self.slumber.asleep || !self.group.usable() {
            return;
        }
        let range = self.state.descriptor.range;
        if std::mem::take(&mut self.garbage.fresh) {
            // Not all ranges of a store at the same time.
            let spread = config.every.mul_f64((range.0 % 16) as f64 / 16.0);
            self.garbage.look_at = ctx.mono + config.every + spread;
            return;
        }
        for (at, bytes, markers) in std::mem::take(&mut self.garbage.hidden) {
            self.garbage.ages.add(config.ttl, at, bytes);
            self.garbage.markers.add(config.ttl, at, markers);
        }
        if self.look_back(ctx, config, engine) {
            return;
        }
        self.garbage.look_at = ctx.mono + config.every;
        let oldest = match self.oldest_lock(ctx, engine) {
            Ok(oldest) => oldest,
            Err(failed) => {
                tracing::debug!(%range, ?failed, "the GC threshold stays");
                return;
            }
        };
        let threshold = highest(ctx.now, config.ttl, self.least_protected(), oldest);
        let garbage = self.garbage.ages.up_to(threshold);
        let sweep = self.garbage.markers.up_to(threshold) >= config.worth_markers.max(1);
        let worth = sweep || garbage >= config.worth_bytes.max(1);
        if !worth || threshold <= self.state.thresholds.gc {
            return;
        }
        // If it is lost, the next look proposes it again.
        match self.group.propose(ctx, self.alone(&Command::Gc { threshold, garbage, sweep })) {
            Ok(_) => effects.push(Effect::Count("flotilla_gc_thresholds_raised_total", 1)),
            Err(refused) => tracing::debug!(%range, %refused, "the GC threshold was not raised"),
        }
    }

    /// One page of what the terms before left. Says whether the pass is to go on.
    fn look_back(&mut self, ctx: &Ctx<'_>, config: &GcConfig, engine: &dyn Reader) -> bool {
        let Some(mut look) = self.garbage.look.take() else { return false };
        // What was hidden in this term was counted then, and what was given up before is going.
        let (from, until) = (self.state.thresholds.gc, self.state.lease.start);
        let Garbage { ages, markers, .. } = &mut self.garbage;
        let mut count = |since, bytes, is_marker| {
            if from < since && since < until {
                ages.add(config.ttl, since, bytes);
            }
            // A marker that is still there waits for a walk.
            if is_marker && since < until {
                markers.add(config.ttl, since, 1);
            }
        };
        match look.page(engine, &self.state.descriptor.span, &mut count) {
            Ok(true) => return false,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(range = %self.state.descriptor.range, %error, "old versions could not be read");
                return false;
            }
        }
        look.pages += 1;
        let goes_on = look.pages % PAGES_PER_PASS != 0;
        self.garbage.look = Some(look);
        if goes_on {
            self.garbage.look_at = ctx.mono + PAGE_EVERY;
        }
        goes_on
    }
}
