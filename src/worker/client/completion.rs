//! A client whose bytes the kernel or another component moves, and reports when it has.

use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use super::{Buffers, Client};
use crate::os::clock;
use crate::session::Wants;
use crate::time::MonotonicTime;
use crate::worker::tracker::WorkTracker;

/// How many bytes are sent in one piece.
const OUTPUT_BYTES: usize = 64 << 10;
/// How much memory for output an idle client keeps.
const KEPT_BYTES: usize = 4 << 10;

/// A client for completion-based I/O, such as io_uring: another component receives and sends the bytes,
/// and reports when it has. Made by [`Client::into_completion`].
///
/// After its creation, and after each call of [`complete_recv`](Self::complete_recv),
/// [`complete_send`](Self::complete_send), [`expire`](Self::expire) and [`drain`](Self::drain): if it
/// [is finished](Self::is_finished), drop it. Otherwise start what [`next_send`](Self::next_send) and
/// [`next_recv`](Self::next_recv) return; both may be in progress at once. A buffer in progress keeps
/// its address, also if the client moves, and is never freed: if the client is dropped meanwhile, the
/// buffer is leaked.
pub struct CompletionClient<'s> {
    client: Client<'s>,
    input: Box<[u8]>,
    /// How many bytes of `input` wait for the session; 0 is the end of the stream.
    received_len: Option<usize>,
    output: Vec<u8>,
    is_receiving: bool,
    is_sending: bool,
}

impl<'s> Client<'s> {
    /// Turns it into a client for completion-based I/O, which receives up to `input` bytes at once and
    /// keeps a buffer of that size.
    pub fn into_completion(self, input: usize) -> CompletionClient<'s> {
        CompletionClient {
            client: self,
            input: vec![0; input].into_boxed_slice(),
            received_len: None,
            output: Vec::new(),
            is_receiving: false,
            is_sending: false,
        }
    }
}

impl CompletionClient<'_> {
    /// Returns the bytes to send now, if there are any. They are in progress until
    /// [`complete_send`](Self::complete_send).
    pub fn next_send(&mut self) -> Option<&[u8]> {
        if self.is_sending || self.client.session.wants() != Wants::Write {
            return None;
        }
        self.is_sending = true;
        let unsent = self.client.session.unsent();
        // A copy, since the session may change its own output meanwhile.
        self.output.extend_from_slice(&unsent[..unsent.len().min(OUTPUT_BYTES)]);
        Some(&self.output)
    }

    /// Returns the buffer to receive into now, if it is free. It is in progress until
    /// [`complete_recv`](Self::complete_recv).
    pub fn next_recv(&mut self) -> Option<&mut [u8]> {
        if self.is_receiving || self.received_len.is_some() || !self.client.session.is_open() {
            return None;
        }
        self.is_receiving = true;
        Some(&mut self.input)
    }

    /// Reports how many bytes were sent; `None` if the connection is broken.
    pub fn complete_send(
        &mut self,
        count: Option<usize>,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        self.is_sending = false;
        self.output.clear();
        self.output.shrink_to(KEPT_BYTES);
        self.client.restore_records(tracker);
        match count {
            Some(n) => {
                tracker.count_sent(n);
                self.client.session.on_sent(n, &mut buffers.spare, tracker, clock::now_coarse())
            }
            None => self.client.session.abort(),
        }
        self.advance(buffers, tracker);
    }

    /// Reports how many bytes were received, 0 at the end of the stream; `None` if the connection is
    /// broken.
    pub fn complete_recv(
        &mut self,
        count: Option<usize>,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        self.is_receiving = false;
        self.received_len = count;
        self.client.restore_records(tracker);
        match count {
            Some(n) if !self.client.is_lingering() => tracker.count_received(n),
            Some(_) => (),
            None => self.client.session.abort(),
        }
        self.advance(buffers, tracker);
    }

    /// Returns when [`expire`](Self::expire) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.client.deadline()
    }

    /// Tells the session that its deadline has passed, if it has.
    pub fn expire(
        &mut self,
        now: MonotonicTime,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        if self.client.is_due(now) {
            self.client.restore_records(tracker);
            self.client.session.on_timeout(&mut buffers.spare, tracker, now);
            self.advance(buffers, tracker);
        }
    }

    /// Tells the session, once, that the worker drains.
    pub fn drain(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        if !self.client.drained {
            self.client.drain(buffers, tracker);
            self.client.restore_records(tracker);
            self.advance(buffers, tracker);
        }
    }

    /// Returns whether the connection is closed and nothing is in progress.
    pub fn is_finished(&self) -> bool {
        self.client.session.wants() == Wants::Closed && !self.is_receiving && !self.is_sending
    }

    /// Hands what was received to the session, and shuts the socket down if the session wants that.
    fn advance(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        self.hand_over(buffers, tracker);
        self.client.settle_records(tracker);
    }

    fn hand_over(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        let client = &mut self.client;
        while matches!(client.session.wants(), Wants::Read | Wants::Linger)
            && let Some(count) = self.received_len.take()
        {
            client.session.on_received(
                &self.input[..count],
                &mut buffers.spare,
                tracker,
                clock::now(),
            );
        }
        if client.session.wants() == Wants::Closed {
            client.may_close(); // or it lingers
        }
        match client.session.wants() {
            Wants::Linger => client.shut_write(),
            Wants::Closed if self.is_receiving || self.is_sending => client.stream.shutdown(),
            Wants::Read | Wants::Write | Wants::Closed => (),
        }
    }
}

impl AsRawFd for CompletionClient<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.client.as_raw_fd()
    }
}

impl Drop for CompletionClient<'_> {
    fn drop(&mut self) {
        if self.is_receiving {
            mem::forget(mem::take(&mut self.input));
        }
        if self.is_sending {
            mem::forget(mem::take(&mut self.output));
        }
    }
}
