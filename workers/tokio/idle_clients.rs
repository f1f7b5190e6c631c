//! Clients between two requests that have no task: each is a socket in an epoll set, and some numbers.

use std::future::poll_fn;
use std::io;
use std::net::TcpStream as StdStream;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Registry, Token};
use ostler::listen::close_may_cut_off;
use ostler::time::MonotonicTime;
use ostler::worker::release_free_memory;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::alarm::Alarm;
use super::deadline::PhaseLimits;
use super::idle_queue::IdleQueue;
use super::linger::CloseRisk;
use super::memory_release::{CLIENTS_MIN, MemoryRelease};
use super::state::IdleState;
use super::watched_fd::WatchedFd;
use super::worker::Worker;

/// How many clients are resumed or closed before other tasks have their turn.
const TURN_MAX: usize = 256;
/// How much later than it must a connection may be closed, since clients are in the order of their arrival.
const LATE_MAX: Duration = Duration::from_secs(1);

/// A client between two requests, without a task.
pub(super) struct IdleClient {
    stream: StdStream,
    pub(super) state: IdleState,
}

impl IdleClient {
    /// Takes the stream out of the runtime. Returns `None` if that fails; the client is then closed.
    pub(super) fn new(stream: TcpStream, state: IdleState) -> Option<Self> {
        Some(Self { stream: stream.into_std().ok()?, state })
    }

    /// Gives the stream to the runtime again. Returns `None` if there is no memory to watch it; the client
    /// is then closed.
    pub(super) fn into_parts(self) -> Option<(TcpStream, IdleState)> {
        Some((TcpStream::from_std(self.stream).ok()?, self.state))
    }

    /// Returns whether closing the connection at once could cut off the last response.
    fn must_linger(&self) -> bool {
        match self.state.close_risk() {
            CloseRisk::Certain => true,
            risk => close_may_cut_off(self.stream.as_fd(), risk == CloseRisk::Long),
        }
    }
}

/// Why a client gets a task again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resumption {
    /// It has sent something, or has closed the connection.
    Input,
    /// Its time is over, and its connection cannot be closed at once.
    End,
}

/// The idle clients of a worker.
pub(super) struct IdleClients {
    worker: Worker,
    registry: Registry,
    /// In the order of their arrival, which is about that of their deadlines.
    queue: Mutex<IdleQueue<IdleClient>>,
    /// How many clients were added, with overflow.
    added: AtomicUsize,
    /// Wakes the waiter: the queue was empty, many clients have come, or a drain has begun.
    arrived: Notify,
}

impl IdleClients {
    /// Starts the task that waits for all of them. It calls `resume` for each client that needs a task of
    /// its own again.
    ///
    /// # Errors
    /// From epoll_create1(2) and epoll_ctl(2).
    pub(super) fn start(
        worker: Worker,
        limits: PhaseLimits,
        resume: impl FnMut(&'static Self, IdleClient, Resumption) + Send + 'static,
    ) -> io::Result<&'static Self> {
        let set = mio::Poll::new()?;
        // One a process, for its whole life.
        let this: &'static Self = Box::leak(Box::new(Self {
            worker,
            registry: set.registry().try_clone()?,
            queue: Mutex::default(),
            added: AtomicUsize::new(0),
            arrived: Notify::new(),
        }));
        let waiter = Waiter {
            clients: this,
            limits,
            resume,
            set,
            readiness: WatchedFd::register(this.registry.as_fd())?,
            events: Events::with_capacity(TURN_MAX),
            drains_since: None,
            memory: MemoryRelease::default(),
        };
        tokio::spawn(waiter.run());
        Ok(this)
    }

    /// Takes a client in.
    ///
    /// # Errors
    /// Connections are to end, the deadline is before those of others, or the kernel has no memory to watch
    /// the client. It is given back.
    pub(super) fn add(&self, client: IdleClient) -> Result<(), IdleClient> {
        if self.worker.closes_connections() {
            return Err(client);
        }
        let mut queue = self.lock_queue();
        let since = client.state.idle_since();
        if queue.last().is_some_and(|last| since.saturating_add(LATE_MAX) < last.state.idle_since())
        {
            return Err(client);
        }
        let token = Token(queue.next_key());
        let fd = client.stream.as_raw_fd();
        if self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE).is_err() {
            return Err(client);
        }
        let is_first = queue.last().is_none();
        queue.push(client);
        drop(queue);
        let added = self.added.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // The waiter may have seen the drain before the client was here.
        if is_first || added.is_multiple_of(CLIENTS_MIN) || self.worker.closes_connections() {
            self.arrived.notify_one();
        }
        Ok(())
    }

    fn lock_queue(&self) -> MutexGuard<'_, IdleQueue<IdleClient>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a client out of the queue and of the set.
    fn take(&self, key: usize) -> Option<IdleClient> {
        let mut queue = self.lock_queue();
        let fd = queue.get(key)?.stream.as_raw_fd();
        // It fails only for a socket that is not in the set.
        let _ = self.registry.deregister(&mut SourceFd(&fd));
        queue.remove(key)
    }

    /// Returns the key of the client that came first, and since when it is idle.
    fn first(&self) -> Option<(usize, MonotonicTime)> {
        let queue = self.lock_queue();
        let key = queue.first_key()?;
        Some((key, queue.get(key)?.state.idle_since()))
    }
}

