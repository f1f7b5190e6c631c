//! Dates of records, made once a second.

use std::time::{Duration, UNIX_EPOCH};

#[cfg(test)]
thread_local! {
    /// How often the calling thread has made the texts of a second.
    pub(super) static FORMATTED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// The texts of one second.
pub(super) struct Stamps {
    second: u64,
    clf: [u8; 26],
    iso: [u8; 19],
}

impl Stamps {
    pub(super) fn new() -> Self {
        let mut stamps = Self { second: 0, clf: [b'0'; 26], iso: [b'0'; 19] };
        stamps.set(0);
        stamps
    }

    /// Returns `10/Oct/2000:13:55:36 +0000`.
    pub(super) fn clf(&mut self, second: u64) -> &[u8; 26] {
        self.update(second);
        &self.clf
    }

    /// Returns `2000-10-10T13:55:36`.
    pub(super) fn iso(&mut self, second: u64) -> &[u8; 19] {
        self.update(second);
        &self.iso
    }

    fn update(&mut self, second: u64) {
        if self.second != second {
            self.set(second);
        }
    }

    fn set(&mut self, second: u64) {
        #[cfg(test)]
        FORMATTED.set(FORMATTED.get() + 1);
        // After the year 9999 there are no texts of this length.
        let time = UNIX_EPOCH + Duration::from_secs(second.min(253_402_300_799));
        // Such as: Tue, 10 Oct 2000 13:55:36 GMT
        let text = httpdate::fmt_http_date(time);
        let (day, month, year) = (&text[5..7], &text[8..11], &text[12..16]);
        let clock = &text[17..25];
        let number = MONTHS.iter().position(|name| *name == month).unwrap_or(0) + 1;
        self.second = second;
        let clf = format!("{day}/{month}/{year}:{clock} +0000");
        let iso = format!("{year}-{number:02}-{day}T{clock}");
        self.clf.copy_from_slice(clf.as_bytes());
        self.iso.copy_from_slice(iso.as_bytes());
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_second() {
        let mut stamps = Stamps::new();
        assert_eq!(stamps.clf(971_186_136), b"10/Oct/2000:13:55:36 +0000");
        assert_eq!(stamps.iso(971_186_136), b"2000-10-10T13:55:36");
        assert_eq!(stamps.iso(971_186_137), b"2000-10-10T13:55:37");
        assert_eq!(stamps.clf(0), b"01/Jan/1970:00:00:00 +0000");
        assert_eq!(stamps.clf(u64::MAX), b"31/Dec/9999:23:59:59 +0000");
    }
}
