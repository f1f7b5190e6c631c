//! Letting clients in, for a class that sleeps in its own way: what it has to know is decided here,
//! and what it watches, and how, is its own affair.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::WorkerError;
use super::client::Client;
use super::context::WorkerContext;
use super::lifecycle::StopRequest;
use crate::listen::Stream;
use crate::os::{clock, file, poll};
use crate::time::MonotonicTime;

/// How often a worker that is awake looks for clients of whom nobody has told it, and when it looks once
/// more after the master has told it to: one that is killed may still be woken for a client, in place of
/// all others, until the kernel has taken its watches away.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What an [`Acceptor`] has found.
#[derive(Debug)]
pub enum Accept {
    /// A client, with the address of a TCP peer. Others may wait behind it: ask again before you
    /// sleep.
    Client(Stream, Option<SocketAddr>),
    /// Nobody, and the clients who are in are to be served. Ask again at this moment at the latest.
    Pending {
        /// When a beat or a look is due, or a pause ends, or nobody is expected any more; `None` is
        /// never.
        deadline: Option<MonotonicTime>,
    },
    /// It is time to return from [`run`](super::WorkerClass::run).
    Finished,
}

/// Lets clients in, one after the other and from the listeners in turn; keeps to
/// `worker_connections`; pauses while the kernel has no resources for another client; empties the
/// queues that must be empty when the worker leaves; and knows when all is over.
///
/// A class that serves one client at a time asks for the [next](Self::next_client). One with a loop of
/// its own [polls](Self::poll), watches the listeners that the acceptor [awaits](Self::is_interested), and
/// says who [knocks](Self::mark_readable):
///
#[doc = concat!("```no_run\n", include_str!("../../examples/own_loop.rs"), "```")]
pub struct Acceptor<'a> {
    ctx: WorkerContext<'a>,
    readiness: Vec<ListenerReadiness>,
    /// The listener whose turn it is.
    next: usize,
    /// Whether there are fewer clients than the settings allow.
    has_capacity: bool,
    paused_until: Option<MonotonicTime>,
    /// The changes among the queues that have been heeded.
    reuseport_changes: u64,
    /// When all listeners were looked at last.
    rechecked_at: MonotonicTime,
    /// Whether that was because the master had said so.
    recheck_pending: bool,
    finished: bool,
    /// If another thread keeps the worker's life: where that tells of signals.
    wakeup: Option<&'a OwnedFd>,
}

/// What is known of a listener.
#[derive(Clone, Copy, Default)]
struct ListenerReadiness {
    /// Somebody has knocked, and perhaps nobody but this worker has heard it.
    readable: bool,
    /// More may wait: it has not been looked to the end.
    may_have_more: bool,
    /// It has ended listening: nobody will ever come.
    shut_down: bool,
}

/// Who has just been accepted, with the address of a TCP peer.
pub(super) type AcceptedStream = (Stream, Option<SocketAddr>);

impl<'a> Acceptor<'a> {
    pub(super) fn new(ctx: WorkerContext<'a>) -> Self {
        let readiness = vec![ListenerReadiness::default(); ctx.listeners.len()];
        Self {
            readiness,
            next: 0,
            has_capacity: true,
            paused_until: None,
            reuseport_changes: ctx.lifecycle.reuseport_changes(),
            rechecked_at: clock::now_coarse(),
            recheck_pending: false,
            finished: false,
            wakeup: None,
            ctx,
        }
    }

    /// The same, beside a thread that keeps the worker's life, which puts a byte into this pipe
    /// whenever it has heard a signal.
    pub(super) fn with_wakeup(self, wakeup: &'a OwnedFd) -> Self {
        Self { wakeup: Some(wakeup), ..self }
    }

    /// Beats, and lets in one client if somebody waits. `present` is how many are in already. To be
    /// called on each turn of the loop: it asks the kernel only if somebody has
    /// [knocked](Self::mark_readable), or may still wait. Whether the worker is to leave it knows from
    /// [`Lifecycle::stop`](super::Lifecycle::stop), which the loop asks when
    /// [`wake_fd`](super::Lifecycle::wake_fd) is readable.
    ///
    /// When the worker is to leave, [`Arrival::Over`] comes once `present` is 0 and nobody can be lost.
    pub fn poll(&mut self, client_count: usize) -> Accept {
        self.ctx.lifecycle.notify();
        match self.try_accept(client_count) {
            Accept::Pending { deadline: until } => {
                let beat = self.ctx.lifecycle.next_heartbeat();
                Accept::Pending { deadline: [until, beat].into_iter().flatten().min() }
            }
            found => found,
        }
    }

    /// Whether the loop is to watch the nth listener while it sleeps. It lets go of those that are not
    /// awaited any more.
    ///
    /// If it watches exclusively, so that a client wakes one worker only
    /// ([`Listener::watch`](crate::listen::Listener::watch)), it must not let go of a listener without
    /// finding out whether somebody has just [knocked](Self::mark_readable) there, nor return before it has let
    /// go of all: the kernel may have woken nobody else for that client.
    ///
    /// # Panics
    /// If there are not so many listeners.
    pub fn is_interested(&self, listener: usize) -> bool {
        let ListenerReadiness { readable: knocked, may_have_more: more, .. } =
            self.readiness[listener];
        !knocked && !more && !self.finished && self.accepts_from(listener)
    }

    /// The nth listener was readable. The next [`poll`](Self::poll) looks, also if the worker is full
    /// or leaves meanwhile: the kernel may have woken nobody else for that client.
    ///
    /// # Panics
    /// If there are not so many listeners.
    pub fn mark_readable(&mut self, listener: usize) {
        self.readiness[listener].readable = true;
    }

