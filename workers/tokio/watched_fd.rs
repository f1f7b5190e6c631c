//! Descriptors that tokio watches and others own.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A borrowed descriptor that tokio watches for reading.
pub(super) struct WatchedFd<'a>(AsyncFd<BorrowedFd<'a>>);

impl<'a> WatchedFd<'a> {
    /// Registers a descriptor with the runtime.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    #[expect(unsafe_code)]
    pub(super) fn register(fd: BorrowedFd<'a>) -> io::Result<Self> {
        // SAFETY: it is borrowed for as long as it is registered, so it stays open and the same.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Waits until it has become readable since the last time. Do what it reports only afterwards: a
    /// later event is then reported again.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.0.poll_read_ready(cx))?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}
