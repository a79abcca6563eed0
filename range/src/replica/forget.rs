//! Finished requests and how they are forgotten (docs/durability.md, "Requests take effect once").
//!
//! Most writes need no memory of their own: their versions carry the request's id. A piece of a range deletion leaves a
//! record, which is of use as long as its client may send it again. The leader looks for old records page by page, while
//! the range is awake anyway, and names them in a command: so no replica searches, and all do the same. If records come
//! faster than they grow old, younger ones go too; a repetition of those is answered as in doubt, never done twice. If
//! even that is not enough, range deletions wait.

use std::time::Duration;

use bytes::Bytes;
use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::keys;
use flotilla_types::{FinishedTxn, Key, KeySpan, RangeError, RequestId, Timestamp, TxnMeta, TxnRecord};

use super::leftovers::ABANDONED;
use super::{RETRY_AFTER, Replica};
use crate::command::Command;
use crate::event::Effect;
use crate::raft::Ctx;

/// How long a client may send a request again.
const RETRY_WINDOW: Duration = Duration::from_secs(60);
/// Younger records are never forgotten.
const YOUNGEST: Duration = Duration::from_secs(5);
/// What a range may keep.
const RECORDS_MAX: u64 = 64 << 10;
const BYTES_MAX: u64 = 8 << 20;
/// Records that one look takes in.
const PAGE: usize = 512;
/// Between two passes over all records, and between two pages of one.
const PASS_EVERY: Duration = Duration::from_secs(10);
const PAGE_EVERY: Duration = Duration::from_millis(20);

/// What a leader knows of its range's finished requests.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    /// The last pass found some, or some came since, or nobody looked yet in this term.
    any: bool,
    /// Where the pass goes on; `None` between passes.
    cursor: Option<Vec<u8>>,
    look_at: Duration,
    /// What the last whole pass left, and what came since it began.
    left: Size,
    came: Size,
    /// What the pass under way has left so far.
    passed: Size,
    came_before: Size,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Size {
    records: u64,
    bytes: u64,
}

impl Size {
    fn add(&mut self, bytes: usize) {
        self.records += 1;
        self.bytes += bytes as u64;
    }

    /// In hundredths of what is allowed.
    fn share(self) -> u64 {
        (self.records * 100 / RECORDS_MAX).max(self.bytes * 100 / BYTES_MAX)
    }
}

/// What a page holds.
struct Page {
    old: Vec<(Key, RequestId)>,
    /// Transactions that nobody works on, though their records are here.
    abandoned: Vec<TxnMeta>,
    next: Option<Vec<u8>>,
}

impl Forgetting {
    /// A new term: what is there is not known.
    pub(super) fn starts(&mut self, mono: Duration) {
        *self = Self { any: true, look_at: mono + PASS_EVERY, ..Self::default() };
    }

    /// A record goes into the log.
    pub(super) fn comes(&mut self, bytes: usize) {
        self.any = true;
        self.came.add(bytes);
    }

    fn share(&self) -> u64 {
        self.size().share()
    }

    /// When to look next, if there is anything to look for.
    pub(super) fn next_wake(&self) -> Option<Duration> {
        self.any.then_some(self.look_at)
    }

    /// Everything was looked at.
    fn ends_pass(&mut self) {
        self.left = self.passed;
        self.came.records -= self.came_before.records;
        self.came.bytes -= self.came_before.bytes;
        self.any = self.size() != Size::default();
    }

    fn size(&self) -> Size {
        Size { records: self.left.records + self.came.records, bytes: self.left.bytes + self.came.bytes }
    }

