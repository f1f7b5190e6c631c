//! Cron expressions: from a date to the next matching date. Only this file uses the cron parser.
//!
//! The cron parser searches the local time as if no clock were ever changed. This file applies the
//! changes, as Vixie cron does. It converts from UTC to local time only: the other direction of `chrono`
//! is wrong at the end of summer time.

use chrono::{DateTime, Local, NaiveDateTime, TimeZone, Utc};
use croner::parser::{CronParser, Seconds};

use crate::time::WallTime;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Far longer than an expression written by hand.
const EXPRESSION_BYTES_MAX: usize = 256;

const DAY: i64 = 24 * 60 * 60;

/// Maximum distance of the instants that are examined for a change of the offset.
const OFFSET_STEP: i64 = 60 * 60;

/// A cron expression that matches at least one date.
#[derive(Clone, Debug)]
pub(super) struct Cron {
    expression: croner::Cron,
    /// Whether hour, minute and second are fixed: none of them is a wildcard.
    is_fixed: bool,
}

impl Cron {
    /// Parses an expression.
    ///
    /// # Errors
    /// Describes the error, beginning with the quoted expression unless that is too long.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(format!("is longer than {EXPRESSION_BYTES_MAX} bytes"));
        }
        let parsed = CronParser::builder().seconds(Seconds::Optional).build().parse(text);
        let expression = parsed.map_err(|error| {
            let error = error.to_string();
            // Drops the name of the error's variant, which the crate puts in front.
            let reason = error.split_once(": ").map_or(error.as_str(), |(_, reason)| reason);
            format!(
                "{text:?} is not a cron expression ({}): give minute, hour, day, month and weekday, \
                 such as \"*/5 * * * *\", or six fields that begin with the second",
                reason.trim_end_matches('.').to_lowercase()
            )
        })?;
        let pattern = &expression.pattern;
        let is_fixed =
            [&pattern.hours, &pattern.minutes, &pattern.seconds].iter().all(|f| !f.from_wildcard);
        let cron = Self { expression, is_fixed };
        // A valid expression may match no date, such as 31 February.
        match cron.next_in(&|_| Some(0), WallTime::default()) {
            Some(_) => Ok(cron),
            None => Err(format!("{text:?} matches no date")),
        }
    }

    /// Returns the first date after this one, in the local time zone.
    pub(super) fn next_after(&self, date: WallTime) -> Option<WallTime> {
        self.next_in(&local_offset, date)
    }

    /// Returns the first date after this one, in the time zone of these offsets: the seconds by which
    /// local time is ahead of UTC at a second since 1970 UTC.
    pub(super) fn next_in(
        &self,
        offset_at: &impl Fn(i64) -> Option<i64>,
        date: WallTime,
    ) -> Option<WallTime> {
        let seconds = i64::try_from(date.as_nanos() / NANOS_PER_SECOND).ok()?;
        let next = u64::try_from(self.next_second(offset_at, seconds)?).ok()?;
        Some(WallTime::from_nanos(next.checked_mul(NANOS_PER_SECOND)?))
    }

    /// Returns the first matching second after `now`, both in seconds since 1970 UTC.
    ///
    /// It walks over the periods of constant offset. If the clock is set back, wildcards match in both
    /// passes of the repeated time, fixed times in the first. If it is set forward, fixed times that are
    /// skipped are due at once.
    fn next_second(&self, offset_at: &impl Fn(i64) -> Option<i64>, now: i64) -> Option<i64> {
        let mut start = now;
        // The first local second that may match, unless the clock is set back.
        let mut floor = if self.is_fixed {
            local_maximum(offset_at, now)? + 1
        } else {
            now + offset_at(now)? + 1
        };
        loop {
            let offset = offset_at(start)?;
            let found = self.next_local(floor.max(start + offset))?;
            let limit = (start + DAY).min(found - offset + 1);
            let end = offset_end(offset_at, start, limit)?;
            if found < end + offset {
                return Some(found - offset);
            }
            let next_offset = offset_at(end)?;
            if self.is_fixed {
                if found < end + next_offset {
                    return Some(end); // skipped
                }
                floor = floor.max(end + offset);
            } else if next_offset != offset {
                floor = i64::MIN;
            }
            // Without a change for a whole day, no repeated time lies before the local time found.
            let has_no_change = end == start + DAY && next_offset == offset;
            start = if has_no_change { end.max(found - 2 * DAY) } else { end };
        }
    }

    /// Returns the first matching local second from this one on, counted as if it were UTC.
    fn next_local(&self, from: i64) -> Option<i64> {
        let from = naive(from)?;
        let next = self.expression.find_next_occurrence(&from, true).ok()?;
        Some(next.and_utc().timestamp())
    }
}

fn naive(seconds: i64) -> Option<NaiveDateTime> {
    DateTime::<Utc>::from_timestamp(seconds, 0).map(|date| date.naive_utc())
}

fn local_offset(utc: i64) -> Option<i64> {
    let offset = Local.offset_from_utc_datetime(&naive(utc)?);
    Some(i64::from(offset.local_minus_utc()))
}

/// Returns the end of the period of constant offset that includes `start`, but at most `limit`.
fn offset_end(offset_at: &impl Fn(i64) -> Option<i64>, start: i64, limit: i64) -> Option<i64> {
    let offset = offset_at(start)?;
    let mut same = start;
    while same < limit {
        let mut other = (same + OFFSET_STEP).min(limit);
        if offset_at(other)? == offset {
            same = other;
            continue;
        }
        while other - same > 1 {
            let middle = same + (other - same) / 2;
            if offset_at(middle)? == offset {
                same = middle;
            } else {
                other = middle;
            }
        }
        return Some(other);
    }
    Some(limit)
}

/// Returns the latest local second that clocks have shown until `now`. It is later than the local time
/// of `now` if they were set back less than a day ago and the repeated time is not over.
fn local_maximum(offset_at: &impl Fn(i64) -> Option<i64>, now: i64) -> Option<i64> {
    let mut start = now - DAY;
    let mut maximum = i64::MIN;
    while start <= now {
        let end = offset_end(offset_at, start, now + 1)?;
        maximum = maximum.max(end - 1 + offset_at(start)?);
        start = end;
    }
    Some(maximum)
}
