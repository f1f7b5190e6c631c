//! What the main thread and the pool threads share: the clients, the queue, and which threads sleep,
//! poll, or are woken.
//!
//! A pool thread that finds the queue empty becomes the *leader*, if there is none: it polls for new and
//! parked clients, queues those that can continue, and serves the first itself, without waking another
//! thread. No thread polls meanwhile. So the main thread *monitors* the pool from then on: if no task is
//! taken for 1 ms, or 4 ms if it was calm, the threads awake may be blocked, and it wakes another, which
//! becomes the leader. It also measures how long tasks take: another thread is woken if those
//! awake could not take the waiting tasks within 1 ms. If a task takes longer, each thread that takes one
//! wakes another, so that there is always a leader while a thread is free.
//! While all threads are blocked, the worker accepts no client, and the kernel offers new clients to
//! other workers.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, Thread};
use std::time::Duration;

use ::mio::Waker;
use ::mio::event::Event;
use crossbeam_channel::{Receiver, Sender, unbounded};
use ostler::time::MonotonicTime;
use ostler::worker::{Client, WorkerContext};
use slab::Slab;

use super::client_entry::ClientEntry;
use super::lock::lock;
use super::poller::{ClientPool, PollMode, Poller, PollerHandle};

/// How many tasks per thread that is awake may wait before another is woken, until the time that a task
/// takes is known. A wake-up costs more than a short task, and most tasks are short.
const TASKS_PER_THREAD: usize = 4;
/// How many those are at most.
const TASKS_PER_THREAD_MAX: usize = 64;
/// How many tasks are taken before a thread polls in between, although more tasks wait.
const TASKS_BETWEEN_POLLS: usize = 64;
/// After how long a thread polls in between, however few tasks were taken: they may be long.
const TIME_BETWEEN_POLLS: Duration = Duration::from_millis(4);

/// A client that waits for a thread.
pub(super) struct Task<'a> {
    pub(super) index: usize,
    pub(super) entry: Arc<ClientEntry<'a>>,
    /// Whether its socket is not watched yet.
    pub(super) is_new: bool,
}

/// What the main thread, which keeps the deadlines, must know of a client.
pub(super) enum ClientEvent {
    Added(usize),
    /// It is parked, and its deadline is earlier than the scheduled check.
    CheckTooLate(usize),
    Removed(usize),
}

/// The state that all threads of a worker share.
// Fields: each is an atomic or has a lock of its own, so that threads with different tasks do not wait
// for each other.
pub(super) struct Shared<'a> {
    ctx: &'a WorkerContext<'a>,
    clients: Mutex<ClientTable<'a>>,
    /// Each client is in it at most once.
    queue: (Sender<Task<'a>>, Receiver<Task<'a>>),
    /// How many tasks have been taken out of the queue.
    taken: AtomicUsize,
    /// How many had been taken at the last poll.
    taken_at_poll: AtomicUsize,
    /// When the last poll began, in nanoseconds.
    polled_at: AtomicU64,
    /// How many polls there were.
    polls: AtomicUsize,
    poller: Mutex<Poller<'a>>,
    poller_handle: PollerHandle,
    /// Whether there is a leader.
    polling: AtomicBool,
    /// Whether the removal of a client must wake the leader.
    wakes_on_removal: AtomicBool,
    /// How many clients had been removed when the leader asked last.
    removals_seen: AtomicUsize,
    /// Pool threads that sleep, the last to fall asleep last.
    idle: Mutex<Vec<Thread>>,
    /// How many pool threads there are.
    threads: usize,
    /// Whether the main thread monitors the pool.
    monitored: AtomicBool,
    /// How many tasks per thread that is awake may wait. None if tasks take long: then a wake-up costs
    /// little beside one.
    tasks_per_thread: AtomicUsize,
    /// Whether the pool threads must end.
    closed: AtomicBool,
    /// Why polling has failed.
    poll_error: Mutex<Option<io::Error>>,
    /// Wakes the main thread.
    main_waker: Waker,
}

