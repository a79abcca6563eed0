//! The node's clock: one hybrid logical clock for all that leaves the node, with the physical readings behind it.
//!
//! It gives no reading before the store has started it at its durable bound, and none above that bound ever (leases
//! 1.3): so a store that has just booted, or whose log disk is stalled, is mute by construction.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flotilla_types::{ClockError, Hlc, Timestamp, nanoseconds};
use futures::future::BoxFuture;

/// The two clocks of the machine, read together. Compared over time they tell a step or a pause (leases 1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readings {
    /// Since 1970, as the machine has it at this moment; may have stepped back.
    pub wall: Duration,
    /// Since this process started; never steps.
    pub mono: Duration,
}

/// See the module's page. Shared by all threads and tasks; its lock is never held across anything that waits.
#[derive(Debug)]
pub struct NodeClock {
    state: Mutex<State>,
    origin: Instant,
    /// Nanoseconds that tests let the wall clock be wrong by.
    wrong_by: AtomicI64,
}

#[derive(Debug)]
struct State {
    hlc: Hlc,
    /// Physical time never steps back inside a process.
    physical: Duration,
}

impl NodeClock {
    /// A clock that refuses every reading until it is started. `max_offset` bounds what clocks of the cluster differ by.
    #[must_use]
    pub fn new(max_offset: Duration) -> Self {
        let hlc = Hlc::starting_at(Timestamp::ZERO, max_offset);
        let state = Mutex::new(State { hlc, physical: Duration::ZERO });
        Self { state, origin: Instant::now(), wrong_by: AtomicI64::new(0) }
    }

    /// Starts it above all that this store said before a restart.
    pub fn start_at(&self, bound: Timestamp) {
        let mut state = self.state();
        state.hlc = Hlc::starting_at(bound, state.hlc.max_offset());
    }

    /// A reading that may leave the node or decide a durable write.
    ///
    /// # Errors
    /// It would lie above the durable bound: the store boots, or its log disk is stalled.
    pub fn now(&self) -> Result<Timestamp, ClockError> {
        let wall = self.readings().wall;
        let mut state = self.state();
        let physical = state.physical(wall);
        state.hlc.now(physical)
    }

    /// A reading for the store's own use. It must not leave the node.
    pub fn peek(&self) -> Timestamp {
        let wall = self.readings().wall;
        let mut state = self.state();
        let physical = state.physical(wall);
        state.hlc.peek(physical)
    }

    /// Takes in the reading that came with a message, before the message is looked at (leases 1.2).
    ///
    /// # Errors
    /// Drop the message: the sender's clock is too far ahead, or this store's durable bound is behind.
    pub fn forward(&self, remote: Timestamp) -> Result<(), ClockError> {
        let wall = self.readings().wall;
        let mut state = self.state();
        let physical = state.physical(wall);
        state.hlc.forward(remote, physical)
    }

    /// The durable bound has risen.
    pub fn raise_bound(&self, bound: Timestamp) {
        self.state().hlc.raise_bound(bound);
    }

    /// The durable bound.
    #[must_use]
    pub fn bound(&self) -> Timestamp {
        self.state().hlc.bound()
    }

    /// The largest offset between two clocks of the cluster.
    #[must_use]
    pub fn max_offset(&self) -> Duration {
        self.state().hlc.max_offset()
    }

    /// Monotonic time since the process started. Paces; decides nothing about safety (leases 1.5).
    #[must_use]
    pub fn mono(&self) -> Duration {
        self.origin.elapsed()
    }

    /// An instant as monotonic time of this clock.
    #[must_use]
    pub fn mono_of(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.origin)
    }

    /// Monotonic time of this clock as an instant.
    #[must_use]
    pub fn instant_of(&self, mono: Duration) -> Instant {
        self.origin.checked_add(mono).unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    /// Both clocks of the machine.
    #[must_use]
    pub fn readings(&self) -> Readings {
        let (wall, mono) = self.read_together();
        let wrong_by = self.wrong_by.load(Ordering::Relaxed);
        let by = Duration::from_nanos(wrong_by.unsigned_abs());
        let wall = if wrong_by < 0 { wall.saturating_sub(by) } else { wall + by };
        Readings { wall, mono }
    }

    /// A thread that loses its core between the two would see them part; then it looks again.
    fn read_together(&self) -> (Duration, Duration) {
        let mut before = self.origin.elapsed();
        for _ in 0..3 {
            // A machine set to before 1970 reads as 1970: the boot wait and the peers say that it is wrong.
            let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let mono = self.origin.elapsed();
            if mono - before < Duration::from_millis(2) {
                return (wall, mono);
            }
            before = mono;
        }
        (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), self.origin.elapsed())
    }

    /// Lets the wall clock be wrong from now on; for tests.
    pub fn set_wrong_by_ns(&self, wrong_by: i64) {
        self.wrong_by.store(wrong_by, Ordering::Relaxed);
    }

    /// The state is replaced whole by every method, so it is good even if a caller panicked.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl flotilla_kv::Clock for NodeClock {
    fn now(&self) -> Result<Timestamp, ClockError> {
        Self::now(self)
    }

    fn physical(&self) -> Timestamp {
        let wall = self.readings().wall;
        Timestamp::from_wall(nanoseconds(self.state().physical(wall)))
    }

    fn mono(&self) -> Duration {
        Self::mono(self)
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn max_offset(&self) -> Duration {
        Self::max_offset(self)
    }
}

impl State {
    fn physical(&mut self, wall: Duration) -> Duration {
        self.physical = self.physical.max(wall);
        self.physical
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_mute_until_it_is_started_and_its_bound_is_durable() {
        let clock = NodeClock::new(Duration::from_millis(250));
        assert!(matches!(clock.now(), Err(ClockError::BeyondBound { .. })));
        let bound = clock.peek();
        clock.start_at(bound);
        assert!(clock.now().is_err(), "everything up to the bound may have been said before");
        clock.raise_bound(bound.plus(Duration::from_secs(60)));
        assert!(clock.now().unwrap() > bound);
    }

    #[test]
    fn a_wall_clock_that_steps_back_does_not_take_the_readings_along() {
        let clock = NodeClock::new(Duration::from_millis(250));
        clock.raise_bound(Timestamp::MAX);
        let before = clock.now().unwrap();
        clock.set_wrong_by_ns(-3_600_000_000_000);
        assert!(clock.now().unwrap() > before);
        let apart = clock.readings();
        assert!(Timestamp::from_wall(u64::try_from(apart.wall.as_nanos()).unwrap()) < before);
    }
}
