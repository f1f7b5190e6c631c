//! Cron expressions: from a date to the next matching date. Only this file uses the cron parser.

use chrono::{DateTime, Local, TimeZone, Utc};
use croner::parser::{CronParser, Seconds};

use crate::time::WallTime;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Far longer than an expression written by hand.
const EXPRESSION_BYTES_MAX: usize = 256;

/// A cron expression that matches at least one date.
#[derive(Clone, Debug)]
pub(super) struct Cron(croner::Cron);

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
        let cron = Self(parsed.map_err(|error| {
            let error = error.to_string();
            // Drops the name of the error's variant, which the crate puts in front.
            let reason = error.split_once(": ").map_or(error.as_str(), |(_, reason)| reason);
            format!(
                "{text:?} is not a cron expression ({}): give minute, hour, day, month and weekday, \
                 such as \"*/5 * * * *\", or six fields that begin with the second",
                reason.trim_end_matches('.').to_lowercase()
            )
        })?);
        // A valid expression may match no date, such as 31 February.
        match cron.next_in(&Utc, WallTime::default()) {
            Some(_) => Ok(cron),
            None => Err(format!("{text:?} matches no date")),
        }
    }

    /// Returns the first date after this one, in the local time zone.
    pub(super) fn next_after(&self, date: WallTime) -> Option<WallTime> {
        self.next_in(&Local, date)
    }

    /// Returns the first date after this one, in the given time zone.
    pub(super) fn next_in<Z: TimeZone>(&self, zone: &Z, date: WallTime) -> Option<WallTime> {
        let seconds = i64::try_from(date.as_nanos() / NANOS_PER_SECOND).ok()?;
        let date = DateTime::<Utc>::from_timestamp(seconds, 0)?.with_timezone(zone);
        let next = self.0.find_next_occurrence(&date, false).ok()?.timestamp();
        let nanos = u64::try_from(next).ok()?.checked_mul(NANOS_PER_SECOND)?;
        Some(WallTime::from_nanos(nanos))
    }
}
