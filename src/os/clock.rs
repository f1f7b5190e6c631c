//! The clocks. Only dates use the wall clock: its steps move no deadline.

use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::time::{ClockReading, MonotonicTime, WallTime};

/// Returns the current time to the nanosecond. Costs a vDSO call.
pub(crate) fn now() -> MonotonicTime {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Returns the time of the kernel's last tick, at most [`COARSE_LAG`] ago. A few times cheaper than
/// [`now`] (Linux).
pub(crate) fn now_coarse() -> MonotonicTime {
    read(ClockId::CLOCK_MONOTONIC_COARSE)
}

/// Returns the current time on the clock that also runs while the machine is suspended. Its times are
/// not those of [`now`].
pub(crate) fn boot_now() -> MonotonicTime {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Returns the current time on the monotonic clock and on the wall clock.
pub(crate) fn read_clocks() -> ClockReading {
    let wall = clock_gettime(ClockId::CLOCK_REALTIME).expect("every Linux has this clock");
    ClockReading { monotonic: now(), wall: WallTime::from_nanos(from_time_spec(wall).as_nanos()) }
}

/// The longest lag of [`now_coarse`]: a tick of 10 ms, as kernels with `HZ=100` have it.
pub(crate) const COARSE_LAG: Duration = Duration::from_millis(10);

/// Returns the CPU time of the calling thread, in user and in kernel mode. Costs a system call.
pub fn thread_cpu_time() -> Duration {
    Duration::from_nanos(read(ClockId::CLOCK_THREAD_CPUTIME_ID).as_nanos())
}

/// Returns whole seconds since 1970, as of the kernel's last tick (Linux). Use it for dates, never
/// for deadlines.
pub(crate) fn unix_seconds() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_REALTIME_COARSE)
        .expect("Linux has had this clock since 2.6.32");
    u64::try_from(time.tv_sec()).unwrap_or(0)
}

fn read(clock: ClockId) -> MonotonicTime {
    from_time_spec(clock_gettime(clock).expect("the clock's number is valid"))
}

/// Converts a time specification. A time before the clock's start counts as the start.
pub(super) fn from_time_spec(time: TimeSpec) -> MonotonicTime {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec()).unwrap_or(0);
    MonotonicTime::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Converts a time into a time specification.
pub(super) fn to_time_spec(time: MonotonicTime) -> TimeSpec {
    let nanos = time.as_nanos();
    // Both parts fit: u64::MAX nanoseconds are 585 years.
    TimeSpec::new((nanos / 1_000_000_000) as i64, (nanos % 1_000_000_000) as i64)
}
