//! A bounded queue between threads that must not wait and a task that sends. What has no room is refused, never waited for.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What weighs something in a queue.
pub(super) trait Weighed {
    /// Bytes, about.
    fn weight(&self) -> usize;
}

/// See the module's page.
pub(super) struct Outbox<T> {
    state: Mutex<State<T>>,
    /// Told when the queue was empty and is not any more, or is closed.
    filled: Notify,
    items_max: usize,
    bytes_max: usize,
}

struct State<T> {
    items: VecDeque<T>,
    bytes: usize,
    open: bool,
    /// Counts the openings: a sender of a former one takes nothing any more.
    life: u64,
    closed_for_good: bool,
}

impl<T: Weighed> Outbox<T> {
    /// A queue that takes nothing until it is opened.
    pub(super) fn new(items_max: usize, bytes_max: usize) -> Self {
        let state = State { items: VecDeque::new(), bytes: 0, open: false, life: 0, closed_for_good: false };
        Self { state: Mutex::new(state), filled: Notify::new(), items_max, bytes_max }
    }

    /// Whether somebody sends what is put in.
    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    /// From now on items are taken in, for the sender that gives the number that this returns.
    pub(super) fn open(&self) -> u64 {
        let mut state = self.state();
        state.open = !state.closed_for_good;
        state.life += 1;
        state.life
    }

    /// Takes nothing in any more until it is opened again; gives what was not taken out.
    pub(super) fn shut(&self) -> Vec<T> {
        let mut state = self.state();
        state.open = false;
        state.bytes = 0;
        let rest = std::mem::take(&mut state.items).into();
        drop(state);
        self.filled.notify_one();
        rest
    }

    /// Shuts it for ever: `take` ends.
    pub(super) fn close(&self) {
        self.state().closed_for_good = true;
        self.shut();
    }

    /// Puts items in; gives those that have no room, in order.
    pub(super) fn push(&self, items: impl IntoIterator<Item = T>) -> Vec<T> {
        let (mut refused, mut state) = (Vec::new(), self.state());
        let was_empty = state.items.is_empty();
        for item in items {
            let weight = item.weight();
            // One item always fits, however large: it would never be sent otherwise.
            let room = state.items.is_empty()
                || (state.items.len() < self.items_max && state.bytes + weight <= self.bytes_max);
            if state.open && room {
                state.bytes += weight;
                state.items.push_back(item);
            } else {
                refused.push(item);
            }
        }
        let filled = was_empty && !state.items.is_empty();
        drop(state);
        if filled {
            self.filled.notify_one();
        }
        refused
    }

    /// Waits until something is there, then takes as much as a frame should hold, and at least one item. `None` once the
    /// queue is shut, or opened for another sender.
    pub(super) async fn take(&self, life: u64, bytes_max: usize) -> Option<Vec<T>> {
        loop {
            {
                let mut state = self.state();
                if !state.open || state.life != life {
                    return None;
                }
                if !state.items.is_empty() {
                    return Some(state.take(bytes_max));
                }
            }
            self.filled.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Weighed> State<T> {
    fn take(&mut self, bytes_max: usize) -> Vec<T> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(item) = self.items.front() {
            let weight = item.weight();
            if !taken.is_empty() && bytes + weight > bytes_max {
                break;
            }
            bytes += weight;
            taken.extend(self.items.pop_front());
        }
        self.bytes -= bytes;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weighed for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    #[tokio::test]
    async fn a_queue_is_bounded_and_gives_back_what_it_did_not_send() {
        let queue = Outbox::new(3, 10);
        assert_eq!(queue.push([1]), [1], "nobody sends yet");
        let life = queue.open();
        assert_eq!(queue.push([20, 1]), [1], "one item always fits");
        assert_eq!(queue.take(life, 5).await, Some(vec![20]));
        assert_eq!(queue.push([1, 2, 3, 4]), [4], "at most three items");
        assert_eq!(queue.take(life, 3).await, Some(vec![1, 2]));
        assert_eq!(queue.shut(), [3]);
        assert_eq!(queue.take(life, 3).await, None);
        queue.close();
        queue.open();
        assert_eq!(queue.push([1]), [1]);
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_first_item_and_of_the_end() {
        let queue = std::sync::Arc::new(Outbox::new(3, 10));
        let life = queue.open();
        let waiting = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move { (queue.take(life, 9).await, queue.take(life, 9).await) }
        });
        tokio::task::yield_now().await;
        queue.push([7usize]);
        while queue.state().items.front().is_some() {
            tokio::task::yield_now().await;
        }
        queue.shut();
        assert_eq!(waiting.await.unwrap(), (Some(vec![7]), None));
    }
}
