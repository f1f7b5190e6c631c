//! The class: a runtime in each worker, and the task that accepts.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use ostler::app::{ClientInfo, WorkReporter};
use ostler::listen::Stream;
use ostler::settings::Settings;
use ostler::time::MonotonicTime;
use ostler::worker::{
    Accept, Acceptor, BootFailure, Lifecycle, StopRequest, WorkTracker, WorkerClass, WorkerContext,
    WorkerError,
};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::futures::Notified;
use tokio::task::yield_now;

use super::alarm::Alarm;
use super::app::{Booted, CLASS};
use super::serve::{NewClient, Serve};
use super::tracking;
use super::watched_fd::WatchedFd;
use super::worker::Worker;

/// How long a worker sleeps at most, if nothing is due.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// A thread that blocks holds up the others for a quarter of this at most.
const RELIEF_MAX: Duration = Duration::from_secs(1);
/// How many clients a worker that serves alone accepts before other tasks have their turn, which costs an
/// epoll_wait(2).
const ACCEPTS_MAX: usize = 16;
/// How long a worker whose clients keep coming may leave its signals unread.
const SIGNALS_INTERVAL: Duration = Duration::from_millis(10);

/// Serves [apps](super::App) on a tokio runtime in each worker, with `threads` threads.
pub struct TokioClass;

impl WorkerClass for TokioClass {
    fn name(&self) -> &'static str {
        CLASS
    }

    fn serves_own_apps_only(&self) -> bool {
        true
    }

    fn threads(&self, settings: &Settings) -> usize {
        match settings.threads {
            1 => 1,
            // The one that accepts, those of the runtime, and as many in `block_in_place`.
            threads => 1 + 2 * threads,
        }
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let app = ctx.service().as_any().and_then(|service| service.downcast_ref::<Booted>());
        let app = app.ok_or("the app is not made for this class")?;
        // In the worker: no thread of a runtime survives a fork.
        let runtime = new_runtime(ctx)?;
        let end = runtime.block_on(run(ctx, app));
        runtime.shutdown_background(); // a blocked thread ends with the process
        end
    }
}

fn new_runtime(ctx: &WorkerContext<'_>) -> io::Result<Runtime> {
    let threads = ctx.settings().threads;
    if threads == 1 {
        tracking::send_heartbeats(ctx.lifecycle());
        return Builder::new_current_thread().enable_all().build();
    }
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// Wakes a thread of the runtime now and then. The thread that waited for sockets and timers may be one that
/// the code of a request or of an unknown task blocks, and the runtime wakes no other in its place: nothing
/// would be served, and the class itself would not be woken.
fn relieve_blocked_threads(ctx: &WorkerContext<'_>) -> io::Result<()> {
    let pause = ctx.lifecycle().heartbeat_interval().unwrap_or(SLEEP_MAX).min(RELIEF_MAX) / 4;
    let runtime = Handle::current();
    let relieve = move || {
        loop {
            thread::sleep(pause);
            runtime.spawn(async {});
        }
    };
    thread::Builder::new().name("ostler-relief".to_owned()).spawn(relieve).map(drop)
}

/// Boots the app, and serves until the worker has drained.
async fn run(ctx: &WorkerContext<'_>, app: &Booted) -> Result<(), WorkerError> {
    let (lifecycle, worker) = (ctx.lifecycle(), Worker::new(ctx));
    let signals = WatchedFd::register(lifecycle.wake_fd())?;
    let mut is_stopping = false;
    let booted = {
        let mut boot = app.boot(worker);
        poll_fn(|cx| {
            while signals.poll_readable(cx)?.is_ready() {}
            is_stopping = lifecycle.poll_stop() != StopRequest::None; // from now on, this class polls
            if is_stopping {
                return Poll::Ready(Ok(None));
            }
            let polled = catch_unwind(AssertUnwindSafe(|| boot.as_mut().poll(cx)));
            polled
                .unwrap_or_else(|panic| Poll::Ready(Err(panic_reason(panic.as_ref()).into())))
                .map_ok(Some)
        })
        .await
        .map_err(BootFailure)?
    };
    let Some(server) = booted else { return Ok(()) };
    let listeners = ctx.listeners().iter().map(|listener| WatchedFd::register(listener.as_fd()));
    let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
    let mut acceptor = ctx.acceptor();
    // The only thread has an entry already, and cannot run beside a request.
    let tracker = (ctx.settings().threads > 1).then(|| lifecycle.tracker());
    if tracker.is_some() {
        relieve_blocked_threads(ctx)?;
    }
    let mut event_loop = EventLoop {
        lifecycle,
        worker,
        signals,
        signals_due: MonotonicTime::default(),
        listeners,
        tracker,
        probed_at: None,
        alarm: Alarm::default(),
        ended: Box::pin(worker.ended().notified()),
    };
    handle_signals(lifecycle, worker);
    lifecycle.ready();
    event_loop.run(&mut acceptor, server.as_ref()).await
}

fn panic_reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
    format!("app panicked during boot: {text}")
}

fn handle_signals(lifecycle: &Lifecycle, worker: Worker) {
    let was_in_drain_mode = lifecycle.is_in_drain_mode();
    let stops = lifecycle.poll_stop() != StopRequest::None;
    if stops || lifecycle.is_in_drain_mode() != was_in_drain_mode {
        worker.announce();
    }
}

