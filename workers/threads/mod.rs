//! `threads`: a pool of threads that serve clients, after the Leader/Followers pattern; or a pool that
//! runs one job per thread.
//!
//! A client is in one of three states. Parked: the *leader*, one pool thread without other work, waits
//! for its socket, and the main thread keeps its deadline. Queued. Running: a pool thread drives it as
//! far as possible without waiting, and parks it again. So an idle or slow client holds no thread, and
//! a short request wakes at most one.

use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use ::mio::unix::SourceFd;
use ::mio::{Events, Interest, Poll, Token, Waker};
use crossbeam_channel::bounded;
use ostler::settings::Settings;
use ostler::time::MonotonicTime;
use ostler::worker::{
    Buffers, DriveStatus, ReadMode, StopRequest, TimerWheel, WorkTracker, WorkerClass,
    WorkerContext, WorkerError,
};

use self::client_entry::ParkResult;
use self::shared::{ClientEvent, Shared, ShutdownGuard, Task};
use self::task_times::{STALL, TaskTimes};

mod client_entry;
mod jobs;
mod lock;
mod poller;
mod shared;
mod task_times;

/// Runs a pool of threads per worker, for handlers that block. Slow and idle clients hold no thread.
/// If the app is a job, each thread runs one.
pub struct ThreadsClass;

/// The token of the signals.
const WAKE: Token = Token(0);
/// The token of a wake-up by the pool.
const MAIN_WAKE: Token = Token(1);
/// What [`STALL`] is while the pool is *calm*: the last checks have all seen progress. A check is a context switch,
/// which costs as much as a short request.
const CALM_STALL: Duration = Duration::from_millis(4);
/// After how many such checks in a row the pool is calm.
const CALM_CHECKS: u32 = 16;

impl WorkerClass for ThreadsClass {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn threads(&self, settings: &Settings) -> usize {
        settings.threads
    }

    fn runs_jobs(&self) -> bool {
        true
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let jobs = ctx.take_jobs();
        if !jobs.is_empty() {
            return jobs::run(ctx, jobs);
        }
        let poll = Poll::new()?;
        let wake = ctx.lifecycle().wake_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&wake), WAKE, Interest::READABLE)?;
        let shared = Shared::open(ctx, Waker::new(poll.registry(), MAIN_WAKE)?)?;
        thread::scope(|scope| {
            // No thread begins before all exist. If one cannot be created, the guard closes the pool
            // before `start` is dropped.
            let (start, started) = bounded::<()>(0);
            let _shutdown_guard = ShutdownGuard(&shared);
            for index in 0..ctx.settings().threads {
                let (shared, started) = (&shared, started.clone());
                let work = move || {
                    let _ = started.recv();
                    serve(ctx, shared);
                };
                thread::Builder::new().name(format!("ostler-{index}")).spawn_scoped(scope, work)?;
            }
            ctx.lifecycle().ready();
            drop(start);
            let timers = TimerWheel::new(ctx.lifecycle().now());
            let main = MainThread {
                ctx,
                poll,
                shared: &shared,
                timers,
                progress: None,
                calm_checks: 0,
                task_times: TaskTimes::new(),
                draining: false,
            };
            main.run()
        })
    }
}

/// The main thread: sends heartbeats, polls for a stop, keeps the deadlines and monitors the pool.
struct MainThread<'s, 'a> {
    ctx: &'a WorkerContext<'a>,
    poll: Poll,
    shared: &'s Shared<'a>,
    timers: TimerWheel,
    /// The progress of the pool at the last check.
    progress: Option<Progress>,
    /// How many checks in a row have seen progress.
    calm_checks: u32,
    task_times: TaskTimes,
    draining: bool,
}

struct Progress {
    at: MonotonicTime,
    /// Tasks that had been taken.
    taken: usize,
    /// Those and the tasks that waited.
    sent: usize,
    /// How often a thread had polled; `None` while the leader did.
    polls: Option<usize>,
}

impl MainThread<'_, '_> {
    fn run(mut self) -> Result<(), WorkerError> {
        let mut events = Events::with_capacity(2);
        self.poll_stop(); // from now on this class polls for a stop
        loop {
            self.ctx.lifecycle().notify();
            let drains = self.ctx.lifecycle().drains_clients();
            if drains && !self.draining {
                self.drain();
            }
            self.draining = drains;
            self.handle_client_events();
            self.expire_clients();
            self.check_progress();
            if self.ctx.lifecycle().stop_request() == StopRequest::Immediate {
                self.ctx.lifecycle().exit_now(); // without waiting for threads that may be stuck
            }
            if self.shared.has_closed()? {
                return Ok(());
            }
            self.wait(&mut events)?;
            if events.iter().any(|event| event.token() == WAKE) {
                self.poll_stop();
            }
        }
    }

