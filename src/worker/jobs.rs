//! Runs jobs: sleeps until the next run, wakes for a stop, and makes each run a unit of work.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use slog::{Logger, info, warn};

use super::context::WorkerContext;
use super::error::WorkerError;
use super::lifecycle::{Lifecycle, StopRequest};
use super::tracker::WorkTracker;
use crate::app::{Job, JobContext, NextRun, UnitKind, WorkReporter as _, WorkerInfo};
use crate::os::wall_timer::{TimerEvent, WallTimer};
use crate::os::{clock, poll};
use crate::time::{ClockReading, MonotonicTime, WallTime};

/// The pause after a panic; it doubles with each further one in a row, up to the maximum.
const PANIC_BACKOFF_MIN: Duration = Duration::from_millis(100);
const PANIC_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A job with its thread entry in a worker. Made by [`WorkerContext::take_jobs`].
pub struct ThreadJob<'a> {
    ctx: &'a WorkerContext<'a>,
    job: Box<dyn Job>,
    thread: usize,
}

impl<'a> WorkerContext<'a> {
    /// Takes the jobs of this worker: one for each of its [threads](super::WorkerClass::threads),
    /// which must run it. There are none if its app is a service, or if they were taken before.
    pub fn take_jobs(&'a self) -> Vec<ThreadJob<'a>> {
        let jobs = self.app.take_jobs().into_iter().enumerate();
        jobs.map(|(thread, job)| ThreadJob::new(self, thread, job)).collect()
    }
}

impl<'a> ThreadJob<'a> {
    pub(super) fn new(ctx: &'a WorkerContext<'a>, thread: usize, job: Box<dyn Job>) -> Self {
        Self { ctx, job, thread }
    }

    /// Runs the job, and sleeps between runs, until the worker must stop. For the only thread of a
    /// worker: it sends heartbeats and polls for a stop.
    ///
    /// # Errors
    /// The kernel has no memory to wait with.
    pub fn run_alone(self) -> Result<(), WorkerError> {
        Runner::new(self, true).run()
    }

    /// Runs the job in one thread of several. Another thread must send heartbeats, and call
    /// [`Lifecycle::poll_stop`] whenever [`Lifecycle::wake_fd`] is readable.
    ///
    /// # Errors
    /// The kernel has no memory to wait with.
    pub fn run_in_pool(self) -> Result<(), WorkerError> {
        Runner::new(self, false).run()
    }
}

/// What a job waits for.
#[derive(Clone, Copy)]
enum JobWait {
    /// Its next call of `next_run`.
    QueryAt(MonotonicTime),
    /// A run at a point in monotonic time.
    RunAt(MonotonicTime),
    /// A run on a date.
    RunAtWallTime(WallTime),
    /// The stop of the worker alone.
    UntilStop,
}

/// Why a sleep is over.
#[derive(PartialEq, Eq)]
enum Woken {
    Due,
    ClockSet,
    Stopping,
}

/// One job and how it has run so far.
struct Runner<'a> {
    ctx: &'a WorkerContext<'a>,
    job: Box<dyn Job>,
    thread: usize,
    tracker: WorkTracker<'a>,
    on_main_thread: bool,
    timer: Option<WallTimer>,
    /// Whether the log says that there is no wall-clock timer.
    timer_failure_logged: bool,
    /// How many runs in a row have panicked.
    consecutive_panics: u32,
}

impl<'a> Runner<'a> {
    fn new(ThreadJob { ctx, job, thread }: ThreadJob<'a>, on_main_thread: bool) -> Self {
        let tracker = ctx.lifecycle.tracker_of(thread);
        let tracker = if on_main_thread { tracker.with_heartbeat() } else { tracker };
        Self {
            ctx,
            job,
            thread,
            tracker,
            on_main_thread,
            timer: None,
            timer_failure_logged: false,
            consecutive_panics: 0,
        }
    }

    fn run(mut self) -> Result<(), WorkerError> {
        let mut wait = JobWait::QueryAt(clock::now());
        loop {
            wait = match (self.sleep(wait)?, wait) {
                (Woken::Stopping, _) => return Ok(()),
                (Woken::Due, JobWait::RunAt(_) | JobWait::RunAtWallTime(_)) => self.run_once(),
                (Woken::Due | Woken::ClockSet, _) => self.query_next_run(),
            };
        }
    }

    /// Runs the job once, as a unit of work.
    fn run_once(&mut self) -> JobWait {
        let Self { ctx, job, tracker, on_main_thread, .. } = self;
        tracker.begin_work(ctx.settings.app.as_bytes());
        let mut label = tracker.logs_units().then(|| ctx.settings.app.clone());
        let mut run =
            RunContext { ctx, tracker, on_main_thread: *on_main_thread, label: &mut label };
        let ran = catch_unwind(AssertUnwindSafe(|| job.run(&mut run)));
        tracker.set_idle();
        if let Some(label) = label {
            tracker.log_run(UnitKind::Job, &label, ran.is_ok());
        }
        tracker.end_work();
        self.on_result(ran.ok())
    }

    /// Asks the job when it is due.
    fn query_next_run(&mut self) -> JobWait {
        let (job, now) = (&mut self.job, clock::read_clocks());
        let queried = catch_unwind(AssertUnwindSafe(|| job.next_run(now)));
        if let Ok(then) = queried {
            return self.wait_for(then);
        }
        self.on_result(None)
    }

