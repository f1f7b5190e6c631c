//! A listener's place in the epoll instance of a worker.

use std::io;
use std::os::fd::AsRawFd;

use crate::listen::Listener;

/// After how many clients a listener leaves the epoll instance and joins it again: the kernel prefers
/// the process that joined first.
const CLIENTS_PER_JOIN: u32 = 4;

/// Whether a listener is in the epoll instance (EPOLLEXCLUSIVE), and what it has given since it joined.
#[derive(Clone, Copy, Default)]
pub(super) struct Registration {
    is_registered: bool,
    clients: u32,
}

impl Registration {
    pub(super) fn is_registered(self) -> bool {
        self.is_registered
    }

    /// Counts a client that it has given.
    pub(super) fn count_client(&mut self) {
        self.clients = self.clients.saturating_add(1);
    }

    /// Returns whether it must leave and join again, so that its next client wakes another worker. The
    /// queue of a shard has no other.
    pub(super) fn must_rejoin(self, listener: &Listener) -> bool {
        self.is_registered && self.clients >= CLIENTS_PER_JOIN && !listener.is_sharded()
    }

    /// Joins the epoll instance.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub(super) fn join(
        &mut self,
        listener: &Listener,
        epoll: &impl AsRawFd,
        token: usize,
    ) -> io::Result<()> {
        *self = Self { is_registered: true, clients: 0 };
        listener.watch(epoll, token)
    }

    /// Leaves the epoll instance.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub(super) fn leave(&mut self, listener: &Listener, epoll: &impl AsRawFd) -> io::Result<()> {
        *self = Self::default();
        listener.unwatch(epoll)
    }
}
