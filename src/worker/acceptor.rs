//! Accepting clients, for a class that sleeps in its own way. The accept policy decides when and
//! where; what the class watches, and how, is the class's affair.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::accept_policy::AcceptPolicy;
use super::client::{Buffers, Client, DriveStatus};
use super::context::{AcceptedStream, WorkerContext};
use super::error::WorkerError;
use super::lifecycle::StopRequest;
use super::lingering::Lingering;
use super::listener_watch::ListenerWatch;
use super::tracker::WorkTracker;
use crate::listen::Stream;
use crate::os::{clock, file, poll};
use crate::time::MonotonicTime;

/// How long a worker that never sleeps may leave its signals unread: a read for each client would be one
/// system call in six.
const SIGNALS_INTERVAL: Duration = Duration::from_millis(10);

/// What an [`Acceptor`] has found.
#[derive(Debug)]
pub enum Accept {
    /// A client, with the address of a TCP peer. Others may wait behind it: poll again before you
    /// sleep.
    Client(Stream, Option<SocketAddr>),
    /// No client now. Serve those you have, and poll again when one of them is done, when a watched
    /// listener is readable, and at `deadline` at the latest.
    Pending {
        /// When a heartbeat or a look at the listeners is due, a pause ends, or late handshakes are
        /// over; `None` is never.
        deadline: Option<MonotonicTime>,
    },
    /// Return from [`run`](super::WorkerClass::run).
    Finished,
}

/// Accepts one client after the other, from the listeners in turn. It keeps to `worker_connections`,
/// pauses while the kernel has no resources for another client, empties the queues that must be
/// empty before the worker exits, and knows when the worker has drained.
///
/// If your class serves one client at a time, call [`next_client`](Self::next_client). If it has a
/// loop of its own, [`poll`](Self::poll), watch the listeners in which the acceptor
/// [is interested](Self::is_interested), and [report](Self::mark_readable) those that are readable:
///
#[doc = concat!("```no_run\n", include_str!("../../examples/own_loop.rs"), "```")]
pub struct Acceptor<'a> {
    ctx: WorkerContext<'a>,
    policy: AcceptPolicy,
    /// The thread that sends heartbeats and polls for a stop, if another one does.
    main: Option<&'a MainThread>,
    /// When to read the signals, unless the worker sleeps before.
    signals_due: MonotonicTime,
    lingering: Lingering<'a>,
    /// What the worker sleeps in, unless clients linger.
    watch: Option<ListenerWatch>,
}

/// What an acceptor shares with the thread that keeps the lifecycle, if that is another one.
pub(super) struct MainThread {
    /// A byte in it wakes that thread.
    pub(super) wakeup: (OwnedFd, OwnedFd),
    /// A byte in it wakes the thread of the acceptor: signals may have been processed.
    pub(super) accept_wakeup: (OwnedFd, OwnedFd),
    /// The acceptor leaves all clients to others, for a drain mode, and none is owed to it.
    pub(super) is_drained: AtomicBool,
}

impl MainThread {
    pub(super) fn new() -> io::Result<Self> {
        let (wakeup, accept_wakeup) = (file::pipe()?, file::pipe()?);
        Ok(Self { wakeup, accept_wakeup, is_drained: AtomicBool::new(false) })
    }

    fn report_drained(&self, is_drained: bool) {
        if self.is_drained.swap(is_drained, Ordering::AcqRel) != is_drained {
            let _ = file::wake_pipe(&self.wakeup.1); // a full pipe wakes it as well
        }
    }
}

impl<'a> WorkerContext<'a> {
    /// Returns an acceptor, which accepts clients and knows when the worker has drained.
    pub fn acceptor(&self) -> Acceptor<'a> {
        Acceptor::new(WorkerContext { ..*self })
    }
}

impl<'a> Acceptor<'a> {
    fn new(ctx: WorkerContext<'a>) -> Self {
        Self {
            policy: ctx.accept_policy(),
            ctx,
            main: None,
            signals_due: MonotonicTime::default(),
            lingering: Lingering::default(),
            watch: None,
        }
    }

    /// Makes it sleep on a pipe instead of the signals: another thread sends heartbeats, polls for a
    /// stop, writes a byte after each signal, and reports whether the worker is drained.
    pub(super) fn with_main_thread(self, main: &'a MainThread) -> Self {
        Self { main: Some(main), ..self }
    }

