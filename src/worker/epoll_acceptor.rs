//! Letting clients in, for classes with an event loop of their own.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::client::Client;
use super::context::WorkerContext;
use crate::os::clock;
use crate::time::MonotonicTime;

/// How many clients more than its share a worker may have, besides an eighth of the share. A
/// worker that is awake is quicker than one that is being woken, and would take all of a burst.
const FAIR_SHARE_SLACK: usize = 2;
/// How often a worker that is awake looks at its listeners anew. One that is killed takes with it that
/// the kernel has woken it, and nobody else, for a client; its successor looks when it joins, and the
/// master has others look at once.
const REREGISTER_INTERVAL: Duration = Duration::from_secs(2);
/// For how long a worker that has its share leaves clients to others, who may be stuck.
const YIELD_MAX: Duration = Duration::from_millis(20);

/// The listeners as members of an epoll instance. It wakes one worker for one client, lets in no
/// more than `worker_connections`, and pauses while the kernel has no resources for another one.
pub struct EpollAcceptor<'a> {
    ctx: &'a WorkerContext<'a>,
    first_token: usize,
    state: State,
    /// Which listeners are in the epoll instance.
    registered: Vec<bool>,
    /// Which listeners have left the epoll instance in this turn. The kernel may have woken this
    /// worker, and nobody else, for a client there: one more is let in.
    pending_events: Vec<bool>,
    /// Which listeners have ended listening: nobody will ever come there.
    shut_down: Vec<bool>,
    /// The number of clients that the others were told of last.
    last_client_count: usize,
    /// When all listeners were looked at last.
    reregistered_at: MonotonicTime,
    /// Whether other workers take clients from a queue of this one's as well.
    has_shared_listener: bool,
    /// The changes among the queues that have been heeded.
    reuseport_changes: u64,
    /// Whether the worker drains: it lets in only who waits at a listener that it must empty.
    draining: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// There are as many clients as the settings allow.
    Full,
    /// The kernel has no resources for another one; tried again at this moment.
    Paused(MonotonicTime),
    /// Others have fewer clients: they go first, until this moment at the latest.
    Yielding(MonotonicTime),
}