#[derive(Default)]
struct ClientTable<'a> {
    entries: Slab<Arc<ClientEntry<'a>>>,
    events: Vec<ClientEvent>,
    removals: usize,
}

/// Closes the pool when it is dropped, also by a panic or an error.
pub(super) struct ShutdownGuard<'s, 'a>(pub(super) &'s Shared<'a>);

impl Drop for ShutdownGuard<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<'a> Shared<'a> {
    /// Creates the state with all listeners in the poll. `main_waker` wakes the main thread.
    ///
    /// # Errors
    /// The kernel has no resources to watch anything.
    pub(super) fn open(ctx: &'a WorkerContext<'a>, main_waker: Waker) -> io::Result<Self> {
        let (poller, poller_handle) = Poller::new(ctx)?;
        Ok(Self {
            ctx,
            clients: Mutex::default(),
            queue: unbounded(),
            taken: AtomicUsize::new(0),
            taken_at_poll: AtomicUsize::new(0),
            polled_at: AtomicU64::new(0),
            polls: AtomicUsize::new(0),
            poller: Mutex::new(poller),
            poller_handle,
            polling: AtomicBool::new(false),
            wakes_on_removal: AtomicBool::new(false),
            removals_seen: AtomicUsize::new(0),
            idle: Mutex::default(),
            threads: ctx.settings().threads,
            monitored: AtomicBool::new(false),
            tasks_per_thread: AtomicUsize::new(TASKS_PER_THREAD),
            closed: AtomicBool::new(false),
            poll_error: Mutex::default(),
            main_waker,
        })
    }

    // Called by the main thread.

    /// Returns what happened to clients since the last call, in order.
    pub(super) fn take_events(&self) -> Vec<ClientEvent> {
        mem::take(&mut lock(&self.clients).events)
    }

