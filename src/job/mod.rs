//! Jobs: what runs without anybody asking over a socket, and schedules for it.
//!
//! [`Job`] is what a worker runs; a closure will do. [`app`] makes an app of a function that makes
//! jobs, and [`every`], [`cron`] and [`scheduled`] make a job of a schedule and of what is to be done.
//!
//! Each thread of each worker has a job and a schedule of its own: three workers of four threads
//! tick twelve times. Who wants one of them looks at the place, as with
//! [`enabled_if`](Scheduled::enabled_if). While one worker replaces another, both may sit in one slot for
//! a moment; what must never happen twice at once needs a lock besides.
//!
//! Pure, but that dates are those of the local time zone, whose rules the system keeps.

mod cron;
mod schedule;

use std::time::Duration;

pub use self::schedule::Schedule;
pub use crate::app::{Job, JobContext, NextRun};
pub use crate::time::{ClockReading, MonotonicTime, WallTime};

use crate::app::{App, BootError, ConfigError, WorkerInfo};

/// An [`App`] out of a name and a function that makes a job, once for each thread of each worker.
///
/// ```no_run
/// use std::time::Duration;
/// use ostler::job::{self, JobContext};
///
/// fn main() -> std::process::ExitCode {
///     ostler::main(job::app("sweep", |place, thread| {
///         let sweep = job::every(Duration::from_secs(60), |_: &mut dyn JobContext| {
///             // … once a minute …
///         });
///         Ok(sweep.only_if(place.slot == 0 && thread == 0))
///     }))
/// }
/// ```
pub fn app<F, J>(name: &str, make: F) -> JobApp<F>
where
    F: Fn(&WorkerInfo, usize) -> Result<J, BootError>,
    J: Job + 'static,
{
    JobApp { name: name.to_owned(), make }
}

/// What [`app`] makes. It takes no options; an app that does implements [`App`] itself.
#[derive(Clone, Debug)]
pub struct JobApp<F> {
    name: String,
    make: F,
}

impl<F, J> App for JobApp<F>
where
    F: Fn(&WorkerInfo, usize) -> Result<J, BootError>,
    J: Job + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn is_job(&self) -> bool {
        true
    }

    fn job(&self, worker: &WorkerInfo, thread: usize) -> Result<Box<dyn Job>, BootError> {
        Ok(Box::new((self.make)(worker, thread)?))
    }
}

/// A job that does this at once, and then each time that so much has passed: see
/// [`Schedule::every`].
///
/// # Panics
/// If the period is zero.
pub fn every<F>(period: Duration, work: F) -> Scheduled<F>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    scheduled(Schedule::every(period), work)
}

/// A job that does this at the dates of a cron expression: see [`Schedule::cron`].
///
/// # Errors
/// It is not a cron expression, or no date ever fits it.
pub fn cron<F>(expression: &str, work: F) -> Result<Scheduled<F>, ConfigError>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    Ok(scheduled(Schedule::cron(expression)?, work))
}

/// A job that does this whenever a schedule says so.
pub fn scheduled<F>(schedule: Schedule, work: F) -> Scheduled<F>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    Scheduled { schedule: Some(schedule), work }
}

/// A job whose runs are due by a schedule.
#[derive(Clone, Debug)]
pub struct Scheduled<F> {
    /// None: never.
    schedule: Option<Schedule>,
    work: F,
}

impl<F> Scheduled<F> {
    /// The same job if this holds; else one that never has anything to do.
    #[must_use]
    pub fn enabled_if(self, holds: bool) -> Self {
        Self { schedule: self.schedule.filter(|_| holds), ..self }
    }
}

impl<F> Job for Scheduled<F>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    fn run(&mut self, ctx: &mut dyn JobContext) -> NextRun {
        if let Some(schedule) = &mut self.schedule {
            schedule.begin();
        }
        (self.work)(ctx);
        self.next_run(ctx.now())
    }

    fn next_run(&mut self, now: ClockReading) -> NextRun {
        self.schedule.as_mut().map_or(NextRun::Never, |schedule| schedule.next(now))
    }
}

#[cfg(test)]
mod tests;
