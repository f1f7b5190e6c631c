//! A ring of io_uring(7) for one thread (Linux 6.1). It owns all memory that the kernel reads or writes
//! while an operation is in flight, so its users need no `unsafe`.

mod input;
mod output;
mod probe;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::epoll;
pub use input::Input;
use input::{BUFFER_GROUP, InputBuffers};
use output::OutputArena;
use probe::builder;
pub(crate) use probe::probe;

/// How many operations can be queued before they are submitted.
const QUEUE_ENTRIES: u32 = 1024;
/// How many results the kernel keeps without allocating memory.
const RESULT_ENTRIES: u32 = 4096;
/// `IORING_ENTER_GETEVENTS` of linux/io_uring.h: the kernel runs the work that it has deferred.
const GET_EVENTS: u32 = 1;

/// What an operation is, in the lowest bits of its user data; the token is above them.
const RECEIVE: u64 = 0;
const SEND: u64 = 1;
const POLL: u64 = 2;
const CANCEL: u64 = 3;
const KIND_BITS: u32 = 2;
/// The user data of operations whose result does not matter.
const CLOSE: u64 = u64::MAX;

/// A ring for one thread. Operations are queued, and submitted all at once by [`turn`](Self::turn); their
/// results carry the token that they were queued with.
pub struct Ring {
    ring: IoUring,
    /// What the kernel writes to when results come while the thread sleeps.
    event: EventFd,
    input: InputBuffers,
    output: OutputArena,
    completions: Vec<Completion>,
    failed_sends: Vec<FailedSend>,
}

/// A result.
#[derive(Debug)]
pub enum Completion {
    /// Of [`Ring::receive_once`] or [`Ring::receive_all`].
    Received {
        /// That of the operation.
        token: usize,
        /// What was received.
        received: Received,
        /// Whether the operation has ended. Otherwise more results follow.
        is_last: bool,
    },
    /// Of [`Ring::poll_writable`]: there is room for output, or the connection is broken.
    Writable {
        /// That of the operation.
        token: usize,
    },
    /// The operation that was to be cancelled is not there, or cannot be cancelled now.
    NotCancelled {
        /// That of the operation.
        token: usize,
    },
}

impl Completion {
    /// Returns the token of the operation.
    fn token(&self) -> usize {
        match *self {
            Self::Received { token, .. }
            | Self::Writable { token }
            | Self::NotCancelled { token } => token,
        }
    }
}

/// What was received.
#[derive(Debug)]
pub enum Received {
    /// Bytes: see [`Ring::bytes`]. Call [`Ring::release`] when you have read them.
    Bytes(Input),
    /// The end of the stream.
    End,
    /// Nothing: no buffer was free, or the operation was cancelled.
    Nothing,
    /// The connection is broken.
    Broken,
}

/// A [`Ring::send`] that has not sent all its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedSend {
    /// That of the operation.
    pub token: usize,
    /// How many bytes were sent before the socket's buffer was full; `None` if the connection is broken.
    pub sent: Option<usize>,
}

