//! EPOLLEXCLUSIVE, which mio does not offer: a new connection wakes one waiting process (Linux).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Adds `fd` to the epoll instance `epoll` with EPOLLEXCLUSIVE: of all instances that wait for the
/// same file, the kernel wakes one, and not all. Level-triggered; the event carries `token`.
///
/// # Errors
/// From epoll_ctl(2).
pub(crate) fn add_exclusive(epoll: RawFd, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    let events = (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32;
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: `event` is a valid epoll_event that outlives the call; a bad descriptor is an error.
    super::check(unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
    })?;
    Ok(())
}

/// Removes `fd` from the epoll instance `epoll`.
///
/// # Errors
/// `ENOENT` if it is not in the instance; otherwise from epoll_ctl(2).
pub(crate) fn remove(epoll: RawFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: EPOLL_CTL_DEL ignores the event pointer, which may be null since Linux 2.6.9.
    super::check(unsafe {
        libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut())
    })?;
    Ok(())
}
