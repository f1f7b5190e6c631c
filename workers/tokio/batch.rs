//! HTTP/2 requests that arrive together: few tasks poll all of them, and most are answered by that.
//!
//! A task of its own for each request costs more than the answer of a quick app. So the futures of the
//! requests that one poll of a connection has found are collected, and each is polled once. One that is
//! not ready then gets its own task.

use std::cell::RefCell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::vec;

use hyper::rt::Executor;
use ostler::time::MonotonicTime;
use pin_project_lite::pin_project;

use super::connection::Driven;
use super::tracking::Hold;
use super::worker::Worker;

/// How many requests a task polls before other tasks have their turn.
const POLLS_MAX: usize = 32;
/// How long it polls them. The clock may make larger steps, of 4 ms as a rule.
const TURN_MAX: Duration = Duration::from_millis(1);

/// The future of a request.
type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// The requests that the connection which this thread polls has found; `None` while it polls none.
    static FOUND: RefCell<Option<Vec<Request>>> = const { RefCell::new(None) };
}

/// Takes the futures of requests from a connection that is [`InBatches`], and spawns all others.
#[derive(Clone, Copy)]
pub(super) struct RequestExecutor;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for RequestExecutor {
    fn execute(&self, future: F) {
        let left = FOUND.with_borrow_mut(|found| match found {
            Some(found) => {
                found.push(Box::pin(future));
                None
            }
            None => Some(future),
        });
        if let Some(future) = left {
            tokio::spawn(future);
        }
    }
}

pin_project! {
    /// An HTTP/2 connection with a [`RequestExecutor`].
    pub(super) struct InBatches<C> {
        #[pin]
        connection: C,
        worker: Worker,
    }
}

impl<C> InBatches<C> {
    pub(super) fn new(connection: C, worker: Worker) -> Self {
        Self { connection, worker }
    }
}

impl<C: Future> Future for InBatches<C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.project();
        let search = Search::begin();
        let polled = this.connection.poll(cx);
        let found = search.end();
        if !found.is_empty() {
            start(found, *this.worker, cx);
        }
        polled
    }
}

/// The search of a connection's poll for requests.
struct Search(());

impl Search {
    fn begin() -> Self {
        FOUND.set(Some(Vec::new()));
        Self(())
    }

    /// Returns what was found.
    fn end(self) -> Vec<Request> {
        FOUND.take().unwrap_or_default()
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        // Something is left if the connection has panicked.
        for request in FOUND.take().unwrap_or_default() {
            tokio::spawn(request);
        }
    }
}

impl<C: Driven> Driven for InBatches<C> {
    const IS_TOLD: bool = C::IS_TOLD;
    const IS_RELEASED: bool = C::IS_RELEASED;

    fn begin_shutdown(self: Pin<&mut Self>) {
        self.project().connection.begin_shutdown();
    }
}

/// Starts the requests that a poll of their connection has found.
fn start(found: Vec<Request>, worker: Worker, cx: &mut Context<'_>) {
    let threads = worker.settings().threads;
    let mut requests = found.into_iter();
    if threads == 1 {
        // Another task would only be the next that this thread polls.
        let mut turn = Turn::begin(worker);
        while turn.goes_on()
            && let Some(request) = requests.next()
        {
            poll_first(request, cx);
        }
    }
    let tasks = threads.min(requests.len());
    if requests.len() <= 1 {
        requests.for_each(|request| drop(tokio::spawn(request)));
        return;
    }
    let batch = Arc::new(Batch { requests: Mutex::new(requests), worker });
    // If a request blocks its thread, the other threads go on with the rest, and with the connection.
    for _ in 0..tasks {
        tokio::spawn(BatchTask(Arc::clone(&batch)));
    }
}

/// How long a task polls requests before other tasks have their turn.
struct Turn {
    worker: Worker,
    polls: usize,
    ends_at: MonotonicTime,
}

impl Turn {
    fn begin(worker: Worker) -> Self {
        let ends_at = worker.lifecycle().now_coarse().saturating_add(TURN_MAX);
        Self { worker, polls: 0, ends_at }
    }

    /// Counts a poll. Returns `false` if it is for another turn.
    fn goes_on(&mut self) -> bool {
        self.polls += 1;
        self.polls <= POLLS_MAX && self.worker.lifecycle().now_coarse() < self.ends_at
    }
}

/// Polls a request once. Spawns a task for it if it is not ready.
fn poll_first(mut request: Request, cx: &mut Context<'_>) {
    // A panic ends the request, as it would end its task; the hook has logged it.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        if request.as_mut().poll(cx).is_pending() {
            tokio::spawn(request);
        }
    }));
}

/// Requests that several tasks poll.
struct Batch {
    requests: Mutex<vec::IntoIter<Request>>,
    worker: Worker,
}

impl Batch {
    /// Returns the next request, and whether another follows.
    fn next(&self) -> Option<(Request, bool)> {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let next = requests.next()?;
        Some((next, requests.len() > 0))
    }
}

/// A task that polls the requests of a batch, beside others.
struct BatchTask(Arc<Batch>);

impl Future for BatchTask {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let _hold = Hold::begin(self.0.worker); // once for all of its requests
        let has_other_threads = self.0.worker.settings().threads > 1;
        let mut turn = Turn::begin(self.0.worker);
        while turn.goes_on() {
            let Some((request, has_next)) = self.0.next() else { return Poll::Ready(()) };
            if has_other_threads && (has_next || turn.polls > 1) {
                // Other threads do not take the task that a thread has woken last, such as that of the
                // connection, until it wakes the next. And of a thread that calls `block_in_place`, they
                // take what it has spawned, but not what this task would still poll.
                tokio::spawn(Self(Arc::clone(&self.0)));
            }
            poll_first(request, cx);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
