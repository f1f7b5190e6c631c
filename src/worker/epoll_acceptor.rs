//! Accepting clients, for classes that sleep in epoll_wait(2).

use std::io;
use std::os::fd::AsRawFd;

use super::accept_policy::{AcceptPolicy, Found};
use super::client::Client;
use super::context::{WorkerContext, has_pending_client};
use super::registration::Registration;
use crate::time::MonotonicTime;

/// Keeps the listeners in an epoll instance as the accept policy says: with EPOLLEXCLUSIVE, so that
/// the kernel wakes one worker for one client, and only while the worker accepts clients there.
pub struct EpollAcceptor<'a> {
    ctx: &'a WorkerContext<'a>,
    policy: AcceptPolicy,
    first_token: usize,
    /// Of each listener.
    registrations: Vec<Registration>,
    /// Whether the policy was open when the registrations were brought up to date.
    was_open: bool,
}

impl<'a> EpollAcceptor<'a> {
    /// Adds the listeners to an epoll instance. The events of the nth carry `first_token` + n.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn register(
        ctx: &'a WorkerContext<'a>,
        epoll: &impl AsRawFd,
        first_token: usize,
    ) -> io::Result<Self> {
        let registrations = vec![Registration::default(); ctx.listeners().len()];
        let policy = ctx.accept_policy();
        let mut acceptor = Self { ctx, policy, first_token, registrations, was_open: true };
        acceptor.update_watches(epoll)?;
        Ok(acceptor)
    }

    /// Returns how many listeners there are.
    pub fn listeners(&self) -> usize {
        self.registrations.len()
    }

    /// Accepts one client from the nth listener; `None` if none waits or the worker accepts none now.
    /// Call it when the listener is readable. `client_count` is how many clients the worker has.
    ///
    /// # Errors
    /// From epoll_ctl(2). A lack of resources for a client is none: it is logged, and accepting
    /// pauses.
    pub fn accept(
        &mut self,
        listener: usize,
        client_count: usize,
        epoll: &impl AsRawFd,
    ) -> io::Result<Option<Client<'a>>> {
        self.policy.set_client_count(client_count);
        if self.registrations[listener].is_registered() {
            self.policy.mark_readable(listener);
        }
        if !self.policy.may_accept(listener, self.ctx.listener_facts(listener)) {
            return Ok(None);
        }
        let (found, accepted) = self.ctx.accept_from(listener);
        let facts = self.ctx.listener_facts(listener);
        self.policy.on_accept(listener, found, facts);
        if !self.policy.accepts_from(listener, facts) {
            self.update_watches(epoll)?; // or it would be reported again and again
        } else if found == Found::Client {
            self.reregister(listener, epoll)?;
        }
        Ok(accepted.map(|(stream, address)| self.ctx.new_client(stream, address, true)))
    }

    /// Brings the registrations up to date with time, signals and the number of clients. Call it on
    /// every turn of the loop, after its events.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn update(&mut self, client_count: usize, epoll: &impl AsRawFd) -> io::Result<()> {
        let ctx = self.ctx;
        let looks_anew = self.ctx.begin_turn(&mut self.policy, client_count);
        if self.ctx.is_draining() {
            for index in 0..self.registrations.len() {
                let facts = ctx.listener_facts(index);
                if self.policy.lacks_proof(index, facts)
                    && !has_pending_client(&ctx.listeners()[index])
                {
                    self.policy.on_accept(index, Found::Nothing, facts);
                }
            }
        }
        if looks_anew || self.policy.is_open() != self.was_open || self.ctx.is_draining() {
            self.update_watches(epoll)?;
        }
        if looks_anew {
            self.reregister_all(epoll)?;
        }
        self.policy.forget_owed(); // no event of this turn is left
        self.ctx.lifecycle.report_drained(self.policy.is_drained());
        Ok(())
    }

    /// Begins to drain: from now on clients are accepted only from listeners whose queue this worker
    /// must empty. Call it as soon as [`poll_stop`](super::Lifecycle::poll_stop) has returned
    /// [`Graceful`](super::StopRequest::Graceful); otherwise the next [`update`](Self::update) does it.
    ///
    /// # Errors
    /// From epoll_ctl(2).
    pub fn drain(&mut self, epoll: &impl AsRawFd) -> io::Result<()> {
        let client_count = self.policy.client_count();
        let looks_anew = self.ctx.begin_turn(&mut self.policy, client_count);
        self.update_watches(epoll)?;
        if looks_anew { self.reregister_all(epoll) } else { Ok(()) }
    }

    /// Returns when [`update`](Self::update) is due, if nothing happens before.
    pub fn deadline(&self) -> Option<MonotonicTime> {
        self.policy.deadline(|index| self.ctx.listener_facts(index))
    }

    /// Returns whether a client may still come that this worker must serve although it drains. Return
    /// from [`run`](super::WorkerClass::run) only if this is false after an
    /// [`update`](Self::update) without clients.
    pub fn may_receive_more(&self) -> bool {
        self.policy.may_receive_more(|index| self.ctx.listener_facts(index))
    }

    /// Returns whether no clients are accepted for now: the worker is full or has more than its
    /// share, or the kernel has no resources.
    pub fn is_paused(&self) -> bool {
        !self.policy.is_open()
    }

    /// Counts a client of a listener. If it has given enough, puts it at the end of the kernel's queue of
    /// sleepers.
    fn reregister(&mut self, listener: usize, epoll: &impl AsRawFd) -> io::Result<()> {
        let socket = &self.ctx.listeners()[listener];
        let registration = &mut self.registrations[listener];
        registration.count_client();
        if registration.must_rejoin(socket) {
            registration.leave(socket, epoll)?;
        }
        if !registration.is_registered() {
            registration.join(socket, epoll, self.first_token + listener)?;
        }
        Ok(())
    }

    /// Has the kernel report all clients that wait, also those that it has reported to a worker that
    /// was killed.
    fn reregister_all(&mut self, epoll: &impl AsRawFd) -> io::Result<()> {
        let listeners = self.ctx.listeners().iter();
        for (index, (listener, state)) in listeners.zip(&mut self.registrations).enumerate() {
            if state.is_registered() {
                state.leave(listener, epoll)?;
                state.join(listener, epoll, self.first_token + index)?;
            }
        }
        Ok(())
    }

    /// Has the epoll instance watch the listeners from which clients are accepted, and no others.
    fn update_watches(&mut self, epoll: &impl AsRawFd) -> io::Result<()> {
        self.was_open = self.policy.is_open();
        let listeners = self.ctx.listeners().iter();
        for (index, (listener, state)) in listeners.zip(&mut self.registrations).enumerate() {
            let wanted = self.policy.accepts_from(index, self.ctx.listener_facts(index));
            match (state.is_registered(), wanted) {
                (false, true) => state.join(listener, epoll, self.first_token + index)?,
                (true, false) => {
                    state.leave(listener, epoll)?;
                    // An event of this turn may say that the kernel has woken this worker alone.
                    self.policy.mark_readable(index);
                }
                (true, true) | (false, false) => (),
            }
        }
        Ok(())
    }
}