/// The task that waits for the idle clients. It alone takes them.
struct Waiter<F> {
    clients: &'static IdleClients,
    limits: PhaseLimits,
    resume: F,
    set: mio::Poll,
    /// Tells that the set has an event.
    readiness: WatchedFd<'static>,
    events: Events,
    /// When connections began to end.
    drains_since: Option<MonotonicTime>,
    memory: MemoryRelease,
}

impl<F: FnMut(&'static IdleClients, IdleClient, Resumption)> Waiter<F> {
    async fn run(mut self) {
        let worker = self.clients.worker;
        let mut arrived = pin!(self.clients.arrived.notified());
        let mut noticed = pin!(worker.noticed());
        let mut may_have_events = false;
        let mut alarm = pin!(Alarm::default());
        poll_fn(|cx| {
            loop {
                if arrived.as_mut().poll(cx).is_ready() {
                    arrived.set(self.clients.arrived.notified());
                    continue;
                }
                let now = worker.lifecycle().now();
                if worker.closes_connections() {
                    self.drains_since.get_or_insert(now);
                } else {
                    self.drains_since = None;
                    if noticed.as_mut().poll(cx).is_ready() {
                        noticed.set(worker.noticed());
                        continue;
                    }
                }
                match self.readiness.poll_readable(cx) {
                    Poll::Ready(Ok(())) => may_have_events = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()), // the runtime ends
                    Poll::Pending => (),
                }
                let next_end = self.next_end();
                if may_have_events || next_end.is_some_and(|end| end <= now) {
                    // Input that came before the deadline wins, also if nobody could look meanwhile.
                    may_have_events = self.resume_ready();
                    if !may_have_events {
                        self.expire(now);
                    }
                    cx.waker().wake_by_ref(); // other tasks have their turn
                    return Poll::Pending;
                }
                self.release_memory(now);
                let next = [next_end, self.memory.next_look()].into_iter().flatten().min();
                match next {
                    Some(next) if alarm.as_mut().is_due(next, || now, cx) => (),
                    _ => return Poll::Pending,
                }
            }
        })
        .await;
    }

    /// Gives a client a task. If the app's service panics when it is cloned, that costs this client its
    /// connection.
    fn resume(&mut self, client: IdleClient, why: Resumption) {
        let Self { clients, resume, .. } = self;
        let _ = catch_unwind(AssertUnwindSafe(|| resume(clients, client, why)));
    }

    /// Resumes clients that have sent something or closed the connection. Returns whether there may be more.
    fn resume_ready(&mut self) -> bool {
        let polled = self.set.poll(&mut self.events, Some(Duration::ZERO));
        let keys: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        // An interrupted call is repeated.
        let may_have_more = polled.is_err() || keys.len() == TURN_MAX;
        for client in keys.into_iter().filter_map(|key| self.clients.take(key)) {
            self.resume(client, Resumption::Input);
        }
        may_have_more
    }

    /// Returns when the time of the first client ends.
    fn next_end(&self) -> Option<MonotonicTime> {
        self.clients.first().map(|(_, since)| self.end_of(since))
    }

    fn end_of(&self, idle_since: MonotonicTime) -> MonotonicTime {
        self.limits.pause_end(idle_since, self.limits.keepalive, self.drains_since)
    }

    /// Closes the connections of clients whose time is over, as many as a turn allows.
    fn expire(&mut self, now: MonotonicTime) {
        for _ in 0..TURN_MAX {
            let first = self.clients.first().filter(|(_, since)| self.end_of(*since) <= now);
            let Some(client) = first.and_then(|(key, _)| self.clients.take(key)) else { return };
            if client.must_linger() {
                self.resume(client, Resumption::End);
            }
        }
    }

    fn release_memory(&mut self, now: MonotonicTime) {
        if self.memory.is_due(self.clients.added.load(Ordering::Relaxed), now) {
            self.clients.lock_queue().shrink();
            release_free_memory();
            let end = self.clients.worker.lifecycle().now();
            self.memory.on_released(end, end.duration_since(now));
        }
    }
}
