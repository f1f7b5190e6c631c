//! A job: a loop with no socket, and what it is handed.

use std::time::Duration;

use slog::Logger;

use super::worker_info::WorkerInfo;
use crate::time::{ClockReading, WallTime};

/// Work that nobody asks for over a socket: a queue that is drained, a table that is swept, a
/// report at three o'clock. Each thread of a worker that runs jobs has one of its own.
///
/// The runtime calls [`run`](Self::run) again and again, and sleeps between. A run is a unit of
/// work, as a request is: it is counted for `max_requests`, a worker whose run takes longer than
/// `timeout` is taken for hung and replaced, and a worker that is to leave finishes its run. One
/// that sleeps leaves at once.
///
/// A run that panics costs nothing but itself: it is logged, and the job goes on after a pause of
/// 0.1 s, which is doubled after each further panic in a row, up to 30 s.
///
/// Any closure from `&mut dyn JobContext` to [`NextRun`] is a job:
///
/// ```no_run
/// use std::time::Duration;
/// use ostler::job::{self, JobContext, Then};
///
/// let sweep = job::app("sweep", |_place, _thread| {
///     Ok(|_: &mut dyn JobContext| {
///         // … look for something to do, and do it …
///         Then::After(Duration::from_secs(5))
///     })
/// });
/// # let _ = ostler::app::App::name(&sweep);
/// ```
pub trait Job: Send {
    /// Does one piece of work, and says when the next is due.
    ///
    /// # Panics
    /// A panic is caught: see above.
    fn run(&mut self, ctx: &mut dyn JobContext) -> NextRun;

    /// When a run is due, if no run has said so: asked before the first, after one that panicked,
    /// and when somebody has set the clock while the job slept up to a date. At once, unless
    /// overridden.
    fn next_run(&mut self, now: ClockReading) -> NextRun {
        let _ = now;
        NextRun::Now
    }
}

/// When a job is to run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextRun {
    /// At once.
    Now,
    /// So long from now, whatever the date is then.
    After(Duration),
    /// When the wall clock says so; at once if it says so already. If the clock is set meanwhile,
    /// [`Job::due`] is asked anew.
    At(WallTime),
    /// Never: the job has nothing more to do. Its thread sleeps until the worker is to leave: a
    /// worker whose jobs are all done is not ended, since it would only be replaced, and begin anew.
    Never,
}

/// What a run is handed. A test of a job makes its own.
pub trait JobContext {
    /// Where the worker sits, and the app's options.
    fn worker(&self) -> &WorkerInfo;

    /// The log.
    fn log(&self) -> &Logger;

    /// This moment.
    fn now(&self) -> ClockReading;

    /// Whether the worker is to leave. It leaves after this run, which may take up to
    /// `graceful_timeout`; a long one that can stop half-way does well to ask.
    fn is_stopping(&self) -> bool;

    /// Says what the run is at, for the log if it hangs. Without it a run is called as the app is.
    /// Cut to 64 bytes.
    fn label(&mut self, label: &str);

    /// The run needs until so long from now, at least; at most an hour, but it may ask again. Until
    /// then the worker is not taken for hung on its account.
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
