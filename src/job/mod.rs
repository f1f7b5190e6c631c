//! Jobs: recurring work without a socket, and its schedules.
//!
//! A worker runs a [`Job`], which may be a closure. [`app`] creates an app from a function that creates
//! jobs. [`every`], [`cron()`] and [`scheduled`] create a job from a schedule and a closure.
//!
//! Each thread of each worker has a job and a schedule of its own: three workers of four threads run
//! twelve jobs. To run only one of them, check the slot and the thread with
//! [`enabled_if`](Scheduled::enabled_if). While a worker is replaced, it and its replacement share a
//! slot for a short time: work that must never overlap also needs a lock.
//!
//! Pure, except that dates are in the local time zone, whose rules come from the system.

mod cron;
mod schedule;

use std::time::Duration;

pub use self::schedule::Schedule;
pub use crate::app::{Job, JobContext, NextRun};
pub use crate::time::{ClockReading, MonotonicTime, WallTime};

use crate::app::{App, BootError, ConfigError, WorkerInfo};

/// Creates an [`App`] from a name and a function that creates a job, once for each thread of each worker.
///
/// ```no_run
/// use std::time::Duration;
/// use ostler::job::{self, JobContext};
///
/// fn main() -> std::process::ExitCode {
///     ostler::main(job::app("sweep", |worker, thread| {
///         let sweep = job::every(Duration::from_secs(60), |_: &mut dyn JobContext| {
///             // … once a minute …
///         });
///         Ok(sweep.enabled_if(worker.slot == 0 && thread == 0))
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

/// The app that [`app`] creates. It takes no options. For an app with options, implement [`App`].
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

/// Creates a job that runs at once, and then once each period: see [`Schedule::every`].
///
/// # Panics
/// Panics if the period is zero.
pub fn every<F>(period: Duration, work: F) -> Scheduled<F>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    scheduled(Schedule::every(period), work)
}

/// Creates a job that runs at the dates of a cron expression: see [`Schedule::cron`].
///
/// # Errors
/// It is not a cron expression, or it matches no date.
pub fn cron<F>(expression: &str, work: F) -> Result<Scheduled<F>, ConfigError>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    Ok(scheduled(Schedule::cron(expression)?, work))
}

/// Creates a job that runs according to a schedule.
pub fn scheduled<F>(schedule: Schedule, work: F) -> Scheduled<F>
where
    F: FnMut(&mut dyn JobContext) + Send,
{
    Scheduled { schedule: Some(schedule), work }
}

/// A job that runs according to a schedule.
#[derive(Clone, Debug)]
pub struct Scheduled<F> {
    /// None if it never runs.
    schedule: Option<Schedule>,
    work: F,
}

impl<F> Scheduled<F> {
    /// Disables the job unless `condition` is true. A disabled job never runs.
    #[must_use]
    pub fn enabled_if(self, condition: bool) -> Self {
        Self { schedule: self.schedule.filter(|_| condition), ..self }
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
