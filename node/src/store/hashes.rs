//! Hashes of replicas: made in the background at a slow rate, kept for whoever asks for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_range::check::Survey;
use flotilla_types::{CheckId, RangeId};
use tokio::sync::oneshot;

/// Results that are kept: a day's worth of checks on a few thousand ranges is asked for within seconds each.
const RESULTS_MAX: usize = 1024;
/// Callers that wait.
const WAITERS_MAX: usize = 256;

type Which = (CheckId, RangeId);

/// The results of checks on this store.
#[derive(Default)]
pub(super) struct Hashes(Mutex<State>);

#[derive(Default)]
struct State {
    results: BTreeMap<Which, Arc<Survey>>,
    /// In the order in which they came: the oldest go first when there are too many.
    order: VecDeque<Which>,
    waiters: Vec<(Which, oneshot::Sender<Arc<Survey>>)>,
}

impl Hashes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, range: RangeId, check: CheckId, survey: Survey) {
        let survey = Arc::new(survey);
        let which = (check, range);
        let mut state = self.state();
        state.results.insert(which, Arc::clone(&survey));
        state.order.push_back(which);
        if state.order.len() > RESULTS_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.results.remove(&oldest);
        }
        for (_, waiter) in state.waiters.extract_if(.., |(wanted, _)| *wanted == which) {
            let _ = waiter.send(Arc::clone(&survey));
        }
    }

    /// The result, now or once it is there. Dropped senders say that too many wait.
    pub(super) fn get(self: &Arc<Self>, range: RangeId, check: CheckId) -> oneshot::Receiver<Arc<Survey>> {
        let which = (check, range);
        let (waiter, result) = oneshot::channel();
        let mut state = self.state();
        match state.results.get(&which) {
            Some(survey) => {
                let _ = waiter.send(Arc::clone(survey));
            }
            None => {
                state.waiters.retain(|(_, waiter)| !waiter.is_closed());
                if state.waiters.len() < WAITERS_MAX {
                    state.waiters.push((which, waiter));
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{LogIndex, ReplicaHash, ReplicaId};

    use super::*;

    #[test]
    fn the_newest_results_are_kept_whatever_their_checks_are_called() {
        let hashes = Arc::new(Hashes::default());
        let survey = |pairs| Survey {
            hash: ReplicaHash { replica: ReplicaId(1), applied: LogIndex(1), hash: 7, pairs },
            chunks: Vec::new(),
        };
        // Names of checks are drawn: here each is smaller than all before.
        let named = |n: u64| CheckId(u64::MAX - n);
        for n in 0..5000 {
            hashes.put(RangeId(1), named(n), survey(n));
            let found = hashes.get(RangeId(1), named(n)).try_recv().unwrap();
            assert_eq!(found.hash.pairs, n);
        }
        assert!(hashes.get(RangeId(1), named(0)).try_recv().is_err(), "the oldest is gone");
        assert_eq!(hashes.state().results.len(), RESULTS_MAX);
    }
}