    /// Reads a page, and counts what stays of it.
    fn page(
        &mut self,
        engine: &dyn Reader,
        span: &KeySpan,
        born_below_ms: u64,
        heard_below: Timestamp,
    ) -> Result<Page, EngineError> {
        let (start, end) = keys::finished_span(span);
        let mut cursor = engine.cursor(&start, &end);
        let from = self.cursor.take().unwrap_or(start);
        let mut there = cursor.seek(&from)?;
        let mut page = Page { old: Vec::new(), abandoned: Vec::new(), next: None };
        for _ in 0..PAGE {
            if !there {
                return Ok(page);
            }
            if let Ok((anchor, id)) = keys::decode_finished(cursor.key()) {
                if id.born_ms() < born_below_ms && ended_below(cursor.value(), born_below_ms) {
                    page.old.push((anchor, id));
                } else {
                    self.passed.add(cursor.key().len() + cursor.value().len());
                }
            } else {
                self.passed.add(cursor.key().len() + cursor.value().len());
                // One that cannot be read stays.
                let record = TxnRecord::decode(cursor.value()).ok();
                page.abandoned.extend(record.filter(|record| record.heartbeat < heard_below).map(|record| record.meta));
            }
            there = cursor.next()?;
        }
        page.next = there.then(|| cursor.key().to_vec());
        Ok(page)
    }
}

/// Whether a finished record is that of a transaction that ended below, or of a request, which ends when it is born. What
/// cannot be read stays.
fn ended_below(record: &[u8], floor_ms: u64) -> bool {
    if !FinishedTxn::is_one(record) {
        return true;
    }
    FinishedTxn::decode(record).is_ok_and(|finished| finished.end.wall / 1_000_000 < floor_ms)
}

impl Replica {
    /// Refuses a range deletion that would not be recognised if it was done before.
    pub(super) fn check_age(&self, id: RequestId) -> Result<(), RangeError> {
        let floor_ms = self.state.thresholds.dedup_floor_ms;
        if id.born_ms() < floor_ms {
            let floor = Timestamp::from_wall(floor_ms.saturating_mul(1_000_000));
            return Err(RangeError::TooOld { range: self.state.descriptor.range, floor });
        }
        Ok(())
    }

    /// A range deletion will leave this record; refused if it would be one too many.
    pub(super) fn remember(&mut self, record: &(Key, Bytes)) -> Result<(), RangeError> {
        if self.forgetting.share() >= 100 {
            let queue = "the range deletions that a range remembers".into();
            return Err(RangeError::Overloaded { queue, retry_after: RETRY_AFTER });
        }
        self.forgetting.comes(record.0.as_bytes().len() + record.1.len());
        Ok(())
    }

    /// Looked at once a turn of an awake leader.
    pub(crate) fn forget_finished(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader, effects: &mut Vec<Effect>) {
        if !self.forgetting.any || ctx.mono < self.forgetting.look_at || self.slumber.asleep || !self.group.usable() {
            return;
        }
        let share = self.forgetting.share();
        let age = if share >= 75 { YOUNGEST } else { RETRY_WINDOW };
        let floor_ms = ctx.now.minus(age).wall / 1_000_000;
        let begins = self.forgetting.cursor.is_none();
        if begins {
            self.forgetting.passed = Size::default();
            self.forgetting.came_before = self.forgetting.came;
        }
        let (range, span) = (self.state.descriptor.range, self.state.descriptor.span.clone());
        let page = match self.forgetting.page(engine, &span, floor_ms, ctx.now.minus(ABANDONED)) {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%range, %error, "finished requests could not be read");
                self.forgetting.look_at = ctx.mono + PASS_EVERY;
                return;
            }
        };
        for meta in page.abandoned {
            self.ask_leftover(meta, Vec::new(), effects);
        }
        if !page.old.is_empty() {
            effects.push(Effect::Count("flotilla_finished_requests_forgotten_total", page.old.len() as u64));
            let command = Command::Forget { floor_ms, finished: page.old };
            if self.group.propose(ctx, self.alone(&command)).is_err() {
                // Nothing is lost: the next pass finds them again.
                self.forgetting.look_at = ctx.mono + PASS_EVERY;
                self.forgetting.cursor = None;
                return;
            }
        }
        self.forgetting.cursor = page.next;
        if self.forgetting.cursor.is_some() {
            self.forgetting.look_at = ctx.mono + PAGE_EVERY;
            return;
        }
        self.forgetting.ends_pass();
        let pause = if share >= 75 { PASS_EVERY / 10 } else { PASS_EVERY };
        self.forgetting.look_at = ctx.mono + pause;
    }
}
