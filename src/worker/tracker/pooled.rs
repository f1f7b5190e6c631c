//! A work tracker that keeps its entry on the scoreboard only while its thread works.

use super::WorkTracker;

/// A work tracker of a thread that works on units only now and then, such as one of a pool. Between
/// [`hold`](Self::hold) and [`release`](Self::release) alone it keeps an entry from other threads.
pub struct PooledTracker<'a>(WorkTracker<'a>);

impl<'a> PooledTracker<'a> {
    /// Returns the tracker, with a thread entry: the last one, unless another thread has taken it. `None`
    /// if other threads have all entries.
    #[inline]
    pub fn hold(&mut self) -> Option<&mut WorkTracker<'a>> {
        self.0.entry.retake().then_some(&mut self.0)
    }

    /// Returns whether the thread holds its entry.
    pub fn is_held(&self) -> bool {
        self.0.entry.is_held()
    }

    /// Lets other threads take the entry until the next [`hold`](Self::hold).
    #[inline]
    pub fn release(&mut self) {
        if self.is_held() {
            self.0.entry.thread.set_idle();
            self.0.entry.release();
        }
    }
}

impl<'a> From<WorkTracker<'a>> for PooledTracker<'a> {
    fn from(tracker: WorkTracker<'a>) -> Self {
        Self(tracker)
    }
}
