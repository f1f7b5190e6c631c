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

use super::guest::Guest;
use super::lookout::{Haste, Line, Lookout};

/// Tasks that one thread that is awake may find waiting before another is woken. To wake a thread
/// costs more than a quick task, and most are.
const TASKS_PER_THREAD: usize = 4;
/// Tasks that are taken before somebody looks out in passing, although there is more to do.
const TASKS_BETWEEN_LOOKS: usize = 64;

/// A client that waits for a thread.
pub(super) struct Task<'a> {
    pub(super) index: usize,
    pub(super) guest: Arc<Guest<'a>>,
    /// Whether its socket is not watched yet.
    pub(super) is_newcomer: bool,
}

/// What the main thread, which keeps the deadlines, is told of a client.
pub(super) enum News {
    Came(usize),
    /// It is parked, and its deadline is earlier than the look that was planned.
    Impatient(usize),
    Went(usize),
}

/// The shared state.
pub(super) struct Office<'a> {
    roll: Mutex<Roll<'a>>,
    /// Each client is in it at most once.
    queue: (Sender<Task<'a>>, Receiver<Task<'a>>),
    /// How many tasks have been taken out of the queue.
    taken: AtomicUsize,
    /// How many had been when somebody looked out last.
    taken_at_look: AtomicUsize,
    /// How often somebody has looked out.
    looks: AtomicUsize,
    lookout: Mutex<Lookout<'a>>,
    line: Line,
    /// Whether there is a lookout.
    looking: AtomicBool,
    /// Whether the lookout waits for somebody to go.
    awaits_departures: AtomicBool,
    /// How many had gone when it asked last.
    departures: AtomicUsize,
    /// Pool threads that sleep, the last to fall asleep last.
    idle: Mutex<Vec<Thread>>,
    /// How many pool threads there are.
    threads: usize,
    /// Whether the main thread looks now and then whether tasks are taken.
    vigilant: AtomicBool,
    /// The threads go home.
    closed: AtomicBool,
    /// Why nobody can look out any more.
    trouble: Mutex<Option<io::Error>>,
    /// Wakes the main thread.
    bell: Waker,
}

#[derive(Default)]
struct Roll<'a> {
    guests: Slab<Arc<Guest<'a>>>,
    news: Vec<News>,
    departures: usize,
}

/// Sends all pool threads home at the end, however that comes about.
pub(super) struct ClosingTime<'o, 'a>(pub(super) &'o Office<'a>);

impl Drop for ClosingTime<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl<'a> Office<'a> {
    /// An office whose listeners are open. The bell is the main thread's.
    ///
    /// # Errors
    /// The kernel has no resources to watch anything.
    pub(super) fn open(ctx: &'a WorkerContext<'a>, bell: Waker) -> io::Result<Self> {
        let (lookout, line) = Lookout::new(ctx)?;
        Ok(Self {
            roll: Mutex::default(),
            queue: unbounded(),
            taken: AtomicUsize::new(0),
            taken_at_look: AtomicUsize::new(0),
            looks: AtomicUsize::new(0),
            lookout: Mutex::new(lookout),
            line,
            looking: AtomicBool::new(false),
            awaits_departures: AtomicBool::new(false),
            departures: AtomicUsize::new(0),
            idle: Mutex::default(),
            threads: ctx.settings().threads,
            vigilant: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            trouble: Mutex::default(),
            bell,
        })
    }

    // What the main thread does.

    /// What has become of clients since this was asked last, in that order.
    pub(super) fn news(&self) -> Vec<News> {
        mem::take(&mut lock(&self.roll).news)
    }