    /// Sends a heartbeat if one is due, and accepts a client if one waits. `client_count` is how many
    /// clients the worker has. Call it on each turn of the loop: it asks the kernel only about
    /// listeners that were [reported](Self::mark_readable), or at which more may wait.
    ///
    /// It does not read signals: call [`Lifecycle::poll_stop`](super::Lifecycle::poll_stop) when
    /// [`wake_fd`](super::Lifecycle::wake_fd) is readable, and now and then while clients keep coming:
    /// a busy loop may never sleep. While the worker drains, [`Accept::Finished`] comes once
    /// `client_count` is 0 and no client can be lost.
    pub fn poll(&mut self, client_count: usize) -> Accept {
        self.ctx.lifecycle.notify();
        match self.try_accept(client_count) {
            Accept::Pending { deadline } => {
                let heartbeat = self.ctx.lifecycle.next_heartbeat();
                Accept::Pending { deadline: [deadline, heartbeat].into_iter().flatten().min() }
            }
            found => found,
        }
    }

    /// Returns whether the loop must watch the nth listener while it sleeps. Stop watching all others.
    ///
    /// If you watch with EPOLLEXCLUSIVE ([`Listener::watch`](crate::listen::Listener::watch)), the
    /// kernel may have woken no other worker for a client. So find out whether a listener has just
    /// become readable, and [report](Self::mark_readable) it, when you stop watching it; and stop
    /// watching all of them before you return.
    ///
    /// # Panics
    /// If there are not so many listeners.
    pub fn is_interested(&self, listener: usize) -> bool {
        self.policy.is_interested(listener, self.ctx.listener_facts(listener))
    }

    /// Reports that the nth listener was readable. The next [`poll`](Self::poll) looks at it, also if
    /// the worker is full or drains meanwhile: the kernel may have woken no other worker for that
    /// client.
    ///
    /// # Panics
    /// If there are not so many listeners.
    pub fn mark_readable(&mut self, listener: usize) {
        self.policy.mark_readable(listener);
    }

    /// Returns whether no other worker serves, so that accepting several clients in one turn takes none
    /// from others. It is known from the second client on.
    pub fn serves_alone(&self) -> bool {
        self.policy.serves_alone()
    }