    /// The next client, for a class that serves one at a time: sleeps and beats until there is one;
    /// `None` when it is time to stop. A client's connection is not reusable: a protocol that can
    /// announce it closes after one answer.
    ///
    /// # Errors
    /// A listener is broken.
    pub fn next_client(&mut self) -> Result<Option<Client<'a>>, WorkerError> {
        let accepted = self.next_stream()?;
        Ok(accepted.map(|(stream, address)| self.ctx.new_client(stream, address, false)))
    }

    /// As [`next_client`](Self::next_client), for who wants the bare socket.
    pub(super) fn next_stream(&mut self) -> Result<Option<AcceptedStream>, WorkerError> {
        loop {
            self.poll_lifecycle();
            match self.try_accept(0) {
                Accept::Client(stream, address) => return Ok(Some((stream, address))),
                Accept::Pending { deadline: until } => self.wait(until)?,
                Accept::Finished => return Ok(None),
            }
        }
    }

    /// Beats, and hears whether it is time to stop.
    fn poll_lifecycle(&self) {
        match self.wakeup {
            None => {
                self.ctx.lifecycle.notify();
                self.ctx.lifecycle.poll_stop();
            }
            Some(wakeup) => file::drain_pipe(wakeup),
        }
    }

    /// As [`poll`](Self::poll), without a beat.
    fn try_accept(&mut self, client_count: usize) -> Accept {
        let stop = self.ctx.lifecycle.stop_request();
        self.has_capacity = client_count < self.ctx.settings.worker_connections;
        if self.paused_until.is_some_and(|until| until <= clock::now()) {
            self.paused_until = None;
        }
        let closing = stop == StopRequest::Graceful && client_count == 0;
        // Asked first: who comes between a look at the queues and the end of the time in which
        // somebody may come must be looked for once more.
        let expects = self.ctx.backlog_deadline().is_some();
        let (now, moves) = (clock::now_coarse(), self.ctx.lifecycle.reuseport_changes());
        if closing
            || self.reuseport_changes != moves
            || now.duration_since(self.rechecked_at) >= RECHECK_INTERVAL
        {
            self.recheck_pending = self.reuseport_changes != moves;
            (self.reuseport_changes, self.rechecked_at) = (moves, now);
            self.readiness.iter_mut().for_each(|door| door.may_have_more = true);
        }
        let accepted = if stop == StopRequest::Immediate { None } else { self.accept() };
        if let Some((stream, address)) = accepted {
            return Accept::Client(stream, address);
        }
        self.finished =
            stop == StopRequest::Immediate || (closing && !expects && self.paused_until.is_none());
        if self.finished {
            return Accept::Finished;
        }
        let next_look =
            self.recheck_pending.then(|| self.rechecked_at.saturating_add(RECHECK_INTERVAL));
        let deadlines = [self.paused_until, self.ctx.backlog_deadline(), next_look];
        Accept::Pending { deadline: deadlines.into_iter().flatten().min() }
    }

    /// Accepts from the listeners in turn, so that none starves another.
    fn accept(&mut self) -> Option<AcceptedStream> {
        let count = self.readiness.len();
        for offset in 0..count {
            let index = (self.next + offset) % count;
            let ListenerReadiness { readable: knocked, may_have_more: more, .. } =
                self.readiness[index];
            let looks = knocked || (more && self.accepts_from(index));
            if !looks || self.paused_until.is_some() {
                continue;
            }
            let accepted = self.ctx.listeners[index].accept();
            let door = &mut self.readiness[index];
            *door = ListenerReadiness {
                readable: false,
                may_have_more: !matches!(accepted, Ok(None)),
                ..*door
            };
            match accepted {
                Ok(Some(newcomer)) => {
                    self.next = index + 1;
                    return Some(newcomer);
                }
                Ok(None) => (),
                // It has ended listening, which only happens when the worker is to leave.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => door.shut_down = true,
                Err(error) => {
                    self.ctx.log_accept_pause(&error);
                    self.paused_until = Some(self.ctx.accept_resume_at());
                }
            }
        }
        None
    }

    fn accepts_from(&self, index: usize) -> bool {
        let listener = &self.ctx.listeners[index];
        let wanted = match self.ctx.lifecycle.stop_request() {
            StopRequest::None => self.ctx.is_assigned(listener),
            StopRequest::Graceful => self.ctx.must_drain_backlog(listener),
            StopRequest::Immediate => false,
        };
        wanted
            && self.has_capacity
            && self.paused_until.is_none()
            && !self.readiness[index].shut_down
    }

    fn wait(&mut self, until: Option<MonotonicTime>) -> io::Result<()> {
        let (wake, beat) = match self.wakeup {
            None => (self.ctx.lifecycle.wake_fd(), self.ctx.lifecycle.next_heartbeat()),
            Some(nudges) => (nudges.as_fd(), None),
        };
        let interested: Vec<_> =
            (0..self.readiness.len()).filter(|index| self.is_interested(*index)).collect();
        let mut fds = vec![wake];
        fds.extend(interested.iter().map(|index| self.ctx.listeners[*index].as_fd()));
        let ready = poll::wait_readable(&fds, [until, beat].into_iter().flatten().min())?;
        for (index, _) in interested.into_iter().zip(&ready[1..]).filter(|(_, ready)| **ready) {
            self.mark_readable(index);
        }
        Ok(())
    }
}
