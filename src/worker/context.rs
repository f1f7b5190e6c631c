//! What a class is given to work with.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use slog::{Logger, warn};

use super::acceptor::Acceptor;
use super::client::Client;
use super::jobs::{BootedApp, ThreadJob};
use super::lifecycle::{Lifecycle, StopRequest};
use crate::app::{
    ClientInfo, Connection, ConnectionContext, Next, ReadTimeout, Service, WorkerInfo,
};
use crate::listen::{Listener, ListenerState, Stream};
use crate::os::clock;
use crate::session::Session;
use crate::settings::Settings;
use crate::time::MonotonicTime;

/// How long accepting pauses when the kernel has no resources for another connection.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// How long a queue is emptied to which others may still add.
pub(super) const BACKLOG_DRAIN_MAX: Duration = Duration::from_secs(1);

/// How long a handshake may take that had begun when the door was closed: what the client sends
/// last is on its way, and brings one more into the queue.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_millis(100);

/// What a class is given: where clients come from, who serves them, and the worker's life. Shared
/// by the worker's threads.
pub struct WorkerContext<'a> {
    pub(crate) listeners: &'a [Arc<Listener>],
    pub(crate) app: &'a BootedApp,
    pub(crate) settings: &'a Settings,
    pub(crate) worker: &'a WorkerInfo,
    pub(crate) log: &'a Logger,
    pub(crate) lifecycle: &'static Lifecycle,
}

impl<'a> WorkerContext<'a> {
    /// The listening sockets. They are shared with other processes: never change their flags. With
    /// `reuse_port` there is one for each worker at an address: see [`is_assigned`](Self::is_assigned).
    pub fn listeners(&self) -> &'a [Arc<Listener>] {
        self.listeners
    }

    /// Whether a listener is this worker's concern: it is shared by all, or this worker's own, or
    /// lent to it since nobody else is there. A class that does not ask serves at all of them, and
    /// has the workers contend for each client. The answer may change when
    /// [`wake_fd`](Lifecycle::wake_fd) has been readable.
    pub fn is_assigned(&self, listener: &Listener) -> bool {
        listener.is_assigned_to(self.worker.slot)
    }

    /// Whether nobody serves at a listener after this worker, so that a graceful stop includes the
    /// connections that wait there. Otherwise other workers take those.
    pub fn must_drain_backlog(&self, listener: &Listener) -> bool {
        match listener.state() {
            ListenerState::NotListening => false,
            ListenerState::DrainBounded => true,
            ListenerState::DrainUnbounded => self.lifecycle.stopping_for() < BACKLOG_DRAIN_MAX,
            ListenerState::Open => {
                self.lifecycle.is_orphaned() && self.lifecycle.stopping_for() < BACKLOG_DRAIN_MAX
            }
        }
    }

    /// Until when somebody may still come to a listener that this worker must empty although its
    /// door is closed. `None` if nobody can, or not any more: then an empty queue stays empty.
    pub fn backlog_deadline(&self) -> Option<MonotonicTime> {
        if self.lifecycle.stop_request() != StopRequest::Graceful {
            return None;
        }
        let end = self.lifecycle.stopping_since()?.saturating_add(HANDSHAKE_MAX);
        let has_bounded_listener =
            self.listeners.iter().any(|listener| listener.state() == ListenerState::DrainBounded);
        (has_bounded_listener && clock::now() < end).then_some(end)
    }

    /// The service of this worker. If its app is a job, one that serves nobody.
    pub fn service(&self) -> &'a dyn Service {
        match self.app {
            BootedApp::Service(service) => service.as_ref(),
            BootedApp::Jobs(_) => &NoService,
        }
    }

    /// The jobs of this worker, one for each of its [seats](super::WorkerClass::seats), to be run
    /// by a thread each. None if its app is a service, or if they have been taken already.
    pub fn take_jobs(&'a self) -> Vec<ThreadJob<'a>> {
        let jobs = self.app.take_jobs().into_iter().enumerate();
        jobs.map(|(seat, job)| ThreadJob::new(self, seat, job)).collect()
    }

    /// The settings.
    pub fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// Where this worker sits.
    pub fn worker(&self) -> &'a WorkerInfo {
        self.worker
    }

    /// The log.
    pub fn log(&self) -> &'a Logger {
        self.log
    }

    /// The worker's life, which lasts as long as the process: tasks and threads may keep it.
    pub fn lifecycle(&self) -> &'static Lifecycle {
        self.lifecycle
    }

    /// Opens a session of the service for a client that has just been accepted. `reusable` tells
    /// whether the class can serve several units of work over one connection.
    pub fn new_client(
        &self,
        stream: Stream,
        address: Option<SocketAddr>,
        allow_keepalive: bool,
    ) -> Client<'a> {
        let (service, peer) = (self.service(), ClientInfo { address, allow_keepalive });
        // A panic costs this client its connection, and nobody else anything.
        let accepted = catch_unwind(AssertUnwindSafe(|| service.accept(&peer)));
        let connection = accepted.unwrap_or_else(|_| Box::new(ClosedConnection));
        let settings = self.settings;
        let session = Session::new(connection, settings.write_timeout, clock::now())
            .with_lingering_close(settings.lingering_timeout, settings.lingering_bytes);
        Client::new(stream, session)
    }

    /// An acceptor, which lets clients in and knows when it is time to leave.
    pub fn acceptor(&self) -> Acceptor<'a> {
        Acceptor::new(WorkerContext { ..*self })
    }

    /// Says in the log that accepting pauses, and why.
    pub fn log_accept_pause(&self, error: &io::Error) {
        warn!(self.log, "accept paused"; "slot" => self.worker.slot,
            "error" => %error, "pause_ms" => ACCEPT_PAUSE.as_millis() as u64);
    }

    /// When accepting that pauses from now on may go on.
    pub fn accept_resume_at(&self) -> MonotonicTime {
        clock::now().saturating_add(ACCEPT_PAUSE)
    }
}

/// The service of an app that is a job.
pub(crate) struct NoService;

impl Service for NoService {
    fn accept(&self, _: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(ClosedConnection)
    }
}

/// The connection of a client for which the service could make none.
struct ClosedConnection;

impl Connection for ClosedConnection {
    fn receive(&mut self, _: &[u8], _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn resume(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn on_timeout(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn drain(&mut self, _: &mut ConnectionContext<'_>) -> Next {
        Next::Close
    }

    fn timeout(&self) -> ReadTimeout {
        ReadTimeout::Idle(Duration::from_millis(1))
    }
}
