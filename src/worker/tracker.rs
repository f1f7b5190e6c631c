//! Work trackers: they write to the scoreboard what a thread is working on.

use std::time::{Duration, UNIX_EPOCH};

use super::lifecycle::Lifecycle;
use crate::app;
use crate::os::{clock, process};
use crate::scoreboard::{EXTENSION_MAX, ThreadEntry};

/// Records what one thread of a worker is working on. For a class whose threads drive clients
/// themselves: one tracker a thread, see [`Lifecycle::tracker`].
pub struct WorkTracker<'a> {
    thread: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
    sends_heartbeat: bool,
    date: [u8; 29],
    date_second: u64,
}

impl Lifecycle {
    /// Begins a unit of work on the first thread entry. Its start and label are on the scoreboard until
    /// the guard is dropped: a unit longer than `timeout` means that the worker hangs, in this unit.
    /// Labels are cut to 64 bytes.
    pub fn begin_work(&self, label: &str) -> WorkGuard<'_> {
        self.begin_work_on(0, label)
    }

    /// Begins a unit of work on the thread entry with this number.
    pub(super) fn begin_work_on(&self, thread: usize, label: &str) -> WorkGuard<'_> {
        WorkGuard::begin(self.board_row().thread(thread), self, label)
    }

    /// Returns the work tracker of the thread with this number, 0 to [`WorkerClass::threads`] - 1, by
    /// which the thread drives clients.
    ///
    /// # Panics
    /// If there is no such thread entry.
    ///
    /// [`WorkerClass::threads`]: super::WorkerClass::threads
    pub fn tracker(&self, thread: usize) -> WorkTracker<'_> {
        WorkTracker::new(self.board_row().thread(thread), self)
    }
}

impl<'a> WorkTracker<'a> {
    fn new(thread: ThreadEntry<'a>, lifecycle: &'a Lifecycle) -> Self {
        thread.set_thread_id(process::thread_id());
        Self { thread, lifecycle, sends_heartbeat: false, date: [b' '; 29], date_second: u64::MAX }
    }

    /// Makes the beginning of each unit of work send a heartbeat if one is due. For a class with one
    /// thread: if a client sends many requests at once, `timeout` then holds for each of them, not for
    /// all together.
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
    /// A thread that ends, also by a panic, works on nothing.
    fn drop(&mut self) {
        self.thread.set_idle();
    }
}

/// A unit of work in progress. Dropping it ends and counts the unit. Made by
/// [`Lifecycle::begin_work`].
#[must_use = "a unit of work lasts until this is dropped"]
pub struct WorkGuard<'a> {
    thread: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
}

impl<'a> WorkGuard<'a> {
    fn begin(thread: ThreadEntry<'a>, lifecycle: &'a Lifecycle, label: &str) -> Self {
        thread.set_thread_id(process::thread_id());
        thread.set_label(label.as_bytes());
        thread.set_busy(clock::now_coarse());
        Self { thread, lifecycle }
    }

    /// Records that the calling thread works on it now.
    pub(super) fn move_to_current_thread(&self) {
        self.thread.set_thread_id(process::thread_id());
    }

    /// Extends the unit's deadline to at least `time` from now, by an hour at most. Call it as often as
    /// there is progress; a shorter time than the unit has left changes nothing. Until then the unit
    /// does not make the worker count as hung.
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
