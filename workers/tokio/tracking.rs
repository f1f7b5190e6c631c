//! Units of work of futures: a thread's entry on the scoreboard is set while it polls one.

use std::any::Any;
use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ostler::app::WorkReporter;
use ostler::time::MonotonicTime;
use ostler::worker::{Lifecycle, WorkTracker};
use pin_project_lite::pin_project;
use slog::warn;

use super::worker::Worker;

thread_local! {
    /// The tracker of this thread, taken when it first polls a unit of work.
    static TRACKER: RefCell<Option<WorkTracker<'static>>> = const { RefCell::new(None) };
}

thread_local! {
    /// Whether this thread runs the code of a request, for the thread that accepts.
    static IS_IN_REQUEST: OnceCell<Arc<AtomicBool>> = const { OnceCell::new() };
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
        worker.begin_request();
        let request_since = Some(worker.lifecycle().now());
        Self { label, worker, request_since }
    }

    fn set_in_request(&self, is_in_request: bool) {
        if self.request_since.is_some() {
            let _ = IS_IN_REQUEST.try_with(|flag| {
                let flag = flag.get_or_init(|| self.worker.add_thread());
                flag.store(is_in_request, Ordering::Relaxed);
            });
        }
    }

    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns the label as text.
    pub(super) fn label_text(&self) -> String {
        String::from_utf8_lossy(self.label.as_bytes()).into_owned()
    }

    /// Runs a part of the unit's code, which blocks the thread meanwhile. Logs a near miss: a call that
    /// takes more than half of the time after which it would be a hang.
    ///
    /// # Errors
    /// The code has panicked.
    pub(super) fn run<T>(&self, code: impl FnOnce() -> T) -> Result<T, Panic> {
        let lifecycle = self.worker.lifecycle();
        let begun = lifecycle.now_coarse();
        with_tracker(lifecycle, |tracker| tracker.begin_work(self.label.as_bytes()));
        self.set_in_request(true);
        let result = catch_unwind(AssertUnwindSafe(code));
        self.set_in_request(false);
        with_tracker(lifecycle, WorkReporter::set_idle);
        let time = lifecycle.now_coarse().duration_since(begun);
        // A third of `timeout` is the longest time between heartbeats.
        if lifecycle.heartbeat_interval().is_some_and(|third| time > third * 3 / 2) {
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
        let lifecycle = self.worker.lifecycle();
        match self.request_since {
            Some(since) => {
                self.worker.end_request();
                with_tracker(lifecycle, |tracker| tracker.end_work_since(since));
            }
            None => with_tracker(lifecycle, WorkReporter::end_work),
        }
    }
}

/// Calls a function with the tracker of this thread. Does nothing if other threads have all entries.
fn with_tracker(lifecycle: &'static Lifecycle, function: impl FnOnce(&mut WorkTracker<'static>)) {
    // At the end of a thread its tracker may be gone.
    let _ = TRACKER.try_with(|tracker| {
        let mut tracker = tracker.borrow_mut();
        if tracker.is_none() {
            *tracker = lifecycle.try_tracker();
        }
        if let Some(tracker) = tracker.as_mut() {
            function(tracker);
        }
    });
}

/// Counts bytes that were received from a client.
pub(super) fn count_received(worker: &Worker, length: usize) {
    with_tracker(worker.lifecycle(), |tracker| tracker.count_received(length));
}

/// Counts bytes that were sent to a client.
pub(super) fn count_sent(worker: &Worker, length: usize) {
    with_tracker(worker.lifecycle(), |tracker| tracker.count_sent(length));
}

/// Makes the thread's units of work send heartbeats, if the thread is the worker's only one.
pub(super) fn send_heartbeats(lifecycle: &'static Lifecycle) {
    TRACKER.with_borrow_mut(|tracker| *tracker = Some(lifecycle.tracker().with_heartbeat()));
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
