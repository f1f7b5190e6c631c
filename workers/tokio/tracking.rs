//! Units of work of futures: a thread's entry on the scoreboard is set while it polls one.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::process;
use std::task::{Context, Poll};
use std::time::Duration;

use ostler::app::WorkReporter;
use ostler::time::MonotonicTime;
use ostler::worker::{Lifecycle, PooledTracker, WorkTracker};
use pin_project_lite::pin_project;
use slog::warn;

use super::request_counts::ThreadCounts;
use super::worker::Worker;

thread_local! {
    /// What this thread has, from its first unit of work on.
    static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// What a thread of the runtime has to show its units of work.
struct Thread {
    /// `None` while other threads have all entries. The entry is held while the thread polls only: after
    /// `block_in_place` the thread is one of a pool, and another polls in its place.
    tracker: Option<PooledTracker<'static>>,
    requests: Option<ThreadCounts>,
    /// The request whose code runs.
    #[cfg(feature = "tracing")]
    running: Option<Label>,
}

impl Thread {
    fn new(tracker: Option<WorkTracker<'static>>, requests: Option<ThreadCounts>) -> Self {
        Self {
            tracker: tracker.map(PooledTracker::from),
            requests,
            #[cfg(feature = "tracing")]
            running: None,
        }
    }

    /// Shows that a unit runs from now on.
    fn resume(&mut self, unit: &UnitGuard, now: MonotonicTime) {
        if let Some(tracker) = self.held_tracker() {
            tracker.resume_work(unit.label.as_bytes(), now);
        }
        self.set_running(unit, true);
    }

    /// Shows that a unit runs no more.
    fn pause(&mut self, unit: &UnitGuard) {
        self.set_running(unit, false);
        if let Some(tracker) = self.held_tracker() {
            tracker.set_idle();
        }
    }

    fn set_running(&mut self, unit: &UnitGuard, is_running: bool) {
        if !unit.is_request {
            return;
        }
        #[cfg(feature = "tracing")]
        {
            self.running = is_running.then_some(unit.label);
        }
        if let Some(requests) = &self.requests {
            requests.set_running(is_running);
        }
    }

    /// Takes an entry, unless the thread has one or other threads have all of them. Returns whether it has
    /// taken one, which is then to be released.
    fn take_entry(&mut self, worker: Worker) -> bool {
        match &mut self.tracker {
            Some(tracker) => !tracker.is_held() && tracker.hold().is_some(),
            None => {
                self.tracker = worker.lifecycle().try_tracker().map(PooledTracker::from);
                self.tracker.is_some()
            }
        }
    }

    fn release_entry(&mut self) {
        if let Some(tracker) = &mut self.tracker {
            tracker.release();
        }
    }

    /// Returns the tracker while the thread has an entry.
    fn held_tracker(&mut self) -> Option<&mut WorkTracker<'static>> {
        self.tracker.as_mut().filter(|tracker| tracker.is_held())?.hold()
    }

    /// Calls a function with the tracker, unless other threads have all entries.
    fn with_tracker(&mut self, worker: Worker, function: impl FnOnce(&mut WorkTracker<'static>)) {
        let releases = self.take_entry(worker);
        if let Some(tracker) = self.held_tracker() {
            function(tracker);
        }
        if releases {
            self.release_entry();
        }
    }
}

/// Holds an entry on the scoreboard for the calling thread, until it is dropped. Holds within another
/// cost nothing.
pub(super) struct Hold {
    /// Whether the entry is given back afterwards.
    releases: bool,
    stays_in_thread: PhantomData<*const ()>,
}

impl Hold {
    pub(super) fn begin(worker: Worker) -> Self {
        let releases = with_thread(worker, |thread| thread.take_entry(worker));
        let releases = releases.unwrap_or(false);
        Self { releases, stays_in_thread: PhantomData }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.releases {
            return;
        }
        // At the end of a thread it may be gone.
        let _ = THREAD.try_with(|thread| {
            if let Some(thread) = &mut *thread.borrow_mut() {
                thread.release_entry();
            }
        });
    }
}

/// What a panic left.
pub(super) type Panic = Box<dyn Any + Send>;

/// The label of a unit of work, cut to what the scoreboard takes.
#[derive(Clone, Copy)]
pub(super) struct Label {
    bytes: [u8; Self::BYTES_MAX],
    length: u8,
}

impl Label {
    const BYTES_MAX: usize = 64;

    /// Joins words with a space between them.
    pub(super) fn new(words: &[&str]) -> Self {
        let mut label = Self { bytes: [0; Self::BYTES_MAX], length: 0 };
        for (index, word) in words.iter().enumerate() {
            if index > 0 {
                label.push(b" ");
            }
            label.push(word.as_bytes());
        }
        label
    }

    fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        let length = bytes.len().min(Self::BYTES_MAX - start);
        self.bytes[start..start + length].copy_from_slice(&bytes[..length]);
        self.length = (start + length) as u8;
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.as_bytes()).into_owned()
    }
}

/// A unit of work, which ends when this is dropped.
pub(super) struct UnitGuard {
    label: Label,
    worker: Worker,
    began_at: MonotonicTime,
    is_request: bool,
    /// Whether it has blocked its thread for more than half of `timeout`.
    was_near_miss: Cell<bool>,
}