    /// Returns what to wait for after a call of the job, which has panicked if there is no result.
    fn on_result(&mut self, result: Option<NextRun>) -> JobWait {
        if let Some(then) = result {
            self.consecutive_panics = 0;
            return self.wait_for(then);
        }
        let pause = PANIC_BACKOFF_MIN
            .saturating_mul(1 << self.consecutive_panics.min(16))
            .min(PANIC_BACKOFF_MAX);
        self.consecutive_panics += 1;
        warn!(self.ctx.log, "job paused after panic"; "slot" => self.ctx.worker.slot,
            "thread_index" => self.thread, "consecutive" => self.consecutive_panics, "pause_ms" => pause.as_millis() as u64);
        JobWait::QueryAt(clock::now().saturating_add(pause))
    }

    fn wait_for(&self, then: NextRun) -> JobWait {
        match then {
            NextRun::Now => JobWait::RunAt(MonotonicTime::default()),
            NextRun::After(delay) => JobWait::RunAt(clock::now().saturating_add(delay)),
            NextRun::At(date) => JobWait::RunAtWallTime(date),
            NextRun::Never => {
                info!(self.ctx.log, "job finished"; "slot" => self.ctx.worker.slot,
                    "thread_index" => self.thread);
                JobWait::UntilStop
            }
        }
    }

    /// Sleeps until `wait` is over or the worker must stop.
    fn sleep(&mut self, wait: JobWait) -> io::Result<Woken> {
        let lifecycle = self.ctx.lifecycle;
        let (due, date) = match wait {
            JobWait::QueryAt(due) | JobWait::RunAt(due) => (Some(due), None),
            JobWait::UntilStop => (None, None),
            JobWait::RunAtWallTime(date) => (self.set_timer(date), Some(date)),
        };
        let timer = self.timer.as_ref().filter(|_| date.is_some());
        loop {
            if self.on_main_thread {
                lifecycle.notify();
            }
            if is_stopping(lifecycle, self.on_main_thread) {
                return Ok(Woken::Stopping);
            }
            if due.is_some_and(|due| due <= clock::now()) || date.is_some_and(is_past) {
                return Ok(Woken::Due);
            }
            let heartbeat = lifecycle.next_heartbeat().filter(|_| self.on_main_thread);
            let mut fds =
                vec![if self.on_main_thread { lifecycle.wake_fd() } else { lifecycle.stop_fd() }];
            fds.extend(timer.map(|timer| timer.as_fd()));
            poll::wait_readable(&fds, [due, heartbeat].into_iter().flatten().min())?;
            match timer.map_or(Ok(TimerEvent::Pending), WallTimer::read_event)? {
                TimerEvent::Expired => return Ok(Woken::Due),
                TimerEvent::ClockSet if !date.is_some_and(is_past) => return Ok(Woken::ClockSet),
                TimerEvent::ClockSet | TimerEvent::Pending => (),
            }
        }
    }

    /// Sets the wall-clock timer to a date. If there is no timer, returns when that date will be unless
    /// the clock is set.
    fn set_timer(&mut self, date: WallTime) -> Option<MonotonicTime> {
        let timer = match self.timer.take().map_or_else(WallTimer::new, Ok) {
            Ok(timer) => self.timer.insert(timer),
            Err(error) => return Some(self.fall_back_to_deadline(date, &error)),
        };
        match timer.set(date) {
            Ok(()) => None,
            Err(error) => Some(self.fall_back_to_deadline(date, &error)),
        }
    }

    fn fall_back_to_deadline(&mut self, date: WallTime, error: &io::Error) -> MonotonicTime {
        self.timer = None;
        if !std::mem::replace(&mut self.timer_failure_logged, true) {
            warn!(self.ctx.log, "failed to set wall-clock timer, clock changes not detected";
                "slot" => self.ctx.worker.slot, "thread_index" => self.thread, "error" => %error);
        }
        let now = clock::read_clocks();
        now.monotonic.saturating_add(date.duration_since(now.wall))
    }
}

fn is_past(date: WallTime) -> bool {
    date <= clock::read_clocks().wall
}

/// Returns whether the worker must stop. A thread of a pool leaves the signals to the main thread.
fn is_stopping(lifecycle: &Lifecycle, on_main_thread: bool) -> bool {
    let stop = if on_main_thread { lifecycle.poll_stop() } else { lifecycle.stop_request() };
    stop != StopRequest::None
}

/// The context of one run.
struct RunContext<'r, 'a> {
    ctx: &'r WorkerContext<'a>,
    tracker: &'r mut WorkTracker<'a>,
    on_main_thread: bool,
    /// The label for the access log, if there is one.
    label: &'r mut Option<String>,
}

impl JobContext for RunContext<'_, '_> {
    fn worker(&self) -> &WorkerInfo {
        self.ctx.worker
    }

    fn log(&self) -> &Logger {
        self.ctx.log
    }

    fn now(&self) -> ClockReading {
        clock::read_clocks()
    }

    fn is_stopping(&self) -> bool {
        is_stopping(self.ctx.lifecycle, self.on_main_thread)
    }

    fn label(&mut self, label: &str) {
        self.tracker.set_label(label.as_bytes());
        if let Some(its) = self.label {
            label.clone_into(its);
        }
    }

    fn extend_deadline(&mut self, time: Duration) {
        self.tracker.extend_deadline(time);
    }
}
