//! An alarm clock: it rings on a date, and tells when somebody sets the clock (Linux).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::stamp::WallTime;

/// A timer on the wall clock.
pub(crate) struct Alarm(TimerFd);

/// What an alarm has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// Nothing yet.
    Silent,
    /// The date has come.
    OnDate,
    /// The clock has been set since the alarm was.
    ClockSet,
}

impl Alarm {
    /// An alarm that is not set.
    ///
    /// # Errors
    /// From timerfd_create(2): no descriptors, no memory.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?))
    }

    /// Sets it to a date; one in the past rings at once.
    ///
    /// # Errors
    /// From timerfd_settime(2).
    pub(crate) fn set(&self, date: WallTime) -> io::Result<()> {
        let nanos = date.as_nanos().max(1); // zero would switch it off
        let date = TimeSpec::new((nanos / 1_000_000_000) as i64, (nanos % 1_000_000_000) as i64);
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        Ok(self.0.set(Expiration::OneShot(date), flags)?)
    }

    /// What it has to say, when it is readable. Then it has said it.
    ///
    /// # Errors
    /// From read(2).
    pub(crate) fn ring(&self) -> io::Result<Ring> {
        match self.0.wait() {
            Ok(()) => Ok(Ring::OnDate),
            Err(Errno::ECANCELED) => Ok(Ring::ClockSet),
            Err(Errno::EAGAIN) => Ok(Ring::Silent),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::{clock, poll};
    use crate::stamp::Stamp;

    fn is_heard(alarm: &Alarm, by: Option<Stamp>) -> bool {
        poll::wait_readable(&[alarm.as_fd()], by).unwrap() == [true]
    }

    #[test]
    fn an_alarm_rings_on_its_date_and_not_before() {
        let alarm = Alarm::new().unwrap();
        let soon = clock::moment().wall.as_nanos() + 50_000_000;
        for date in [0, 1, soon] {
            alarm.set(WallTime::from_nanos(date)).unwrap();
            assert!(is_heard(&alarm, None));
            assert_eq!(alarm.ring().unwrap(), Ring::OnDate);
            assert_eq!(alarm.ring().unwrap(), Ring::Silent, "it has rung");
        }
        assert!(clock::moment().wall.as_nanos() >= soon);
        alarm.set(WallTime::from_nanos(soon + 3_600_000_000_000)).unwrap();
        assert!(!is_heard(&alarm, Some(clock::now().after(Duration::from_millis(20)))));
        assert_eq!(alarm.ring().unwrap(), Ring::Silent);
    }
}
