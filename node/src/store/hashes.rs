//! Hashes of replicas: made in the background at a slow rate, kept for whoever asks for them.

use std::collections::BTreeMap;
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
    /// The oldest checks go first when there are too many.
    results: BTreeMap<Which, Arc<Survey>>,
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
        if state.results.len() > RESULTS_MAX {
            state.results.pop_first();
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
