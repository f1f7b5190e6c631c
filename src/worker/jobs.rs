//! What runs jobs: it sleeps up to the next run, wakes for a stop, and makes each run a unit of
//! work.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use slog::{Logger, info, warn};

use super::WorkerError;
use super::context::WorkerContext;
use super::lifecycle::{Lifecycle, Stop};
use super::tracker::Desk;
use crate::app::{App, BootError, Desk as _, Job, JobContext, WorkerInfo, Service, Then};
use crate::os::wall_timer::{WallTimer, TimerEvent};
use crate::os::{clock, poll};
use crate::time::{ClockReading, MonotonicTime, WallTime};

/// The pause after a panic, and the longest after several in a row.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What an app has made for one worker.
pub(crate) enum Booted {
    /// Something for clients.
    Service(Box<dyn Service>),
    /// A job for each thread, until a class takes them.
    Jobs(Mutex<Vec<Box<dyn Job>>>),
}

impl Booted {
    /// Has the app make what it is to make for a worker with so many threads.
    ///
    /// # Errors
    /// The app's own.
    pub(crate) fn boot(app: &dyn App, worker: &WorkerInfo, threads: usize) -> Result<Self, BootError> {
        if !app.is_job() {
            return app.boot(worker).map(Self::Service);
        }
        let jobs = (0..threads).map(|thread| app.job(worker, thread));
        Ok(Self::Jobs(Mutex::new(jobs.collect::<Result<_, _>>()?)))
    }

    /// The jobs, to whom asks first.
    pub(super) fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        match self {
            Self::Service(_) => Vec::new(),
            Self::Jobs(jobs) => {
                std::mem::take(&mut *jobs.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }
}

/// A job with its seat in a worker. Made by [`WorkerContext::take_jobs`].
pub struct SeatedJob<'a> {
    ctx: &'a WorkerContext<'a>,
    job: Box<dyn Job>,
    seat: usize,
}

impl<'a> SeatedJob<'a> {
    pub(super) fn new(ctx: &'a WorkerContext<'a>, seat: usize, job: Box<dyn Job>) -> Self {
        Self { ctx, job, seat }
    }

    /// Runs the job, and sleeps between, until the worker is to stop. For the only thread of a
    /// worker: it beats, and heeds the signals.
    ///
    /// # Errors
    /// The kernel has no memory to wait with.
    pub fn run_alone(self) -> Result<(), WorkerError> {
        Runner::new(self, true).run()
    }

    /// The same, for one thread of several: another beats, and asks [`Lifecycle::stop`] whenever
    /// [`Lifecycle::wake_fd`] is readable.
    ///
    /// # Errors
    /// The kernel has no memory to wait with.
    pub fn run_in_pool(self) -> Result<(), WorkerError> {
        Runner::new(self, false).run()
    }
}

/// What a job waits for.
#[derive(Clone, Copy)]
enum Wait {
    /// To be asked when it is due.
    ToBeAsked(MonotonicTime),
    /// To run at a moment.
    Moment(MonotonicTime),
    /// To run on a date.
    Date(WallTime),
    /// For nothing but the end.
    End,
}

/// Why a sleep is over.
#[derive(PartialEq, Eq)]
enum Woken {
    InTime,
    ClockSet,
    ToLeave,
}

/// A job that is being run.
struct Runner<'a> {
    ctx: &'a WorkerContext<'a>,
    job: Box<dyn Job>,
    seat: usize,
    desk: Desk<'a>,
    alone: bool,
    alarm: Option<WallTimer>,
    /// Whether it has been said that there is no alarm to be had.
    lack_is_told: bool,
    /// How many runs in a row have panicked.
    panics: u32,
}

impl<'a> Runner<'a> {
    fn new(SeatedJob { ctx, job, seat }: SeatedJob<'a>, alone: bool) -> Self {
        let desk = ctx.life.desk(seat);
        let desk = if alone { desk.beating() } else { desk };
        Self { ctx, job, seat, desk, alone, alarm: None, lack_is_told: false, panics: 0 }
    }

    fn run(mut self) -> Result<(), WorkerError> {
        let mut wait = Wait::ToBeAsked(clock::now());
        loop {
            wait = match (self.sleep(wait)?, wait) {
                (Woken::ToLeave, _) => return Ok(()),
                (Woken::InTime, Wait::Moment(_) | Wait::Date(_)) => self.run_once(),
                (Woken::InTime | Woken::ClockSet, _) => self.ask(),
            };
        }
    }

    /// One run, which is a unit of work.
    fn run_once(&mut self) -> Wait {
        let Self { ctx, job, desk, alone, .. } = self;
        desk.begin(ctx.settings.app.as_bytes());
        let mut run = Run { ctx, desk, alone: *alone };
        let ran = catch_unwind(AssertUnwindSafe(|| job.run(&mut run)));
        desk.leave();
        desk.end();
        self.heed(ran.ok())
    }