    /// Returns the client with this index, if there is one.
    pub(super) fn entry(&self, index: usize) -> Option<Arc<ClientEntry<'a>>> {
        lock(&self.clients).entries.get(index).cloned()
    }

    /// Makes a thread run a client.
    pub(super) fn dispatch(&self, index: usize) {
        let Some(entry) = self.entry(index) else { return };
        if entry.enqueue() {
            self.enqueue(Task { index, entry, is_new: false });
            self.monitored.store(true, Ordering::SeqCst);
            self.wake_if_needed();
        }
    }

    /// Makes threads tell all clients that the worker drains. Returns their indices.
    pub(super) fn drain(&self) -> Vec<usize> {
        let indices: Vec<_> = lock(&self.clients).entries.iter().map(|(index, _)| index).collect();
        indices.iter().for_each(|&index| self.dispatch(index));
        indices
    }

    /// Wakes the leader to update the acceptor.
    pub(super) fn wake_poller(&self) {
        self.poller_handle.wake();
    }

    /// Returns whether the main thread must monitor the pool.
    pub(super) fn is_monitored(&self) -> bool {
        self.monitored.load(Ordering::SeqCst)
    }

    /// Returns how many tasks have been taken so far.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns how many polls there were; `None` while the leader polls.
    pub(super) fn polls(&self) -> Option<usize> {
        (!self.is_polling()).then(|| self.polls.load(Ordering::Relaxed))
    }

    /// Returns how many threads run a task, or are about to.
    pub(super) fn running(&self) -> usize {
        self.running_beside(lock(&self.idle).len())
    }

    fn running_beside(&self, idle: usize) -> usize {
        self.threads.saturating_sub(idle + usize::from(self.is_polling()))
    }

    /// Sets how many tasks a thread runs within the time that tasks may wait.
    pub(super) fn set_tasks_per_thread(&self, tasks: usize) {
        self.tasks_per_thread.store(tasks.min(TASKS_PER_THREAD_MAX), Ordering::Relaxed);
    }

    fn tasks_per_thread(&self) -> usize {
        self.tasks_per_thread.load(Ordering::Relaxed)
    }

    /// Returns how many tasks wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.1.len()
    }

    /// Wakes this many threads: since the last check no task was taken, a task has waited, or no thread has
    /// polled, so those awake may be blocked or overloaded. If there is nothing to do, monitoring ends.
    pub(super) fn wake_threads(&self, threads: usize) {
        let is_quiet = || self.is_polling() && self.waiting() == 0;
        if !is_quiet() && self.wake(threads) {
            return;
        }
        self.monitored.store(false, Ordering::SeqCst);
        // Again: the leader may have begun to serve before it could see that monitoring has ended.
        if !is_quiet() && !lock(&self.idle).is_empty() {
            self.monitored.store(true, Ordering::SeqCst);
        } else if lock(&self.clients).removals != self.removals_seen.load(Ordering::Relaxed) {
            self.poller_handle.wake(); // it publishes how many clients are left
        }
    }

    /// Returns whether the pool has closed.
    ///
    /// # Errors
    /// Polling has failed.
    pub(super) fn has_closed(&self) -> io::Result<bool> {
        lock(&self.poll_error).take().map_or(Ok(self.is_closed()), Err)
    }

    /// Makes all pool threads end.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake(usize::MAX);
        self.poller_handle.wake(); // also for a thread that is about to poll
        self.wake_main();
    }

    /// Returns whether the pool threads must end.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    // Called by the pool threads.

    /// Waits for the next task; `None` once the pool has closed. The channel's own wait would spin first,
    /// at the cost of the threads that have work.
    pub(super) fn next_task(&self) -> Option<Task<'a>> {
        while !self.is_closed() {
            if self.poll_is_due()
                && let Ok(poller) = self.poller.try_lock()
            {
                self.run_poller(poller, PollMode::NonBlocking);
            }
            if let Ok(task) = self.queue.1.try_recv() {
                self.taken.fetch_add(1, Ordering::Relaxed);
                if self.tasks_per_thread() == 0 && !self.is_polling() {
                    self.wake_idle(1); // it takes the next task, or becomes the leader
                }
                return Some(task);
            }
            match self.poller.try_lock() {
                Ok(poller) => self.run_poller(poller, PollMode::Block),
                Err(TryLockError::Poisoned(poller)) => {
                    self.run_poller(poller.into_inner(), PollMode::Block);
                }
                Err(TryLockError::WouldBlock) => self.park_idle(),
            }
        }
        None
    }

    /// Returns whether a poll comes before the next task. New clients wait for it.
    fn poll_is_due(&self) -> bool {
        let taken = self.taken().wrapping_sub(self.taken_at_poll.load(Ordering::Relaxed));
        let polled_at = MonotonicTime::from_nanos(self.polled_at.load(Ordering::Relaxed));
        let now = self.ctx.lifecycle().now_coarse();
        taken > TASKS_BETWEEN_POLLS || now.duration_since(polled_at) > TIME_BETWEEN_POLLS
    }

    fn run_poller(&self, mut poller: MutexGuard<'_, Poller<'a>>, mode: PollMode) {
        self.taken_at_poll.store(self.taken(), Ordering::Relaxed);
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.polled_at.store(self.ctx.lifecycle().now_coarse().as_nanos(), Ordering::Relaxed);
        self.polling.store(true, Ordering::SeqCst);
        // Again: a thread that queued a task before may not have seen a leader to wake.
        let mode = if self.waiting() == 0 { mode } else { PollMode::NonBlocking };
        let queued = poller.poll_events(self, mode);
        self.polling.store(false, Ordering::SeqCst);
        drop(poller);
        match queued {
            Ok(0) => (),
            Ok(_) => {
                if !self.monitored.swap(true, Ordering::SeqCst) {
                    self.wake_main();
                }
                self.wake_if_needed();
            }
            Err(error) => {
                *lock(&self.poll_error) = Some(error);
                self.close();
            }
        }
    }

    /// Sleeps until another thread wakes it, if there is a leader and nothing to do.
    fn park_idle(&self) {
        let me = thread::current();
        let is_me = |thread: &Thread| thread.id() == me.id();
        lock(&self.idle).push(me.clone());
        // Again: a task may have come before the thread was on the list.
        if !self.is_polling() || self.waiting() > 0 || self.is_closed() {
            lock(&self.idle).retain(|thread| !is_me(thread));
            return thread::yield_now(); // the leader is about to step down
        }
        while lock(&self.idle).iter().any(is_me) {
            thread::park();
        }
    }

    /// Adds a new client's socket to the poll.
    ///
    /// # Errors
    /// The kernel has no memory for it: close this client.
    pub(super) fn watch(&self, client: &Client<'a>, index: usize) -> io::Result<()> {
        self.poller_handle.watch(client, index)
    }

    /// Tells the main thread to check a parked client earlier than scheduled.
    pub(super) fn report_late_check(&self, index: usize) {
        lock(&self.clients).events.push(ClientEvent::CheckTooLate(index));
        self.wake_main();
    }

    /// Removes a closed client, and frees its index.
    pub(super) fn remove_client(&self, index: usize) {
        let removed = {
            let mut clients = lock(&self.clients);
            clients.events.push(ClientEvent::Removed(index));
            clients.removals += 1;
            clients.entries.remove(index)
        };
        drop(removed);
        if self.wakes_on_removal.load(Ordering::SeqCst) && self.is_polling() {
            self.poller_handle.wake();
        }
    }

    // Called by several.

    /// Queues a task.
    pub(super) fn enqueue(&self, task: Task<'a>) {
        let unsent = self.queue.0.send(task);
        debug_assert!(unsent.is_ok(), "the state keeps both ends of its queue");
    }

    fn is_polling(&self) -> bool {
        self.polling.load(Ordering::SeqCst)
    }

    /// Wakes a pool thread, if one sleeps and those awake have enough tasks.
    fn wake_if_needed(&self) {
        let mut idle = lock(&self.idle);
        if self.waiting() <= self.running_beside(idle.len()) * self.tasks_per_thread() {
            return;
        }
        if let Some(thread) = idle.pop() {
            thread.unpark();
        } else if self.is_polling() {
            self.poller_handle.wake();
        }
    }

    /// Wakes up to this many sleeping pool threads. Returns how many.
    fn wake_idle(&self, threads: usize) -> usize {
        let mut idle = lock(&self.idle);
        let rest = idle.len().saturating_sub(threads);
        idle.drain(rest..).map(|thread| thread.unpark()).count()
    }

    /// Wakes up to this many sleeping pool threads, or the leader. Returns whether there were any.
    fn wake(&self, threads: usize) -> bool {
        let woken = self.wake_idle(threads);
        let wakes_poller = woken < threads && self.is_polling();
        if wakes_poller {
            self.poller_handle.wake();
        }
        woken > 0 || wakes_poller
    }

    fn wake_main(&self) {
        // It fails only if the kernel has no memory. Then the main thread wakes for its next heartbeat.
        let _ = self.main_waker.wake();
    }
}

impl<'a> ClientPool<'a> for Shared<'a> {
    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn close(&self) {
        self.close();
    }

    fn client_count(&self) -> usize {
        lock(&self.clients).entries.len()
    }

    fn add_client(&self, client: Client<'a>) {
        let entry = Arc::new(ClientEntry::new(client));
        let index = {
            let mut clients = lock(&self.clients);
            let index = clients.entries.insert(Arc::clone(&entry));
            clients.events.push(ClientEvent::Added(index));
            index
        };
        self.enqueue(Task { index, entry, is_new: true });
    }

    fn on_event(&self, index: usize, event: &Event) -> bool {
        // An event of a client that was removed may reach another with the same index, which then runs
        // for nothing.
        let Some(entry) = self.entry(index) else { return false };
        let is_queued = entry.on_event(event);
        if is_queued {
            self.enqueue(Task { index, entry, is_new: false });
        }
        is_queued
    }

    fn set_wakes_on_removal(&self, wakes: bool) -> bool {
        self.wakes_on_removal.store(wakes, Ordering::SeqCst);
        let removals = lock(&self.clients).removals;
        self.removals_seen.swap(removals, Ordering::Relaxed) != removals && wakes
    }
}
