//! Schedules of runs. Pure: both clocks are arguments.

use std::time::Duration;

use super::cron::Cron;
use crate::app::{ConfigError, NextRun, Options};
use crate::duration;
use crate::time::{ClockReading, MonotonicTime, WallTime};

/// Minimum period of the option `every`.
const PERIOD_MIN: Duration = Duration::from_millis(1);

/// If the clock is set back by at most this much, no run is repeated.
const SET_BACK_MAX: Duration = Duration::from_secs(60 * 60);

/// When runs are due. It has state, so each job needs a schedule of its own.
#[derive(Clone, Debug)]
pub struct Schedule(State);

#[derive(Clone, Debug)]
enum State {
    Every {
        period: Duration,
        /// When the first run was due.
        first: Option<MonotonicTime>,
    },
    Cron {
        cron: Box<Cron>,
        /// The date that it waits for.
        next: Option<WallTime>,
        /// The date of the last run.
        begun: Option<WallTime>,
    },
}

impl Schedule {
    /// Creates a schedule that is due at once, and then once each `period`. It does not drift: the nth
    /// run is due n periods after the first, however long runs take. If a run is late, missed runs are
    /// skipped: they never pile up. The clock is the monotonic one, which cannot be set, and which
    /// stops while the machine is suspended.
    ///
    /// # Panics
    /// Panics if the period is zero.
    pub fn every(period: Duration) -> Self {
        assert!(!period.is_zero(), "a period must be longer than zero");
        Self(State::Every { period, first: None })
    }

    /// Creates a schedule from a cron expression: minute, hour, day of the month, month, day of the
    /// week. With six fields, the first is the second; with seven, the last is the year. Supported are
    /// `*`, `1-5`, `*/5`, `1,3`, names such as `mon` and `@daily`, and `L`, `#` and `W` for days. If
    /// both days are given, either of them is enough.
    ///
    /// Dates are in the local time zone: that of the variable `TZ`, or of the machine. Changes of its
    /// offset are handled as by Vixie cron. If second, minute or hour begins with `*`, the job follows
    /// the clock: it runs in both passes of a repeated hour, and not in a skipped one. Otherwise its times
    /// are fixed: it runs in the first pass only, and right after the skip if one of its times is skipped.
    ///
    /// Dates follow the wall clock: setting the clock moves the runs. If it is set forward past one or
    /// more dates, one run is due at once. If it is set back by more than an hour, runs repeat; by less,
    /// they do not, so that a small correction causes no second run.
    ///
    /// # Errors
    /// It is not a cron expression, or it matches no date.
    pub fn cron(expression: &str) -> Result<Self, ConfigError> {
        let cron = Box::new(Cron::parse(expression).map_err(ConfigError::new)?);
        Ok(Self(State::Cron { cron, next: None, begun: None }))
    }

    /// Creates the schedule of an app's options `every` (a duration of at least 1 ms) and `cron`; none
    /// if neither is set. Call it in [`App::check`](crate::app::App::check) and
    /// [`App::job`](crate::app::App::job).
    ///
    /// # Errors
    /// An option is invalid, or both are set.
    pub fn from_options(options: &Options) -> Result<Option<Self>, ConfigError> {
        match (options.get("every"), options.get("cron")) {
            (None, None) => Ok(None),
            (Some(text), None) => {
                let invalid =
                    |reason| ConfigError::for_option("every", format!("{text:?} {reason}"));
                let period = duration::parse_duration(text, PERIOD_MIN).map_err(invalid)?;
                Ok(Some(Self::every(period)))
            }
            (None, Some(text)) => {
                let invalid =
                    |error: ConfigError| ConfigError::for_option("cron", error.to_string());
                Self::cron(text).map(Some).map_err(invalid)
            }
            (Some(_), Some(_)) => {
                let reason = "a job has one schedule: give either every or cron";
                Err(ConfigError::for_option("cron", reason))
            }
        }
    }

    /// Records that the run begins for which [`next`](Self::next) last returned the date.
    pub fn begin(&mut self) {
        if let State::Cron { next, begun, .. } = &mut self.0
            && let Some(date) = next.take()
        {
            *begun = Some(date);
        }
    }

    /// Returns when the next run is due.
    pub fn next(&mut self, now: ClockReading) -> NextRun {
        match &mut self.0 {
            State::Every { period, first } => match *first {
                None => {
                    *first = Some(now.monotonic);
                    NextRun::Now
                }
                Some(first) => {
                    let past = now.monotonic.duration_since(first).as_nanos();
                    let left = period.as_nanos() - past % period.as_nanos();
                    // Never more than a period, so the conversion cannot fail.
                    NextRun::After(Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)))
                }
            },
            State::Cron { cron, next, begun } => {
                let set_back = |date: &WallTime| {
                    now.wall < *date && date.duration_since(now.wall) <= SET_BACK_MAX
                };
                *next = cron.next_after(begun.filter(set_back).unwrap_or(now.wall));
                next.map_or(NextRun::Never, NextRun::At)
            }
        }
    }
}
