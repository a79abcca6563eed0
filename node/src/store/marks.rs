//! How many engine changes of this boot were carried out, so that a flush can say which of them are durable.
//!
//! Fleet and shell count alike: each `Effect::Write` and each `Effect::Ingest` in the order of the effects. A write has
//! happened when it is counted; an ingest runs on an IO thread meanwhile, and holds the count back until it ends.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The count.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    given: u64,
    running: BTreeSet<u64>,
}

impl Marks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write was done.
    pub(super) fn written(&self) {
        self.state().given += 1;
    }

    /// An ingest was given to an IO thread; its number is needed at its end.
    pub(super) fn ingest_begins(&self) -> u64 {
        let mut state = self.state();
        state.given += 1;
        let number = state.given;
        state.running.insert(number);
        number
    }

    /// The ingest ended; it is durable by itself.
    pub(super) fn ingest_ended(&self, number: u64) {
        self.state().running.remove(&number);
    }

    /// So many changes, from the first one on, were done: a flush that begins now makes them durable.
    pub(super) fn done(&self) -> u64 {
        let state = self.state();
        state.running.first().map_or(state.given, |number| number - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ingest_holds_the_count_back_until_it_ends() {
        let marks = Marks::default();
        marks.written();
        let ingest = marks.ingest_begins();
        marks.written();
        assert_eq!(marks.done(), 1);
        marks.ingest_ended(ingest);
        assert_eq!(marks.done(), 3);
    }
}