    /// A client, unless the number is nobody's.
    pub(super) fn guest(&self, index: usize) -> Option<Arc<Guest<'a>>> {
        lock(&self.roll).guests.get(index).cloned()
    }

    /// Has a thread look at a client.
    pub(super) fn dispatch(&self, index: usize) {
        let Some(guest) = self.guest(index) else { return };
        if guest.queue() {
            self.enqueue(Task { index, guest, is_newcomer: false });
            self.vigilant.store(true, Ordering::SeqCst);
            self.call_if_needed();
        }
    }

    /// Has all clients told that the worker leaves. Returns their numbers.
    pub(super) fn drain(&self) -> Vec<usize> {
        let everybody: Vec<_> = lock(&self.roll).guests.iter().map(|(index, _)| index).collect();
        everybody.iter().for_each(|&index| self.dispatch(index));
        everybody
    }

    /// Has the gate reconsidered.
    pub(super) fn call_the_lookout(&self) {
        self.line.call();
    }

    /// Whether the main thread must look now and then whether tasks are taken.
    pub(super) fn is_vigilant(&self) -> bool {
        self.vigilant.load(Ordering::SeqCst)
    }

    /// How many tasks have been taken so far.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// How often somebody has looked out so far; `None` if somebody does.
    pub(super) fn looks(&self) -> Option<usize> {
        (!self.is_looking()).then(|| self.looks.load(Ordering::Relaxed))
    }

    /// How many tasks wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.1.len()
    }

    /// For a while, no task has been taken, one has waited, or nobody has looked out. Whoever is awake
    /// may be blocked, or have too much to do, and so many others are woken. If there is nothing to do,
    /// vigilance ends.
    pub(super) fn relieve(&self, threads: usize) {
        let is_quiet = || self.is_looking() && self.waiting() == 0;
        if !is_quiet() && self.call(threads) {
            return;
        }
        self.vigilant.store(false, Ordering::SeqCst);
        // Once more: the lookout may have gone to serve before it could see that nobody minds.
        if !is_quiet() && !lock(&self.idle).is_empty() {
            self.vigilant.store(true, Ordering::SeqCst);
        } else if lock(&self.roll).departures != self.departures.load(Ordering::Relaxed) {
            self.line.call(); // so that the other workers are told how many clients are left
        }
    }

    /// Whether the threads go home; why, if that is because nobody can look out any more.
    ///
    /// # Errors
    /// What the last lookout met.
    pub(super) fn has_closed(&self) -> io::Result<bool> {
        lock(&self.trouble).take().map_or(Ok(self.is_closed()), Err)
    }

    // What the lookout does.

    /// How many clients there are.
    pub(super) fn present(&self) -> usize {
        lock(&self.roll).guests.len()
    }

    /// Takes a newcomer in, and puts it into the queue.
    pub(super) fn welcome(&self, client: Client<'a>) {
        let guest = Arc::new(Guest::new(client));
        let index = {
            let mut roll = lock(&self.roll);
            let index = roll.guests.insert(Arc::clone(&guest));
            roll.news.push(News::Came(index));
            index
        };
        self.enqueue(Task { index, guest, is_newcomer: true });
    }

    /// Something happened to a client's socket. Returns whether it went into the queue.
    pub(super) fn stir(&self, index: usize, event: &Event) -> bool {
        // What happened to somebody who has gone meanwhile may be told of another, who is then looked
        // at for nothing.
        let Some(guest) = self.guest(index) else { return false };
        let goes_on = guest.stir(event);
        if goes_on {
            self.enqueue(Task { index, guest, is_newcomer: false });
        }
        goes_on
    }

    /// Says whether the lookout is to be called when somebody goes. Returns whether somebody has gone
    /// since it asked last.
    pub(super) fn await_departures(&self, awaits: bool) -> bool {
        self.awaits_departures.store(awaits, Ordering::SeqCst);
        let departures = lock(&self.roll).departures;
        self.departures.swap(departures, Ordering::Relaxed) != departures && awaits
    }

    /// Sends the threads home.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.call(usize::MAX);
        self.line.call(); // also whoever is about to look out
        self.ring();
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
            if taken.wrapping_sub(self.taken_at_look.load(Ordering::Relaxed)) > TASKS_BETWEEN_LOOKS
                && let Ok(lookout) = self.lookout.try_lock()
            {
                self.look_out(lookout, Haste::InPassing);
            }
            if let Ok(task) = self.queue.1.try_recv() {
                self.taken.fetch_add(1, Ordering::Relaxed);
                return Some(task);
            }
            match self.lookout.try_lock() {
                Ok(lookout) => self.look_out(lookout, Haste::None),
                Err(TryLockError::Poisoned(lookout)) => {
                    self.look_out(lookout.into_inner(), Haste::None);
                }
                Err(TryLockError::WouldBlock) => self.sleep(),
            }
        }
        None
    }

    fn look_out(&self, mut lookout: MutexGuard<'_, Lookout<'a>>, haste: Haste) {
        self.taken_at_look.store(self.taken(), Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.looking.store(true, Ordering::SeqCst);
        // Once more: whoever has put something there before may not have known of a lookout to call.
        let haste = if self.waiting() == 0 { haste } else { Haste::InPassing };
        let queued = lookout.look(self, haste);
        self.looking.store(false, Ordering::SeqCst);
        drop(lookout);
        match queued {
            Ok(0) => (),
            Ok(_) => {
                if !self.vigilant.swap(true, Ordering::SeqCst) {
                    self.ring();
                }
                self.call_if_needed();
            }
            Err(error) => {
                *lock(&self.trouble) = Some(error);
                self.close();
            }
        }
    }

    /// Sleeps until somebody calls, if there is a lookout and nothing to do.
    fn sleep(&self) {
        let me = thread::current();
        let is_me = |thread: &Thread| thread.id() == me.id();
        lock(&self.idle).push(me.clone());
        // Once more: a task may have come before the name was on the list.
        if !self.is_looking() || self.waiting() > 0 || self.is_closed() {
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
        self.line.watch(client, index)
    }

    /// A parked client must be looked at earlier than was planned.
    pub(super) fn hurry(&self, index: usize) {
        lock(&self.roll).news.push(News::Impatient(index));
        self.ring();
    }

    /// A client is gone: its number is free.
    pub(super) fn sign_off(&self, index: usize) {
        let gone = {
            let mut roll = lock(&self.roll);
            roll.news.push(News::Went(index));
            roll.departures += 1;
            roll.guests.remove(index)
        };
        drop(gone);
        if self.awaits_departures.load(Ordering::SeqCst) && self.is_looking() {
            self.line.call();
        }
    }

    // What several do.

    /// Puts a task behind the others.
    pub(super) fn enqueue(&self, task: Task<'a>) {
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
        if self.waiting() <= awake * TASKS_PER_THREAD {
            return;
        }
        if let Some(thread) = idle.pop() {
            thread.unpark();
        } else if is_looking {
            self.line.call();
        }
    }

    /// Wakes so many pool threads that wait, or all. Returns whether there were any.
    fn call(&self, threads: usize) -> bool {
        let mut idle = lock(&self.idle);
        let rest = idle.len().saturating_sub(threads);
        let woken = idle.drain(rest..).map(|thread| thread.unpark()).count();
        let calls_the_lookout = woken < threads && self.is_looking();
        if calls_the_lookout {
            self.line.call();
        }
        woken > 0 || calls_the_lookout
    }

    fn ring(&self) {
        // It can fail for want of memory in the kernel. Then the main thread's next beat brings it.
        let _ = self.bell.wake();
    }
}

/// A panic while the lock is held would leave nothing half done: the lock is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
