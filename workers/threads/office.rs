//! What the main thread and the pool share: the clients, the queue, and who sleeps, looks out, or
//! is woken for what.
//!
//! A pool thread that finds the queue empty becomes the *lookout*, if there is none: it waits for
//! what happens to the sockets, puts into the queue whoever can go on, and serves the first itself,
//! without another thread's being woken. Meanwhile nobody looks out. So the main thread is
//! *vigilant* from then on: if no task is taken for a moment, whoever is awake may be blocked, and
//! it wakes another, who looks out in turn.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, Thread};

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Registry, Token, Waker};
use crossbeam_channel::{Receiver, Sender, unbounded};
use ostler::worker::Client;
use slab::Slab;

use super::guest::Guest;

/// Tasks that one thread that is awake may find waiting before another is woken. To wake a thread
/// costs more than a quick task, and most are.
const TASKS_PER_THREAD: usize = 4;
/// Events that the lookout takes at once.
const EVENTS_MAX: usize = 512;
/// The lookout is called. Clients have the tokens from 0 on.
const CALL: Token = Token(usize::MAX);

/// A client that waits for a thread.
pub(super) struct Task<'a> {
    pub(super) index: usize,
    pub(super) guest: Arc<Guest<'a>>,
}

/// The shared state.
pub(super) struct Office<'a> {
    guests: Mutex<Slab<Arc<Guest<'a>>>>,
    /// Each client is in it at most once.
    queue: (Sender<Task<'a>>, Receiver<Task<'a>>),
    /// How many tasks have been taken out of the queue.
    taken: AtomicUsize,
    /// The sockets of the clients. Whoever holds it is the lookout.
    watch: Mutex<Watch>,
    registry: Registry,
    /// Calls the lookout.
    caller: Waker,
    /// Whether there is a lookout.
    looking: AtomicBool,
    /// Pool threads that sleep, the last to fall asleep last.
    idle: Mutex<Vec<Thread>>,
    /// How many pool threads there are.
    threads: usize,
    /// Whether the main thread looks now and then whether tasks are taken.
    vigilant: AtomicBool,
    /// Clients that are gone, whose numbers the main thread may give to others.
    departed: Mutex<Vec<usize>>,
    /// Whether the main thread waits for somebody to go.
    awaits_departures: AtomicBool,
    /// Why no lookout can go on.
    trouble: Mutex<Option<io::Error>>,
    /// The threads go home.
    closed: AtomicBool,
    /// Wakes the main thread.
    bell: Waker,
}

struct Watch {
    poll: Poll,
    events: Events,
}

/// Sends all pool threads home at the end, however that comes about.
pub(super) struct ClosingTime<'o, 'a>(pub(super) &'o Office<'a>);

impl Drop for ClosingTime<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<'a> Office<'a> {
    /// The office of so many threads. The bell is the main thread's.
    ///
    /// # Errors
    /// From epoll_create(2) and eventfd(2).
    pub(super) fn new(threads: usize, bell: Waker) -> io::Result<Self> {
        let poll = Poll::new()?;
        Ok(Self {
            guests: Mutex::default(),
            queue: unbounded(),
            taken: AtomicUsize::new(0),
            registry: poll.registry().try_clone()?,
            caller: Waker::new(poll.registry(), CALL)?,
            watch: Mutex::new(Watch { poll, events: Events::with_capacity(EVENTS_MAX) }),
            looking: AtomicBool::new(false),
            idle: Mutex::default(),
            threads,
            vigilant: AtomicBool::new(false),
            departed: Mutex::default(),
            awaits_departures: AtomicBool::new(false),
            trouble: Mutex::default(),
            closed: AtomicBool::new(false),
            bell,
        })
    }

    // What the main thread does.

    /// Lets a client in, and watches its socket. Returns its number.
    ///
    /// # Errors
    /// From epoll_ctl(2): then this client is given up.
    pub(super) fn let_in(&self, client: Client<'a>, fd: RawFd) -> io::Result<usize> {
        let index = lock(&self.guests).insert(Arc::new(Guest::new(client)));
        // Both at once and for good: an event that is of no use costs less than a system call.
        let both = Interest::READABLE | Interest::WRITABLE;
        let watched = self.registry.register(&mut SourceFd(&fd), Token(index), both);
        watched.inspect_err(|_| drop(lock(&self.guests).remove(index)))?;
        Ok(index)
    }

