//! How many requests are in progress, counted by thread: no thread waits for another.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The requests of a worker.
#[derive(Debug, Default)]
pub(super) struct RequestCounts(Mutex<Threads>);

#[derive(Debug, Default)]
struct Threads {
    /// Those that run.
    running: Vec<Arc<ThreadRequests>>,
    /// How many requests those that have ended had begun, without those that they had ended. It wraps:
    /// a request may end on another thread than it began on.
    in_progress_of_ended: u64,
}

impl RequestCounts {
    /// Returns where the calling thread counts its requests.
    pub(super) fn add_thread(&'static self) -> ThreadCounts {
        let requests = Arc::<ThreadRequests>::default();
        self.threads().running.push(Arc::clone(&requests));
        ThreadCounts { all: self, requests }
    }

    /// Returns how many requests wait for something else than a thread.
    pub(super) fn awaiting(&self) -> usize {
        let threads = self.threads();
        let (mut in_progress, mut running) = (threads.in_progress_of_ended, 0);
        for thread in &threads.running {
            in_progress = in_progress.wrapping_add(thread.in_progress());
            running += u64::from(thread.is_running.load(Ordering::Relaxed));
        }
        // The counts are read one after the other, so they may differ by what happened meanwhile.
        usize::try_from((in_progress as i64).saturating_sub_unsigned(running)).unwrap_or(0)
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The counts of the calling thread, until this is dropped: pool threads come and go.
pub(super) struct ThreadCounts {
    all: &'static RequestCounts,
    requests: Arc<ThreadRequests>,
}

impl ThreadCounts {
    pub(super) fn on_begin(&self) {
        self.requests.begun.increment();
    }

    pub(super) fn on_end(&self) {
        self.requests.ended.increment();
    }

    /// Takes in whether the thread runs the code of a request.
    pub(super) fn set_running(&self, is_running: bool) {
        self.requests.is_running.store(is_running, Ordering::Relaxed);
    }
}

impl Drop for ThreadCounts {
    fn drop(&mut self) {
        let mut threads = self.all.threads();
        threads.running.retain(|thread| !Arc::ptr_eq(thread, &self.requests));
        let in_progress = self.requests.in_progress();
        threads.in_progress_of_ended = threads.in_progress_of_ended.wrapping_add(in_progress);
    }
}

/// The requests of one thread, which alone writes here.
#[derive(Debug, Default)]
#[repr(align(64))] // no other thread's cache line
struct ThreadRequests {
    begun: Count,
    ended: Count,
    /// Whether the thread runs the code of a request.
    is_running: AtomicBool,
}

impl ThreadRequests {
    /// Returns how many requests the thread has begun, without those that it has ended. It wraps.
    fn in_progress(&self) -> u64 {
        self.begun.get().wrapping_sub(self.ended.get())
    }
}

/// A count with one writer.
#[derive(Debug, Default)]
struct Count(AtomicU64);

impl Count {
    fn increment(&self) {
        self.0.store(self.get().wrapping_add(1), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_threads_are_forgotten_and_their_requests_not() {
        let counts: &RequestCounts = Box::leak(Box::default());
        let lasting = counts.add_thread();
        for _ in 0..3 {
            let thread = counts.add_thread();
            thread.set_running(true);
            thread.on_begin();
        }
        assert_eq!(counts.threads().running.len(), 1);
        assert_eq!(counts.awaiting(), 3);
        // They end elsewhere.
        (0..2).for_each(|_| lasting.on_end());
        assert_eq!(counts.awaiting(), 1);
        lasting.on_begin();
        lasting.set_running(true);
        assert_eq!(counts.awaiting(), 1);
        drop(lasting);
        assert_eq!(counts.threads().running.len(), 0);
        assert_eq!(counts.awaiting(), 2);
    }
}
