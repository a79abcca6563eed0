//! What is open at this gateway, and who waits for whom at ranges that are led here: for people who look (`flotilla txn ls`).
//!
//! A transaction is listed from its first operation until its `Txn` is gone, one-shots over several ranges included: a long wait
//! for a lock makes them as old as any other. One-shots within one range have no coordinator, and are not here.
//!
//! Who waits is known where it pushes, and it pushes again and again as long as it waits. So what was pushed lately is the list;
//! a wait may be shown for a moment after its end, and requests without a transaction are not shown.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use flotilla_types::{Isolation, Key, Priority, PushResult, PushTxn, TxnId};
use metrics::{Gauge, gauge};

use super::heartbeat::Beating;
use crate::{KvError, Router};

/// Locked keys of a transaction that are named.
const LOCKS_NAMED: usize = 4;
/// A wait is believed in for so long after its last push. Longer than the pause between two pushes.
const WAIT_LIVES: Duration = Duration::from_secs(1);
/// Waits that are remembered: some megabyte. Beyond, new ones are not listed.
const WAITS_MAX: usize = 4096;

/// An open transaction, as its gateway knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTxn {
    /// Which.
    pub id: TxnId,
    /// Since its first operation.
    pub age: Duration,
    /// What it may see of others.
    pub isolation: Isolation,
    /// Who gives way.
    pub priority: Priority,
    /// Where its record lies; `None` before its first lock.
    pub anchor: Option<Key>,
    /// How many keys it has locked.
    pub locks: usize,
    /// The first of them in key order.
    pub first_locks: Vec<Key>,
    /// Others have aborted it; its client has not heard of it yet.
    pub aborted: bool,
}

/// A transaction that waits for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockWait {
    /// Who waits.
    pub waiter: TxnId,
    /// Who holds the lock.
    pub holder: TxnId,
    /// On which key; the first, if there are several in one range.
    pub key: Key,
    /// Since its first push.
    pub time: Duration,
}

struct Listed {
    /// In the monotonic time of the router's clock.
    began: Duration,
    isolation: Isolation,
    priority: Priority,
    beating: Arc<Beating>,
}

/// The transactions that are open here. Bounded by what is open.
#[derive(Default)]
pub(crate) struct Registry {
    open: DashMap<TxnId, Listed>,
    gauges: OnceLock<Gauges>,
}

struct Gauges {
    open: Gauge,
    locks: Gauge,
}

impl Registry {
    pub(super) fn insert(
        &self,
        id: TxnId,
        isolation: Isolation,
        priority: Priority,
        beating: &Arc<Beating>,
        began: Duration,
    ) {
        self.open.insert(id, Listed { began, isolation, priority, beating: Arc::clone(beating) });
    }

    pub(super) fn remove(&self, id: TxnId) {
        self.open.remove(&id);
    }

    /// The oldest ones, oldest first. No lock of a shard is held while a transaction's own is taken.
    fn oldest(&self, max: usize, mono: Duration) -> Vec<OpenTxn> {
        let entries = self.open.iter().map(|entry| {
            let Listed { began, isolation, priority, beating } = entry.value();
            (*began, *entry.key(), *isolation, *priority, Arc::clone(beating))
        });
        let mut all: Vec<_> = entries.collect();
        all.sort_unstable_by_key(|(began, id, ..)| (*began, *id));
        all.truncate(max);
        let open = all.into_iter().map(|(began, id, isolation, priority, beating)| {
            let (locks, first_locks) = {
                let locks = beating.locks();
                (locks.len(), locks.iter().take(LOCKS_NAMED).cloned().collect())
            };
            let (age, anchor, aborted) = (mono.saturating_sub(began), beating.anchor(), beating.is_aborted());
            OpenTxn { id, age, isolation, priority, anchor, locks, first_locks, aborted }
        });
        open.collect()
    }

    fn locks(&self) -> usize {
        let all: Vec<_> = self.open.iter().map(|entry| Arc::clone(&entry.value().beating)).collect();
        all.iter().map(|beating| beating.locks().len()).sum()
    }
}

/// Who waits for whom, as pushes told lately.
#[derive(Default)]
pub(crate) struct Waits {
    /// By waiter, holder and key: the first push, and the last one.
    known: Mutex<BTreeMap<Edge, (Duration, Duration)>>,
}

/// Waiter, holder, key.
type Edge = (TxnId, TxnId, Key);

