//! Jobs: recurring work without a socket.

use std::time::Duration;

use slog::Logger;

use super::worker_info::WorkerInfo;
use crate::time::{ClockReading, WallTime};

/// Recurring work without a socket: draining a queue, cleaning a table, writing a report at three
/// o'clock. Each thread of a worker that runs jobs has a job of its own.
///
/// The runtime calls [`run`](Self::run) repeatedly, and sleeps in between. A run is a unit of work,
/// as a request is: it counts for `max_requests`, and a worker whose run takes longer than `timeout`
/// is hung and replaced. A draining worker finishes its run; if its jobs sleep, it exits at once.
///
/// A panic ends only its run: it is logged, and the job continues after a pause of 0.1 s. The pause
/// doubles after each further consecutive panic, up to 30 s.
///
/// Any closure from `&mut dyn JobContext` to [`NextRun`] is a job:
///
/// ```no_run
/// use std::time::Duration;
/// use ostler::job::{self, JobContext, NextRun};
///
/// let sweep = job::app("sweep", |_worker, _thread| {
///     Ok(|_: &mut dyn JobContext| {
///         // … look for something to do, and do it …
///         NextRun::After(Duration::from_secs(5))
///     })
/// });
/// # let _ = ostler::app::App::name(&sweep);
/// ```
pub trait Job: Send {
    /// Does one piece of work, and returns when the next run is due.
    ///
    /// # Panics
    /// The runtime catches panics: see above.
    fn run(&mut self, ctx: &mut dyn JobContext) -> NextRun;

    /// Returns when a run is due, if no run has returned that: before the first run, after a panic,
    /// and if the clock was set while the job slept until a date. The default is at once.
    fn next_run(&mut self, now: ClockReading) -> NextRun {
        let _ = now;
        NextRun::Now
    }
}

/// When a job runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRun {
    /// At once.
    Now,
    /// After this time, by the monotonic clock.
    After(Duration),
    /// When the wall clock reaches this date; at once if it has. If the clock is set meanwhile,
    /// [`Job::next_run`] is called again.
    At(WallTime),
    /// Never. The thread sleeps until the worker drains. A worker whose jobs have all finished does
    /// not exit, because it would only be replaced, and the replacement would start over.
    Never,
}

/// The context of a run. A test of a job implements its own.
pub trait JobContext {
    /// Returns the worker's slot, the app's options, and so on.
    fn worker(&self) -> &WorkerInfo;

    /// Returns the logger.
    fn log(&self) -> &Logger;

    /// Returns the current time of both clocks.
    fn now(&self) -> ClockReading;

    /// Returns whether the worker drains. It exits after this run, which may take up to
    /// `graceful_timeout`. Check it in a long run that can stop early.
    fn is_stopping(&self) -> bool;

    /// Sets the label of the run, which is logged if the run hangs. The default is the app's name. It
    /// is truncated to 64 bytes.
    fn label(&mut self, label: &str);

    /// Extends the deadline of the run to `time` from now, at most one hour. Call it again to extend it
    /// further. Until then, the run does not count as hung.
    fn extend_deadline(&mut self, time: Duration);
}

impl<F> Job for F
where
    F: FnMut(&mut dyn JobContext) -> NextRun + Send,
{
    fn run(&mut self, ctx: &mut dyn JobContext) -> NextRun {
        self(ctx)
    }
}
