//! Work trackers: they write to the scoreboard what a thread is working on.

mod pooled;

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use super::lifecycle::Lifecycle;
use super::taken_entry::TakenEntry;
use crate::app::{
    self, RequestId, Unit, UnitEnd, UnitKind, UnitRequest, UnitResponse, WorkReporter as _,
};
use crate::log::access::{ClientOutput, UnitLog};
use crate::os::{clock, process};
use crate::scoreboard::{EXTENSION_MAX, ThreadEntry, UnitTimeout};
use crate::time::MonotonicTime;
pub use pooled::PooledTracker;

/// A unit that takes longer costs more than sending its output by itself.
const LONG_UNIT: Duration = Duration::from_millis(1);

/// Records what one thread of a worker is working on. For a class whose threads drive clients
/// themselves: each thread takes its own, see [`Lifecycle::tracker`].
pub struct WorkTracker<'a> {
    entry: TakenEntry<'a>,
    sends_heartbeat: bool,
    /// Whether the unit of work that ended last was a long one.
    was_long: bool,
    date: [u8; 29],
    date_second: u64,
    /// The number of the next request, within a block that the thread has for itself.
    request_number: u64,
    /// The access log, if there is one.
    log: Option<Box<UnitLog>>,
}

impl Lifecycle {
    /// Begins a unit of work of the calling thread. Its start and label are on the scoreboard until the
    /// guard is dropped: a unit longer than `timeout` means that the worker hangs, in this unit. Labels
    /// are cut to 64 bytes.
    ///
    /// # Panics
    /// As [`tracker`](Self::tracker) does.
    #[track_caller]
    pub fn begin_work(&self, label: &str) -> WorkGuard<'_> {
        let entry = TakenEntry::any(self);
        WorkGuard { unit: UnitGuard::begin(entry.thread, self, label, None), _entry: entry }
    }

    /// Begins a unit of work on the thread entry with this number, which the caller manages. `client` is
    /// the address of its client, if that has one.
    pub(super) fn begin_work_on(
        &self,
        index: usize,
        label: &str,
        client: Option<SocketAddr>,
    ) -> UnitGuard<'_> {
        let thread = self.board_row().thread(index);
        thread.set_thread_id(process::thread_id());
        UnitGuard::begin(thread, self, label, client)
    }

    /// Returns the work tracker of the calling thread, by which it drives clients. A thread that has no
    /// thread entry on the scoreboard takes a free one, until its last tracker is dropped. A tracker
    /// cannot be sent to another thread, so no thread overwrites the unit of another.
    ///
    /// ```compile_fail
    /// fn require_send<T: Send>() {}
    /// require_send::<ostler::worker::WorkTracker<'static>>();
    /// ```
    ///
    /// # Panics
    /// If other threads have all entries: there are as many as [`WorkerClass::threads`] returns.
    ///
    /// [`WorkerClass::threads`]: super::WorkerClass::threads
    #[track_caller]
    pub fn tracker(&self) -> WorkTracker<'_> {
        WorkTracker::new(TakenEntry::any(self))
    }

    /// Returns the work tracker of the calling thread, as [`tracker`](Self::tracker) does; `None` if
    /// other threads have all entries.
    pub fn try_tracker(&self) -> Option<WorkTracker<'_>> {
        TakenEntry::try_any(self).map(WorkTracker::new)
    }

    /// Returns the work tracker of the calling thread, with the thread entry of this number.
    ///
    /// # Panics
    /// If another thread has this entry, or there is none.
    pub(super) fn tracker_of(&self, index: usize) -> WorkTracker<'_> {
        WorkTracker::new(TakenEntry::one(self, index))
    }
}

impl<'a> WorkTracker<'a> {
    fn new(entry: TakenEntry<'a>) -> Self {
        let access = entry.lifecycle.access();
        let (log, request_number) = (access.unit_log(), access.new_numbers());
        Self {
            entry,
            sends_heartbeat: false,
            was_long: false,
            date: [b' '; 29],
            date_second: u64::MAX,
            request_number,
            log,
        }
    }

    /// Makes the beginning of each unit of work send a heartbeat if one is due. For a class with one
    /// thread: if a client sends many requests at once, `timeout` then holds for each of them, not for
    /// all together.
    #[must_use]
    pub fn with_heartbeat(mut self) -> Self {
        self.sends_heartbeat = true;
        self
    }

    /// Makes the thread write records of the access log together, if `access_log_buffer` asks for it.
    /// For a class that calls [`flush_records`](Self::flush_records) before it waits.
    #[must_use]
    pub fn with_record_buffer(mut self) -> Self {
        if let Some(log) = &mut self.log {
            log.allow_buffer();
        }
        self
    }