/// The task that accepts.
struct EventLoop<'a> {
    lifecycle: &'static Lifecycle,
    worker: Worker,
    signals: WatchedFd<'a>,
    /// When the signals are read, if the loop has not slept by then.
    signals_due: MonotonicTime,
    listeners: Vec<WatchedFd<'a>>,
    /// The entry of this thread; `None` if it is the only one.
    tracker: Option<WorkTracker<'static>>,
    /// When a thread of the runtime has last run a task of this loop.
    probed_at: Option<MonotonicTime>,
    /// The timer of its sleep, and the notice of the end of a client or a task: setting them up anew for
    /// each sleep costs more than a request.
    alarm: Alarm,
    ended: Pin<Box<Notified<'static>>>,
}

impl EventLoop<'_> {
    async fn run(
        &mut self,
        acceptor: &mut Acceptor<'_>,
        server: &dyn Serve,
    ) -> Result<(), WorkerError> {
        let mut accepted = 0;
        loop {
            self.probe_threads().await;
            self.report_awaiting_requests();
            let client_count = self.worker.client_count();
            match acceptor.poll(client_count) {
                Accept::Client(stream, address) => {
                    self.add_client(server, stream, address);
                    accepted += 1;
                    if accepted >= ACCEPTS_MAX || !acceptor.serves_alone() {
                        accepted = 0;
                        yield_now().await; // other workers get some of a burst, other tasks their turn
                    }
                    self.look_for_signals();
                }
                Accept::Pending { deadline } => {
                    self.sleep(acceptor, deadline, client_count).await?
                }
                Accept::Finished if self.must_wait_for_tasks() => {
                    let deadline = self.lifecycle.next_heartbeat();
                    self.sleep(acceptor, deadline, client_count).await?;
                }
                Accept::Finished => return Ok(()),
            }
        }
    }

    /// Reads the signals if that is due: while clients keep coming, the loop does not sleep.
    fn look_for_signals(&mut self) {
        let now = self.lifecycle.now_coarse();
        if self.signals_due <= now {
            self.signals_due = now.saturating_add(SIGNALS_INTERVAL);
            handle_signals(self.lifecycle, self.worker);
        }
    }

    /// Waits until a thread of the runtime runs a task, once between two heartbeats. If all of them are
    /// stuck, the heartbeat of the calling thread, which serves no client, would prove nothing.
    async fn probe_threads(&mut self) {
        let interval = self.lifecycle.heartbeat_interval().filter(|_| self.tracker.is_some());
        let Some(interval) = interval else { return };
        let now = self.lifecycle.now_coarse();
        if self.probed_at.is_none_or(|at| now.duration_since(at) >= interval / 2) {
            self.probed_at = Some(now);
            let mut probe = tokio::spawn(async {});
            let tracker = &mut self.tracker;
            poll_fn(|cx| {
                let polled = Pin::new(&mut probe).poll(cx);
                if polled.is_pending()
                    && let Some(tracker) = tracker
                {
                    tracker.set_idle(); // what the calling thread waits for is no work of its own
                }
                polled.map(drop)
            })
            .await;
        }
    }

    /// Shows the master that requests wait for something else than a thread: if another thread hangs,
    /// they are finished before the worker is aborted. The unit begins anew each time, so it is never
    /// overdue.
    fn report_awaiting_requests(&mut self) {
        if let Some(tracker) = &mut self.tracker {
            match self.worker.requests().awaiting() {
                0 => tracker.set_idle(),
                _ => tracker.resume_work(b"requests that await", self.lifecycle.now()),
            }
        }
    }

    fn must_wait_for_tasks(&self) -> bool {
        self.lifecycle.stop_request() == StopRequest::Graceful && self.worker.task_count() > 0
    }

    fn add_client(&self, server: &dyn Serve, stream: Stream, address: Option<SocketAddr>) {
        let guard = self.worker.add_client();
        let socket = StdStream::from(OwnedFd::from(stream)); // or a unix socket: the calls are the same
        // No memory to watch it: this client's connection is closed.
        let Ok(stream) = TcpStream::from_std(socket) else {
            self.lifecycle.count_refused_client();
            return;
        };
        let info = ClientInfo { address, allow_keepalive: true };
        // The service may panic when it is cloned, which costs this client its connection.
        let serve = || server.serve(NewClient { stream, info, guard });
        if catch_unwind(AssertUnwindSafe(serve)).is_err() {
            self.lifecycle.count_refused_client();
        }
    }

    /// Sleeps until there may be something to do: a client at a listener of interest, a signal, the end
    /// of a client or a task, or the deadline. There were `client_count` clients before.
    async fn sleep(
        &mut self,
        acceptor: &mut Acceptor<'_>,
        deadline: Option<MonotonicTime>,
        client_count: usize,
    ) -> io::Result<()> {
        let is_open = (0..self.listeners.len()).all(|index| acceptor.is_interested(index));
        self.worker.set_end_awaited(!is_open);
        if !is_open && self.worker.client_count() != client_count {
            return Ok(()); // one has ended meanwhile
        }
        let lifecycle = self.lifecycle;
        let deadline = deadline.unwrap_or_else(|| lifecycle.now().saturating_add(SLEEP_MAX));
        let Self { alarm, ended, .. } = self;
        poll_fn(|cx| {
            let mut is_due = Pin::new(&mut *alarm).is_due(deadline, || lifecycle.now(), cx);
            if ended.as_mut().poll(cx).is_ready() {
                ended.set(self.worker.ended().notified());
                is_due = true;
            }
            for (index, listener) in self.listeners.iter().enumerate() {
                if acceptor.is_interested(index) && listener.poll_readable(cx)?.is_ready() {
                    acceptor.mark_readable(index);
                    is_due = true;
                }
            }
            if self.signals.poll_readable(cx)?.is_ready() {
                handle_signals(lifecycle, self.worker);
                is_due = true;
            }
            if is_due { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }
}
