//! What the pool's threads share: who sleeps, who is woken for what, and who has gone.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

use ::mio::Waker;
use crossbeam_channel::{Receiver, TryRecvError};

/// Tasks that one thread that is awake may find waiting before another is woken. To wake a thread
/// costs more than a quick task, and most are.
const TASKS_PER_THREAD: usize = 4;

/// Wakes all pool threads at the end, however that comes about: the queue is no more then, and
/// they go home.
pub(super) struct ClosingTime<'o>(pub(super) &'o Office);

impl Drop for ClosingTime<'_> {
    fn drop(&mut self) {
        self.0.call(usize::MAX);
    }
}

/// What the threads share besides the clients.
pub(super) struct Office {
    /// Clients that are gone, whose numbers the main thread may give to others.
    pub(super) departed: Mutex<Vec<usize>>,
    /// Whether the main thread waits for somebody to go.
    pub(super) awaits_departures: AtomicBool,
    /// Pool threads that sleep, the last to fall asleep last.
    pub(super) idle: Mutex<Vec<Thread>>,
    /// How many pool threads there are.
    threads: usize,
    /// How many tasks have been taken out of the queue.
    pub(super) taken: AtomicUsize,
    waker: Waker,
}

impl Office {
    /// The office of so many threads. The waker is for the main thread.
    pub(super) fn new(threads: usize, waker: Waker) -> Self {
        Self {
            departed: Mutex::default(),
            awaits_departures: AtomicBool::new(false),
            idle: Mutex::default(),
            threads,
            taken: AtomicUsize::new(0),
            waker,
        }
    }

    /// Wakes a pool thread, if one sleeps and those that are awake have enough to do with so many
    /// tasks.
    pub(super) fn call_if_needed(&self, tasks: usize) {
        let mut idle = lock(&self.idle);
        let awake = self.threads - idle.len();
        if tasks > awake * TASKS_PER_THREAD
            && let Some(thread) = idle.pop()
        {
            thread.unpark();
        }
    }

    /// Wakes so many pool threads, or all.
    pub(super) fn call(&self, threads: usize) {
        let mut idle = lock(&self.idle);
        let rest = idle.len().saturating_sub(threads);
        idle.drain(rest..).for_each(|thread| thread.unpark());
    }

    /// The next task; `None` once the queue is no more. The channel's own way to wait would spin
    /// first, at the cost of the threads that have work.
    pub(super) fn next_task<T>(&self, tasks: &Receiver<T>) -> Option<T> {
        let me = thread::current();
        let is_me = |thread: &Thread| thread.id() == me.id();
        loop {
            if let Some(news) = self.take_task(tasks) {
                return news;
            }
            lock(&self.idle).push(me.clone());
            // Once more: a task may have come before the name was on the list.
            if let Some(news) = self.take_task(tasks) {
                lock(&self.idle).retain(|thread| !is_me(thread));
                return news;
            }
            while lock(&self.idle).iter().any(is_me) {
                thread::park();
            }
        }
    }

    /// A task, the end of all tasks, or, if the queue is empty, nothing.
    fn take_task<T>(&self, tasks: &Receiver<T>) -> Option<Option<T>> {
        match tasks.try_recv() {
            Ok(task) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                Some(Some(task))
            }
            Err(TryRecvError::Disconnected) => Some(None),
            Err(TryRecvError::Empty) => None,
        }
    }

    /// A client is gone.
    pub(super) fn sign_off(&self, index: usize) {
        lock(&self.departed).push(index);
        if self.awaits_departures.load(Ordering::Acquire) {
            // It can fail for want of memory in the kernel; then the next beat wakes the other.
            let _ = self.waker.wake();
        }
    }
}

/// A panic while the lock is held would leave nothing half done: the lock is still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
