//! Sleeping until there is something to do, for the clients of the control interface or for others.

use std::io;
use std::os::fd::BorrowedFd;

use crate::os::signal::Signal;
use crate::os::{clock, poll};
use crate::time::MonotonicTime;

/// What ends a sleep: one of the descriptors is readable, or the deadline has passed.
#[derive(Default)]
pub(super) struct WakeSources<'a> {
    pub(super) fds: Vec<BorrowedFd<'a>>,
    pub(super) deadline: Option<MonotonicTime>,
}

/// Why the loop wakes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Any step of a turn may have something to do.
    Anything,
    /// Only the clients of the control interface have something to do.
    ControlClients,
}

/// Sleeps until a source has something to do, or a signal arrives. `deferred` is blocked meanwhile.
///
/// # Errors
/// `ENOMEM`, from ppoll(2).
pub(super) fn sleep(
    control: &WakeSources<'_>,
    others: &WakeSources<'_>,
    deferred: Option<Signal>,
) -> io::Result<Wake> {
    let fds = [&control.fds[..], &others.fds[..]].concat();
    let deadline = earliest([control.deadline, others.deadline]);
    let ready = poll::wait_readable_unblocked(&fds, deadline, deferred)?;
    let (for_control, for_others) = ready.split_at(control.fds.len());
    let is_others_due = others.deadline.is_some_and(|deadline| deadline <= clock::now());
    let have_others_work = for_others.contains(&true) || is_others_due;
    // A deadline alone is not enough: a signal may have ended the sleep at that time.
    let is_for_control = for_control.contains(&true) && !have_others_work;
    Ok(if is_for_control { Wake::ControlClients } else { Wake::Anything })
}

/// Returns the earliest deadline.
pub(super) fn earliest(
    deadlines: impl IntoIterator<Item = Option<MonotonicTime>>,
) -> Option<MonotonicTime> {
    deadlines.into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    const FAR: Duration = Duration::from_secs(600);
    const PASSED: Duration = Duration::ZERO;

    /// Sleeps until a time from now, for a control client and for another, each readable or not.
    fn wake(control: (bool, Duration), other: (bool, Duration)) -> Wake {
        let socket = |is_readable| {
            let (here, mut there) = UnixStream::pair().unwrap();
            if is_readable {
                there.write_all(b"x").unwrap();
            }
            (here, there)
        };
        let now = clock::now();
        let sockets = [socket(control.0), socket(other.0)];
        let source = |index: usize, time| WakeSources {
            fds: vec![sockets[index].0.as_fd()],
            deadline: Some(now.saturating_add(time)),
        };
        sleep(&source(0, control.1), &source(1, other.1), None).unwrap()
    }

    #[test]
    fn only_readable_control_clients_wake_for_themselves() {
        assert!(wake((true, FAR), (false, FAR)) == Wake::ControlClients);
    }

    #[test]
    fn other_work_wakes_for_anything() {
        assert!(wake((false, FAR), (true, FAR)) == Wake::Anything);
        assert!(wake((true, FAR), (true, FAR)) == Wake::Anything, "both");
        assert!(wake((true, FAR), (false, PASSED)) == Wake::Anything, "a deadline of others");
        assert!(wake((false, FAR), (false, PASSED)) == Wake::Anything);
    }

    /// A signal may have arrived at the same time.
    #[test]
    fn control_deadline_alone_wakes_for_anything() {
        assert!(wake((false, PASSED), (false, FAR)) == Wake::Anything);
        assert!(wake((false, Duration::from_millis(10)), (false, FAR)) == Wake::Anything);
    }
}
