//! Monotonic time as a plain number. Pure: this file must never read a clock (`os::clock` does).

use std::time::Duration;

/// A moment on the machine's monotonic clock, in nanoseconds since an arbitrary start that all
/// processes of one boot share. Wall-clock steps do not move it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonotonicTime(u64);

impl MonotonicTime {
    /// The moment `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is the later one.
    pub const fn duration_since(self, earlier: MonotonicTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment moved later by `delay`; the end of time if that is further than a stamp can say.
    pub const fn saturating_add(self, delay: Duration) -> Self {
        let nanos = delay.as_nanos();
        if nanos > u64::MAX as u128 {
            return Self(u64::MAX);
        }
        Self(self.0.saturating_add(nanos as u64))
    }

    /// This moment moved earlier by `time`; the clock's start if that is earlier than a stamp can
    /// say.
    pub const fn saturating_sub(self, time: Duration) -> Self {
        let nanos = time.as_nanos();
        if nanos > u64::MAX as u128 {
            return Self(0);
        }
        Self(self.0.saturating_sub(nanos as u64))
    }
}

/// A moment on the wall clock, in nanoseconds since 1970 (UTC). Unlike a [`MonotonicTime`] it jumps when
/// somebody sets the clock: for dates, never for deadlines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

impl WallTime {
    /// The moment `nanos` nanoseconds after the beginning of 1970.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the beginning of 1970.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time from `earlier` to this moment; zero if `earlier` is the later one.
    pub const fn duration_since(self, earlier: WallTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// This moment, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockReading {
    /// On the clock that nobody sets.
    pub monotonic: MonotonicTime,
    /// On the clock that tells the date.
    pub wall: WallTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let early = MonotonicTime::from_nanos(5);
        let late = early.saturating_add(Duration::from_nanos(10));
        assert_eq!(late.duration_since(early), Duration::from_nanos(10));
        assert_eq!(early.duration_since(late), Duration::ZERO);
        assert_eq!(early.saturating_add(Duration::MAX), MonotonicTime::from_nanos(u64::MAX));
        assert_eq!(late.saturating_sub(Duration::from_nanos(10)), early);
        assert_eq!(early.saturating_sub(Duration::from_nanos(6)), MonotonicTime::default());
        assert_eq!(early.saturating_sub(Duration::MAX), MonotonicTime::default());
    }
}
