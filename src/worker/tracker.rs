//! A thread's desk: it tells the scoreboard what the thread is working on.

use std::time::{Duration, UNIX_EPOCH};

use super::lifecycle::Lifecycle;
use crate::app;
use crate::os::{clock, process};
use crate::scoreboard::{EXTENSION_MAX, ThreadEntry};

/// Where one thread of a worker says what it is working on. For a class whose threads drive
/// clients themselves: one desk a thread, see [`Lifecycle::desk`].
pub struct Desk<'a> {
    seat: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
    beats: bool,
    date: [u8; 29],
    date_second: u64,
}

impl<'a> Desk<'a> {
    pub(super) fn new(seat: ThreadEntry<'a>, lifecycle: &'a Lifecycle) -> Self {
        seat.set_thread_id(process::thread_id());
        Self { seat, lifecycle, beats: false, date: [b' '; 29], date_second: u64::MAX }
    }

    /// The same, and the beginning of a unit of work is a sign of life. For a class that has but
    /// one thread: of a client that sends many requests at once, which take long together, each
    /// has the time that one may take.
    #[must_use]
    pub fn beating(self) -> Self {
        Self { beats: true, ..self }
    }
}

impl app::Desk for Desk<'_> {
    fn begin(&mut self, label: &[u8]) {
        let now = clock::now_coarse();
        self.seat.set_label(label);
        self.seat.set_busy(now);
        if self.beats {
            self.lifecycle.notify_at(now);
        }
    }

    fn extend(&mut self, time: Duration) {
        extend(self.seat, time);
    }

    fn rename(&mut self, label: &[u8]) {
        self.seat.set_label(label);
    }

    fn end(&mut self) {
        self.seat.clear_label();
        self.seat.count_unit();
        self.lifecycle.on_unit_done();
    }

    fn date(&mut self) -> [u8; 29] {
        let second = clock::unix_seconds();
        if second != self.date_second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            if let Ok(bytes) = text.as_bytes().try_into() {
                self.date = bytes;
            }
            self.date_second = second;
        }
        self.date
    }

    fn enter(&mut self) {
        self.seat.set_busy(clock::now_coarse());
    }

    fn leave(&mut self) {
        self.seat.set_idle();
    }
}

impl Drop for Desk<'_> {
    /// Whoever leaves for good, be it by a panic, is at nothing any more.
    fn drop(&mut self) {
        self.seat.set_idle();
    }
}

/// A unit of work in progress; it is done, and counted, when this is dropped. Made by
/// [`Lifecycle::begin`].
#[must_use = "a unit of work lasts until this is dropped"]
pub struct Work<'a> {
    seat: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
}

impl<'a> Work<'a> {
    pub(super) fn begin(seat: ThreadEntry<'a>, lifecycle: &'a Lifecycle, label: &str) -> Self {
        seat.set_thread_id(process::thread_id());
        seat.set_label(label.as_bytes());
        seat.set_busy(clock::now_coarse());
        Self { seat, lifecycle }
    }

    /// This thread is at it now.
    pub(super) fn passes_to_this_thread(&self) {
        self.seat.set_thread_id(process::thread_id());
    }

    /// Asks for more time: the unit needs until so long from now, at least. At most an hour, but
    /// it may ask again, as often as there is progress; to ask for less than it has changes
    /// nothing. Until then the worker is not taken for hung on its account.
    pub fn extend(&self, time: Duration) {
        extend(self.seat, time);
    }
}

fn extend(seat: ThreadEntry<'_>, time: Duration) {
    seat.extend_deadline(clock::now_coarse().saturating_add(time.min(EXTENSION_MAX)));
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.seat.set_idle();
        self.seat.clear_label();
        self.seat.count_unit();
        self.lifecycle.on_unit_done();
    }
}