impl Ring {
    /// Opens a ring for the calling thread.
    ///
    /// # Errors
    /// From io_uring_setup(2) and io_uring_register(2).
    pub fn new() -> io::Result<Self> {
        let ring = builder().setup_cqsize(RESULT_ENTRIES).build(QUEUE_ENTRIES)?;
        let input = InputBuffers::register(&ring)?;
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_fd().as_raw_fd())?;
        let output = OutputArena::new();
        let (completions, failed_sends) = (Vec::new(), Vec::new());
        let mut ring = Self { ring, event, input, output, completions, failed_sends };
        ring.end_sleep();
        Ok(ring)
    }

    /// Adds the ring to an epoll instance, for a sleep that [`begin_sleep`](Self::begin_sleep) has begun.
    /// Its event says that [`turn`](Self::turn) has something to do.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn watch(&self, epoll: &impl AsRawFd, token: usize) -> io::Result<()> {
        epoll::add_edge(epoll.as_raw_fd(), self.event.as_fd(), token as u64)
    }

    /// Makes the kernel report results in the epoll instance. Returns false, and does not, if
    /// [`turn`](Self::turn) has something to do already.
    pub fn begin_sleep(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel notes work, and looks then whether to report it; so look after asking for that.
        fence(Ordering::SeqCst);
        let may_sleep = !self.has_work() && self.completions.is_empty();
        if !may_sleep {
            self.end_sleep();
        }
        may_sleep
    }

    /// Makes the kernel report nothing while the thread is awake: it asks the ring anyway.
    pub fn end_sleep(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    /// Submits all that is queued, and collects results, without waiting. Returns whether all was
    /// submitted: then each [`send`](Self::send) has sent all its bytes, except the
    /// [failed ones](Self::failed_sends).
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn turn(&mut self) -> io::Result<bool> {
        if self.has_work() {
            self.enter()?;
        }
        Ok(self.ring.submission().is_empty())
    }

    /// As [`turn`](Self::turn), but waits until there are as many `results`, or until `limit` has passed.
    /// Failed sends count too.
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn turn_with_results(&mut self, results: usize, limit: Duration) -> io::Result<bool> {
        let missing = results.saturating_sub(self.completions.len());
        if missing == 0 {
            return self.turn();
        }
        let limit = Timespec::from(limit);
        let args = SubmitArgs::new().timespec(&limit);
        let entered = self.ring.submitter().submit_with_args(missing, &args);
        self.finish(entered)?;
        if self.ring.submission().cq_overflow() {
            self.enter()?; // a failed send may be among these results
        }
        Ok(self.ring.submission().is_empty())
    }

    /// Returns whether [`turn_with_results`](Self::turn_with_results) wakes the thread once for all results.
    /// Older kernels than 6.7 may wake it for each; this is true from Linux 6.12 on, which can be asked for.
    pub fn wakes_once(&self) -> bool {
        self.ring.params().is_feature_min_timeout()
    }

    /// Returns whether [`turn`](Self::turn) has something to do, as far as can be seen without a system
    /// call.
    pub fn has_work(&mut self) -> bool {
        let queue = self.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Moves the results that were collected to `results`, the oldest first.
    pub fn take_completions(&mut self, results: &mut Vec<Completion>) {
        results.append(&mut self.completions);
    }

    /// Returns whether results of an operation with this token were collected and not taken.
    pub fn has_completion_of(&self, token: usize) -> bool {
        self.completions.iter().any(|completion| completion.token() == token)
    }

    /// Takes the sends that have failed.
    pub fn failed_sends(&mut self) -> impl Iterator<Item = FailedSend> {
        self.failed_sends.drain(..)
    }

    /// Receives once.
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn receive_once(&mut self, fd: BorrowedFd<'_>, token: usize) -> io::Result<()> {
        let receive = opcode::Recv::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), 0);
        let receive = receive.buf_group(BUFFER_GROUP).build().flags(Flags::BUFFER_SELECT);
        self.push(receive.user_data(user_data(token, RECEIVE)))
    }

    /// Receives again and again, until a result is the last. It begins by waiting for bytes.
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn receive_all(&mut self, fd: BorrowedFd<'_>, token: usize) -> io::Result<()> {
        let receive = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), BUFFER_GROUP).build();
        self.push(receive.user_data(user_data(token, RECEIVE)))
    }

    /// Returns received bytes.
    pub fn bytes(&self, input: &Input) -> &[u8] {
        self.input.bytes(input)
    }

    /// Gives the memory of received bytes back to the kernel.
    pub fn release(&mut self, input: Input) {
        self.input.release(input);
    }

    /// Sends bytes, or as many as the socket's buffer takes, when all is submitted. Returns false, and
    /// does nothing, if they are too many: send them otherwise.
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn send(&mut self, fd: BorrowedFd<'_>, bytes: &[u8], token: usize) -> io::Result<bool> {
        if !self.output.fits(bytes) {
            self.enter()?;
        }
        // First, since room is made by a submission, which empties the memory for output.
        self.make_room()?;
        let Some(copy) = self.output.add(bytes) else { return Ok(false) };
        // With MSG_DONTWAIT the kernel does not wait for room, and so never keeps the memory. With
        // MSG_WAITALL a part of the bytes counts as a failure, and only failures have a result.
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let send = opcode::Send::new(Fd(fd.as_raw_fd()), copy.as_ptr(), copy.len() as u32);
        let send = send.flags(flags).build().flags(Flags::SKIP_SUCCESS);
        self.push(send.user_data(user_data(token, SEND)))?;
        Ok(true)
    }

    /// Reports when a socket has room for output.
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn poll_writable(&mut self, fd: BorrowedFd<'_>, token: usize) -> io::Result<()> {
        let poll = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLOUT as u32).build();
        self.push(poll.user_data(user_data(token, POLL)))
    }

    /// Cancels a receive. Its last result follows, unless there is a [`Completion::NotCancelled`].
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn cancel_receive(&mut self, token: usize) -> io::Result<()> {
        self.cancel(token, RECEIVE)
    }

    /// Cancels a [`poll_writable`](Self::poll_writable), which then reports room.
    ///
    /// # Errors
    /// From io_uring_enter(2).
    pub fn cancel_poll(&mut self, token: usize) -> io::Result<()> {
        self.cancel(token, POLL)
    }

    fn cancel(&mut self, token: usize, kind: u64) -> io::Result<()> {
        let cancel = opcode::AsyncCancel::new(user_data(token, kind)).build();
        self.push(cancel.flags(Flags::SKIP_SUCCESS).user_data(user_data(token, CANCEL)))
    }

    /// Closes a descriptor when all is submitted.
    ///
    /// # Errors
    /// From io_uring_enter(2); the descriptor is closed.
    pub fn close(&mut self, fd: OwnedFd) -> io::Result<()> {
        self.make_room()?;
        let close = opcode::Close::new(Fd(fd.into_raw_fd())).build();
        self.push(close.flags(Flags::SKIP_SUCCESS).user_data(CLOSE))
    }

    fn push(&mut self, entry: Entry) -> io::Result<()> {
        self.make_room()?;
        // SAFETY: memory that the entry points to is in `output`, which changes only when the kernel has
        // taken all entries; it keeps none of it, since no such entry waits (MSG_DONTWAIT).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)
    }

    /// Submits what is queued if nothing more can be queued.
    fn make_room(&mut self) -> io::Result<()> {
        while self.ring.submission().is_full() {
            self.enter()?;
        }
        Ok(())
    }

    /// Submits what is queued, has the kernel run what it has deferred, and collects the results.
    fn enter(&mut self) -> io::Result<()> {
        loop {
            let queued = self.ring.submission().len() as u32;
            // SAFETY: the entries are valid (see `push`), and there is no argument.
            let entered = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(queued, 0, GET_EVENTS, None)
            };
            self.finish(entered)?;
            if !self.ring.submission().cq_overflow() {
                return Ok(());
            }
        }
    }

    /// Collects the results after a call of io_uring_enter(2).
    fn finish(&mut self, entered: io::Result<usize>) -> io::Result<()> {
        self.collect();
        // The kernel had no memory for results, and does not say which.
        let has_lost = self.ring.completion().overflow() > 0;
        match entered.map_err(|error| (error.raw_os_error(), error)) {
            _ if has_lost => {
                return Err(io::Error::other("io_uring has lost results for lack of memory"));
            }
            // No memory for more, or too many results: they have been collected now. Or the end of a wait.
            Ok(_) | Err((Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ETIME), _)) => (),
            Err((_, error)) => return Err(error),
        }
        if self.ring.submission().is_empty() {
            self.output.clear();
        }
        Ok(())
    }

    /// Collects the results that are there.
    fn collect(&mut self) {
        let Self { ring, input, completions, failed_sends, .. } = self;
        for entry in ring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            if data == CLOSE {
                continue;
            }
            let token = (data >> KIND_BITS) as usize;
            match data & ((1 << KIND_BITS) - 1) {
                RECEIVE => {
                    let buffer = cqueue::buffer_select(entry.flags());
                    let bytes = buffer.and_then(|buffer| input.take(buffer, result));
                    let received = bytes.map_or_else(|| received(result), Received::Bytes);
                    let is_last = !cqueue::more(entry.flags());
                    completions.push(Completion::Received { token, received, is_last });
                }
                SEND => {
                    let sent = match result {
                        0.. => Some(result as usize),
                        _ if result == -libc::EAGAIN || result == -libc::EINTR => Some(0),
                        _ => None,
                    };
                    failed_sends.push(FailedSend { token, sent });
                }
                POLL => completions.push(Completion::Writable { token }),
                _ => completions.push(Completion::NotCancelled { token }),
            }
        }
    }
}

impl Drop for Ring {
    /// Submits what is queued: the descriptors of queued closes belong to nothing else.
    fn drop(&mut self) {
        if !self.ring.submission().is_empty() {
            self.enter().ok(); // the end of the process closes them too
        }
    }
}

/// Returns what a receive without bytes means.
fn received(result: i32) -> Received {
    match -result {
        0 => Received::End,
        libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR => Received::Nothing,
        _ => Received::Broken,
    }
}

fn user_data(token: usize, kind: u64) -> u64 {
    ((token as u64) << KIND_BITS) | kind
}
