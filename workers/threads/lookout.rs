//! Looking out for clients: what the one pool thread does that has nothing else to do.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Registry, Token, Waker};
use ostler::worker::{EpollAcceptor, StopRequest, WorkerContext};

use super::office::Office;

/// The lookout is called. Clients have the tokens from 0 on, listeners those from `FIRST_LISTENER` on.
const CALL: Token = Token(usize::MAX);
const FIRST_LISTENER: usize = usize::MAX / 2;
/// Events that are looked at in one turn.
const EVENTS_MAX: usize = 512;

/// The sockets of the listeners and of the clients. Whoever has it is the lookout.
pub(super) struct Lookout<'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    events: Events,
    gate: EpollAcceptor<'a>,
    draining: bool,
}

/// How long a look may take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    /// Until something happens.
    None,
    /// No time at all: there is something else to do.
    InPassing,
}

/// What reaches a lookout from outside: more sockets, and calls.
pub(super) struct Line {
    registry: Registry,
    waker: Waker,
}

impl<'a> Lookout<'a> {
    /// The lookout at the listeners, and the line to it.
    ///
    /// # Errors
    /// From epoll_create(2), epoll_ctl(2) and eventfd(2).
    pub(super) fn new(ctx: &'a WorkerContext<'a>) -> io::Result<(Self, Line)> {
        let poll = Poll::new()?;
        let gate = EpollAcceptor::register(ctx, &poll, FIRST_LISTENER)?;
        let waker = Waker::new(poll.registry(), CALL)?;
        let line = Line { registry: poll.registry().try_clone()?, waker };
        let events = Events::with_capacity(EVENTS_MAX);
        Ok((Self { ctx, poll, events, gate, draining: false }, line))
    }

    /// Waits until something happens, unless it is in haste, and puts the clients that can go on into
    /// the queue. Returns how many those are: there may be none, say if it was called.
    ///
    /// # Errors
    /// From epoll_wait(2) and epoll_ctl(2).
    pub(super) fn look(&mut self, office: &Office<'a>, haste: Haste) -> io::Result<usize> {
        if office.is_closed() {
            return Ok(0); // whoever comes now is another worker's
        }
        let newcomers = self.reconsider(office)?;
        if newcomers > 0 || office.is_closed() {
            return Ok(newcomers);
        }
        let patience = match haste {
            Haste::None => self.patience(office),
            Haste::InPassing => Some(Duration::ZERO),
        };
        match self.poll.poll(&mut self.events, patience) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            other => other?,
        }
        // The call may have been to leave: who comes now is another worker's.
        let mut queued = self.heed_the_stop(office)?;
        let is_listener = |token: Token| (FIRST_LISTENER..CALL.0).contains(&token.0);
        for event in self.events.iter().filter(|event| event.token().0 < FIRST_LISTENER) {
            queued += usize::from(office.stir(event.token().0, event));
        }
        // Those who are in already are not served before as many newcomers.
        let newcomers_max = queued.max(1);
        for event in self.events.iter().filter(|event| is_listener(event.token())) {
            let listener = event.token().0 - FIRST_LISTENER;
            for _ in 0..newcomers_max {
                if !admit(&mut self.gate, listener, &self.poll, office)? {
                    break;
                }
                queued += 1;
            }
        }
        Ok(queued)
    }

    /// Opens or shuts the gate, as it is time to. If the worker has drained, this closes the office.
    /// Returns how many clients came in.
    fn reconsider(&mut self, office: &Office<'a>) -> io::Result<usize> {
        let mut newcomers = self.heed_the_stop(office)?;
        self.gate.update(office.present(), &self.poll)?;
        if self.draining && office.present() == 0 {
            // Asked first: who comes between a look at the queues and the end of the time in which
            // somebody may come must be looked for once more.
            let expects = self.gate.may_receive_more();
            newcomers += self.admit_from_all(office)?;
            if newcomers == 0 && !expects && !self.gate.may_receive_more() {
                office.close();
            }
        }
        Ok(newcomers)
    }

    /// Lets no more in than must be, if the worker is to leave. Returns how many came in last.
    fn heed_the_stop(&mut self, office: &Office<'a>) -> io::Result<usize> {
        if self.draining || self.ctx.lifecycle().stop_request() != StopRequest::Graceful {
            return Ok(0);
        }
        self.draining = true;
        self.gate.drain(&self.poll)?;
        self.admit_from_all(office)
    }

    fn admit_from_all(&mut self, office: &Office<'a>) -> io::Result<usize> {
        let mut newcomers = 0;
        for listener in 0..self.gate.listeners() {
            newcomers += usize::from(admit(&mut self.gate, listener, &self.poll, office)?);
        }
        Ok(newcomers)
    }

    /// How long it may wait until the gate must be reconsidered.
    fn patience(&self, office: &Office<'a>) -> Option<Duration> {
        let awaits_departures = self.draining || self.gate.is_paused();
        if office.await_departures(awaits_departures) {
            return Some(Duration::ZERO); // somebody went before it was known that it matters
        }
        self.gate.deadline().map(|at| at.duration_since(self.ctx.lifecycle().now()))
    }
}

/// Lets in one client, if one waits. It goes into the queue at once: most have said already what they
/// want.
fn admit<'a>(
    gate: &mut EpollAcceptor<'a>,
    listener: usize,
    poll: &Poll,
    office: &Office<'a>,
) -> io::Result<bool> {
    let newcomer = gate.accept(listener, office.present(), poll)?;
    Ok(newcomer.map(|client| office.welcome(client)).is_some())
}

impl Line {
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
    pub(super) fn call(&self) {
        // It can fail for want of memory in the kernel. Then the next event brings what it was for.
        let _ = self.waker.wake();
    }
}
