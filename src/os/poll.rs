//! Waiting until a descriptor is ready or a deadline has passed.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::TimeSpec;

use super::clock;
use super::signal::{self, Signal};
use crate::time::MonotonicTime;

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    /// Bytes, a connection, or the end of the stream.
    Readable,
    /// Room for output.
    Writable,
}

/// Waits until one of `fds` is ready or `deadline` has passed (`None`: no deadline). Returns which
/// are ready; errors and hang-ups count as ready. A signal ends the wait early, with none ready.
///
/// # Errors
/// `ENOMEM`, from ppoll(2).
pub(crate) fn wait<const N: usize>(
    fds: [(BorrowedFd<'_>, Interest); N],
    deadline: Option<MonotonicTime>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|(fd, interest)| PollFd::new(fd, flags(interest)));
    wait_on(&mut polled, deadline, None)?;
    Ok(polled.map(|fd| fd.any().unwrap_or(true)))
}

/// Waits as [`wait`] does, until one of any number of descriptors is readable.
///
/// # Errors
/// `ENOMEM` or `EINVAL` (more descriptors than the process may have), from ppoll(2).
pub(crate) fn wait_readable(
    fds: &[BorrowedFd<'_>],
    deadline: Option<MonotonicTime>,
) -> io::Result<Vec<bool>> {
    wait_readable_with(fds, deadline, None)
}

/// Waits as [`wait_readable`] does, with every signal but `blocked` unblocked meanwhile.
///
/// # Errors
/// As [`wait_readable`].
pub(crate) fn wait_readable_unblocked(
    fds: &[BorrowedFd<'_>],
    deadline: Option<MonotonicTime>,
    blocked: Option<Signal>,
) -> io::Result<Vec<bool>> {
    wait_readable_with(fds, deadline, Some(signal::set_of(blocked)))
}

fn wait_readable_with(
    fds: &[BorrowedFd<'_>],
    deadline: Option<MonotonicTime>,
    mask: Option<SigSet>,
) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    wait_on(&mut polled, deadline, mask)?;
    Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect())
}

/// Whether a write to `fd` would not block now.
pub(crate) fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let ready = wait([(fd, Interest::Writable)], Some(MonotonicTime::default()));
    matches!(ready, Ok([true]))
}

fn wait_on(
    polled: &mut [PollFd<'_>],
    deadline: Option<MonotonicTime>,
    mask: Option<SigSet>,
) -> io::Result<()> {
    let timeout = deadline.map(|at| TimeSpec::from_duration(at.duration_since(clock::now())));
    match ppoll(polled, timeout, mask) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn flags(interest: Interest) -> PollFlags {
    match interest {
        Interest::Readable => PollFlags::POLLIN,
        Interest::Writable => PollFlags::POLLOUT,
    }
}
