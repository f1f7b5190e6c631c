//! Clients whose output was sent, and whose input is read on until its end or a limit before their
//! sockets are closed, while the worker serves others.

use std::os::fd::{AsFd, BorrowedFd};

use super::client::Client;
use crate::time::MonotonicTime;

/// How many clients may linger at once. If there are more, the oldest is closed.
const CLIENTS_MAX: usize = 64;
/// How many bytes are discarded in one piece.
const PIECE: usize = 16 << 10;

/// The lingering clients of one thread.
#[derive(Default)]
pub(super) struct Lingering<'a> {
    clients: Vec<Client<'a>>,
    buffer: Vec<u8>,
}

impl<'a> Lingering<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    pub(super) fn add(&mut self, client: Client<'a>) {
        if self.clients.len() == CLIENTS_MAX {
            self.clients.remove(0);
        }
        self.clients.push(client);
    }

    /// Discards what has arrived, and closes the sockets of clients that have ended or are due.
    pub(super) fn update(&mut self, now: MonotonicTime) {
        let Self { clients, buffer } = self;
        buffer.resize(PIECE, 0);
        clients.retain_mut(|client| !client.discard_input(buffer, now));
    }

    /// Returns the sockets to watch for input.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.clients.iter().map(AsFd::as_fd)
    }

    /// Returns when [`update`](Self::update) is due, if no input arrives before.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        self.clients.iter().filter_map(Client::deadline).min()
    }
}
