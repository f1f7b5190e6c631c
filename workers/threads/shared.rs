//! What the main thread and the pool share: the clients, the queue, and who sleeps, looks out, or
//! is woken for what.
//!
//! A pool thread that finds the queue empty becomes the *lookout*, if there is none: it waits for
//! clients, new ones and those that are parked, puts into the queue whoever can go on, and serves
//! the first itself, without another thread's being woken. Meanwhile nobody looks out. So the main
//! thread is *vigilant* from then on: if no task is taken for a moment, whoever is awake may be
//! blocked, and it wakes another, who looks out in turn. While all are blocked nobody is let in, and
//! the kernel offers newcomers to other workers.

use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};

use ::mio::Waker;
use ::mio::event::Event;
use crossbeam_channel::{Receiver, Sender, unbounded};
use ostler::worker::{Client, WorkerContext};
use slab::Slab;

use super::client_entry::ClientEntry;
use super::poller::{PollMode, Poller, PollerHandle};

/// Tasks that one thread that is awake may find waiting before another is woken. To wake a thread
/// costs more than a quick task, and most are.
const TASKS_PER_THREAD: usize = 4;
/// Tasks that are taken before somebody looks out in passing, although there is more to do.
const TASKS_BETWEEN_POLLS: usize = 64;

/// A client that waits for a thread.
pub(super) struct Task<'a> {
    pub(super) index: usize,
    pub(super) entry: Arc<ClientEntry<'a>>,
    /// Whether its socket is not watched yet.
    pub(super) is_new: bool,
}

/// What the main thread, which keeps the deadlines, is told of a client.
pub(super) enum ClientEvent {
    Added(usize),
    /// It is parked, and its deadline is earlier than the look that was planned.
    CheckTooLate(usize),
    Removed(usize),
}

/// The shared state.
pub(super) struct Shared<'a> {
    clients: Mutex<ClientTable<'a>>,
    /// Each client is in it at most once.
    queue: (Sender<Task<'a>>, Receiver<Task<'a>>),
    /// How many tasks have been taken out of the queue.
    taken: AtomicUsize,
    /// How many had been when somebody looked out last.
    taken_at_poll: AtomicUsize,
    /// How often somebody has looked out.
    polls: AtomicUsize,
    poller: Mutex<Poller<'a>>,
    poller_handle: PollerHandle,
    /// Whether there is a lookout.
    polling: AtomicBool,
    /// Whether the lookout waits for somebody to go.
    wakes_on_removal: AtomicBool,
    /// How many had gone when it asked last.
    removals_seen: AtomicUsize,
    /// Pool threads that sleep, the last to fall asleep last.
    idle: Mutex<Vec<Thread>>,
    /// How many pool threads there are.
    threads: usize,
    /// Whether the main thread looks now and then whether tasks are taken.
    monitored: AtomicBool,
    /// The threads go home.
    closed: AtomicBool,
    /// Why nobody can look out any more.
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

/// Sends all pool threads home at the end, however that comes about.
pub(super) struct ShutdownGuard<'o, 'a>(pub(super) &'o Shared<'a>);

impl Drop for ShutdownGuard<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<'a> Shared<'a> {
    /// An office whose listeners are open. The bell is the main thread's.
    ///
    /// # Errors
    /// The kernel has no resources to watch anything.
    pub(super) fn open(ctx: &'a WorkerContext<'a>, main_waker: Waker) -> io::Result<Self> {
        let (poller, poller_handle) = Poller::new(ctx)?;
        Ok(Self {
            clients: Mutex::default(),
            queue: unbounded(),
            taken: AtomicUsize::new(0),
            taken_at_poll: AtomicUsize::new(0),
            polls: AtomicUsize::new(0),
            poller: Mutex::new(poller),
            poller_handle,
            polling: AtomicBool::new(false),
            wakes_on_removal: AtomicBool::new(false),
            removals_seen: AtomicUsize::new(0),
            idle: Mutex::default(),
            threads: ctx.settings().threads,
            monitored: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            poll_error: Mutex::default(),
            main_waker,
        })
    }

    // What the main thread does.

