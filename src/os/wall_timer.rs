//! A timer on the wall clock, which also tells when the clock is set (Linux).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::time::WallTime;

/// A timer on the wall clock.
pub(crate) struct WallTimer(TimerFd);

/// What has happened to a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimerEvent {
    /// Nothing since the last read.
    Pending,
    /// The date has been reached.
    Expired,
    /// The wall clock has been set since the timer was set.
    ClockSet,
}

impl WallTimer {
    /// Creates a timer that is not set.
    ///
    /// # Errors
    /// From timerfd_create(2): no descriptors, no memory.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?))
    }

    /// Sets it to a date. A date in the past expires at once.
    ///
    /// # Errors
    /// From timerfd_settime(2).
    pub(crate) fn set(&self, date: WallTime) -> io::Result<()> {
        let nanos = date.as_nanos().max(1); // zero would disarm it
        let date = TimeSpec::new((nanos / 1_000_000_000) as i64, (nanos % 1_000_000_000) as i64);
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(self.0.set(Expiration::OneShot(date), flags)?)
    }

    /// Reads and clears the event of a readable timer.
    ///
    /// # Errors
    /// From read(2).
    pub(crate) fn read_event(&self) -> io::Result<TimerEvent> {
        match self.0.wait() {
            Ok(()) => Ok(TimerEvent::Expired),
            Err(Errno::ECANCELED) => Ok(TimerEvent::ClockSet),
            Err(Errno::EAGAIN) => Ok(TimerEvent::Pending),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for WallTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::{clock, poll};
    use crate::time::MonotonicTime;

    fn is_readable(timer: &WallTimer, by: Option<MonotonicTime>) -> bool {
        poll::wait_readable(&[timer.as_fd()], by).unwrap() == [true]
    }

    #[test]
    fn wall_timer_set_to_date_expires_then() {
        let timer = WallTimer::new().unwrap();
        let soon = clock::read_clocks().wall.as_nanos() + 50_000_000;
        for date in [0, 1, soon] {
            timer.set(WallTime::from_nanos(date)).unwrap();
            assert!(is_readable(&timer, None));
            assert_eq!(timer.read_event().unwrap(), TimerEvent::Expired);
            assert_eq!(timer.read_event().unwrap(), TimerEvent::Pending, "the event was read");
        }
        assert!(clock::read_clocks().wall.as_nanos() >= soon);
        timer.set(WallTime::from_nanos(soon + 3_600_000_000_000)).unwrap();
        assert!(!is_readable(&timer, Some(clock::now().saturating_add(Duration::from_millis(20)))));
        assert_eq!(timer.read_event().unwrap(), TimerEvent::Pending);
    }
}
