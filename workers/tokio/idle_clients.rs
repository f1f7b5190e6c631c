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
use ostler::app::ClientInfo;
use ostler::time::MonotonicTime;
use ostler::worker::release_free_memory;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::alarm::Alarm;
use super::idle_queue::IdleQueue;
use super::memory_release::{CLIENTS_MIN, MemoryRelease};
use super::state::IdleState;
use super::watched_fd::WatchedFd;
use super::worker::Worker;

/// How many clients are resumed before other tasks have their turn.
const EVENTS_MAX: usize = 256;

/// A client between two requests, without a task.
pub(super) struct IdleClient {
    stream: StdStream,
    pub(super) info: ClientInfo,
    pub(super) state: IdleState,
}

impl IdleClient {
    /// Takes the stream out of the runtime. Returns `None` if that fails; the client is then closed.
    pub(super) fn new(stream: TcpStream, info: ClientInfo, state: IdleState) -> Option<Self> {
        Some(Self { stream: stream.into_std().ok()?, info, state })
    }

    /// Gives the stream to the runtime again. Returns `None` if there is no memory to watch it; the client
    /// is then closed.
    pub(super) fn into_parts(self) -> Option<(TcpStream, ClientInfo, IdleState)> {
        Some((TcpStream::from_std(self.stream).ok()?, self.info, self.state))
    }
}

/// The idle clients of a worker.
pub(super) struct IdleClients {
    worker: Worker,
    keepalive: Duration,
    registry: Registry,
    /// In the order in which their time ends.
    clients: Mutex<IdleQueue<IdleClient>>,
    /// How many clients were added, with overflow.
    added: AtomicUsize,
    /// Tells the task of clients of which it may not know.
    arrived: Notify,
}

impl IdleClients {
    /// Starts the task that waits for all of them. It calls `resume` for each client that needs a task of
    /// its own again: one that has sent something or closed the connection, one that has been idle for too
    /// long, and all when connections are to end.
    ///
    /// # Errors
    /// From epoll_create1(2) and epoll_ctl(2).
    pub(super) fn start(
        worker: Worker,
        resume: impl FnMut(&'static Self, IdleClient) + Send + 'static,
    ) -> io::Result<&'static Self> {
        let set = mio::Poll::new()?;
        // One a process, for its whole life.
        let this: &'static Self = Box::leak(Box::new(Self {
            worker,
            keepalive: worker.info().limits.keepalive,
            registry: set.registry().try_clone()?,
            clients: Mutex::default(),
            added: AtomicUsize::new(0),
            arrived: Notify::new(),
        }));
        let waiter = Waiter {
            clients: this,
            resume,
            set,
            readiness: WatchedFd::register(this.registry.as_fd())?,
            events: Events::with_capacity(EVENTS_MAX),
            may_have_events: false,
            memory: MemoryRelease::default(),
        };
        tokio::spawn(waiter.run());
        Ok(this)
    }

    /// Takes a client in.
    ///
    /// # Errors
    /// Connections are to end, or the kernel has no memory to watch it. The client is given back.
    pub(super) fn add(&self, client: IdleClient) -> Result<(), IdleClient> {
        if self.worker.closes_connections() {
            return Err(client);
        }
        let mut clients = self.clients();
        let (token, fd) = (Token(clients.next_key()), client.stream.as_raw_fd());
        if self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE).is_err() {
            return Err(client);
        }
        let is_first = clients.first().is_none();
        clients.push(client);
        drop(clients);
        let added = self.added.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        // The others are later than the first. The task may have seen the drain before the client was here.
        if is_first || added.is_multiple_of(CLIENTS_MIN) || self.worker.closes_connections() {
            self.arrived.notify_one();
        }
        Ok(())
    }

    fn clients(&self) -> MutexGuard<'_, IdleQueue<IdleClient>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, key: usize) -> Option<IdleClient> {
        let mut clients = self.clients();
        let fd = clients.get(key)?.stream.as_raw_fd();
        // It fails only for a socket that is not in the set.
        let _ = self.registry.deregister(&mut SourceFd(&fd));
        clients.remove(key)
    }

    fn take_first(&self) -> Option<IdleClient> {
        let key = self.clients().first_key()?;
        self.take(key)
    }

    /// Returns when the time of the first client ends.
    fn first_end(&self) -> Option<MonotonicTime> {
        let since = self.clients().first()?.state.idle_since();
        Some(since.saturating_add(self.keepalive))
    }
}

/// The task that waits for the idle clients. It alone takes them.
struct Waiter<F> {
    clients: &'static IdleClients,
    resume: F,
    set: mio::Poll,
    /// Tells that the set has an event.
    readiness: WatchedFd<'static>,
    events: Events,
    may_have_events: bool,
    memory: MemoryRelease,
}

impl<F: FnMut(&'static IdleClients, IdleClient)> Waiter<F> {
    async fn run(mut self) {
        let worker = self.clients.worker;
        let mut arrived = pin!(self.clients.arrived.notified());
        let mut noticed = pin!(worker.noticed());
        // How many notices there had been when the next one was waited for.
        let mut notices = None;
        let mut alarm = pin!(Alarm::default());
        poll_fn(|cx| {
            loop {
                if arrived.as_mut().poll(cx).is_ready() {
                    arrived.set(self.clients.arrived.notified());
                    continue;
                }
                if worker.closes_connections() {
                    while let Some(client) = self.clients.take_first() {
                        self.resume(client);
                    }
                } else if notices != Some(worker.notices()) {
                    notices = Some(worker.notices());
                    noticed.set(worker.noticed());
                    if noticed.as_mut().poll(cx).is_ready() {
                        continue;
                    }
                }
                match self.readiness.poll_readable(cx) {
                    Poll::Ready(Ok(())) => self.may_have_events = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()), // the runtime ends
                    Poll::Pending => (),
                }
                if self.may_have_events {
                    self.resume_ready();
                    cx.waker().wake_by_ref(); // other tasks have their turn
                    return Poll::Pending;
                }
                let now = worker.lifecycle().now();
                match self.next_end(now) {
                    Some(end) if alarm.as_mut().is_due(end, || now, cx) => (),
                    _ => return Poll::Pending,
                }
            }
        })
        .await;
    }

    /// Gives a client a task. If the app's service panics when it is cloned, that costs this client its
    /// connection.
    fn resume(&mut self, client: IdleClient) {
        let Self { clients, resume, .. } = self;
        let _ = catch_unwind(AssertUnwindSafe(|| resume(clients, client)));
    }

    /// Resumes clients that have sent something or closed the connection.
    fn resume_ready(&mut self) {
        let polled = self.set.poll(&mut self.events, Some(Duration::ZERO));
        // An interrupted call is repeated.
        self.may_have_events = polled.is_err() || self.events.iter().count() == EVENTS_MAX;
        let keys: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for client in keys.into_iter().filter_map(|key| self.clients.take(key)) {
            self.resume(client);
        }
    }

    /// Does what is due at `now`. Returns when the next is.
    fn next_end(&mut self, now: MonotonicTime) -> Option<MonotonicTime> {
        let first_end = loop {
            match self.clients.first_end() {
                Some(end) if end <= now => {
                    if let Some(client) = self.clients.take_first() {
                        self.resume(client);
                    }
                }
                end => break end,
            }
        };
        if self.memory.is_due(self.clients.added.load(Ordering::Relaxed), now) {
            release_free_memory();
        }
        [first_end, self.memory.next_look()].into_iter().flatten().min()
    }
}
