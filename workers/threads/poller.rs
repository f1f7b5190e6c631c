//! Looking out for clients: what the one pool thread does that has nothing else to do.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Registry, Token, Waker};
use ostler::worker::{EpollAcceptor, StopRequest, WorkerContext};

use super::shared::Shared;

/// The lookout is called. Clients have the tokens from 0 on, listeners those from `FIRST_LISTENER` on.
const WAKE: Token = Token(usize::MAX);
const FIRST_LISTENER: usize = usize::MAX / 2;
/// Events that are looked at in one turn.
const EVENTS_MAX: usize = 512;

/// The sockets of the listeners and of the clients. Whoever has it is the lookout.
pub(super) struct Poller<'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    events: Events,
    acceptor: EpollAcceptor<'a>,
    draining: bool,
}

/// How long a look may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PollMode {
    /// Until something happens.
    Block,
    /// No time at all: there is something else to do.
    NonBlocking,
}

/// What reaches a lookout from outside: more sockets, and calls.
pub(super) struct PollerHandle {
    registry: Registry,
    waker: Waker,
}

impl<'a> Poller<'a> {
    /// The lookout at the listeners, and the line to it.
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

    /// Waits until something happens, unless it is in haste, and puts the clients that can go on into
    /// the queue. Returns how many those are: there may be none, say if it was called.
    ///
    /// # Errors
    /// From epoll_wait(2) and epoll_ctl(2).
    pub(super) fn poll_events(&mut self, shared: &Shared<'a>, mode: PollMode) -> io::Result<usize> {
        if shared.is_closed() {
            return Ok(0); // whoever comes now is another worker's
        }
        let accepted = self.update(shared)?;
        if accepted > 0 || shared.is_closed() {
            return Ok(accepted);
        }
        let timeout = match mode {
            PollMode::Block => self.poll_timeout(shared),
            PollMode::NonBlocking => Some(Duration::ZERO),
        };
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            other => other?,
        }
        // The call may have been to leave: who comes now is another worker's.
        let mut queued = self.begin_drain_if_stopping(shared)?;
        let is_listener = |token: Token| (FIRST_LISTENER..WAKE.0).contains(&token.0);
        for event in self.events.iter().filter(|event| event.token().0 < FIRST_LISTENER) {
            queued += usize::from(shared.on_event(event.token().0, event));
        }
        // Those who are in already are not served before as many newcomers.
        let accepts_max = queued.max(1);
        for event in self.events.iter().filter(|event| is_listener(event.token())) {
            let listener = event.token().0 - FIRST_LISTENER;
            for _ in 0..accepts_max {
                if !accept(&mut self.acceptor, listener, &self.poll, shared)? {
                    break;
                }
                queued += 1;
            }
        }
        Ok(queued)
    }

    /// Opens or shuts the gate, as it is time to. If the worker has drained, this closes the office.
    /// Returns how many clients came in.
    fn update(&mut self, shared: &Shared<'a>) -> io::Result<usize> {
        let accepted = self.begin_drain_if_stopping(shared)?;
        self.acceptor.update(shared.client_count(), &self.poll)?;
        let is_done = self.draining && accepted == 0 && shared.client_count() == 0;
        if is_done && !self.acceptor.may_receive_more() {
            shared.close();
        }
        Ok(accepted)
    }

    /// Lets no more in than must be, if the worker is to leave. Returns how many came in last.
    fn begin_drain_if_stopping(&mut self, shared: &Shared<'a>) -> io::Result<usize> {
        if self.draining || self.ctx.lifecycle().stop_request() != StopRequest::Graceful {
            return Ok(0);
        }
        self.draining = true;
        self.acceptor.drain(&self.poll)?;
        self.accept_from_all(shared)
    }

    fn accept_from_all(&mut self, shared: &Shared<'a>) -> io::Result<usize> {
        let mut accepted = 0;
        for listener in 0..self.acceptor.listeners() {
            accepted += usize::from(accept(&mut self.acceptor, listener, &self.poll, shared)?);
        }
        Ok(accepted)
    }

    /// How long it may wait until the gate must be reconsidered.
    fn poll_timeout(&self, shared: &Shared<'a>) -> Option<Duration> {
        let wakes_on_removal = self.draining || self.acceptor.is_paused();
        if shared.set_wakes_on_removal(wakes_on_removal) {
            return Some(Duration::ZERO); // somebody went before it was known that it matters
        }
        self.acceptor.deadline().map(|at| at.duration_since(self.ctx.lifecycle().now()))
    }
}

/// Lets in one client, if one waits. It goes into the queue at once: most have said already what they
/// want.
fn accept<'a>(
    acceptor: &mut EpollAcceptor<'a>,
    listener: usize,
    poll: &Poll,
    shared: &Shared<'a>,
) -> io::Result<bool> {
    let accepted = acceptor.accept(listener, shared.client_count(), poll)?;
    Ok(accepted.map(|client| shared.add_client(client)).is_some())
}

impl PollerHandle {
    /// Watches a client's socket.
    ///
    /// # Errors
    /// From epoll_ctl(2): there is no memory to watch it.
    pub(super) fn watch(&self, socket: &impl AsRawFd, index: usize) -> io::Result<()> {
        // Both at once and for good: an event that is of no use costs less than a system call.
        let both = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut SourceFd(&socket.as_raw_fd()), Token(index), both)
    }

    /// Ends the lookout's present look, or the next.
    pub(super) fn wake(&self) {
        // It can fail for want of memory in the kernel. Then the next event brings what it was for.
        let _ = self.waker.wake();
    }
}
