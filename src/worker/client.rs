//! A client's socket and session together, and how far a turn gets them.

mod completion;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::context::WorkerContext;
use super::lifecycle::{Lifecycle, StopRequest};
use super::tracker::WorkTracker;
use crate::listen::Stream;
use crate::os::clock;
use crate::os::poll::{self, Interest};
use crate::session::{Session, Wants};
use crate::time::MonotonicTime;
pub use completion::CompletionClient;

/// How many bytes are received in one piece.
const INPUT_BYTES: usize = 64 << 10;
/// How often one client may go round before others have their turn.
const ROUNDS_MAX: usize = 16;

/// A client that is being served.
pub struct Client<'s> {
    stream: Stream,
    session: Session<'s>,
    drained: bool,
}

/// Where a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveStatus {
    /// It waits for bytes.
    WantRead,
    /// It waits for room for output.
    WantWrite,
    /// It could go on at once, but has had its share.
    Yield,
    /// It is over.
    Closed,
}

/// How much of what has arrived a turn must look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    /// Until the kernel says that there is no more. For edge-triggered events that tell of an end
    /// of the stream, which would not be told of twice.
    UntilWouldBlock,
    /// A short read may be taken as the end: whatever comes later wakes anew.
    UntilShortRead,
}

/// The buffers that the clients of one thread share.
pub struct Buffers {
    input: Box<[u8]>,
    spare: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { input: vec![0; INPUT_BYTES].into_boxed_slice(), spare: Vec::new() }
    }
}

impl<'s> Client<'s> {
    pub(super) fn new(stream: Stream, session: Session<'s>) -> Self {
        Self { stream, session, drained: false }
    }

    /// When [`expire`](Self::expire) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.session.deadline()
    }

    /// Goes as far as it can without waiting: receives, asks the service, sends.
    pub fn drive(
        &mut self,
        mode: ReadMode,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> DriveStatus {
        let Buffers { input, spare } = buffers;
        let mut drained_input = false;
        for _ in 0..ROUNDS_MAX {
            let moved = match self.session.wants() {
                Wants::Closed => return DriveStatus::Closed,
                Wants::Write => self.stream.send(self.session.unsent()).map(|n| {
                    self.session.on_sent(n, spare, tracker, clock::now_coarse());
                }),
                Wants::Read if drained_input => return DriveStatus::WantRead,
                wants @ (Wants::Read | Wants::Linger) => {
                    if wants == Wants::Linger {
                        self.stream.shutdown_write();
                    }
                    self.stream.receive(input).map(|n| {
                        drained_input =
                            mode == ReadMode::UntilShortRead && 0 < n && n < input.len();
                        self.session.on_received(&input[..n], spare, tracker, clock::now_coarse());
                    })
                }
            };
            match moved {
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return match self.session.wants() {
                        Wants::Write => DriveStatus::WantWrite,
                        Wants::Read | Wants::Linger => DriveStatus::WantRead,
                        Wants::Closed => DriveStatus::Closed,
                    };
                }
                Err(_) => self.session.abort(),
            }
        }
        match self.session.wants() {
            Wants::Closed => DriveStatus::Closed,
            _ => DriveStatus::Yield,
        }
    }

    /// Tells the session that its deadline has passed, if it has. If so, a turn must follow. What has
    /// arrived by now has arrived in time, and so has room for output: whoever looks late must not
    /// blame the peer for it.
    pub fn expire(
        &mut self,
        now: MonotonicTime,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> bool {
        if !self.is_due(now) {
            return false;
        }
        let Buffers { input, spare } = buffers;
        let moved = match self.session.wants() {
            Wants::Read | Wants::Linger => self.stream.receive(input).map(|n| {
                self.session.on_received(&input[..n], spare, tracker, now);
            }),
            Wants::Write => self.stream.send(self.session.unsent()).map(|n| {
                self.session.on_sent(n, spare, tracker, now);
            }),
            Wants::Closed => Ok(()),
        };
        if moved.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            self.session.abort();
        }
        if self.is_due(now) {
            self.session.on_timeout(&mut buffers.spare, tracker, now);
        }
        true
    }

    fn is_due(&self, now: MonotonicTime) -> bool {
        self.session.deadline().is_some_and(|deadline| deadline <= now)
    }

    /// Tells the session, once, that the worker is leaving. A turn must follow.
    pub fn drain(&mut self, buffers: &mut Buffers, tracker: &mut WorkTracker<'_>) {
        if !self.drained {
            self.drained = true;
            self.session.drain(&mut buffers.spare, tracker, clock::now());
        }
    }

    /// Whether the session has been told that the worker is leaving.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Serves the client to its end, waiting where there is need, while the worker goes on
    /// beating. A graceful stop drains the client; a quick one ends it.
    pub fn serve(&mut self, ctx: &WorkerContext<'_>) {
        let (lifecycle, mut tracker) =
            (ctx.lifecycle(), ctx.lifecycle().tracker(0).with_heartbeat());
        self.serve_with(lifecycle, &mut Buffers::default(), &mut tracker);
    }

    /// As [`serve`](Self::serve), with buffers and a desk that are kept between clients.
    pub fn serve_with(
        &mut self,
        lifecycle: &Lifecycle,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        loop {
            let interest = match self.drive(ReadMode::UntilShortRead, buffers, tracker) {
                DriveStatus::Closed => return,
                DriveStatus::Yield => {
                    lifecycle.notify();
                    match lifecycle.read_signals() {
                        StopRequest::None => (),
                        StopRequest::Graceful => self.drain(buffers, tracker),
                        StopRequest::Immediate => return,
                    }
                    continue;
                }
                DriveStatus::WantRead => Interest::Readable,
                DriveStatus::WantWrite => Interest::Writable,
            };
            if self.wait(interest, lifecycle, buffers, tracker) == StopRequest::Immediate {
                return;
            }
        }
    }

    /// Sleeps until the socket is ready, the session has expired, or a signal has changed things.
    fn wait(
        &mut self,
        interest: Interest,
        lifecycle: &Lifecycle,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) -> StopRequest {
        loop {
            lifecycle.notify();
            let deadline =
                [lifecycle.next_heartbeat(), self.deadline()].into_iter().flatten().min();
            // Whoever has drained knows of the stop, and only waits for a harder one.
            let stop_fd = if self.drained { lifecycle.signal_fd() } else { lifecycle.stop_fd() };
            let fds = [
                (self.stream.as_fd(), interest),
                (lifecycle.signal_fd(), Interest::Readable),
                (stop_fd, Interest::Readable),
            ];
            let Ok([ready, woken, _]) = poll::wait(fds, deadline) else {
                self.session.abort(); // no memory for a poll: this client is given up
                return lifecycle.stop_request();
            };
            let stop = if woken { lifecycle.read_signals() } else { lifecycle.stop_request() };
            let drains = stop == StopRequest::Graceful && !self.drained;
            if drains {
                self.drain(buffers, tracker);
            }
            let expired = self.expire(clock::now(), buffers, tracker);
            if ready || expired || drains || stop == StopRequest::Immediate {
                return stop;
            }
        }
    }
}

impl AsFd for Client<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for Client<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