    /// Writes the records of the access log that are buffered.
    #[inline]
    pub fn flush_records(&mut self) {
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Shows that the thread works on a unit of work of this label from `now` on. For a class whose
    /// threads work on several units in turn: each of these times counts towards `timeout` by itself.
    /// Calls of `set_idle` end them, and [`end_work_between`](Self::end_work_between) ends the unit.
    pub fn resume_work(&mut self, label: &[u8], now: MonotonicTime) {
        self.entry.thread.set_label(label);
        self.entry.thread.begin_unit(now);
        if self.sends_heartbeat {
            self.entry.lifecycle.notify_at(now);
        }
    }

    /// Ends and counts a unit of work that began at `started_at` and ends at `now`. For a class whose
    /// threads work on several units in turn; any other calls `end_work`. In this time the unit may have
    /// waited without a thread, so it is no near miss: see [`count_near_miss`](Self::count_near_miss).
    pub fn end_work_between(&mut self, started_at: MonotonicTime, now: MonotonicTime) {
        self.entry.thread.clear_label();
        let no_limit = UnitTimeout::new(Duration::ZERO);
        end_unit(self.entry.thread, self.entry.lifecycle, (started_at, now), no_limit);
    }

    /// Counts a near miss: the unit of work has held its thread for more than half of `timeout`. For a
    /// class that calls [`end_work_between`](Self::end_work_between).
    pub fn count_near_miss(&mut self) {
        self.entry.thread.add_near_miss();
    }

    /// Returns a number that no other request of the worker has: see
    /// [`Lifecycle::request_id`](super::Lifecycle::request_id).
    pub fn new_request_number(&mut self) -> u64 {
        let number = self.request_number;
        self.request_number = match number as u32 {
            u32::MAX => self.entry.lifecycle.access().new_numbers(),
            _ => number + 1,
        };
        number
    }

    /// Begins a client's turn.
    #[inline]
    pub(super) fn begin_turn(&mut self) {
        self.was_long = false;
    }

    /// Returns whether other clients come next: the last unit of work of this turn was a long one. In a
    /// drain, what has arrived is answered first.
    #[inline]
    pub(super) fn must_yield(&self) -> bool {
        self.was_long && !self.entry.lifecycle.drains_clients()
    }

    /// Counts bytes that were received from a client.
    #[inline]
    pub fn count_received(&self, bytes: usize) {
        self.entry.thread.count_received(bytes);
    }

    /// Counts bytes that were sent to a client.
    #[inline]
    pub fn count_sent(&self, bytes: usize) {
        self.entry.thread.count_sent(bytes);
    }

    /// Returns whether units of work were logged and not written.
    #[inline]
    pub(super) fn has_records(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.has_records())
    }

    /// Logs a unit of work that has no client, and writes its record.
    pub(super) fn log_run(&mut self, kind: UnitKind, label: &str, is_ok: bool) {
        self.log_unit(&labelled_unit(kind, (b"RUN", b"JOB"), label, is_ok));
        if let Some(log) = &mut self.log {
            log.settle(ClientOutput::Sent);
        }
    }

    /// Returns the access log, if there is one.
    pub(super) fn unit_log(&mut self) -> Option<&mut UnitLog> {
        self.log.as_deref_mut()
    }
}

/// Returns what is logged of a unit of work that has no request: a method and a protocol stand in for it.
fn labelled_unit<'u>(
    kind: UnitKind,
    (method, protocol): (&'u [u8], &'u [u8]),
    label: &'u str,
    is_ok: bool,
) -> Unit<'u> {
    let path = label.as_bytes();
    let request = UnitRequest { method, path, query: None, protocol, line: None, field: &|_| None };
    let status = if is_ok { 200 } else { 500 };
    let response = UnitResponse { status, head: b"", body_bytes: 0, is_complete: true };
    Unit { kind, client: None, id: None, request, response }
}

/// Counts a unit of work that has lasted from one time to another.
#[inline]
fn end_unit(
    thread: ThreadEntry<'_>,
    lifecycle: &Lifecycle,
    (started_at, now): (MonotonicTime, MonotonicTime),
    timeout: UnitTimeout,
) {
    thread.end_unit(started_at, now, timeout);
    lifecycle.on_unit_done();
}

