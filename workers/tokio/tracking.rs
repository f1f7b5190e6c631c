//! Units of work of futures: a thread's entry on the scoreboard is set while it polls one.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use ostler::app::WorkReporter;
use ostler::time::MonotonicTime;
use ostler::worker::{Lifecycle, WorkTracker};
use pin_project_lite::pin_project;
use slog::warn;

use super::worker::{ThreadRequests, Worker};

thread_local! {
    /// What this thread has, from its first unit of work on.
    static THREAD: RefCell<Option<Thread>> = const { RefCell::new(None) };
}

/// What a thread of the runtime has to show its units of work.
struct Thread {
    /// `None` while other threads have all entries.
    tracker: Option<WorkTracker<'static>>,
    requests: Option<Arc<ThreadRequests>>,
    /// The request whose code runs.
    #[cfg(feature = "tracing")]
    running: Option<Label>,
}

impl Thread {
    fn new(tracker: Option<WorkTracker<'static>>, requests: Option<Arc<ThreadRequests>>) -> Self {
        Self {
            tracker,
            requests,
            #[cfg(feature = "tracing")]
            running: None,
        }
    }

    /// Shows that a unit runs from now on.
    fn resume(&mut self, unit: &UnitGuard, now: MonotonicTime) {
        if self.tracker.is_none() {
            self.tracker = unit.worker.lifecycle().try_tracker();
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.resume_work(unit.label.as_bytes(), now);
        }
        self.set_running(unit, true);
    }

    /// Shows that a unit runs no more.
    fn pause(&mut self, unit: &UnitGuard) {
        self.set_running(unit, false);
        if let Some(tracker) = &mut self.tracker {
            tracker.set_idle();
        }
    }

    fn set_running(&mut self, unit: &UnitGuard, is_running: bool) {
        if unit.request_since.is_none() {
            return;
        }
        #[cfg(feature = "tracing")]
        {
            self.running = is_running.then_some(unit.label);
        }
        if let Some(requests) = &self.requests {
            requests.is_running.store(is_running, Ordering::Relaxed);
        }
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
    /// When it began, if it is a request.
    request_since: Option<MonotonicTime>,
}

impl UnitGuard {
    pub(super) fn new(label: Label, worker: Worker) -> Self {
        Self { label, worker, request_since: None }
    }

    /// Begins a request. A hung worker waits for those of other threads before it is aborted.
    pub(super) fn of_request(label: Label, worker: Worker) -> Self {
        with_thread(worker, |thread| {
            if let Some(requests) = &thread.requests {
                requests.begun.increment();
            }
        });
        let request_since = Some(worker.lifecycle().now());
        Self { label, worker, request_since }
    }

    /// Returns when the request began.
    pub(super) fn began_at(&self) -> MonotonicTime {
        self.request_since.unwrap_or_default()
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
        with_thread(self.worker, |thread| thread.resume(self, begun));
        let result = catch_unwind(AssertUnwindSafe(code));
        with_thread(self.worker, |thread| thread.pause(self));
        let time = lifecycle.now_coarse().duration_since(begun);
        if time > self.worker.near_miss() {
            self.log_near_miss(time);
        }
        result
    }

    #[cold]
    fn log_near_miss(&self, time: Duration) {
        warn!(self.worker.log(), "thread blocked for more than half of timeout";
            "label" => self.label_text(), "slot" => self.worker.info().slot, "duration_ms" => time.as_millis() as u64);
    }
}

impl Drop for UnitGuard {
    fn drop(&mut self) {
        with_thread(self.worker, |thread| {
            if self.request_since.is_some()
                && let Some(requests) = &thread.requests
            {
                requests.ended.increment();
            }
            match (&mut thread.tracker, self.request_since) {
                (None, _) => (),
                (Some(tracker), Some(since)) => {
                    tracker.end_work_between(since, self.worker.lifecycle().now());
                }
                (Some(tracker), None) => tracker.end_work(),
            }
        });
    }
}

/// Returns a number that no other request of the worker has.
pub(super) fn new_request_number(worker: Worker) -> u64 {
    let mut number = None;
    with_tracker(worker, |tracker| number = Some(tracker.new_request_number()));
    number.unwrap_or_else(|| worker.lifecycle().new_request_number())
}

/// Calls a function with what the calling thread has.
fn with_thread(worker: Worker, function: impl FnOnce(&mut Thread)) {
    // At the end of a thread it may be gone.
    let _ = THREAD.try_with(|thread| {
        let mut thread = thread.borrow_mut();
        function(thread.get_or_insert_with(|| {
            Thread::new(worker.lifecycle().try_tracker(), worker.add_thread())
        }));
    });
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

fn with_tracker(worker: Worker, function: impl FnOnce(&mut WorkTracker<'static>)) {
    with_thread(worker, |thread| {
        if let Some(tracker) = &mut thread.tracker {
            function(tracker);
        }
    });
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
