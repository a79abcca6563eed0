//! What dead coordinators left: locks, and records of transactions that have ended or never will. Who meets a lock clears it; what
//! nobody meets the leader looks for, while the range is awake, and a range with locks does not fall asleep.
//!
//! Nothing is decided here. The record of whoever looks abandoned is asked as by anybody whom it blocks, and by the answer it
//! is cleared.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_storage::engine::{EngineError, Reader};
use flotilla_storage::locks;
use flotilla_types::{Key, KeySpan, Priority, PushKind, PushTxn, Timestamp, TxnId, TxnMeta};

use super::Replica;
use crate::event::Effect;
use crate::raft::Ctx;

/// Between two looks at a page of locks, and locks of a page.
const EVERY: Duration = Duration::from_secs(5);
const PAGE: usize = 256;
/// A transaction's traces are younger as long as its coordinator lives or clears them itself.
pub(super) const ABANDONED: Duration = Duration::from_secs(10);

/// Where the leader looks next.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    look_at: Duration,
    /// Where the walk over the locks goes on.
    from: Option<Key>,
    /// What the walk has seen so far, and what the last one saw.
    walk: LocksSeen,
    seen: LocksSeen,
}

/// Locks as a walk over a range meets them, page by page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LocksSeen {
    /// How many.
    pub count: u64,
    /// When the oldest was laid.
    pub oldest: Option<Timestamp>,
}

impl LocksSeen {
    fn meets(&mut self, laid: Timestamp) {
        self.count += 1;
        self.oldest = Some(self.oldest.map_or(laid, |oldest| oldest.min(laid)));
    }

    /// These and those.
    pub(crate) fn and(self, other: Self) -> Self {
        let oldest = self.oldest.into_iter().chain(other.oldest).min();
        Self { count: self.count + other.count, oldest }
    }
}

impl Replica {
    /// The locks in the range when they were last looked at.
    pub(crate) fn locks_seen(&self) -> LocksSeen {
        if self.transactions.unlocked { LocksSeen::default() } else { self.leftovers.seen }
    }

    /// When to look for locks, if there may be any.
    pub(super) fn looks_for_leftovers_at(&self) -> Option<Duration> {
        (!self.transactions.unlocked).then_some(self.leftovers.look_at)
    }

    /// Looked at once a turn of an awake leader.
    pub(crate) fn look_for_leftovers(&mut self, ctx: &Ctx<'_>, engine: &dyn Reader, effects: &mut Vec<Effect>) {
        let due = self.looks_for_leftovers_at().is_some_and(|at| at <= ctx.mono);
        if !due || self.slumber.asleep || !self.group.usable() {
            return;
        }
        self.leftovers.look_at = ctx.mono + EVERY;
        match self.page_of_locks(ctx, engine) {
            Ok(abandoned) => {
                for (meta, keys) in abandoned.into_values() {
                    self.ask_leftover(meta, keys, effects);
                }
            }
            Err(error) => {
                tracing::warn!(range = %self.state.descriptor.range, %error, "locks could not be read");
            }
        }
    }

    fn page_of_locks(
        &mut self,
        ctx: &Ctx<'_>,
        engine: &dyn Reader,
    ) -> Result<BTreeMap<TxnId, (TxnMeta, Vec<Key>)>, EngineError> {
        let whole = self.state.descriptor.span.clone();
        let start = self.leftovers.from.take().filter(|from| whole.contains(from));
        let (begins, start) = (start.is_none(), start.unwrap_or_else(|| whole.start.clone()));
        let mut abandoned: BTreeMap<TxnId, (TxnMeta, Vec<Key>)> = BTreeMap::new();
        let (mut looked, mut next) = (0, None);
        let mut walk = if begins { LocksSeen::default() } else { self.leftovers.walk };
        locks::each(engine, &KeySpan { start, end: whole.end }, |key, lock| {
            if looked == PAGE {
                next = Some(key);
                return false;
            }
            looked += 1;
            walk.meets(lock.local_ts);
            if ctx.now.since(lock.local_ts) > ABANDONED {
                abandoned.entry(lock.txn.id).or_insert_with(|| (lock.txn, Vec::new())).1.push(key);
            }
            true
        })?;
        self.leftovers.walk = walk;
        if next.is_none() {
            self.leftovers.seen = walk;
        }
        self.leftovers.from = next;
        if looked == 0 && begins {
            self.transactions.unlocked = true;
        }
        Ok(abandoned)
    }

    /// Asks what became of a transaction that left something here. Nobody waits for the answer.
    pub(super) fn ask_leftover(&self, pushee: TxnMeta, keys: Vec<Key>, effects: &mut Vec<Effect>) {
        let push = PushTxn {
            pushee,
            kind: PushKind::End,
            pusher: None,
            priority: Priority::Low,
            seen: Timestamp::ZERO,
            edges: Vec::new(),
        };
        effects.push(Effect::Count("flotilla_txn_leftovers_total", 1));
        effects.push(Effect::Push { range: self.state.descriptor.range, number: NOBODY, keys, push: Box::new(push) });
    }
}

/// The number of a push that nobody waits for.
const NOBODY: u64 = 0;
