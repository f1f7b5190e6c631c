//! The poll of the leader: it waits for the listeners and for parked clients.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::mio::event::Event;
use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Registry, Token, Waker};
use ostler::worker::{Client, EpollAcceptor, StopRequest, WorkerContext};

/// The token of a wake-up. Clients have the tokens from 0, listeners those from `FIRST_LISTENER`.
const WAKE: Token = Token(usize::MAX);
const FIRST_LISTENER: usize = usize::MAX / 2;
/// How many events one poll handles.
const EVENTS_MAX: usize = 512;

/// The sockets of the listeners and of the clients. The thread that has locked it is the leader.
pub(super) struct Poller<'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    events: Events,
    acceptor: EpollAcceptor<'a>,
    draining: bool,
}

/// How long a poll may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PollMode {
    /// Until an event.
    Block,
    /// Not at all: there are tasks.
    NonBlocking,
}

/// The clients of the pool, as the leader needs them.
pub(super) trait ClientPool<'a> {
    /// Returns whether the pool threads must end.
    fn is_closed(&self) -> bool;

    /// Makes all pool threads end.
    fn close(&self);

    /// Returns how many clients there are.
    fn client_count(&self) -> usize;

    /// Adds a new client, and queues it.
    fn add_client(&self, client: Client<'a>);

    /// Passes on an event of a client's socket. Returns whether the client was queued.
    fn on_event(&self, index: usize, event: &Event) -> bool;

    /// Sets whether the removal of a client wakes the leader. Returns whether it does, and a client was
    /// removed since the last call.
    fn set_wakes_on_removal(&self, wakes: bool) -> bool;
}

/// The means of other threads to add sockets to the poll and to wake the leader.
pub(super) struct PollerHandle {
    registry: Registry,
    waker: Waker,
}

impl<'a> Poller<'a> {
    /// Creates the poll with the listeners in it, and its handle.
    ///
    /// # Errors
    /// From epoll_create(2), epoll_ctl(2) and eventfd(2).
    pub(super) fn new(ctx: &'a WorkerContext<'a>) -> io::Result<(Self, PollerHandle)> {
        let poll = Poll::new()?;
        let acceptor = EpollAcceptor::register(ctx, &poll, FIRST_LISTENER)?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let handle = PollerHandle { registry: poll.registry().try_clone()?, waker };
        let events = Events::with_capacity(EVENTS_MAX);
        Ok((Self { ctx, poll, events, acceptor, draining: false }, handle))
    }

    /// Polls, and queues the clients that can continue. Returns how many those are: there may be none,
    /// for instance after a wake-up.
    ///
    /// # Errors
    /// From epoll_wait(2) and epoll_ctl(2).
    pub(super) fn poll_events(
        &mut self,
        pool: &impl ClientPool<'a>,
        mode: PollMode,
    ) -> io::Result<usize> {
        if pool.is_closed() {
            return Ok(0); // clients that come now are for other workers
        }
        let accepted = self.update(pool)?;
        if accepted > 0 || pool.is_closed() {
            return Ok(accepted);
        }
        let timeout = match mode {
            PollMode::Block => self.poll_timeout(pool),
            PollMode::NonBlocking => Some(Duration::ZERO),
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            other => other?,
        }
        // The wake-up may be for a stop: clients that come now are for other workers.
        let mut queued = self.begin_drain_if_stopping(pool)?;
        let is_listener = |token: Token| (FIRST_LISTENER..WAKE.0).contains(&token.0);
        for event in self.events.iter().filter(|event| event.token().0 < FIRST_LISTENER) {
            queued += usize::from(pool.on_event(event.token().0, event));
        }
        // As many new clients as there are present ones: neither starves the other.
        let accepts_max = queued.max(1);
        for event in self.events.iter().filter(|event| is_listener(event.token())) {
            let listener = event.token().0 - FIRST_LISTENER;
            for _ in 0..accepts_max {
                if !accept(&mut self.acceptor, listener, &self.poll, pool)? {
                    break;
                }
                queued += 1;
            }
        }
        Ok(queued)
    }

    /// Updates the acceptor, and closes the pool if the worker has drained. Returns how many clients were
    /// accepted.
    fn update(&mut self, pool: &impl ClientPool<'a>) -> io::Result<usize> {
        let accepted = self.begin_drain_if_stopping(pool)?;
        self.acceptor.update(pool.client_count(), &self.poll)?;
        let is_done = self.draining && accepted == 0 && pool.client_count() == 0;
        if is_done && !self.acceptor.may_receive_more() {
            pool.close();
        }
        Ok(accepted)
    }

    /// Begins to drain if a graceful stop was requested. Returns how many clients were accepted, for which
    /// the kernel may have woken this worker alone.
    fn begin_drain_if_stopping(&mut self, pool: &impl ClientPool<'a>) -> io::Result<usize> {
        if self.draining || self.ctx.lifecycle().stop_request() != StopRequest::Graceful {
            return Ok(0);
        }
        self.draining = true;
        self.acceptor.drain(&self.poll)?;
        self.accept_from_all(pool)
    }

    fn accept_from_all(&mut self, pool: &impl ClientPool<'a>) -> io::Result<usize> {
        let mut accepted = 0;
        for listener in 0..self.acceptor.listeners() {
            accepted += usize::from(accept(&mut self.acceptor, listener, &self.poll, pool)?);
        }
        Ok(accepted)
    }

    /// Returns how long a poll may wait until the acceptor must be updated.
    fn poll_timeout(&self, pool: &impl ClientPool<'a>) -> Option<Duration> {
        let wakes_on_removal = self.draining || self.acceptor.is_paused();
        if pool.set_wakes_on_removal(wakes_on_removal) {
            return Some(Duration::ZERO); // a client was removed before this was set
        }
        self.acceptor.deadline().map(|at| at.duration_since(self.ctx.lifecycle().now()))
    }
}

/// Accepts a client, if one waits, and queues it at once: most have already sent a request.
fn accept<'a>(
    acceptor: &mut EpollAcceptor<'a>,
    listener: usize,
    poll: &Poll,
    pool: &impl ClientPool<'a>,
) -> io::Result<bool> {
    let accepted = acceptor.accept(listener, pool.client_count(), poll)?;
    Ok(accepted.map(|client| pool.add_client(client)).is_some())
}

impl PollerHandle {
    /// Watches a client's socket.
    ///
    /// # Errors
    /// From epoll_ctl(2): there is no memory to watch it.
    pub(super) fn watch(&self, socket: &impl AsRawFd, index: usize) -> io::Result<()> {
        // Both for good: a useless event costs less than a system call.
        let both = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&socket.as_raw_fd()), Token(index), both)
    }

    /// Ends the leader's present poll, or the next.
    pub(super) fn wake(&self) {
        // It fails only if the kernel has no memory. Then the next event does instead.
        let _ = self.waker.wake();
    }
}
