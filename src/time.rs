//! Times as plain numbers. Pure: this file must not read a clock (`os::clock` does).

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// An instant on the machine's monotonic clock, in nanoseconds since an arbitrary start that all
/// processes of one boot share. Setting the wall clock does not change it. `+` and `-` saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonotonicTime(u64);

impl MonotonicTime {
    /// Creates the time `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to this one; zero if `earlier` is later.
    pub const fn duration_since(self, earlier: MonotonicTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Returns this time plus `delay`, at most `u64::MAX` nanoseconds after the clock's start.
    pub const fn saturating_add(self, delay: Duration) -> Self {
        let nanos = delay.as_nanos();
        if nanos > u64::MAX as u128 {
            return Self(u64::MAX);
        }
        Self(self.0.saturating_add(nanos as u64))
    }

    /// Returns this time minus `delay`, at least the clock's start.
    pub const fn saturating_sub(self, delay: Duration) -> Self {
        let nanos = delay.as_nanos();
        if nanos > u64::MAX as u128 {
            return Self(0);
        }
        Self(self.0.saturating_sub(nanos as u64))
    }
}

impl Add<Duration> for MonotonicTime {
    type Output = Self;

    /// Adds as [`saturating_add`](Self::saturating_add) does.
    fn add(self, delay: Duration) -> Self {
        self.saturating_add(delay)
    }
}

impl AddAssign<Duration> for MonotonicTime {
    /// Adds as [`saturating_add`](Self::saturating_add) does.
    fn add_assign(&mut self, delay: Duration) {
        *self = self.saturating_add(delay);
    }
}

impl Sub<Duration> for MonotonicTime {
    type Output = Self;

    /// Subtracts as [`saturating_sub`](Self::saturating_sub) does.
    fn sub(self, delay: Duration) -> Self {
        self.saturating_sub(delay)
    }
}

/// An instant on the wall clock, in nanoseconds since 1970 (UTC). Unlike a [`MonotonicTime`] it
/// jumps when the clock is set: use it for dates, never for deadlines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// Creates the time `nanos` nanoseconds after the beginning of 1970.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns the nanoseconds since the beginning of 1970.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the time from `earlier` to this one; zero if `earlier` is later.
    pub const fn duration_since(self, earlier: WallTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// One instant, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReading {
    /// On the monotonic clock, which cannot be set.
    pub monotonic: MonotonicTime,
    /// On the wall clock, which tells the date.
    pub wall: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_beyond_both_ends_saturates() {
        let early = MonotonicTime::from_nanos(5);
        let late = early.saturating_add(Duration::from_nanos(10));
        assert_eq!(late.duration_since(early), Duration::from_nanos(10));
        assert_eq!(early.duration_since(late), Duration::ZERO);
        assert_eq!(early.saturating_add(Duration::MAX), MonotonicTime::from_nanos(u64::MAX));
        assert_eq!(late.saturating_sub(Duration::from_nanos(10)), early);
        assert_eq!(early.saturating_sub(Duration::from_nanos(6)), MonotonicTime::default());
        assert_eq!(early.saturating_sub(Duration::MAX), MonotonicTime::default());
        assert_eq!(early + Duration::MAX - Duration::MAX, MonotonicTime::default());
    }
}
