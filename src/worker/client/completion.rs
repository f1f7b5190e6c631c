//! A client whose bytes the kernel or another component moves, and reports when it has.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::waiting::WaitingInput;
use super::{Buffers, Client, DriveStatus, ROUNDS_MAX};
use crate::os::clock;
use crate::session::{CloseRisk, Wants};
use crate::time::MonotonicTime;
use crate::worker::tracker::WorkTracker;

/// How many buffers for output are kept, and how large: the outputs of one submission.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: usize = 16 << 10;

impl Buffers {
    /// Makes a kept buffer the spare one, if there is none.
    fn lend_spare(&mut self) {
        if self.spare.capacity() == 0
            && let Some(buffer) = self.kept.pop()
        {
            self.spare = buffer;
        }
    }

    /// Keeps the spare buffer, so that another can be returned.
    fn keep_spare(&mut self) {
        let is_useful = (1..=KEPT_BYTES_MAX).contains(&self.spare.capacity());
        if is_useful && self.kept.len() < KEPT_MAX {
            self.kept.push(mem::take(&mut self.spare));
        }
    }
}

/// A client for completion-based I/O, such as io_uring: another component receives and sends the bytes,
/// and reports when it has. Made by [`Client::into_completion`].
///
/// After its creation, and after each call that may change it, ask for its [`status`](Self::status). It
/// owns no buffer, unless bytes arrive while its output waits.
pub struct CompletionClient<'s> {
    client: Client<'s>,
    /// What was received while output waits.
    waiting: WaitingInput,
}

impl<'s> Client<'s> {
    /// Turns it into a client for completion-based I/O.
    pub fn into_completion(self) -> CompletionClient<'s> {
        CompletionClient { client: self, waiting: WaitingInput::default() }
    }
}

impl CompletionClient<'_> {
    /// Returns what to do next.
    ///
    /// * [`WantRead`](DriveStatus::WantRead): receive.
    /// * [`WantWrite`](DriveStatus::WantWrite): send [`output`](Self::output). A receive may stay in
    ///   progress.
    /// * [`Closed`](DriveStatus::Closed): when nothing is in progress, call
    ///   [`try_close`](Self::try_close).
    pub fn status(&self) -> DriveStatus {
        match self.client.session.wants() {
            Wants::Read | Wants::Linger => DriveStatus::WantRead,
            Wants::Write => DriveStatus::WantWrite,
            Wants::Closed => DriveStatus::Closed,
        }
    }

    /// Returns the bytes to send.
    pub fn output(&self) -> &[u8] {
        self.client.session.unsent()
    }

    /// Returns how much memory holds bytes that were received, and wait until the output has been sent.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.memory()
    }

    /// Reports that the first `count` bytes of the output were sent.
    pub fn complete_send(
        &mut self,
        count: usize,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        tracker.begin_turn();
        self.report_sent(count, buffers, tracker);
    }

    fn report_sent(&mut self, count: usize, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        self.client.restore_records(tracker);
        self.client.report_sent(count, &mut buffers.spare, tracker);
        buffers.keep_spare();
        self.advance(buffers, tracker);
    }

    /// Sends output by system calls, until the socket's buffer is full
    /// ([`WantWrite`](DriveStatus::WantWrite)), nothing is left, or others must have their turn
    /// ([`Yield`](DriveStatus::Yield)).
    pub fn send_output(
        &mut self,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> DriveStatus {
        tracker.begin_turn();
        for _ in 0..ROUNDS_MAX {
            if self.status() != DriveStatus::WantWrite {
                return self.status();
            }
            match self.client.stream.send(self.output()) {
                Ok(count) => {
                    self.report_sent(count, buffers, tracker);
                    if self.client.session.is_paused() {
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return DriveStatus::WantWrite;
                }
                Err(_) => self.abort(buffers, tracker),
            }
        }
        DriveStatus::Yield
    }

    /// Reports received bytes; none is the end of the stream.
    pub fn complete_recv(
        &mut self,
        input: &[u8],
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        self.client.restore_records(tracker);
        match self.client.session.wants() {
            Wants::Read if self.waiting.is_empty() => {
                tracker.count_received(input.len());
                buffers.lend_spare();
                let spare = &mut buffers.spare;
                self.client.session.on_received(input, spare, tracker, clock::now());
            }
            Wants::Linger if self.waiting.is_empty() => {
                self.client.session.on_discarded(input.len(), clock::now());
            }
            // The socket is closed whether input is unread or not.
            Wants::Closed if self.client.session.close_risk() == CloseRisk::None => (),
            _ => self.waiting.add(input),
        }
        self.advance(buffers, tracker);
    }

    /// Reports that the connection is broken, or to be closed at once. What waits is dropped.
    pub fn abort(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        self.client.restore_records(tracker);
        self.client.session.abort();
        self.waiting.clear();
        self.advance(buffers, tracker);
    }

    /// Returns whether the session may take bytes that are received from now on: it does not end with
    /// its output, and nothing that was received waits.
    pub fn takes_input(&self) -> bool {
        self.client.session.is_open() && self.waiting.is_empty()
    }

    /// Returns when [`expire`](Self::expire) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.client.deadline()
    }

    /// Tells the session that its deadline has passed, and returns whether it has. Bytes that have
    /// arrived and that no operation has received count as in time. Call it only if no send is in
    /// progress, and nothing that was received is unreported.
    pub fn expire(
        &mut self,
        now: MonotonicTime,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> bool {
        let is_due = self.client.expire(now, buffers, tracker);
        if is_due {
            self.client.restore_records(tracker);
            self.advance(buffers, tracker);
        }
        is_due
    }

    /// Returns whether the session has been told that the worker drains.
    pub fn is_drained(&self) -> bool {
        self.client.is_drained()
    }

    /// Tells the session, once, that the worker drains.
    pub fn drain(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        self.client.drain(buffers, tracker);
        self.client.restore_records(tracker);
        self.advance(buffers, tracker);
    }

    /// Returns whether the socket can be closed. If that could cut off output, the session lingers
    /// instead. Call it only if nothing is in progress.
    pub fn try_close(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) -> bool {
        if self.status() != DriveStatus::Closed {
            return false;
        }
        let can_close = match self.client.session.close_risk() {
            CloseRisk::None => true,
            _ if self.waiting.has_ended() => true, // all input has been read
            _ if self.waiting.has_bytes() => {
                self.client.session.linger(clock::now());
                false
            }
            CloseRisk::Unread | CloseRisk::UnreadOrUnacknowledged => self.client.may_close(),
        };
        if !can_close {
            self.advance(buffers, tracker);
        }
        can_close
    }

    /// Hands what waits to the session, and shuts the sending side down if the session lingers.
    fn advance(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        if !self.waiting.is_empty() {
            self.hand_over(buffers, tracker);
        }
        if self.client.is_lingering() {
            self.client.shut_write();
        }
        self.client.settle_records(tracker);
    }

    #[cold]
    fn hand_over(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        while let wants @ (Wants::Read | Wants::Linger) = self.client.session.wants() {
            let Some(input) = self.waiting.next_piece() else { return };
            let length = input.len();
            if wants == Wants::Read {
                tracker.count_received(length);
            }
            self.client.session.on_received(input, &mut buffers.spare, tracker, clock::now());
            self.waiting.remove_piece(length);
        }
    }
}

impl AsFd for CompletionClient<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }
}

impl From<CompletionClient<'_>> for OwnedFd {
    /// Ends the session, and returns the socket to be closed.
    fn from(client: CompletionClient<'_>) -> Self {
        client.client.stream.into()
    }
}
