//! One client of the control interface: its socket and its session.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::SystemTime;

use super::api::Endpoint;
use super::turn::Turn;
use crate::app::WorkReporter;
use crate::os::epoll::Watch;
use crate::os::passed_fds::UntrustedSocket;
use crate::os::socket;
use crate::session::{Session, Wants};
use crate::time::MonotonicTime;

/// How many bytes are received in one piece.
const INPUT_BYTES: usize = 8 << 10;
/// How many steps a client may take before the next client has its share of the turn: enough to send the
/// status of thousands of workers, if its socket takes that.
const STEPS_MAX: usize = 64;

/// The buffers that all clients share.
pub(super) struct Buffers {
    input: Box<[u8]>,
    spare: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { input: vec![0; INPUT_BYTES].into_boxed_slice(), spare: Vec::new() }
    }
}

pub(super) struct ControlClient<'a> {
    endpoint: Endpoint,
    /// Its user and its process, if it is one of `control_socket`.
    name: String,
    socket: UntrustedSocket,
    session: Session<'a>,
    active_at: MonotonicTime,
    /// The client has sent the end of its input while it waits.
    has_ended_input: bool,
}

impl<'a> ControlClient<'a> {
    pub(super) fn new(
        endpoint: Endpoint,
        name: String,
        socket: UntrustedSocket,
        session: Session<'a>,
        now: MonotonicTime,
    ) -> Self {
        Self { endpoint, name, socket, session, active_at: now, has_ended_input: false }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// Returns its user and its process, for the operations that it begins.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns when bytes last moved.
    pub(super) fn active_at(&self) -> MonotonicTime {
        self.active_at
    }

    /// Returns when [`on_timeout`](Self::on_timeout) is due.
    pub(super) fn deadline(&self) -> Option<MonotonicTime> {
        self.session.deadline()
    }

    /// Returns whether it waits for an answer that is not known yet, or for the next event.
    pub(super) fn is_waiting(&self) -> bool {
        self.session.is_waiting()
    }

    /// Returns whether it has output that its socket has not taken yet.
    pub(super) fn is_sending(&self) -> bool {
        self.session.wants() == Wants::Write
    }

    /// Returns what its socket is watched for.
    pub(super) fn watch(&self) -> Watch {
        match self.session.wants() {
            _ if self.is_waiting() && self.has_ended_input => Watch::HangUp,
            _ if self.is_waiting() => Watch::PeerEnd,
            Wants::Write => Watch::Writable,
            Wants::Read | Wants::Linger | Wants::Closed => Watch::Readable,
        }
    }

    /// Learns that a waiting client has ended its input, or that its socket is broken. Returns whether it
    /// may still read. A client of `metrics_bind` may not: a TCP client that has gone shows no more.
    pub(super) fn on_peer_end(&mut self, is_broken: bool) -> bool {
        self.has_ended_input = true;
        !is_broken && self.endpoint == Endpoint::Control
    }

    /// Has a waiting client look whether there is an answer by now. Call [`drive`](Self::drive) next.
    pub(super) fn wake(&mut self, buffers: &mut Buffers, now: MonotonicTime) {
        self.session.wake(&mut buffers.spare, &mut DateReporter, now);
    }

    /// Receives, answers and sends, without waiting, as long as the turn lasts. Returns whether it is
    /// still connected.
    pub(super) fn drive(&mut self, buffers: &mut Buffers, turn: &Turn, now: MonotonicTime) -> bool {
        let Buffers { input, spare } = buffers;
        for _ in 0..STEPS_MAX {
            if self.is_waiting() {
                return true; // its further requests stay in the kernel
            }
            if turn.is_over() {
                break;
            }
            let moved = match self.session.wants() {
                Wants::Closed => return false,
                Wants::Write => socket::send(self.as_fd(), self.session.unsent()).map(|length| {
                    self.session.on_sent(length, spare, &mut DateReporter, now);
                }),
                wants @ (Wants::Read | Wants::Linger) => {
                    if wants == Wants::Linger {
                        socket::shutdown_write(self.as_fd());
                    }
                    self.socket.receive(input).map(|length| {
                        let received = &input[..length];
                        self.session.on_received(received, spare, &mut DateReporter, now);
                    })
                }
            };
            match moved {
                Ok(()) => self.active_at = now,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        self.session.wants() != Wants::Closed
    }

    /// Tells the session that its deadline has passed.
    pub(super) fn on_timeout(&mut self, buffers: &mut Buffers, now: MonotonicTime) {
        self.session.on_timeout(&mut buffers.spare, &mut DateReporter, now);
    }
}

impl AsFd for ControlClient<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Knows the date; requests of the control interface are no units of work.
struct DateReporter;

impl WorkReporter for DateReporter {
    fn begin_work(&mut self, _label: &[u8]) {}

    fn end_work(&mut self) {}

    fn http_date(&mut self) -> [u8; 29] {
        let date = httpdate::fmt_http_date(SystemTime::now());
        date.as_bytes().try_into().unwrap_or(*b"Thu, 01 Jan 1970 00:00:00 GMT")
    }
}
