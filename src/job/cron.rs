//! Cron expressions, behind one file: from a date to the next that fits.

use chrono::{DateTime, Local, TimeZone, Utc};
use croner::parser::{CronParser, Seconds};

use crate::time::WallTime;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Far more than anybody writes by hand.
const EXPRESSION_BYTES_MAX: usize = 256;

/// A cron expression that fits some date.
#[derive(Clone, Debug)]
pub(super) struct Cron(croner::Cron);

impl Cron {
    /// Understands an expression.
    ///
    /// # Errors
    /// What is wrong, beginning with the quoted text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(format!("is longer than {EXPRESSION_BYTES_MAX} bytes"));
        }
        let parsed = CronParser::builder().seconds(Seconds::Optional).build().parse(text);
        let cron = Self(parsed.map_err(|error| {
            let error = error.to_string();
            // Without the name that the crate gives to the kind of error.
            let why = error.split_once(": ").map_or(error.as_str(), |(_, why)| why);
            format!(
                "{text:?} is not a cron expression ({}): give minute, hour, day, month and weekday, \
                 such as \"*/5 * * * *\", or six fields that begin with the second",
                why.trim_end_matches('.').to_lowercase()
            )
        })?);
        // Some look well and never come true, such as the 31st of February.
        match cron.next_in(&Utc, WallTime::default()) {
            Some(_) => Ok(cron),
            None => Err(format!("{text:?} matches no date")),
        }
    }

    /// The first date after this one, by the local time zone.
    pub(super) fn next_after(&self, date: WallTime) -> Option<WallTime> {
        self.next_in(&Local, date)
    }

    /// The first date after this one, by the time of a zone.
    pub(super) fn next_in<Z: TimeZone>(&self, zone: &Z, date: WallTime) -> Option<WallTime> {
        let seconds = i64::try_from(date.as_nanos() / NANOS_PER_SECOND).ok()?;
        let date = DateTime::<Utc>::from_timestamp(seconds, 0)?.with_timezone(zone);
        let next = self.0.find_next_occurrence(&date, false).ok()?.timestamp();
        let nanos = u64::try_from(next).ok()?.checked_mul(NANOS_PER_SECOND)?;
        Some(WallTime::from_nanos(nanos))
    }
}
