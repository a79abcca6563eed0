//! Gives back the room of destroyed replicas and of old versions, one span after the other: rewriting files keeps an IO
//! thread for long, and another must stay for snapshots.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flotilla_storage::engine::Engine;
use flotilla_storage::keys;
use flotilla_types::KeySpan;

use super::io::IoQueue;

/// Spans that wait; what is beyond comes back when RocksDB compacts by itself.
const WAITING_MAX: usize = 4096;
/// Less than this is not worth the reading: RocksDB comes by in time.
const WORTH: u64 = 4 << 20;
/// Old versions are worth rewriting a span for if they are this part of it; what is less goes with RocksDB's own
/// compactions.
const GARBAGE_PART: u64 = 5;

/// See the module's page.
#[derive(Default)]
pub(super) struct Reclaim(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: bool,
}

struct Job {
    span: KeySpan,
    /// Bytes of old versions that may go; `None`: all of it was deleted.
    garbage: Option<u64>,
}

impl Reclaim {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replica of this span was destroyed.
    pub(super) fn add(self: &Arc<Self>, io: &IoQueue, engine: &Arc<dyn Engine>, span: KeySpan) {
        self.queue(io, engine, Job { span, garbage: None });
    }

    /// Old versions of this span may go.
    pub(super) fn collect(self: &Arc<Self>, io: &IoQueue, engine: &Arc<dyn Engine>, span: KeySpan, garbage: u64) {
        if garbage >= WORTH {
            self.queue(io, engine, Job { span, garbage: Some(garbage) });
        }
    }

    fn queue(self: &Arc<Self>, io: &IoQueue, engine: &Arc<dyn Engine>, job: Job) {
        let mut state = self.state();
        if state.waiting.len() < WAITING_MAX {
            state.waiting.push_back(job);
        }
        if state.running {
            return;
        }
        let (this, engine) = (Arc::clone(self), Arc::clone(engine));
        // If the threads have too much to do, the next span tries again.
        state.running = io.run(move || this.run(engine.as_ref())).is_ok();
    }

    fn run(&self, engine: &dyn Engine) {
        loop {
            let next = {
                let mut state = self.state();
                let next = state.waiting.pop_front();
                state.running = next.is_some();
                next
            };
            let Some(Job { span, garbage }) = next else { return };
            let span = keys::version_span(&span);
            let bytes = engine.approximate_bytes(std::slice::from_ref(&span)).first().copied().unwrap_or_default();
            match garbage {
                None if bytes >= WORTH => engine.reclaim(&span),
                Some(garbage) if garbage >= bytes / GARBAGE_PART => engine.collect(&span),
                _ => {}
            }
        }
    }
}
