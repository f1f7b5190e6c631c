//! When runs are due. Pure: both clocks are arguments.

use std::time::Duration;

use super::cron::Cron;
use crate::app::{ConfigError, NextRun, Options};
use crate::duration;
use crate::time::{ClockReading, MonotonicTime, WallTime};

/// The shortest period that an option may ask for.
const PERIOD_MIN: Duration = Duration::from_millis(1);

/// So far back the clock may be set without a date for which a run has begun already coming
/// round again.
const SET_BACK_MAX: Duration = Duration::from_secs(60 * 60);

/// When runs are due. It keeps count, so each job needs one of its own.
#[derive(Clone, Debug)]
pub struct Schedule(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Every {
        period: Duration,
        /// When the first run was due.
        first: Option<MonotonicTime>,
    },
    Cron {
        cron: Box<Cron>,
        /// The date for which it waits.
        next: Option<WallTime>,
        /// The latest date for which a run has begun.
        begun: Option<WallTime>,
    },
}

impl Schedule {
    /// At once, and then each time that `period` has passed since. It does not drift: the nth run
    /// is due n periods after the first, however long runs take. Who is late skips what was missed:
    /// runs never pile up. The clock is the monotonic one, which nobody sets and which stands still
    /// while the machine is suspended.
    ///
    /// # Panics
    /// If the period is zero.
    pub fn every(period: Duration) -> Self {
        assert!(!period.is_zero(), "a period must be longer than nothing");
        Self(Kind::Every { period, first: None })
    }

    /// At the dates of a cron expression: minute, hour, day of the month, month, day of the week;
    /// with six fields the first is the second, with seven the last is the year. `*`, `1-5`, `*/5`,
    /// `1,3`, names such as `mon` and `@daily` are understood, as are `L`, `#` and `W` for days. If
    /// both kinds of days are given, either is enough.
    ///
    /// Dates are those of the local time zone: of the variable `TZ`, or of the machine. Where
    /// summer time begins, a date that the clock skips is due as soon as it has; where it ends, a
    /// fixed hour that comes twice is due once.
    ///
    /// It is the wall clock that counts: whoever sets it moves the runs. If it is set forward over
    /// one date or several, one run is due at once. If it is set back, dates come round again; but
    /// not by less than an hour, so that a small correction makes no run happen twice.
    ///
    /// # Errors
    /// It is not a cron expression, or no date ever fits it.
    pub fn cron(expression: &str) -> Result<Self, ConfigError> {
        let cron = Box::new(Cron::parse(expression).map_err(ConfigError::new)?);
        Ok(Self(Kind::Cron { cron, next: None, begun: None }))
    }

    /// What the options `every` (a duration, at least a millisecond) and `cron` of an app say;
    /// none if neither is given. For [`App::check`](crate::app::App::check) and for
    /// [`App::job`](crate::app::App::job).
    ///
    /// # Errors
    /// One that makes no sense, or both at once.
    pub fn from_options(options: &Options) -> Result<Option<Self>, ConfigError> {
        match (options.get("every"), options.get("cron")) {
            (None, None) => Ok(None),
            (Some(text), None) => {
                let bad = |why| ConfigError::for_option("every", format!("{text:?} {why}"));
                Ok(Some(Self::every(duration::parse_duration(text, PERIOD_MIN).map_err(bad)?)))
            }
            (None, Some(text)) => {
                let bad =
                    |refusal: ConfigError| ConfigError::for_option("cron", refusal.to_string());
                Self::cron(text).map(Some).map_err(bad)
            }
            (Some(_), Some(_)) => {
                let why = "a job has one schedule: give either every or cron";
                Err(ConfigError::for_option("cron", why))
            }
        }
    }

    /// A run begins, for the date that [`next`](Self::next) has last told.
    pub fn begin(&mut self) {
        if let Kind::Cron { next, begun, .. } = &mut self.0
            && let Some(date) = next.take()
        {
            *begun = Some(date);
        }
    }

    /// When the next run is due.
    pub fn next(&mut self, now: ClockReading) -> NextRun {
        match &mut self.0 {
            Kind::Every { period, first } => match *first {
                None => {
                    *first = Some(now.monotonic);
                    NextRun::Now
                }
                Some(first) => {
                    let past = now.monotonic.duration_since(first).as_nanos();
                    let left = period.as_nanos() - past % period.as_nanos();
                    // Not more than a period.
                    NextRun::After(Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)))
                }
            },
            Kind::Cron { cron, next, begun } => {
                let set_back = |date: &WallTime| {
                    now.wall < *date && date.duration_since(now.wall) <= SET_BACK_MAX
                };
                *next = cron.next_after(begun.filter(set_back).unwrap_or(now.wall));
                next.map_or(NextRun::Never, NextRun::At)
            }
        }
    }
}