    /// Waits for the next client, for a class that serves one at a time: it sleeps, sends heartbeats
    /// and polls for a stop. `None` means that the worker has drained. The client's connection is not
    /// reused: a protocol that can say so closes it after one answer.
    ///
    /// # Errors
    /// A listener is broken.
    pub fn next_client(&mut self) -> Result<Option<Client<'a>>, WorkerError> {
        let accepted = self.next_stream()?;
        Ok(accepted.map(|(stream, address)| self.ctx.new_client(stream, address, false)))
    }

    /// Serves a client as [`Client::serve_with`] does, but does not wait for a client that lingers: one
    /// whose input must be read on before the connection can be closed. The next calls of
    /// [`next_client`](Self::next_client) do that while they wait.
    pub fn serve(
        &mut self,
        mut client: Client<'a>,
        buffers: &mut Buffers,
        tracker: &mut WorkTracker<'_>,
    ) {
        let status = client.serve_until_lingering(self.ctx.lifecycle, buffers, tracker);
        if status == DriveStatus::WantRead {
            self.lingering.add(client);
        }
    }

    /// Waits for the next client as [`next_client`](Self::next_client) does, and returns the bare
    /// socket.
    pub(super) fn next_stream(&mut self) -> Result<Option<AcceptedStream>, WorkerError> {
        loop {
            self.poll_lifecycle();
            if !self.lingering.is_empty() {
                self.lingering.update(clock::now());
            }
            match self.try_accept(0) {
                Accept::Client(stream, address) => return Ok(Some((stream, address))),
                Accept::Pending { deadline } => self.wait(deadline)?,
                Accept::Finished if self.must_linger() => self.wait(None)?,
                Accept::Finished => return Ok(None),
            }
        }
    }

    /// Returns whether clients linger that an exit would cut off.
    fn must_linger(&self) -> bool {
        !self.lingering.is_empty() && self.ctx.is_draining()
    }

    /// Sends a heartbeat and polls for a stop if that is due, unless another thread does.
    fn poll_lifecycle(&mut self) {
        match self.main {
            None => {
                self.ctx.lifecycle.notify();
                let now = clock::now_coarse();
                if self.signals_due <= now {
                    self.signals_due = now.saturating_add(SIGNALS_INTERVAL);
                    self.ctx.lifecycle.poll_stop();
                }
            }
            Some(main) => {
                file::drain_pipe(&main.accept_wakeup.0);
            }
        }
    }

    /// Polls without a heartbeat.
    fn try_accept(&mut self, client_count: usize) -> Accept {
        let Self { ctx, policy, watch, main, lingering, .. } = self;
        let facts = |index| ctx.listener_facts(index);
        ctx.begin_turn(policy, client_count);
        while let Some(index) = policy.next_look(facts) {
            let (found, accepted) = ctx.accept_from(index);
            policy.on_accept(index, found, facts(index));
            if let Some((stream, address)) = accepted {
                return Accept::Client(stream, address);
            }
        }
        if policy.finish(facts) {
            return Accept::Finished;
        }
        // A listener that is still watched may owe a client, which shows when its watch ends.
        let is_watching = || watch.as_ref().is_some_and(ListenerWatch::is_watching);
        let is_drained = policy.is_drained() && !is_watching() && lingering.is_empty();
        match main {
            None => ctx.lifecycle.report_drained(is_drained),
            Some(main) => main.report_drained(is_drained),
        }
        Accept::Pending { deadline: policy.deadline(facts) }
    }

    /// Sleeps until a client, a signal or `until`.
    fn wait(&mut self, until: Option<MonotonicTime>) -> io::Result<()> {
        let heartbeat = match self.main {
            None => self.ctx.lifecycle.next_heartbeat(),
            Some(_) => None,
        };
        let deadlines = [until, heartbeat, self.lingering.deadline()];
        let deadline = deadlines.into_iter().flatten().min();
        if self.lingering.is_empty() {
            self.wait_for_listeners(deadline)?;
        } else {
            self.wait_for_all(deadline)?;
        }
        self.signals_due = MonotonicTime::default();
        Ok(())
    }

    /// Sleeps so that the kernel wakes one worker for a client, and not all.
    fn wait_for_listeners(&mut self, deadline: Option<MonotonicTime>) -> io::Result<()> {
        let Self { ctx, policy, main, watch, .. } = self;
        let stop = main.is_none().then(|| ctx.lifecycle.stop_fd());
        let watch = match watch {
            Some(watch) => watch,
            None => {
                let wake =
                    main.map_or_else(|| ctx.lifecycle.wake_fd(), |it| it.accept_wakeup.0.as_fd());
                watch.insert(ListenerWatch::new(ctx.listeners.len(), wake, stop)?)
            }
        };
        if let Some(stop) = stop
            && ctx.lifecycle.stop_request() != StopRequest::None
        {
            watch.forget_stop(stop);
        }
        let is_interested = |index| policy.is_interested(index, ctx.listener_facts(index));
        let mut readable = watch.update(ctx.listeners, is_interested)?;
        if readable.is_empty() {
            readable = watch.wait(deadline)?;
        }
        readable.into_iter().for_each(|index| policy.mark_readable(index));
        Ok(())
    }

    /// Sleeps until the same, or until a client that lingers sends something.
    fn wait_for_all(&mut self, deadline: Option<MonotonicTime>) -> io::Result<()> {
        let wake =
            self.main.map_or_else(|| self.ctx.lifecycle.wake_fd(), |it| it.accept_wakeup.0.as_fd());
        let interested: Vec<_> =
            (0..self.ctx.listeners.len()).filter(|index| self.is_interested(*index)).collect();
        let mut fds = vec![wake];
        // Another thread may take the signal, and begin the stop only afterwards.
        if self.main.is_none() && self.ctx.lifecycle.stop_request() == StopRequest::None {
            fds.push(self.ctx.lifecycle.stop_fd());
        }
        let first_listener = fds.len();
        fds.extend(interested.iter().map(|index| self.ctx.listeners[*index].as_fd()));
        fds.extend(self.lingering.fds());
        let ready = poll::wait_readable(&fds, deadline)?;
        for (index, _) in
            interested.into_iter().zip(&ready[first_listener..]).filter(|(_, ready)| **ready)
        {
            self.mark_readable(index);
        }
        Ok(())
    }
}
