//! What an app gets of its worker: options, tasks and the notice of a stop.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ostler::app::{BootError, WorkerInfo};
use ostler::settings::Settings;
use ostler::worker::{Lifecycle, StopRequest, WorkerContext};
use slog::Logger;
use tokio::sync::Notify;

use super::request_counts::{RequestCounts, ThreadCounts};

/// A worker, as its app sees it. Clones are the same worker.
#[derive(Clone, Copy)]
pub struct Worker(&'static Shared); // one a process, for its whole life: a clone costs nothing

struct Shared {
    info: WorkerInfo,
    settings: Settings,
    log: Logger,
    lifecycle: &'static Lifecycle,
    /// How often it was announced that the worker stops, or begins or ends its drain mode.
    notices: AtomicUsize,
    noticed: Notify,
    /// How many tasks of [`Worker::spawn`] have not ended.
    tasks: AtomicUsize,
    /// How many clients the worker has.
    clients: AtomicUsize,
    /// The requests, if the runtime has several threads.
    requests: RequestCounts,
    /// Whether the class waits for the end of a client.
    is_end_awaited: AtomicBool,
    /// Tells the class that a client or a task has ended.
    ended: Notify,
    /// Code that blocks its thread for longer is logged.
    near_miss: Duration,
}

impl Worker {
    pub(super) fn new(ctx: &WorkerContext<'_>) -> Self {
        let timeout = ctx.settings().timeout;
        Self(Box::leak(Box::new(Shared {
            info: ctx.worker().clone(),
            settings: ctx.settings().clone(),
            log: ctx.log().clone(),
            lifecycle: ctx.lifecycle(),
            notices: AtomicUsize::new(0),
            noticed: Notify::new(),
            tasks: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            requests: RequestCounts::default(),
            is_end_awaited: AtomicBool::new(false),
            ended: Notify::new(),
            near_miss: if timeout.is_zero() { Duration::MAX } else { timeout / 2 },
        })))
    }

    /// Returns an option of the app: a `KEY=VALUE` argument of the command line, or a key of the map
    /// `app` in a YAML file.
    ///
    /// # Errors
    /// The option is not set. Returned from the function that makes the app, it is a failed boot.
    pub fn option(&self, name: &str) -> Result<&str, BootError> {
        let value = self.0.info.options.get(name).map(String::as_str);
        value.ok_or_else(|| format!("option {name} of the app is not set").into())
    }

    /// Returns the worker's pool, slot, generation, options and limits.
    pub fn info(&self) -> &WorkerInfo {
        &self.0.info
    }

    /// Returns the log.
    pub fn log(&self) -> &Logger {
        &self.0.log
    }

    /// Returns the notice of a graceful stop.
    pub fn shutdown(&self) -> Shutdown {
        Shutdown(*self)
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn lifecycle(&self) -> &'static Lifecycle {
        self.0.lifecycle
    }

    /// Tells everything that waits for it that signals were processed: the worker may stop, or its drain
    /// mode may have changed.
    pub(super) fn announce(&self) {
        self.0.notices.fetch_add(1, Ordering::Release);
        self.0.noticed.notify_waiters();
    }

    /// Returns how often [`announce`](Self::announce) was called.
    pub(super) fn notices(&self) -> usize {
        self.0.notices.load(Ordering::Acquire)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.lifecycle.stop_request() != StopRequest::None
    }

    /// Returns whether connections are to end after the requests in progress.
    pub(super) fn closes_connections(&self) -> bool {
        self.is_stopping() || self.0.lifecycle.is_in_drain_mode()
    }

    pub(super) fn client_count(&self) -> usize {
        self.0.clients.load(Ordering::SeqCst) // not before `set_end_awaited`, which the end of a client reads
    }

    pub(super) fn task_count(&self) -> usize {
        self.0.tasks.load(Ordering::Acquire)
    }

    pub(super) fn near_miss(&self) -> Duration {
        self.0.near_miss
    }

    /// Returns where a new thread counts its requests; `None` if the runtime has one thread only.
    pub(super) fn add_thread(&self) -> Option<ThreadCounts> {
        (self.0.settings.threads > 1).then(|| self.0.requests.add_thread())
    }

    /// Returns the requests of all threads; nothing is counted if the runtime has one thread only.
    pub(super) fn requests(&self) -> &'static RequestCounts {
        &self.0.requests
    }

    /// Returns what is notified when a client or a task has ended.
    pub(super) fn ended(&self) -> &'static Notify {
        &self.0.ended
    }

    /// Counts a task, until the guard is dropped.
    pub(super) fn add_task(&self) -> TaskGuard {
        self.0.tasks.fetch_add(1, Ordering::Relaxed);
        TaskGuard(*self)
    }

    /// Counts a client, until the guard is dropped.
    pub(super) fn add_client(&self) -> ClientGuard {
        self.0.clients.fetch_add(1, Ordering::Relaxed);
        ClientGuard(*self)
    }

    /// Takes in whether the class must be told of the end of each client, and not only of the last.
    pub(super) fn set_end_awaited(&self, is_awaited: bool) {
        self.0.is_end_awaited.store(is_awaited, Ordering::SeqCst);
    }

    /// Waits until the worker stops.
    async fn stopped(&self) {
        loop {
            let notified = self.0.noticed.notified();
            if self.is_stopping() {
                return;
            }
            notified.await; // created before the look: `notify_waiters` reaches it
        }
    }

    /// Waits for the next notice, unless connections are to end now.
    pub(super) async fn noticed(&self) {
        let notified = self.0.noticed.notified();
        if !self.closes_connections() {
            notified.await;
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Worker").field(&self.0.info).finish()
    }
}

/// A task that counts.
pub(super) struct TaskGuard(Worker);

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.0.tasks.fetch_sub(1, Ordering::AcqRel);
        self.0.0.ended.notify_one();
    }
}

/// A client that counts.
pub(super) struct ClientGuard(Worker);

impl ClientGuard {
    pub(super) fn worker(&self) -> Worker {
        self.0
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        let shared = self.0.0;
        let left = shared.clients.fetch_sub(1, Ordering::SeqCst) - 1;
        shared.lifecycle.set_client_count(left);
        // Waking the thread that accepts costs more than a request.
        if left == 0 || shared.is_end_awaited.load(Ordering::SeqCst) {
            shared.ended.notify_one();
        }
    }
}

/// The notice of a graceful stop, for what would otherwise keep a draining worker: WebSockets,
/// server-sent events, long polls, tasks: see [`RequestContext::shutdown`](super::RequestContext::shutdown).
#[derive(Clone, Copy, Debug)]
pub struct Shutdown(Worker);

impl Shutdown {
    /// Waits until the worker has been asked to stop. What has not ended `graceful_timeout` later is cut
    /// off.
    pub async fn requested(&self) {
        self.0.stopped().await;
    }

    /// Returns whether the worker has been asked to stop.
    pub fn is_requested(&self) -> bool {
        self.0.is_stopping()
    }
}