impl Waits {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Edge, (Duration, Duration)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request pushes. `None`: it is no transaction's.
    pub(super) fn begins(&self, push: &PushTxn, keys: &[Key], mono: Duration) -> Option<Edge> {
        let edge = (push.pusher.as_ref()?.id, push.pushee.id, keys.first()?.clone());
        let mut known = self.known();
        if known.len() >= WAITS_MAX && !known.contains_key(&edge) {
            known.retain(|_, (_, last)| *last + WAIT_LIVES > mono);
        }
        if known.len() < WAITS_MAX || known.contains_key(&edge) {
            let (first, last) = known.entry(edge.clone()).or_insert((mono, mono));
            if *last + WAIT_LIVES <= mono {
                *first = mono;
            }
            *last = mono;
        }
        Some(edge)
    }

    /// What the push came to: unless its transaction has to wait on, the wait is over.
    pub(super) fn ends(&self, edge: &Edge, result: &Result<PushResult, KvError>) {
        if !matches!(result, Ok(PushResult::Waiting) | Err(_)) {
            self.known().remove(edge);
        }
    }

    fn list(&self, mono: Duration) -> Vec<LockWait> {
        let mut known = self.known();
        known.retain(|_, (_, last)| *last + WAIT_LIVES > mono);
        let wait = |((waiter, holder, key), (first, _)): (&Edge, &(Duration, Duration))| LockWait {
            waiter: *waiter,
            holder: *holder,
            key: key.clone(),
            time: mono.saturating_sub(*first),
        };
        known.iter().map(wait).collect()
    }
}

impl Router {
    /// How many transactions are open at this gateway, and the oldest of them.
    #[must_use]
    pub fn open_transactions(&self, max: usize) -> (usize, Vec<OpenTxn>) {
        let registry = &self.shared.registry;
        (registry.open.len(), registry.oldest(max, self.shared.clock.mono()))
    }

    /// Which transactions wait for which, as far as they wait in ranges that are led at this node.
    #[must_use]
    pub fn lock_waits(&self) -> Vec<LockWait> {
        self.shared.waits.list(self.shared.clock.mono())
    }

    /// Sets the gauges of what is open. Called when somebody looks, so that transactions pay nothing for them.
    pub fn measure(&self) {
        let registry = &self.shared.registry;
        let gauges = registry
            .gauges
            .get_or_init(|| Gauges { open: gauge!("flotilla_txn_open"), locks: gauge!("flotilla_txn_locks_held") });
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        {
            gauges.open.set(registry.open.len() as f64);
            gauges.locks.set(registry.locks() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{PushKind, RequestId, Timestamp, TxnMeta, Waiter, keys};

    use super::*;

    fn meta(n: u8) -> TxnMeta {
        TxnMeta {
            id: TxnId([n; 16]),
            anchor: keys::user(&[n]),
            anchored: Timestamp::from_wall(1),
            min_ts: Timestamp::from_wall(1),
            isolation: Isolation::default(),
            priority: Priority::default(),
            commit_id: RequestId([n; 16]),
        }
    }

    fn push(pusher: Option<u8>, pushee: u8) -> PushTxn {
        PushTxn {
            pushee: meta(pushee),
            kind: PushKind::End,
            pusher: pusher.map(|n| Waiter::from(&meta(n))),
            priority: Priority::Normal,
            seen: Timestamp::ZERO,
            edges: Vec::new(),
        }
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_wait_is_listed_while_it_pushes_and_forgotten_when_it_may_pass() {
        let (waits, key) = (Waits::default(), [keys::user(b"k")]);
        assert_eq!(waits.begins(&push(None, 2), &key, at(0)), None, "nobody's");
        let edge = waits.begins(&push(Some(1), 2), &key, at(0)).unwrap();
        waits.ends(&edge, &Ok(PushResult::Waiting));
        waits.begins(&push(Some(1), 2), &key, at(900));
        let listed = waits.list(at(1500));
        let wait = LockWait { waiter: TxnId([1; 16]), holder: TxnId([2; 16]), key: key[0].clone(), time: at(1500) };
        assert_eq!(listed, [wait]);
        waits.ends(&edge, &Ok(PushResult::Passed));
        assert_eq!(waits.list(at(1500)), []);
        waits.begins(&push(Some(1), 2), &key, at(2000));
        assert_eq!(waits.list(at(3000)), [], "not heard of for a second");
    }

    #[test]
    fn waits_have_a_bound_and_old_ones_make_room() {
        let waits = Waits::default();
        let key = |n: usize| [keys::user(&n.to_be_bytes())];
        for n in 0..=WAITS_MAX {
            waits.begins(&push(Some(1), 2), &key(n), at(0));
        }
        assert_eq!(waits.list(at(0)).len(), WAITS_MAX);
        waits.begins(&push(Some(1), 2), &key(WAITS_MAX), at(1000));
        assert_eq!(waits.list(at(1000)).len(), 1);
    }
}
