//! The connection to one client.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::os::socket;

/// A client's socket. It is nonblocking.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
}

impl Stream {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Receives the available bytes. 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if no bytes are available; otherwise the connection is broken.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        socket::receive(self.fd.as_fd(), buffer)
    }

    /// Sends as many bytes as the socket's buffer takes.
    ///
    /// # Errors
    /// `WouldBlock` if the buffer is full; otherwise the connection is broken.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        socket::send(self.fd.as_fd(), bytes)
    }

    /// Returns whether received bytes wait unread. Closing the socket would then reset the connection.
    pub fn has_unread(&self) -> bool {
        socket::unread_bytes(self.fd.as_fd()) > 0
    }

    /// Returns whether the peer has not acknowledged all that was sent.
    pub fn has_unacknowledged(&self) -> bool {
        socket::unacknowledged_bytes(self.fd.as_fd()) > 0
    }

    /// Shuts down the sending side: the peer reads the end of the stream.
    pub fn shutdown_write(&self) {
        socket::shutdown_write(self.fd.as_fd());
    }

    /// Shuts down both sides. A thread that waits to receive or to send on it is woken.
    pub fn shutdown(&self) {
        socket::shutdown_both(self.fd.as_fd());
    }
}

/// Returns the user of the process that listens, or has connected, at the other end of a unix socket
/// (`SO_PEERCRED`); `None` for other sockets.
pub fn peer_user(socket: BorrowedFd<'_>) -> Option<u32> {
    socket::peer_credentials(socket).map(|(user, _)| user)
}

/// Returns whether closing a client's socket could cut off what was sent, since input is unread. With
/// `has_long_output`, also if the peer has not acknowledged all output: input may still come. For a
/// class that owns the socket in its own way.
pub fn close_may_cut_off(socket: BorrowedFd<'_>, has_long_output: bool) -> bool {
    socket::unread_bytes(socket) > 0
        || (has_long_output && socket::unacknowledged_bytes(socket) > 0)
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
