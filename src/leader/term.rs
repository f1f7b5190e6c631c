//! What the led pools of a master may do, and until when.

use std::time::Duration;

use super::report::Report;
use super::{DRAIN_SHARE, KILL_SHARE};
use crate::time::MonotonicTime;

/// What the led pools do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Duty {
    /// They have no worker: those that are left are killed.
    Stand,
    /// Their workers drain: the lease has not been renewed for long.
    Drain,
    /// They serve.
    Serve,
}

/// The leadership of one master, as far as it knows.
#[derive(Debug)]
pub(crate) struct Term {
    ttl: Duration,
    /// When the term ends, unless the lease is renewed. `None` if this master does not lead.
    until: Option<MonotonicTime>,
    holder: Option<String>,
    store_error: Option<String>,
}

impl Term {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, until: None, holder: None, store_error: None }
    }

    /// Takes in what the child reports. A term longer than `ttl` is cut to that: the child cannot know.
    pub(crate) fn on_report(&mut self, report: Report, now: MonotonicTime) {
        match report {
            Report::Leading { until } => {
                let until = until.min(now + self.ttl);
                self.until = (until > now).then_some(until).max(self.until);
                (self.holder, self.store_error) = (None, None);
            }
            Report::Standby { holder } => {
                self.until = None;
                (self.holder, self.store_error) = (Some(holder), None);
            }
            Report::Unreachable { reason } => self.store_error = Some(reason),
        }
    }

    /// Returns what the led pools do at `now`. Once the term has ended, it has for good.
    pub(crate) fn duty(&mut self, now: MonotonicTime) -> Duty {
        let Some(until) = self.until else { return Duty::Stand };
        if until <= now {
            self.until = None;
        }
        if until - self.ttl / KILL_SHARE <= now {
            Duty::Stand
        } else if until - self.ttl / DRAIN_SHARE <= now {
            Duty::Drain
        } else {
            Duty::Serve
        }
    }

    /// Returns when the duty changes, if nothing is reported before.
    pub(crate) fn next_change(&self, now: MonotonicTime) -> Option<MonotonicTime> {
        let until = self.until?;
        let changes = [until - self.ttl / DRAIN_SHARE, until - self.ttl / KILL_SHARE, until];
        changes.into_iter().find(|at| now < *at)
    }

    /// Returns when a worker must have exited, if nothing is reported before.
    pub(crate) fn until(&self) -> Option<MonotonicTime> {
        self.until
    }

    /// Returns who leads instead, as the store has it.
    pub(crate) fn holder(&self) -> Option<&str> {
        self.holder.as_deref()
    }

    /// Returns why the store has not answered the last time.
    pub(crate) fn store_error(&self) -> Option<&str> {
        self.store_error.as_deref()
    }
}
