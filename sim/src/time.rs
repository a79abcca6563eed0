//! Virtual time: one true time for all, moved by the event queue, and the physical clock of each machine, which may differ.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_kv::Clock;
use flotilla_types::{ClockError, Hlc, Timestamp};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;

/// The largest offset that the cluster is configured for.
pub(crate) const MAX_OFFSET: Duration = Duration::from_millis(250);

/// When every run begins: far from zero, as real clocks are.
const START: Duration = Duration::from_secs(1_700_000_000);

/// Locks what only one thread ever locks.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Timers = BTreeMap<(Duration, u64), oneshot::Sender<()>>;

/// True time since the run began, and who waits for it.
#[derive(Debug, Default)]
pub(crate) struct Time {
    nanoseconds: AtomicU64,
    timers: Mutex<(u64, Timers)>,
}

impl Time {
    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    pub(crate) fn set(&self, now: Duration) {
        self.nanoseconds.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When the next sleeper wakes. Who does not wait any more is forgotten first.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        let mut timers = lock(&self.timers);
        while timers.1.first_key_value().is_some_and(|(_, sleeper)| sleeper.is_canceled()) {
            timers.1.pop_first();
        }
        timers.1.first_key_value().map(|((at, _), _)| *at)
    }

    /// Wakes who is due.
    pub(crate) fn fire(&self) {
        let now = self.now();
        let mut timers = lock(&self.timers);
        while timers.1.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
            if let Some((_, sleeper)) = timers.1.pop_first() {
                // Nobody waits any more: nothing to do.
                let _ = sleeper.send(());
            }
        }
    }

    pub(crate) fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let (sleeper, woken) = oneshot::channel();
        let mut timers = lock(&self.timers);
        timers.0 += 1;
        let number = timers.0;
        timers.1.insert((self.now() + time, number), sleeper);
        woken.map(drop).boxed()
    }
}

/// A machine's wall clock: runs at a rate of its own, and can be set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WallClock {
    /// Its reading at `set_at`.
    reading: Duration,
    set_at: Duration,
    /// 1 for a good clock, 0 for a frozen one.
    rate: f64,
}

impl Default for WallClock {
    fn default() -> Self {
        Self { reading: START, set_at: Duration::ZERO, rate: 1.0 }
    }
}

impl WallClock {
    pub(crate) fn read(&self, time: Duration) -> Duration {
        self.reading + (time.saturating_sub(self.set_at)).mul_f64(self.rate)
    }

    /// Runs at another rate from now on.
    pub(crate) fn run(&mut self, time: Duration, rate: f64) {
        *self = Self { reading: self.read(time), set_at: time, rate };
    }

    /// Steps, forward or back.
    pub(crate) fn step(&mut self, time: Duration, by_ms: i64) {
        let by = Duration::from_millis(by_ms.unsigned_abs());
        let reading = self.read(time);
        let reading = if by_ms < 0 { reading.saturating_sub(by) } else { reading + by };
        *self = Self { reading, set_at: time, rate: self.rate };
    }

    /// Shows true time again, from now on.
    pub(crate) fn mend(&mut self, time: Duration) {
        *self = Self { reading: START + time, set_at: time, rate: 1.0 };
    }
}

/// A node's clock, shared by its store and its router.
#[derive(Debug)]
pub(crate) struct NodeClock {
    time: Arc<Time>,
    wall: Arc<Mutex<WallClock>>,
    hlc: Mutex<Hlc>,
    /// Leases 1.4: a store that distrusts its clock gives clients no timestamps.
    suspended: Mutex<bool>,
}

impl NodeClock {
    pub(crate) fn new(time: Arc<Time>, wall: Arc<Mutex<WallClock>>, bound: Timestamp) -> Self {
        Self { time, wall, hlc: Mutex::new(Hlc::starting_at(bound, MAX_OFFSET)), suspended: Mutex::new(false) }
    }

    pub(crate) fn physical(&self) -> Duration {
        lock(&self.wall).read(self.time.now())
    }

    pub(crate) fn reading(&self) -> Result<Timestamp, ClockError> {
        lock(&self.hlc).now(self.physical())
    }

    pub(crate) fn peek(&self) -> Timestamp {
        lock(&self.hlc).peek(self.physical())
    }

    pub(crate) fn forward(&self, remote: Timestamp) -> Result<(), ClockError> {
        lock(&self.hlc).forward(remote, self.physical())
    }

    pub(crate) fn raise_bound(&self, bound: Timestamp) {
        lock(&self.hlc).raise_bound(bound);
    }

    pub(crate) fn suspend(&self, suspended: bool) {
        *lock(&self.suspended) = suspended;
    }
}

impl Clock for NodeClock {
    fn now(&self) -> Result<Timestamp, ClockError> {
        if *lock(&self.suspended) {
            let mut hlc = lock(&self.hlc);
            let reading = hlc.peek(self.physical());
            return Err(ClockError::BeyondBound { reading, bound: hlc.bound() });
        }
        self.reading()
    }

    fn physical(&self) -> Timestamp {
        Timestamp::from_wall(flotilla_types::nanoseconds(Self::physical(self)))
    }

    fn mono(&self) -> Duration {
        self.time.now()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.time.sleep(time)
    }

    fn max_offset(&self) -> Duration {
        MAX_OFFSET
    }
}
