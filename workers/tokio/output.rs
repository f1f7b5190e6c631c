//! The output of responses: how far a client has taken it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ostler::time::MonotonicTime;
use slab::Slab;

use super::worker::Worker;

/// How many bytes a client must take within `write_timeout`.
pub(super) const WRITE_STEP: u64 = 4 << 10;

/// How far a client has taken one response, over HTTP/2 or for the access log.
pub(super) struct ResponseOutput {
    worker: Worker,
    /// How many bytes the app has produced.
    produced: AtomicU64,
    /// How many of them wait.
    waiting: AtomicU64,
    /// How many bytes were taken since `moved_at`.
    step: AtomicU64,
    /// When the client has last taken [`WRITE_STEP`], or the output has begun to wait, in nanoseconds.
    moved_at: AtomicU64,
    /// How many pieces there are.
    pieces: AtomicUsize,
    /// The guard of the request, once its body has ended, if pieces wait.
    guard: Mutex<Option<Box<dyn Send>>>,
}

impl ResponseOutput {
    pub(super) fn new(worker: Worker) -> Self {
        let [produced, waiting, step, moved_at] = [const { AtomicU64::new(0) }; 4];
        let (pieces, guard) = (AtomicUsize::new(0), Mutex::default());
        Self { worker, produced, waiting, step, moved_at, pieces, guard }
    }

    /// Returns whether pieces wait.
    pub(super) fn has_pieces(&self) -> bool {
        self.pieces.load(Ordering::SeqCst) > 0
    }

    /// Keeps the guard of a request, whose body has ended, until the last piece is dropped.
    pub(super) fn keep_until_taken(&self, guard: impl Send + 'static) {
        *self.guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(guard));
        if self.pieces.load(Ordering::SeqCst) == 0 {
            self.drop_guard();
        }
    }

    /// Returns how many bytes the kernel has taken, and how many it has not.
    pub(super) fn taken_and_lost(&self) -> (u64, u64) {
        let lost = self.waiting.load(Ordering::Relaxed);
        (self.produced.load(Ordering::Relaxed) - lost, lost)
    }

    pub(super) fn on_piece(&self, length: usize) {
        self.pieces.fetch_add(1, Ordering::SeqCst);
        self.produced.fetch_add(length as u64, Ordering::Relaxed);
        if self.waiting.fetch_add(length as u64, Ordering::Relaxed) == 0 {
            self.restart();
        }
    }

    pub(super) fn on_piece_end(&self) {
        if self.pieces.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.drop_guard();
        }
    }

    fn drop_guard(&self) {
        let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard); // after the lock is released
    }

    pub(super) fn on_taken(&self, length: usize) {
        let length = length as u64;
        let waited = self.waiting.fetch_sub(length, Ordering::Relaxed);
        let step = self.step.load(Ordering::Relaxed) + length;
        self.step.store(step, Ordering::Relaxed);
        if step >= WRITE_STEP && waited > length {
            self.restart();
        }
    }

    fn restart(&self) {
        let now = self.worker.lifecycle().now_coarse();
        self.step.store(0, Ordering::Relaxed);
        self.moved_at.store(now.as_nanos(), Ordering::Relaxed);
    }

    /// Returns since when the client has not taken what waits; `None` if nothing waits.
    fn waits_since(&self) -> Option<MonotonicTime> {
        let is_waiting = self.waiting.load(Ordering::Relaxed) > 0;
        is_waiting.then(|| MonotonicTime::from_nanos(self.moved_at.load(Ordering::Relaxed)))
    }
}

/// The outputs of the streams of one connection.
#[derive(Default)]
pub(super) struct Outputs(Slab<Arc<ResponseOutput>>);

impl Outputs {
    /// Adds the output of a stream. Returns its key.
    pub(super) fn add(&mut self, output: Arc<ResponseOutput>) -> usize {
        self.0.insert(output)
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.0.try_remove(key);
    }

    /// Returns how many outputs have stalled: their client has not taken [`WRITE_STEP`] within `limit`.
    /// If the output of the connection moves, those that wait share it, and each has `limit` for each of
    /// them. Returns also when to look again.
    pub(super) fn stalled(
        &self,
        now: MonotonicTime,
        limit: Duration,
        is_moving: bool,
    ) -> (usize, MonotonicTime) {
        let waiting = || self.0.iter().filter_map(|(_, output)| output.waits_since());
        let shares = if is_moving { waiting().count() } else { 1 };
        let share_limit = limit.saturating_mul(u32::try_from(shares).unwrap_or(u32::MAX));
        let (mut stalled, mut next) = (0, now.saturating_add(limit));
        for since in waiting() {
            let deadline = since.saturating_add(share_limit);
            if deadline <= now {
                stalled += 1;
            } else {
                next = next.min(deadline);
            }
        }
        (stalled, next)
    }
}
