//! The threads of a store beside its two loops, and how they are told to end.

use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::StartError;
use super::fatal::{Failure, OnFailure};

/// Threads that end when they are told to. Whoever starts one here waits for it in [`Workers::dismiss`].
pub(super) struct Workers {
    on_failure: OnFailure,
    /// Their drop tells the threads behind them to end.
    stops: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    pub(super) const fn new(on_failure: OnFailure) -> Self {
        Self { on_failure, stops: Vec::new(), threads: Vec::new() }
    }

    /// A receiver that is disconnected when the workers are dismissed.
    pub(super) fn stop(&mut self) -> Receiver<()> {
        let (stop, stopped) = bounded(0);
        self.stops.push(stop);
        stopped
    }

    /// Starts one that ends on a [`Workers::stop`], or when the last who gives it work is gone.
    pub(super) fn hire(&mut self, name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
        self.threads.push(spawn(name, &self.on_failure, run)?);
        Ok(())
    }

    /// Tells all to end, and waits.
    pub(super) fn dismiss(&mut self) {
        self.stops.clear();
        for thread in self.threads.drain(..) {
            join("a worker", Some(thread));
        }
    }
}

/// A thread whose panic ends the process instead of leaving a store that limps.
pub(super) fn spawn(
    name: &'static str,
    on_failure: &OnFailure,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let on_failure = on_failure.clone();
    let guarded = move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
            on_failure.meet(Failure::Panic(name));
        }
    };
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(guarded);
    started.map_err(|source| StartError::System { action: "start a thread", source })
}

/// Waits for a thread's end.
pub(super) fn join(name: &'static str, thread: Option<JoinHandle<()>>) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!(name, "a thread of the store panicked");
    }
}
