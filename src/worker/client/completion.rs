//! A client whose bytes somebody else moves.

use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use super::{Buffers, Client};
use crate::os::clock;
use crate::session::Wants;
use crate::time::MonotonicTime;
use crate::worker::tracker::WorkTracker;

/// How many bytes are sent in one piece.
const OUTPUT_BYTES: usize = 64 << 10;
/// How much memory for output a client keeps while it has none.
const KEPT_BYTES: usize = 4 << 10;

/// A client whose bytes are received and sent by somebody else who tells when it is done, such as a
/// ring of the kernel's. Made by [`Client::carried`].
///
/// After it was made, and after each call of [`received`](Self::received), [`sent`](Self::sent),
/// [`expire`](Self::expire) and [`drain`](Self::drain): if it [is over](Self::is_finished), drop it; otherwise
/// ask what is to be [sent](Self::send) and [received](Self::receive). Both may be under way at once. What
/// is under way stays where it is, also if this moves, and is never freed: if this is dropped
/// meanwhile, it is leaked.
pub struct CompletionClient<'s> {
    client: Client<'s>,
    input: Box<[u8]>,
    /// How many bytes of `input` have come and wait for their turn; 0 is the end.
    received_len: Option<usize>,
    output: Vec<u8>,
    is_receiving: bool,
    is_sending: bool,
}

impl<'s> Client<'s> {
    /// The same, for somebody else to carry what it sends and receives, of which so many bytes are
    /// received in one piece. It has that much memory for as long as it is there.
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
    /// What is to be sent now, if anything. From now on it is under way, until
    /// [`sent`](Self::sent).
    pub fn next_send(&mut self) -> Option<&[u8]> {
        if self.is_sending || self.client.session.wants() != Wants::Write {
            return None;
        }
        self.is_sending = true;
        let unsent = self.client.session.unsent();
        // The session may change its own meanwhile.
        self.output.extend_from_slice(&unsent[..unsent.len().min(OUTPUT_BYTES)]);
        Some(&self.output)
    }

    /// Where to receive now, if there is room. From now on it is under way, until
    /// [`received`](Self::received).
    pub fn next_recv(&mut self) -> Option<&mut [u8]> {
        if self.is_receiving || self.received_len.is_some() || !self.client.session.is_open() {
            return None;
        }
        self.is_receiving = true;
        Some(&mut self.input)
    }

    /// So many bytes of what was under way have been sent; `None` if the connection is broken.
    pub fn complete_send(
        &mut self,
        count: Option<usize>,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        self.is_sending = false;
        self.output.clear();
        self.output.shrink_to(KEPT_BYTES);
        match count {
            Some(n) => {
                self.client.session.on_sent(n, &mut buffers.spare, tracker, clock::now_coarse())
            }
            None => self.client.session.abort(),
        }
        self.advance(buffers, tracker);
    }

    /// So many bytes have been received, 0 at the end of the stream; `None` if the connection is
    /// broken.
    pub fn complete_recv(
        &mut self,
        count: Option<usize>,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        self.is_receiving = false;
        self.received_len = count;
        if count.is_none() {
            self.client.session.abort();
        }
        self.advance(buffers, tracker);
    }

    /// When [`expire`](Self::expire) is due, if nothing happens before.
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
            self.client.session.on_timeout(&mut buffers.spare, tracker, now);
            self.advance(buffers, tracker);
        }
    }

    /// Tells the session, once, that the worker is leaving.
    pub fn drain(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        if !self.client.drained {
            self.client.drain(buffers, tracker);
            self.advance(buffers, tracker);
        }
    }

    /// Whether it is over, and nothing is under way any more.
    pub fn is_finished(&self) -> bool {
        self.client.session.wants() == Wants::Closed && !self.is_receiving && !self.is_sending
    }

    /// Lets the session have what has come, and does to the socket what it wants done.
    fn advance(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        let (session, stream) = (&mut self.client.session, &self.client.stream);
        while matches!(session.wants(), Wants::Read | Wants::Linger)
            && let Some(count) = self.received_len.take()
        {
            session.on_received(
                &self.input[..count],
                &mut buffers.spare,
                tracker,
                clock::now_coarse(),
            );
        }
        match session.wants() {
            Wants::Linger => stream.shutdown_write(),
            Wants::Closed if self.is_receiving || self.is_sending => stream.shutdown(),
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
