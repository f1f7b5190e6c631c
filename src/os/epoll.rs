//! EPOLLEXCLUSIVE, which mio does not offer: a new connection wakes one waiting process. And an epoll
//! instance for the sockets of the control interface, and for listeners without events of their own (Linux).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::clock;
use crate::time::MonotonicTime;

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

/// Adds `fd` to the epoll instance `epoll`. Edge-triggered; the event carries `token`.
///
/// # Errors
/// From epoll_ctl(2).
#[cfg(feature = "uring")]
pub(crate) fn add_edge(epoll: RawFd, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
    let mut event =
        libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: token };
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

/// What a descriptor is watched for. An error and a hang-up are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Bytes, a connection, or the end of the stream.
    Readable,
    /// Room for output.
    Writable,
    /// The end of the peer's stream, even if bytes before it are unread.
    PeerEnd,
    /// Nothing else.
    HangUp,
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) token: u64,
    /// No byte can be sent any more: the peer has closed its socket, or the connection is broken.
    pub(crate) is_broken: bool,
}

/// An epoll instance, level-triggered. A loop sleeps in it, or elsewhere: its descriptor is readable when
/// one of the watched ones is ready (Linux).
#[derive(Debug)]
pub(crate) struct EventQueue(Epoll);

impl EventQueue {
    /// Creates an instance that watches nothing.
    ///
    /// # Errors
    /// From epoll_create1(2).
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Begins to watch a descriptor. Its events carry `token`.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(flags(watch), token))?)
    }

    /// Changes what a descriptor is watched for.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub(crate) fn change(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> io::Result<()> {
        Ok(self.0.modify(fd, &mut EpollEvent::new(flags(watch), token))?)
    }

    /// Ends watching a descriptor.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = self.0.delete(fd); // It fails only if it is not watched.
    }

    /// Sleeps until a watched descriptor is ready or `deadline` has passed. Returns at most `max` tokens.
    /// A signal ends the wait early, with none.
    ///
    /// # Errors
    /// From epoll_wait(2).
    pub(crate) fn wait(&self, max: usize, deadline: Option<MonotonicTime>) -> io::Result<Vec<u64>> {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(at) => {
                let millis = at.duration_since(clock::now()).as_nanos().div_ceil(1_000_000);
                let millis = i32::try_from(millis).unwrap_or(i32::MAX);
                EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::NONE)
            }
        };
        let mut events = vec![EpollEvent::empty(); max];
        match self.0.wait(&mut events, timeout) {
            Ok(count) => Ok(events[..count].iter().map(EpollEvent::data).collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns at most `max` descriptors that are ready now, without waiting.
    pub(crate) fn take(&self, max: usize) -> Vec<Event> {
        let mut events = vec![EpollEvent::empty(); max];
        // It fails only for invalid arguments, and by a signal: the next turn asks again.
        let count = self.0.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let is_broken = |event: &EpollEvent| {
            event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
        };
        let ready = events[..count].iter();
        ready.map(|event| Event { token: event.data(), is_broken: is_broken(event) }).collect()
    }
}

impl AsFd for EventQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

fn flags(watch: Watch) -> EpollFlags {
    match watch {
        Watch::Readable => EpollFlags::EPOLLIN,
        Watch::Writable => EpollFlags::EPOLLOUT,
        Watch::PeerEnd => EpollFlags::EPOLLRDHUP,
        Watch::HangUp => EpollFlags::empty(),
    }
}
