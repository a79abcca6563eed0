//! Hybrid logical clocks: Kulkarni and others, "Logical Physical Clocks" (2014), with a durable upper bound.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// A reading of a hybrid logical clock: nanoseconds since 1970, then a counter within one nanosecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Physical part: nanoseconds since 1970.
    pub wall: u64,
    /// Orders readings that share a physical part.
    pub logical: u32,
}

impl Timestamp {
    /// Before every reading.
    pub const ZERO: Self = Self { wall: 0, logical: 0 };
    /// After every reading.
    pub const MAX: Self = Self { wall: u64::MAX, logical: u32::MAX };

    /// A timestamp at the start of a nanosecond.
    #[must_use]
    pub const fn from_wall(wall: u64) -> Self {
        Self { wall, logical: 0 }
    }

    /// The smallest timestamp above this one. `MAX` stays where it is.
    #[must_use]
    pub const fn next(self) -> Self {
        match (self.logical.checked_add(1), self.wall.checked_add(1)) {
            (Some(logical), _) => Self { wall: self.wall, logical },
            (None, Some(wall)) => Self { wall, logical: 0 },
            (None, None) => Self::MAX,
        }
    }

    /// This timestamp moved into the future by a physical duration.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self { wall: self.wall.saturating_add(nanoseconds(by)), logical: self.logical }
    }

    /// This timestamp moved into the past by a physical duration.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self { wall: self.wall.saturating_sub(nanoseconds(by)), logical: self.logical }
    }

    /// Physical time from `earlier` to this; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.wall.saturating_sub(earlier.wall))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09},{}", self.wall / 1_000_000_000, self.wall % 1_000_000_000, self.logical)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a clock refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClockError {
    /// A peer's clock is further ahead than the bound on offsets allows (leases 1.2).
    #[error("a peer's clock is {ahead:?} ahead of this node's, more than the allowed {max_offset:?}")]
    Ahead {
        /// How far ahead.
        ahead: Duration,
        /// The bound.
        max_offset: Duration,
    },
    /// The reading lies above what is durable: the store's log disk is stalled, or it just started (leases 1.3).
    #[error("the clock reading {reading} lies above the durable bound {bound}")]
    BeyondBound {
        /// What the clock would have said.
        reading: Timestamp,
        /// The durable bound.
        bound: Timestamp,
    },
}

/// One store's hybrid logical clock. Pure: physical time is handed in.
///
/// Promises (leases 1.1 to 1.3): a reading is strictly greater than every reading made or received before, and
/// none above the durable bound is ever given out.
#[derive(Debug, Clone)]
pub struct Hlc {
    last: Timestamp,
    bound: Timestamp,
    max_offset: Duration,
}

impl Hlc {
    /// A clock that starts at `bound`: everything that this store said before a restart lies below.
    /// Give `Timestamp::ZERO` for a new store.
    #[must_use]
    pub const fn starting_at(bound: Timestamp, max_offset: Duration) -> Self {
        Self { last: bound, bound, max_offset }
    }

    /// Raises the durable bound; called when the bound's log write has returned.
    pub fn raise_bound(&mut self, bound: Timestamp) {
        self.bound = self.bound.max(bound);
    }

    /// The durable bound.
    #[must_use]
    pub const fn bound(&self) -> Timestamp {
        self.bound
    }

    /// The largest offset between two clocks of the cluster.
    #[must_use]
    pub const fn max_offset(&self) -> Duration {
        self.max_offset
    }

    /// A reading that may leave the store or decide a durable write.
    ///
    /// # Errors
    /// `BeyondBound` if the durable bound has fallen behind. The clock has advanced all the same.
    pub fn now(&mut self, physical: Duration) -> Result<Timestamp, ClockError> {
        let reading = self.peek(physical);
        if reading > self.bound {
            return Err(ClockError::BeyondBound { reading, bound: self.bound });
        }
        Ok(reading)
    }

    /// A reading for the store's own use, as for choosing the next bound. It must not leave the store.
    pub fn peek(&mut self, physical: Duration) -> Timestamp {
        self.last = self.last.next().max(Timestamp::from_wall(nanoseconds(physical)));
        self.last
    }

    /// Takes in a reading that came with a message of another store, before the message is looked at.
    ///
    /// # Errors
    /// `Ahead` if it is too far ahead of this store's physical time: drop the message.
    /// `BeyondBound` if it lies above this store's durable bound: hold the message until the bound has risen.
    pub fn forward(&mut self, remote: Timestamp, physical: Duration) -> Result<(), ClockError> {
        let ahead = Duration::from_nanos(remote.wall.saturating_sub(nanoseconds(physical)));
        if ahead > self.max_offset {
            return Err(ClockError::Ahead { ahead, max_offset: self.max_offset });
        }
        if remote > self.bound {
            return Err(ClockError::BeyondBound { reading: remote, bound: self.bound });
        }
        self.last = self.last.max(remote);
        Ok(())
    }
}

/// Nanoseconds as the wall part of a timestamp, a record and a message count them; saturates after 584 years.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn readings_grow_while_physical_time_stands_still_or_steps_back() {
        let mut clock = Hlc::starting_at(Timestamp::ZERO, SECOND);
        clock.raise_bound(Timestamp::MAX);
        let first = clock.now(10 * SECOND).unwrap();
        let second = clock.now(10 * SECOND).unwrap();
        let third = clock.now(9 * SECOND).unwrap();
        assert!(first < second && second < third);
    }

    #[test]
    fn nothing_above_the_durable_bound_is_said() {
        let mut clock = Hlc::starting_at(Timestamp::ZERO, SECOND);
        clock.raise_bound(Timestamp::from_wall(5_000_000_000));
        assert!(clock.now(4 * SECOND).is_ok());
        assert!(matches!(clock.now(6 * SECOND), Err(ClockError::BeyondBound { .. })));
        clock.raise_bound(Timestamp::from_wall(8_000_000_000));
        assert!(clock.now(6 * SECOND).is_ok());
    }

    #[test]
    fn a_peer_may_pull_the_clock_forward_only_within_the_offset() {
        let mut clock = Hlc::starting_at(Timestamp::ZERO, SECOND);
        clock.raise_bound(Timestamp::MAX);
        let remote = Timestamp::from_wall(10_500_000_000);
        clock.forward(remote, 10 * SECOND).unwrap();
        assert!(clock.now(10 * SECOND).unwrap() > remote);
        let far = Timestamp::from_wall(12_000_000_000);
        assert!(matches!(clock.forward(far, 10 * SECOND), Err(ClockError::Ahead { .. })));
    }

    #[test]
    fn the_logical_part_carries_over() {
        let edge = Timestamp { wall: 7, logical: u32::MAX };
        assert_eq!(edge.next(), Timestamp { wall: 8, logical: 0 });
        assert_eq!(Timestamp::MAX.next(), Timestamp::MAX);
    }
}