impl app::WorkReporter for WorkTracker<'_> {
    fn begin_work(&mut self, label: &[u8]) {
        let thread = self.entry.thread;
        thread.set_label(label);
        // A thread that is busy has just read the clock, or ended another unit.
        let now = thread.busy_since().unwrap_or_else(clock::now);
        thread.begin_unit(now);
        if self.sends_heartbeat {
            self.entry.lifecycle.notify_at(now);
        }
        if let Some(log) = &mut self.log {
            log.begin(now);
        }
    }

    fn logs_units(&self) -> bool {
        self.log.is_some()
    }

    fn log_unit(&mut self, unit: &Unit<'_>) {
        if let Some(log) = &mut self.log {
            let access = self.entry.lifecycle.access();
            log.add(unit, || access.request_id(unit.request.field));
        }
    }

    fn log_body(&mut self, bytes: u64, appended: u64) {
        if let Some(log) = &mut self.log {
            log.count_body(bytes, appended);
        }
    }

    fn log_end(&mut self, end: UnitEnd) {
        if let Some(log) = &mut self.log {
            log.end(end);
        }
    }

    fn request_id<'f>(&mut self, field: &dyn Fn(&str) -> Option<&'f [u8]>) -> Option<RequestId> {
        self.entry.lifecycle.access().request_id(field)
    }

    fn extend_deadline(&mut self, time: Duration) {
        extend_deadline(self.entry.thread, time);
    }

    fn set_label(&mut self, label: &[u8]) {
        self.entry.thread.set_label(label);
    }

    fn end_work(&mut self) {
        let TakenEntry { thread, lifecycle, .. } = self.entry;
        thread.clear_label();
        let (started_at, now) = (thread.unit_started(), clock::now());
        self.was_long = now.duration_since(started_at) >= LONG_UNIT;
        end_unit(thread, lifecycle, (started_at, now), lifecycle.unit_timeout());
    }

    fn was_long(&self) -> bool {
        self.was_long
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
        self.set_busy_since(clock::now());
    }

    fn set_busy_since(&mut self, now: MonotonicTime) {
        self.entry.thread.set_busy(now);
    }

    fn set_idle(&mut self) {
        self.entry.thread.set_idle();
    }
}

impl Drop for WorkTracker<'_> {
    /// A thread that ends, also by a panic, works on nothing.
    fn drop(&mut self) {
        if self.entry.is_held() {
            self.entry.thread.set_idle();
        }
    }
}

/// A unit of work in progress. Dropping it ends and counts the unit. Made by
/// [`Lifecycle::begin_work`].
#[must_use = "a unit of work lasts until this is dropped"]
pub struct WorkGuard<'a> {
    unit: UnitGuard<'a>,
    _entry: TakenEntry<'a>, // given back after the unit has ended
}

impl WorkGuard<'_> {
    /// Extends the unit's deadline to at least `time` from now, by an hour at most. Call it as often as
    /// there is progress; a shorter time than the unit has left changes nothing. Until then the unit
    /// does not make the worker count as hung.
    pub fn extend_deadline(&self, time: Duration) {
        extend_deadline(self.unit.thread, time);
    }
}

/// A unit of work in progress on an entry that its owner manages.
pub(super) struct UnitGuard<'a> {
    thread: ThreadEntry<'a>,
    lifecycle: &'a Lifecycle,
    /// What is logged of it, if there is an access log.
    record: Option<UnitRecord>,
}

/// What is logged of a unit of work of which only the label is known.
struct UnitRecord {
    log: Box<UnitLog>,
    label: Box<str>,
    client: Option<SocketAddr>,
}

impl<'a> UnitGuard<'a> {
    fn begin(
        thread: ThreadEntry<'a>,
        lifecycle: &'a Lifecycle,
        label: &str,
        client: Option<SocketAddr>,
    ) -> Self {
        thread.set_label(label.as_bytes());
        let now = clock::now();
        thread.begin_unit(now);
        let record = lifecycle.access().unit_log().map(|mut log| {
            log.begin(now);
            UnitRecord { log, label: label.into(), client }
        });
        Self { thread, lifecycle, record }
    }

    /// Counts bytes that were received from its client.
    pub(super) fn count_received(&self, bytes: usize) {
        self.thread.count_received(bytes);
    }

    /// Counts bytes that were sent to its client.
    pub(super) fn count_sent(&self, bytes: usize) {
        self.thread.count_sent(bytes);
    }

    /// Records that the calling thread works on it now.
    pub(super) fn move_to_current_thread(&self) {
        self.thread.set_thread_id(process::thread_id());
    }
}

fn extend_deadline(thread: ThreadEntry<'_>, time: Duration) {
    thread.extend_deadline(clock::now_coarse().saturating_add(time.min(EXTENSION_MAX)));
}

impl Drop for UnitGuard<'_> {
    fn drop(&mut self) {
        self.thread.set_idle();
        self.thread.clear_label();
        let times = (self.thread.unit_started(), clock::now());
        end_unit(self.thread, self.lifecycle, times, self.lifecycle.unit_timeout());
        if let Some(UnitRecord { log, label, client }) = &mut self.record {
            let kind = (b"WORK".as_slice(), b"OTHER".as_slice());
            let unit = labelled_unit(UnitKind::Other, kind, label, !thread::panicking());
            let access = self.lifecycle.access();
            log.add(&Unit { client: *client, ..unit }, || access.request_id(&|_| None));
            log.settle(ClientOutput::Sent);
        }
    }
}
