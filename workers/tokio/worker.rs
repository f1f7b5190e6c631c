//! What an app gets of its worker: options, tasks and the notice of a stop.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ostler::app::{BootError, WorkerInfo};
use ostler::settings::Settings;
use ostler::worker::{Lifecycle, StopRequest, WorkerContext};
use slog::Logger;
use tokio::sync::Notify;

/// A worker, as its app sees it. Clones are the same worker. Each request has one as an extension.
#[derive(Clone)]
pub struct Worker(Arc<Shared>);

struct Shared {
    info: WorkerInfo,
    settings: Settings,
    log: Logger,
    lifecycle: &'static Lifecycle,
    /// Whether the worker stops.
    is_stopping: AtomicBool,
    stop: Notify,
    /// How many tasks of [`Worker::spawn`] have not ended.
    tasks: AtomicUsize,
    /// How many clients the worker has.
    clients: AtomicUsize,
    /// How many requests have no complete response.
    requests: AtomicUsize,
    /// Whether a thread runs the code of a request, for each thread that has.
    threads: Mutex<Vec<Arc<AtomicBool>>>,
    /// Tells the class that a client or a task has ended.
    ended: Notify,
}

impl Worker {
    pub(super) fn new(ctx: &WorkerContext<'_>) -> Self {
        Self(Arc::new(Shared {
            info: ctx.worker().clone(),
            settings: ctx.settings().clone(),
            log: ctx.log().clone(),
            lifecycle: ctx.lifecycle(),
            is_stopping: AtomicBool::new(false),
            stop: Notify::new(),
            tasks: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            threads: Mutex::new(Vec::new()),
            ended: Notify::new(),
        }))
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
        Shutdown(self.clone())
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(super) fn lifecycle(&self) -> &'static Lifecycle {
        self.0.lifecycle
    }

    /// Tells everything that waits for it that the worker stops.
    pub(super) fn announce_stop(&self) {
        self.0.is_stopping.store(true, Ordering::Release);
        self.0.stop.notify_waiters();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.is_stopping.load(Ordering::Acquire)
    }

    pub(super) fn client_count(&self) -> usize {
        self.0.clients.load(Ordering::Acquire)
    }

    pub(super) fn task_count(&self) -> usize {
        self.0.tasks.load(Ordering::Acquire)
    }

    pub(super) fn begin_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the flag of a new thread: whether it runs the code of a request.
    pub(super) fn add_thread(&self) -> Arc<AtomicBool> {
        let flag = Arc::new(AtomicBool::new(false));
        self.0.threads.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&flag));
        flag
    }

    /// Returns how many requests wait for something else than a thread.
    pub(super) fn awaiting_requests(&self) -> usize {
        let requests = self.0.requests.load(Ordering::Relaxed);
        if requests == 0 {
            return 0;
        }
        let threads = self.0.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let running = threads.iter().filter(|flag| flag.load(Ordering::Relaxed)).count();
        requests.saturating_sub(running)
    }

    /// Returns what is notified when a client or a task has ended.
    pub(super) fn ended(&self) -> &Notify {
        &self.0.ended
    }

    /// Counts a task, until the guard is dropped.
    pub(super) fn add_task(&self) -> TaskGuard {
        self.0.tasks.fetch_add(1, Ordering::Relaxed);
        TaskGuard(self.clone())
    }

    /// Counts a client, until the guard is dropped.
    pub(super) fn add_client(&self) -> ClientGuard {
        self.0.clients.fetch_add(1, Ordering::Relaxed);
        ClientGuard(self.clone())
    }

    /// Waits until the worker stops.
    pub(super) async fn stopped(&self) {
        let notified = self.0.stop.notified();
        if !self.is_stopping() {
            notified.await; // created before the look: `notify_waiters` reaches it
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
    pub(super) fn worker(&self) -> &Worker {
        &self.0
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.0.0.clients.fetch_sub(1, Ordering::AcqRel);
        self.0.0.ended.notify_one();
    }
}

/// The notice of a graceful stop, for what would otherwise keep a draining worker: WebSockets,
/// server-sent events, long polls, tasks. Each request has one as an extension
/// (`axum::Extension<Shutdown>`).
#[derive(Clone, Debug)]
pub struct Shutdown(Worker);

impl Shutdown {
    /// Waits until the worker has been asked to stop. What has not ended `graceful_timeout` later is cut
    /// off.
    pub async fn requested(&self) {
        self.0.stopped().await;
    }

    /// Returns whether the worker has been asked to stop.
    pub fn is_requested(&self) -> bool {
        self.0.is_stopping() || self.0.lifecycle().stop_request() != StopRequest::None
    }
}
