//! A deterministic executor: tasks are polled one at a time, in the order in which they were woken.
//!
//! Every task has an owner, a start of a store, and ends with it: a crash drops what the process was doing.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use flotilla_types::StoreId;
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::time::lock;

type Ready = Arc<Mutex<VecDeque<u64>>>;

struct TaskWaker {
    task: u64,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        lock(&self.ready).push_back(self.task);
    }
}

struct Task {
    owner: StoreId,
    future: BoxFuture<'static, ()>,
    waker: Waker,
}

/// All tasks of a run.
#[derive(Default)]
pub(crate) struct Executor {
    tasks: BTreeMap<u64, Task>,
    ready: Ready,
    next: u64,
}

impl Executor {
    /// Starts a task, which is polled first when `run` is called.
    pub(crate) fn spawn(&mut self, owner: StoreId, future: impl Future<Output = ()> + Send + 'static) {
        self.next += 1;
        let task = self.next;
        let waker = Waker::from(Arc::new(TaskWaker { task, ready: Arc::clone(&self.ready) }));
        self.tasks.insert(task, Task { owner, future: future.boxed(), waker });
        lock(&self.ready).push_back(task);
    }

    /// Polls until nobody can go on.
    pub(crate) fn run(&mut self) {
        loop {
            let next = lock(&self.ready).pop_front();
            let Some(id) = next else { return };
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            if task.future.as_mut().poll(&mut Context::from_waker(&task.waker)).is_ready() {
                self.tasks.remove(&id);
            }
        }
    }

    /// The owner died.
    pub(crate) fn drop_tasks_of(&mut self, owner: StoreId) {
        self.tasks.retain(|_, task| task.owner != owner);
    }
}
