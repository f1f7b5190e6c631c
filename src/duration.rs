//! Durations as text: `30`, `1.5`, `500ms`, `2m`. Pure.

use std::time::Duration;

/// Ten years: longer than any process lives, short enough for arithmetic in nanoseconds.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

const DURATION_UNITS: [(&str, u128); 4] =
    [("ms", 1_000_000), ("s", 1_000_000_000), ("m", 60_000_000_000), ("h", 3_600_000_000_000)];

/// Returns a duration in whole milliseconds, as the log has it.
pub(crate) fn as_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Parses a number of seconds, or a number with `ms`, `s`, `m` or `h`: at least `min`, at most ten
/// years.
///
/// # Errors
/// A message that can follow the quoted text.
pub(crate) fn parse_duration(text: &str, min: Duration) -> Result<Duration, String> {
    let Some(nanos) = parse_nanos(text) else {
        return Err("is not a duration: give a number of seconds, or a number with ms, s, m \
                    or h, such as 30, 1.5, 500ms or 2m"
            .into());
    };
    let max = DURATION_MAX.as_nanos();
    match u64::try_from(nanos) {
        Ok(nanos) if u128::from(nanos) <= max => {
            let duration = Duration::from_nanos(nanos);
            if duration < min {
                return Err(format!("is too short: the minimum is {}", format_duration(min)));
            }
            Ok(duration)
        }
        _ => Err("is too long: the maximum is 10 years (87600h)".into()),
    }
}

/// Formats a duration as its shortest usual text, which [`parse_duration`] reads back.
pub(crate) fn format_duration(duration: Duration) -> String {
    let nanos = duration.subsec_nanos();
    if nanos == 0 {
        return format!("{}s", duration.as_secs());
    }
    if nanos.is_multiple_of(1_000_000) {
        return format!("{}ms", duration.as_millis());
    }
    let decimals = format!("{nanos:09}");
    format!("{}.{}s", duration.as_secs(), decimals.trim_end_matches('0'))
}

/// Parses exact nanoseconds; `None` for a text that is not a whole number of them.
fn parse_nanos(text: &str) -> Option<u128> {
    let cut = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(cut);
    let unit = if unit.is_empty() { "s" } else { unit };
    let nanos_per_unit = DURATION_UNITS.iter().find(|(name, _)| *name == unit)?.1;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    // Ten years need fewer than 18 digits of each, and 18 digits cannot overflow the sum below.
    if whole.len() > 18 || decimals.len() > 18 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(decimals.len()).ok()?);
    let scaled =
        digits(whole)?.parse::<u128>().ok()? * scale + digits(decimals)?.parse::<u128>().ok()?;
    let nanos = scaled.checked_mul(nanos_per_unit)?;
    nanos.is_multiple_of(scale).then_some(nanos / scale)
}

/// Returns the text if it consists of digits only: no sign, blank or underscore.
pub(crate) fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}