impl UnitGuard {
    pub(super) fn new(label: Label, worker: Worker) -> Self {
        let (began_at, was_near_miss) = (worker.lifecycle().now(), Cell::new(false));
        Self { label, worker, began_at, is_request: false, was_near_miss }
    }

    /// Begins the unit of a request, which began at `began_at`. A hung worker waits for those of other
    /// threads before it is aborted.
    pub(super) fn of_request(label: Label, worker: Worker, began_at: MonotonicTime) -> Self {
        with_thread(worker, |thread| {
            if let Some(requests) = &thread.requests {
                requests.on_begin();
            }
        });
        Self { label, worker, began_at, is_request: true, was_near_miss: Cell::new(false) }
    }

    /// Returns the label as text.
    pub(super) fn label_text(&self) -> String {
        self.label.text()
    }

    /// Runs a part of the unit's code, which blocks the thread meanwhile. Logs a near miss: a call that
    /// takes more than half of the time after which it would be a hang.
    ///
    /// # Errors
    /// The code has panicked.
    pub(super) fn run<T>(&self, code: impl FnOnce() -> T) -> Result<T, Panic> {
        let lifecycle = self.worker.lifecycle();
        let begun = lifecycle.now_coarse();
        let releases = with_thread(self.worker, |thread| {
            let releases = thread.take_entry(self.worker);
            thread.resume(self, begun);
            releases
        });
        let result = catch_unwind(AssertUnwindSafe(code));
        with_thread(self.worker, |thread| {
            thread.pause(self);
            if releases == Some(true) {
                thread.release_entry();
            }
        });
        let time = lifecycle.now_coarse().duration_since(begun);
        if time > self.worker.near_miss() {
            self.on_near_miss(time);
        }
        result
    }

    #[cold]
    fn on_near_miss(&self, time: Duration) {
        if !self.was_near_miss.replace(true) {
            with_tracker(self.worker, WorkTracker::count_near_miss);
        }
        warn!(self.worker.log(), "thread blocked for more than half of timeout";
            "pid" => process::id(), "slot" => self.worker.info().slot, "label" => self.label_text(),
            "duration_ms" => time.as_millis() as u64);
    }
}

impl Drop for UnitGuard {
    fn drop(&mut self) {
        let now = self.worker.lifecycle().now();
        with_thread(self.worker, |thread| {
            if let Some(requests) = thread.requests.as_ref().filter(|_| self.is_request) {
                requests.on_end();
            }
            thread.with_tracker(self.worker, |tracker| {
                tracker.end_work_between(self.began_at, now);
            });
        });
    }
}

/// Returns a number that no other request of the worker has.
pub(super) fn new_request_number(worker: Worker) -> u64 {
    let mut number = None;
    with_tracker(worker, |tracker| number = Some(tracker.new_request_number()));
    number.unwrap_or_else(|| worker.lifecycle().new_request_number())
}

/// Calls a function with what the calling thread has. Returns `None` at the end of a thread, when it may be
/// gone.
fn with_thread<T>(worker: Worker, function: impl FnOnce(&mut Thread) -> T) -> Option<T> {
    let result = THREAD.try_with(|thread| {
        let mut thread = thread.borrow_mut();
        function(thread.get_or_insert_with(|| Thread::new(None, worker.add_thread())))
    });
    result.ok()
}

/// Counts bytes that were received from a client.
pub(super) fn count_received(worker: Worker, length: usize) {
    with_tracker(worker, |tracker| tracker.count_received(length));
}

/// Counts bytes that were sent to a client.
pub(super) fn count_sent(worker: Worker, length: usize) {
    with_tracker(worker, |tracker| tracker.count_sent(length));
}

/// Returns the label of the request whose code the calling thread runs.
#[cfg(feature = "tracing")]
pub(super) fn running_request() -> Option<String> {
    let label = THREAD.try_with(|thread| {
        let thread = thread.try_borrow().ok()?;
        thread.as_ref()?.running
    });
    label.ok().flatten().map(|label| label.text())
}

/// Calls a function with the tracker of the calling thread, unless other threads have all entries.
fn with_tracker(worker: Worker, function: impl FnOnce(&mut WorkTracker<'static>)) {
    with_thread(worker, |thread| thread.with_tracker(worker, function));
}

/// Makes the thread's units of work send heartbeats, if the thread is the worker's only one.
pub(super) fn send_heartbeats(lifecycle: &'static Lifecycle) {
    let tracker = Some(lifecycle.tracker().with_heartbeat());
    THREAD.with_borrow_mut(|thread| *thread = Some(Thread::new(tracker, None)));
}

pin_project! {
    /// A future that is a unit of work. A panic ends it like a return.
    pub(super) struct Tracked<F> {
        #[pin]
        future: F,
        unit: UnitGuard,
    }
}

impl<F> Tracked<F> {
    pub(super) fn new(future: F, unit: UnitGuard) -> Self {
        Self { future, unit }
    }
}

impl<F: Future<Output = ()>> Future for Tracked<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let future = this.future;
        this.unit.run(|| future.poll(cx)).unwrap_or(Poll::Ready(()))
    }
}