impl<'a> EpollAcceptor<'a> {
    /// An open gate. The events of the nth listener carry `first_token` + n.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn register(
        ctx: &'a WorkerContext<'a>,
        epoll: &impl AsRawFd,
        first_token: usize,
    ) -> io::Result<Self> {
        let registered = vec![false; ctx.listeners().len()];
        let mut acceptor = Self {
            ctx,
            first_token,
            state: State::Open,
            pending_events: registered.clone(),
            shut_down: registered.clone(),
            registered,
            last_client_count: 0,
            reregistered_at: clock::now(),
            has_shared_listener: true,
            reuseport_changes: 0,
            draining: false,
        };
        acceptor.set_state(State::Open, epoll)?;
        Ok(acceptor)
    }

    /// How many listeners there are.
    pub fn listeners(&self) -> usize {
        self.ctx.listeners().len()
    }

    /// Lets in one client from the nth listener; `None` if nobody waits or the gate is shut.
    /// `present` is the number of clients that are in already.
    ///
    /// # Errors
    /// From epoll_ctl(2). That there are no resources for a client is not one: it is logged, and
    /// the gate is shut for a while.
    pub fn accept(
        &mut self,
        listener: usize,
        client_count: usize,
        epoll: &impl AsRawFd,
    ) -> io::Result<Option<Client<'a>>> {
        let event_pending =
            std::mem::take(&mut self.pending_events[listener]) || self.registered[listener];
        let open = self.state == State::Open && self.accepts_from(listener);
        if !event_pending && !open {
            return Ok(None);
        }
        match self.ctx.listeners()[listener].accept() {
            Ok(Some((stream, address))) => {
                if client_count + 1 >= self.ctx.settings().worker_connections {
                    self.set_state(State::Full, epoll)?;
                } else if open {
                    self.reregister(listener, epoll)?;
                } else {
                    self.set_state(self.state, epoll)?;
                }
                Ok(Some(self.ctx.new_client(stream, address, true)))
            }
            Ok(None) if !open => {
                self.set_state(self.state, epoll)?; // or it would be told of again and again
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.shut_down[listener] = true;
                self.set_state(self.state, epoll)?;
                Ok(None)
            }
            Err(error) => {
                self.ctx.log_accept_pause(&error);
                self.set_state(State::Paused(self.ctx.accept_resume_at()), epoll)?;
                Ok(None)
            }
        }
    }

    /// Opens the gate again if what shut it is over. To be called on every turn of the loop, after
    /// its events.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn update(&mut self, client_count: usize, epoll: &impl AsRawFd) -> io::Result<()> {
        self.pending_events.fill(false);
        if self.reuseport_changes != self.ctx.lifecycle().reuseport_changes() {
            self.set_state(self.state, epoll)?;
            self.reregister_all(epoll)?;
        }
        let over_fair_share = match self.state {
            State::Yielding(_) => self.exceeds_fair_share(client_count),
            State::Open => {
                client_count != self.last_client_count && self.exceeds_fair_share(client_count)
            }
            State::Full | State::Paused(_) => false,
        };
        let now = clock::now();
        if now.duration_since(self.reregistered_at) >= REREGISTER_INTERVAL {
            self.reregistered_at = now;
            self.reregister_all(epoll)?;
        }
        match self.state {
            State::Full if client_count < self.ctx.settings().worker_connections => {
                self.set_state(State::Open, epoll)
            }
            State::Paused(until) if until <= now => self.set_state(State::Open, epoll),
            State::Yielding(until) if !over_fair_share || until <= now => {
                self.set_state(State::Open, epoll)
            }
            State::Open if over_fair_share => {
                self.set_state(State::Yielding(now.saturating_add(YIELD_MAX)), epoll)
            }
            State::Open | State::Full | State::Paused(_) | State::Yielding(_) => Ok(()),
        }
    }

    /// Whether this worker has more than its share of the clients of all workers.
    fn exceeds_fair_share(&mut self, client_count: usize) -> bool {
        self.last_client_count = client_count;
        let share = self.ctx.lifecycle().fair_client_share(client_count);
        client_count > share + share / 8 + FAIR_SHARE_SLACK
            && self.has_shared_listener
            && !self.draining
    }

    /// The worker leaves: from now on the gate lets in only who waits at a listener at which nobody
    /// serves after this worker.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn drain(&mut self, epoll: &impl AsRawFd) -> io::Result<()> {
        self.draining = true;
        let state = match self.state {
            State::Yielding(_) => State::Open,
            state => state,
        };
        self.set_state(state, epoll)
    }

    /// When [`update`](Self::update) is due, or [`expects`](Self::expects) has another
    /// answer.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        match self.state {
            State::Paused(until) | State::Yielding(until) => Some(until),
            State::Open | State::Full => self.ctx.backlog_deadline(),
        }
    }

    /// Whether somebody may wait behind the gate who will be let in later, or be about to come
    /// although the worker drains.
    pub fn may_receive_more(&self) -> bool {
        self.is_paused() || self.ctx.backlog_deadline().is_some()
    }

    /// Whether somebody may wait behind the gate who will be let in later.
    pub fn is_paused(&self) -> bool {
        matches!(self.state, State::Full | State::Paused(_) | State::Yielding(_))
    }

    /// Puts a listener at the end of the kernel's queue of sleepers, so that its next client wakes
    /// another worker. Otherwise the kernel favours the same one. A listener whose door was closed
    /// while the worker drained joins only now.
    fn reregister(&mut self, listener: usize, epoll: &impl AsRawFd) -> io::Result<()> {
        let socket = &self.ctx.listeners()[listener];
        if std::mem::replace(&mut self.registered[listener], true) {
            if socket.is_sharded() {
                return Ok(());
            }
            socket.unwatch(epoll)?;
        }
        socket.watch(epoll, self.first_token + listener)
    }

    fn reregister_all(&self, epoll: &impl AsRawFd) -> io::Result<()> {
        for (index, listener) in self.ctx.listeners().iter().enumerate() {
            if self.registered[index] {
                listener.unwatch(epoll)?;
                listener.watch(epoll, self.first_token + index)?;
            }
        }
        Ok(())
    }

    fn accepts_from(&self, listener: usize) -> bool {
        let socket = &self.ctx.listeners()[listener];
        let wanted = if self.draining {
            self.ctx.must_drain_backlog(socket)
        } else {
            self.ctx.is_assigned(socket)
        };
        wanted && !self.shut_down[listener]
    }

    fn set_state(&mut self, state: State, epoll: &impl AsRawFd) -> io::Result<()> {
        self.state = state;
        self.reuseport_changes = self.ctx.lifecycle().reuseport_changes();
        self.has_shared_listener =
            self.ctx.listeners().iter().any(|listener| !listener.is_sharded());
        for (index, listener) in self.ctx.listeners().iter().enumerate() {
            let wanted = state == State::Open && self.accepts_from(index);
            match (self.registered[index], wanted) {
                (false, true) => listener.watch(epoll, self.first_token + index)?,
                (true, false) => {
                    listener.unwatch(epoll)?;
                    self.pending_events[index] = true;
                }
                (true, true) | (false, false) => (),
            }
            self.registered[index] = wanted;
        }
        Ok(())
    }
}