    fn poll_stop(&self) {
        self.ctx.lifecycle().poll_stop();
        self.shared.wake_poller(); // the master may have assigned queues anew, too
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let wait = self.timers.next().map(|at| at.duration_since(self.ctx.lifecycle().now()));
        let stall = self.shared.is_monitored().then_some(self.stall());
        let timeout =
            [wait, stall, self.ctx.lifecycle().heartbeat_interval()].into_iter().flatten().min();
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Returns how long no task may be taken.
    fn stall(&self) -> Duration {
        if self.calm_checks < CALM_CHECKS { STALL } else { CALM_STALL }
    }

    fn drain(&mut self) {
        self.draining = true; // `drain_idle_timeout` applies from now on
        self.handle_client_events();
        for index in self.shared.drain() {
            self.schedule_check(index);
        }
    }

    fn handle_client_events(&mut self) {
        for event in self.shared.take_events() {
            match event {
                ClientEvent::Added(index) | ClientEvent::CheckTooLate(index) => {
                    self.schedule_check(index)
                }
                ClientEvent::Removed(index) => self.timers.clear(index),
            }
        }
    }

    /// Wakes sleeping threads if those awake make no progress.
    fn check_progress(&mut self) {
        if !self.shared.is_monitored() {
            self.progress = None;
            return;
        }
        let (now, taken) = (self.ctx.lifecycle().now(), self.shared.taken());
        let (waiting, polls) = (self.shared.waiting(), self.shared.polls());
        let present = Progress { at: now, taken, sent: taken + waiting, polls };
        let Some(earlier) = &self.progress else {
            self.progress = Some(present);
            return;
        };
        if now.duration_since(earlier.at) < self.stall() {
            return;
        }
        let elapsed = now.duration_since(earlier.at);
        self.task_times.record(elapsed, self.shared.running(), taken.wrapping_sub(earlier.taken));
        self.shared.set_tasks_per_thread(self.task_times.tasks_per_stall());
        self.calm_checks = self.calm_checks.saturating_add(1);
        if taken == earlier.taken {
            self.calm_checks = 0;
            self.shared.wake_threads(waiting.max(1));
        } else if taken < earlier.sent || polls.is_some() && polls == earlier.polls {
            self.calm_checks = 0;
            self.shared.wake_threads(1); // tasks that waited then wait still, or no thread has polled since
        }
        self.progress = Some(present);
    }

    /// Dispatches the clients whose deadline has come.
    fn expire_clients(&mut self) {
        let now = self.ctx.lifecycle().now();
        while let Some(index) = self.timers.pop(now) {
            let Some(entry) = self.shared.entry(index) else { continue };
            if entry.is_due(now) {
                self.shared.dispatch(index); // its thread finds that it has expired
            }
            self.schedule_check(index);
        }
    }

    /// Schedules the next check of a client: at its deadline, or, since that is unknown while a thread
    /// runs it, after the shortest configured timeout.
    fn schedule_check(&mut self, index: usize) {
        if let Some(entry) = self.shared.entry(index) {
            self.timers.set(index, entry.schedule_check(self.next_check()));
        }
    }

    /// Returns when to check a client whose deadline is unknown.
    fn next_check(&self) -> MonotonicTime {
        let settings = self.ctx.settings();
        let limits = self.ctx.worker().limits;
        let shortest = [
            limits.keepalive,
            limits.header_timeout,
            limits.body_timeout,
            settings.write_timeout,
            if self.draining { limits.drain_idle_timeout } else { Duration::MAX },
        ];
        let shortest = shortest.into_iter().filter(|limit| !limit.is_zero()).min();
        let shortest = shortest.unwrap_or(Duration::MAX).min(Duration::from_secs(60));
        self.ctx.lifecycle().now().saturating_add(shortest)
    }
}

/// Serves clients in a pool thread until the pool closes.
fn serve<'a>(ctx: &'a WorkerContext<'a>, shared: &Shared<'a>) {
    let (mut buffers, mut tracker) = (Buffers::default(), ctx.lifecycle().tracker());
    while let Some(mut task) = shared.next_task() {
        match drive(ctx, &mut task, shared, &mut buffers, &mut tracker) {
            TaskStatus::Done => (),
            TaskStatus::Queued => shared.enqueue(task),
            TaskStatus::Closed => shared.remove_client(task.index),
        }
    }
}

/// What became of a task.
enum TaskStatus {
    /// Its client is parked.
    Done,
    /// Its client has yielded.
    Queued,
    Closed,
}

/// Drives a client as far as possible without waiting, and parks it, unless it has yielded.
fn drive<'a>(
    ctx: &WorkerContext<'a>,
    task: &mut Task<'a>,
    shared: &Shared<'a>,
    buffers: &mut Buffers,
    tracker: &mut WorkTracker<'_>,
) -> TaskStatus {
    let entry = &task.entry;
    let Some(mut running) = entry.take() else { return TaskStatus::Done };
    if let Some(client) = running.as_mut() {
        client.expire(ctx.lifecycle().now(), buffers, tracker);
    }
    while let Some(client) = running.as_mut() {
        let mode = if entry.is_peer_closed() {
            ReadMode::UntilWouldBlock
        } else {
            ReadMode::UntilShortRead
        };
        let is_draining = ctx.lifecycle().drains_clients();
        let status = client.drive(mode, buffers, tracker);
        if ctx.lifecycle().drains_clients() && !client.is_drained() && status != DriveStatus::Closed
        {
            // First answer what it has sent before the drain began.
            if is_draining {
                client.drain(buffers, tracker);
            }
            continue;
        }
        match status {
            DriveStatus::Yield => {
                entry.requeue();
                return TaskStatus::Queued;
            }
            DriveStatus::WantRead | DriveStatus::WantWrite => {
                if task.is_new && shared.watch(client, task.index).is_err() {
                    ctx.lifecycle().count_refused_client(); // no memory to watch it
                    break;
                }
                task.is_new = false;
                let deadline = client.deadline();
                drop(running); // once it is parked, another thread may take it
                match entry.park(status, deadline) {
                    ParkResult::CheckInTime => return TaskStatus::Done,
                    ParkResult::CheckTooLate => {
                        shared.report_late_check(task.index);
                        return TaskStatus::Done;
                    }
                    ParkResult::EventPending => running = entry.client(),
                }
            }
            DriveStatus::Closed => break,
        }
    }
    *running = None;
    entry.close();
    TaskStatus::Closed
}
