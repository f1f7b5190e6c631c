//! The other end of a listener: one client.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::os::socket;

/// A client's socket. It never blocks.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Receives what is there. 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there yet; otherwise the connection is broken.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::receive(self.fd.as_fd(), buffer)
    }

    /// Sends as much as there is room for.
    ///
    /// # Errors
    /// `WouldBlock` if there is no room; otherwise the connection is broken.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::send(self.fd.as_fd(), bytes)
    }

    /// Tells the peer that nothing more will come.
    pub fn shutdown_write(&self) {
        socket::shutdown_write(self.fd.as_fd());
    }

    /// Ends both ways: whoever still waits for bytes, or for room, is told that it is over.
    pub fn shutdown(&self) {
        socket::shutdown_both(self.fd.as_fd());
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<Stream> for OwnedFd {
    fn from(stream: Stream) -> Self {
        stream.fd
    }
}