    /// What has become of clients since this was asked last, in that order.
    pub(super) fn take_events(&self) -> Vec<ClientEvent> {
        mem::take(&mut lock(&self.clients).events)
    }

    /// A client, unless the number is nobody's.
    pub(super) fn entry(&self, index: usize) -> Option<Arc<ClientEntry<'a>>> {
        lock(&self.clients).entries.get(index).cloned()
    }

    /// Has a thread look at a client.
    pub(super) fn dispatch(&self, index: usize) {
        let Some(entry) = self.entry(index) else { return };
        if entry.enqueue() {
            self.enqueue(Task { index, entry, is_new: false });
            self.monitored.store(true, Ordering::SeqCst);
            self.wake_if_needed();
        }
    }

    /// Has all clients told that the worker leaves. Returns their numbers.
    pub(super) fn drain(&self) -> Vec<usize> {
        let indices: Vec<_> = lock(&self.clients).entries.iter().map(|(index, _)| index).collect();
        indices.iter().for_each(|&index| self.dispatch(index));
        indices
    }

    /// Has the gate reconsidered.
    pub(super) fn wake_poller(&self) {
        self.poller_handle.wake();
    }

    /// Whether the main thread must look now and then whether tasks are taken.
    pub(super) fn is_monitored(&self) -> bool {
        self.monitored.load(Ordering::SeqCst)
    }

    /// How many tasks have been taken so far.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// How often somebody has looked out so far; `None` if somebody does.
    pub(super) fn polls(&self) -> Option<usize> {
        (!self.is_polling()).then(|| self.polls.load(Ordering::Relaxed))
    }

    /// How many tasks wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.1.len()
    }

    /// For a while, no task has been taken, one has waited, or nobody has looked out. Whoever is awake
    /// may be blocked, or have too much to do, and so many others are woken. If there is nothing to do,
    /// vigilance ends.
    pub(super) fn wake_threads(&self, threads: usize) {
        let is_quiet = || self.is_polling() && self.waiting() == 0;
        if !is_quiet() && self.wake(threads) {
            return;
        }
        self.monitored.store(false, Ordering::SeqCst);
        // Once more: the lookout may have gone to serve before it could see that nobody minds.
        if !is_quiet() && !lock(&self.idle).is_empty() {
            self.monitored.store(true, Ordering::SeqCst);
        } else if lock(&self.clients).removals != self.removals_seen.load(Ordering::Relaxed) {
            self.poller_handle.wake(); // so that the other workers are told how many clients are left
        }
    }

    /// Whether the threads go home; why, if that is because nobody can look out any more.
    ///
    /// # Errors
    /// What the last lookout met.
    pub(super) fn has_closed(&self) -> io::Result<bool> {
        lock(&self.poll_error).take().map_or(Ok(self.is_closed()), Err)
    }

    // What the lookout does.

    /// How many clients there are.
    pub(super) fn client_count(&self) -> usize {
        lock(&self.clients).entries.len()
    }

    /// Takes a newcomer in, and puts it into the queue.
    pub(super) fn add_client(&self, client: Client<'a>) {
        let entry = Arc::new(ClientEntry::new(client));
        let index = {
            let mut clients = lock(&self.clients);
            let index = clients.entries.insert(Arc::clone(&entry));
            clients.events.push(ClientEvent::Added(index));
            index
        };
        self.enqueue(Task { index, entry, is_new: true });
    }

    /// Something happened to a client's socket. Returns whether it went into the queue.
    pub(super) fn on_event(&self, index: usize, event: &Event) -> bool {
        // What happened to somebody who has gone meanwhile may be told of another, who is then looked
        // at for nothing.
        let Some(entry) = self.entry(index) else { return false };
        let is_queued = entry.on_event(event);
        if is_queued {
            self.enqueue(Task { index, entry, is_new: false });
        }
        is_queued
    }

    /// Says whether the lookout is to be called when somebody goes. Returns whether somebody has gone
    /// since it asked last.
    pub(super) fn set_wakes_on_removal(&self, wakes: bool) -> bool {
        self.wakes_on_removal.store(wakes, Ordering::SeqCst);
        let removals = lock(&self.clients).removals;
        self.removals_seen.swap(removals, Ordering::Relaxed) != removals && wakes
    }

    /// Sends the threads home.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake(usize::MAX);
        self.poller_handle.wake(); // also whoever is about to look out
        self.wake_main();
    }

    /// Whether the threads go home.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    // What the pool threads do.

    /// The next task; `None` at the end. The channel's own way to wait would spin first, at the cost of
    /// the threads that have work.
    pub(super) fn next_task(&self) -> Option<Task<'a>> {
        while !self.is_closed() {
            let taken = self.taken();
            if taken.wrapping_sub(self.taken_at_poll.load(Ordering::Relaxed)) > TASKS_BETWEEN_POLLS
                && let Ok(poller) = self.poller.try_lock()
            {
                self.run_poller(poller, PollMode::NonBlocking);
            }
            if let Ok(task) = self.queue.1.try_recv() {
                self.taken.fetch_add(1, Ordering::Relaxed);
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

    fn run_poller(&self, mut poller: MutexGuard<'_, Poller<'a>>, mode: PollMode) {
        self.taken_at_poll.store(self.taken(), Ordering::Relaxed);
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.polling.store(true, Ordering::SeqCst);
        // Once more: whoever has put something there before may not have known of a lookout to call.
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

    /// Sleeps until somebody calls, if there is a lookout and nothing to do.
    fn park_idle(&self) {
        let me = thread::current();
        let is_me = |thread: &Thread| thread.id() == me.id();
        lock(&self.idle).push(me.clone());
        // Once more: a task may have come before the name was on the list.
        if !self.is_polling() || self.waiting() > 0 || self.is_closed() {
            lock(&self.idle).retain(|thread| !is_me(thread));
            return thread::yield_now(); // the lookout that was is about to be none
        }
        while lock(&self.idle).iter().any(is_me) {
            thread::park();
        }
    }

    /// Watches a newcomer's socket.
    ///
    /// # Errors
    /// The kernel has no memory for it: this client is given up.
    pub(super) fn watch(&self, client: &Client<'a>, index: usize) -> io::Result<()> {
        self.poller_handle.watch(client, index)
    }

    /// A parked client must be looked at earlier than was planned.
    pub(super) fn report_late_check(&self, index: usize) {
        lock(&self.clients).events.push(ClientEvent::CheckTooLate(index));
        self.wake_main();
    }

    /// A client is gone: its number is free.
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

    // What several do.

    /// Puts a task behind the others.
    pub(super) fn enqueue(&self, task: Task<'a>) {
        let unsent = self.queue.0.send(task);
        debug_assert!(unsent.is_ok(), "the office keeps both ends of its queue");
    }

    fn is_polling(&self) -> bool {
        self.polling.load(Ordering::SeqCst)
    }

    /// Wakes a pool thread, if one waits and those that are awake have enough to do with the tasks
    /// that there are.
    fn wake_if_needed(&self) {
        let mut idle = lock(&self.idle);
        let is_polling = self.is_polling();
        let awake = self.threads.saturating_sub(idle.len() + usize::from(is_polling));
        if self.waiting() <= awake * TASKS_PER_THREAD {
            return;
        }
        if let Some(thread) = idle.pop() {
            thread.unpark();
        } else if is_polling {
            self.poller_handle.wake();
        }
    }

    /// Wakes so many pool threads that wait, or all. Returns whether there were any.
    fn wake(&self, threads: usize) -> bool {
        let mut idle = lock(&self.idle);
        let rest = idle.len().saturating_sub(threads);
        let woken = idle.drain(rest..).map(|thread| thread.unpark()).count();
        let wakes_poller = woken < threads && self.is_polling();
        if wakes_poller {
            self.poller_handle.wake();
        }
        woken > 0 || wakes_poller
    }

    fn wake_main(&self) {
        // It can fail for want of memory in the kernel. Then the main thread's next beat brings it.
        let _ = self.main_waker.wake();
    }
}

/// A panic while the lock is held would leave nothing half done: the lock is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