    /// A client, unless its number is nobody's.
    pub(super) fn guest(&self, index: usize) -> Option<Arc<Guest<'a>>> {
        lock(&self.guests).get(index).cloned()
    }

    /// The numbers of all clients.
    pub(super) fn indices(&self) -> Vec<usize> {
        lock(&self.guests).iter().map(|(index, _)| index).collect()
    }

    /// Has a thread look at a client.
    pub(super) fn dispatch(&self, index: usize) {
        let Some(guest) = self.guest(index) else { return };
        if guest.queue() {
            self.enqueue(Task { index, guest });
            self.vigilant.store(true, Ordering::SeqCst);
            self.call_if_needed();
        }
    }

    /// The clients that have gone since this was asked last. Their numbers are free.
    pub(super) fn see_off(&self) -> Vec<usize> {
        let gone = std::mem::take(&mut *lock(&self.departed));
        if !gone.is_empty() {
            let mut guests = lock(&self.guests);
            gone.iter().for_each(|&index| drop(guests.remove(index)));
        }
        gone
    }

    /// Says whether the main thread is to be woken when somebody goes. Returns whether somebody has
    /// gone already.
    pub(super) fn await_departures(&self, awaits: bool) -> bool {
        self.awaits_departures.store(awaits, Ordering::SeqCst);
        awaits && !lock(&self.departed).is_empty()
    }

    /// Whether the main thread must look now and then whether tasks are taken.
    pub(super) fn is_vigilant(&self) -> bool {
        self.vigilant.load(Ordering::SeqCst)
    }

    /// How many tasks have been taken so far.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// No task has been taken for a while. Either there was none; or whoever is awake may be blocked,
    /// and others are woken.
    pub(super) fn relieve(&self) {
        let is_quiet = || self.is_looking() && self.queue.1.is_empty();
        if !is_quiet() && self.call(self.queue.1.len().max(1)) {
            return;
        }
        self.vigilant.store(false, Ordering::SeqCst);
        // Once more: the lookout may have gone to serve before it could see that nobody minds.
        if !is_quiet() && !lock(&self.idle).is_empty() {
            self.vigilant.store(true, Ordering::SeqCst);
        }
    }

    /// Why the pool cannot go on, if it cannot.
    pub(super) fn trouble(&self) -> Option<io::Error> {
        lock(&self.trouble).take()
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.call(usize::MAX);
        self.call_the_lookout(); // also one that is about to be
    }

    // What the pool threads do.

    /// The next task; `None` at the end. The channel's own way to wait would spin first, at the cost of
    /// the threads that have work.
    pub(super) fn next_task(&self) -> Option<Task<'a>> {
        while !self.closed.load(Ordering::SeqCst) {
            if let Ok(task) = self.queue.1.try_recv() {
                self.taken.fetch_add(1, Ordering::Relaxed);
                return Some(task);
            }
            match self.watch.try_lock() {
                Ok(watch) => self.look_out(watch),
                Err(TryLockError::Poisoned(watch)) => self.look_out(watch.into_inner()),
                Err(TryLockError::WouldBlock) => self.sleep(),
            }
        }
        None
    }

    /// Waits until something happens to the clients, and puts those that can go on into the queue.
    fn look_out(&self, mut watch: MutexGuard<'_, Watch>) {
        self.looking.store(true, Ordering::SeqCst);
        // Once more: a call that came before is over.
        let mut news = 0;
        if self.queue.1.is_empty() && !self.closed.load(Ordering::SeqCst) {
            let Watch { poll, events } = &mut *watch;
            match poll.poll(events, None) {
                Ok(()) => news = self.enqueue_the_stirred(events),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => self.give_up(error),
            }
        }
        self.looking.store(false, Ordering::SeqCst);
        drop(watch);
        if news > 0 {
            if !self.vigilant.swap(true, Ordering::SeqCst) {
                self.ring();
            }
            self.call_if_needed();
        }
    }

    fn enqueue_the_stirred(&self, events: &Events) -> usize {
        let guests = lock(&self.guests);
        let mut queued = 0;
        for event in events {
            let Token(index) = event.token();
            // That of somebody who has gone meanwhile may be another's by now, who is then looked at
            // for nothing.
            if let Some(guest) = guests.get(index)
                && guest.stir(event)
            {
                self.enqueue(Task { index, guest: Arc::clone(guest) });
                queued += 1;
            }
        }
        queued
    }

    /// Sleeps until somebody calls, if there is a lookout and nothing to do.
    fn sleep(&self) {
        let me = thread::current();
        let is_me = |thread: &Thread| thread.id() == me.id();
        lock(&self.idle).push(me.clone());
        // Once more: a task may have come before the name was on the list.
        let is_needed = !self.is_looking() || !self.queue.1.is_empty();
        if is_needed || self.closed.load(Ordering::SeqCst) {
            lock(&self.idle).retain(|thread| !is_me(thread));
            return thread::yield_now(); // the lookout that was is about to let the watch go
        }
        while lock(&self.idle).iter().any(is_me) {
            thread::park();
        }
    }

    /// A client is gone.
    pub(super) fn sign_off(&self, index: usize) {
        lock(&self.departed).push(index);
        if self.awaits_departures.load(Ordering::SeqCst) {
            self.ring();
        }
    }

    fn give_up(&self, error: io::Error) {
        *lock(&self.trouble) = Some(error);
        self.closed.store(true, Ordering::SeqCst);
        self.ring();
    }

    // What both do.

    fn enqueue(&self, task: Task<'a>) {
        let unsent = self.queue.0.send(task);
        debug_assert!(unsent.is_ok(), "the office keeps both ends of its queue");
    }

    fn is_looking(&self) -> bool {
        self.looking.load(Ordering::SeqCst)
    }

    /// Wakes a pool thread, if one waits and those that are awake have enough to do with the tasks
    /// that there are.
    fn call_if_needed(&self) {
        let mut idle = lock(&self.idle);
        let is_looking = self.is_looking();
        let awake = self.threads.saturating_sub(idle.len() + usize::from(is_looking));
        if self.queue.1.len() <= awake * TASKS_PER_THREAD {
            return;
        }
        if let Some(thread) = idle.pop() {
            thread.unpark();
        } else if is_looking {
            self.call_the_lookout();
        }
    }

    /// Wakes so many pool threads that wait, or all. Returns whether there were any.
    fn call(&self, threads: usize) -> bool {
        let mut idle = lock(&self.idle);
        let rest = idle.len().saturating_sub(threads);
        let woken = idle.drain(rest..).map(|thread| thread.unpark()).count();
        let lookout = woken < threads && self.is_looking();
        if lookout {
            self.call_the_lookout();
        }
        woken > 0 || lookout
    }

    /// Like every call here, it can fail for want of memory in the kernel. Then the next beat of the
    /// main thread, or the next event of a client, brings what it was for.
    fn call_the_lookout(&self) {
        let _ = self.caller.wake();
    }

    fn ring(&self) {
        let _ = self.bell.wake();
    }
}

/// A panic while the lock is held would leave nothing half done: the lock is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
