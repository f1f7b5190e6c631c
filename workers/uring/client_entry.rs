//! A client, and which of its operations are in progress.

use std::io;
use std::os::fd::AsFd;

use ostler::worker::{CompletionClient, Ring};

/// How far receiving has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receive {
    None,
    /// The kernel receives once: a client that closes after its first request leaves no operation that
    /// would have to be cancelled.
    Once,
    /// The kernel receives each time that bytes arrive.
    All,
    /// The operation is being cancelled.
    Cancelling,
}

pub(super) struct ClientEntry<'a> {
    pub(super) client: CompletionClient<'a>,
    pub(super) receive: Receive,
    /// How many bytes the ring sends with the next submission; 0 is none.
    pub(super) sending: usize,
    /// Whether the ring polls for room for output.
    pub(super) waits_for_room: bool,
    /// Whether that poll is being cancelled.
    pub(super) stops_waiting: bool,
    /// Whether it is in `EventLoop::ready`.
    pub(super) is_ready: bool,
    /// How many bytes of `CompletionClient::waiting_bytes` are counted.
    pub(super) counted_bytes: usize,
    /// For `Coalescing::note_client`.
    pub(super) seen: u32,
    /// Whether it has been received from.
    has_received: bool,
}

impl<'a> ClientEntry<'a> {
    pub(super) fn new(client: CompletionClient<'a>) -> Self {
        Self {
            client,
            receive: Receive::None,
            sending: 0,
            waits_for_room: false,
            stops_waiting: false,
            is_ready: false,
            counted_bytes: 0,
            seen: 0,
            has_received: false,
        }
    }

    /// Returns whether output is under way: then its end is reported.
    pub(super) fn is_sending(&self) -> bool {
        self.sending > 0 || self.waits_for_room || self.is_ready
    }

    /// Receives, unless that is in progress.
    pub(super) fn start_receiving(&mut self, ring: &mut Ring, token: usize) -> io::Result<()> {
        if self.receive != Receive::None || !self.client.takes_input() {
            return Ok(());
        }
        if std::mem::replace(&mut self.has_received, true) {
            self.receive = Receive::All;
            ring.receive_all(self.client.as_fd(), token)
        } else {
            self.receive = Receive::Once;
            ring.receive_once(self.client.as_fd(), token)
        }
    }

    /// Has the kernel receive no more. Its last result follows.
    pub(super) fn stop_receiving(&mut self, ring: &mut Ring, token: usize) -> io::Result<()> {
        if matches!(self.receive, Receive::Once | Receive::All) {
            self.receive = Receive::Cancelling;
            return ring.cancel_receive(token);
        }
        Ok(())
    }
}
