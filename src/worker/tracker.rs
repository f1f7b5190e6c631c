//! A thread's desk: it tells the scoreboard what the thread is working on.

use std::time::{Duration, UNIX_EPOCH};

use super::lifecycle::Lifecycle;
use crate::app;
use crate::os::{clock, process};
use crate::scoreboard::{EXTENSION_MAX, ThreadEntry};

/// Where one thread of a worker says what it is working on. For a class whose threads drive
/// clients themselves: one desk a thread, see [`Lifecycle::desk`].
pub struct WorkTracker<'a> {
    thread: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
    sends_heartbeat: bool,
    date: [u8; 29],
    date_second: u64,
}

impl<'a> WorkTracker<'a> {
    pub(super) fn new(thread: ThreadEntry<'a>, lifecycle: &'a Lifecycle) -> Self {
        thread.set_thread_id(process::thread_id());
        Self { thread, lifecycle, sends_heartbeat: false, date: [b' '; 29], date_second: u64::MAX }
    }

    /// The same, and the beginning of a unit of work is a sign of life. For a class that has but
    /// one thread: of a client that sends many requests at once, which take long together, each
    /// has the time that one may take.
    #[must_use]
    pub fn with_heartbeat(self) -> Self {
        Self { sends_heartbeat: true, ..self }
    }
}

impl app::WorkReporter for WorkTracker<'_> {
    fn begin_work(&mut self, label: &[u8]) {
        let now = clock::now_coarse();
        self.thread.set_label(label);
        self.thread.set_busy(now);
        if self.sends_heartbeat {
            self.lifecycle.notify_at(now);
        }
    }

    fn extend_deadline(&mut self, time: Duration) {
        extend_deadline(self.thread, time);
    }

    fn set_label(&mut self, label: &[u8]) {
        self.thread.set_label(label);
    }

    fn end_work(&mut self) {
        self.thread.clear_label();
        self.thread.count_unit();
        self.lifecycle.on_unit_done();
    }

    fn http_date(&mut self) -> [u8; 29] {
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

    fn set_busy(&mut self) {
        self.thread.set_busy(clock::now_coarse());
    }

    fn set_idle(&mut self) {
        self.thread.set_idle();
    }
}

impl Drop for WorkTracker<'_> {
    /// Whoever leaves for good, be it by a panic, is at nothing any more.
    fn drop(&mut self) {
        self.thread.set_idle();
    }
}

/// A unit of work in progress; it is done, and counted, when this is dropped. Made by
/// [`Lifecycle::begin`].
#[must_use = "a unit of work lasts until this is dropped"]
pub struct WorkGuard<'a> {
    thread: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
}

impl<'a> WorkGuard<'a> {
    pub(super) fn begin(thread: ThreadEntry<'a>, lifecycle: &'a Lifecycle, label: &str) -> Self {
        thread.set_thread_id(process::thread_id());
        thread.set_label(label.as_bytes());
        thread.set_busy(clock::now_coarse());
        Self { thread, lifecycle }
    }

    /// This thread is at it now.
    pub(super) fn move_to_current_thread(&self) {
        self.thread.set_thread_id(process::thread_id());
    }

    /// Asks for more time: the unit needs until so long from now, at least. At most an hour, but
    /// it may ask again, as often as there is progress; to ask for less than it has changes
    /// nothing. Until then the worker is not taken for hung on its account.
    pub fn extend_deadline(&self, time: Duration) {
        extend_deadline(self.thread, time);
    }
}

fn extend_deadline(thread: ThreadEntry<'_>, time: Duration) {
    thread.extend_deadline(clock::now_coarse().saturating_add(time.min(EXTENSION_MAX)));
}

impl Drop for WorkGuard<'_> {
    fn drop(&mut self) {
        self.thread.set_idle();
        self.thread.clear_label();
        self.thread.count_unit();
        self.lifecycle.on_unit_done();
    }
}