    /// Asks the job when it is due.
    fn ask(&mut self) -> Wait {
        let (job, now) = (&mut self.job, clock::read_clocks());
        let asked = catch_unwind(AssertUnwindSafe(|| job.due(now)));
        if let Ok(then) = asked {
            return self.wait_for(then);
        }
        self.heed(None)
    }

    /// What to wait for after a call of the job; it has panicked if it has said nothing.
    fn heed(&mut self, said: Option<Then>) -> Wait {
        if let Some(then) = said {
            self.panics = 0;
            return self.wait_for(then);
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.panics.min(16)).min(PAUSE_MAX);
        self.panics += 1;
        warn!(self.ctx.log, "job pauses after a panic"; "slot" => self.ctx.worker.slot,
            "seat" => self.seat, "in_a_row" => self.panics, "pause_ms" => pause.as_millis() as u64);
        Wait::ToBeAsked(clock::now().saturating_add(pause))
    }

    fn wait_for(&self, then: Then) -> Wait {
        match then {
            Then::Again => Wait::Moment(MonotonicTime::default()),
            Then::After(delay) => Wait::Moment(clock::now().saturating_add(delay)),
            Then::At(date) => Wait::Date(date),
            Then::Done => {
                info!(self.ctx.log, "job is done"; "slot" => self.ctx.worker.slot,
                    "seat" => self.seat);
                Wait::End
            }
        }
    }

    /// Sleeps until what is waited for has come, or the worker is to stop.
    fn sleep(&mut self, wait: Wait) -> io::Result<Woken> {
        let life = self.ctx.life;
        let (due, date) = match wait {
            Wait::ToBeAsked(due) | Wait::Moment(due) => (Some(due), None),
            Wait::End => (None, None),
            Wait::Date(date) => (self.set_alarm(date), Some(date)),
        };
        let alarm = self.alarm.as_ref().filter(|_| date.is_some());
        loop {
            if self.alone {
                life.notify();
            }
            if is_stopping(life, self.alone) {
                return Ok(Woken::ToLeave);
            }
            if due.is_some_and(|due| due <= clock::now()) || date.is_some_and(is_past) {
                return Ok(Woken::InTime);
            }
            let beat = life.next_beat().filter(|_| self.alone);
            let mut fds = vec![if self.alone { life.wake_fd() } else { life.stop_fd() }];
            fds.extend(alarm.map(|alarm| alarm.as_fd()));
            poll::wait_readable(&fds, [due, beat].into_iter().flatten().min())?;
            match alarm.map_or(Ok(TimerEvent::Pending), WallTimer::read_event)? {
                TimerEvent::Expired => return Ok(Woken::InTime),
                TimerEvent::ClockSet if !date.is_some_and(is_past) => return Ok(Woken::ClockSet),
                TimerEvent::ClockSet | TimerEvent::Pending => (),
            }
        }
    }

    /// Sets the alarm to a date. If there is none to be had, returns when that date will be unless
    /// somebody sets the clock.
    fn set_alarm(&mut self, date: WallTime) -> Option<MonotonicTime> {
        let alarm = match self.alarm.take().map_or_else(WallTimer::new, Ok) {
            Ok(alarm) => self.alarm.insert(alarm),
            Err(error) => return Some(self.do_without_alarm(date, &error)),
        };
        match alarm.set(date) {
            Ok(()) => None,
            Err(error) => Some(self.do_without_alarm(date, &error)),
        }
    }

    fn do_without_alarm(&mut self, date: WallTime, error: &io::Error) -> MonotonicTime {
        self.alarm = None;
        if !std::mem::replace(&mut self.lack_is_told, true) {
            warn!(self.ctx.log, "job would not notice if the clock were set";
                "slot" => self.ctx.worker.slot, "seat" => self.seat, "error" => %error);
        }
        let now = clock::read_clocks();
        now.monotonic.saturating_add(date.duration_since(now.wall))
    }
}

fn is_past(date: WallTime) -> bool {
    date <= clock::read_clocks().wall
}

/// Whoever is alone must look for signals; among several, another does.
fn is_stopping(life: &Lifecycle, alone: bool) -> bool {
    let stop = if alone { life.stop() } else { life.stopping() };
    stop != Stop::None
}

/// What one run is handed.
struct Run<'r, 'a> {
    ctx: &'r WorkerContext<'a>,
    desk: &'r mut Desk<'a>,
    alone: bool,
}

impl JobContext for Run<'_, '_> {
    fn place(&self) -> &WorkerInfo {
        self.ctx.worker
    }

    fn log(&self) -> &Logger {
        self.ctx.log
    }

    fn now(&self) -> ClockReading {
        clock::read_clocks()
    }

    fn is_stopping(&self) -> bool {
        is_stopping(self.ctx.life, self.alone)
    }

    fn label(&mut self, label: &str) {
        self.desk.rename(label.as_bytes());
    }

    fn extend(&mut self, time: Duration) {
        self.desk.extend(time);
    }
}
