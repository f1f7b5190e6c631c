//! What a class is given to work with.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use slog::{Logger, warn};

use super::accept_policy::{
    self, ACCEPT_PAUSE, AcceptPolicy, BacklogDuty, Drain, Found, ListenerFacts, Turn,
};
use super::booted_app::BootedApp;
use super::lifecycle::{Lifecycle, StopRequest};
use super::no_service::NoService;
use crate::app::{Service, WorkerInfo};
use crate::listen::{Listener, Stream};
use crate::os::poll::{self, Interest};
use crate::os::{clock, listening, socket};
use crate::settings::Settings;
use crate::time::MonotonicTime;

/// What a class is given: the listeners, the service, the settings and the worker's lifecycle. The
/// worker's threads share it.
pub struct WorkerContext<'a> {
    pub(crate) listeners: &'a [Arc<Listener>],
    pub(crate) app: &'a BootedApp,
    pub(crate) settings: &'a Settings,
    pub(crate) worker: &'a WorkerInfo,
    pub(crate) log: &'a Logger,
    pub(crate) lifecycle: &'static Lifecycle,
    /// The path for the notification socket of a program.
    pub(crate) notify_path: Option<&'a Path>,
}

impl<'a> WorkerContext<'a> {
    /// Returns the listening sockets. Other processes share them: never change their flags. With
    /// `reuse_port` there is one for each worker at an address: see [`is_assigned`](Self::is_assigned).
    pub fn listeners(&self) -> &'a [Arc<Listener>] {
        self.listeners
    }

    /// Returns whether this worker serves a listener: all workers share it, it is this worker's own,
    /// or the master has assigned it to this worker because its own worker is missing. A class that
    /// does not ask serves all of them, and its workers contend for each client. The answer may
    /// change when [`wake_fd`](Lifecycle::wake_fd) has been readable.
    pub fn is_assigned(&self, listener: &Listener) -> bool {
        listener.is_assigned_to(self.worker.slot)
    }

    /// Returns whether a graceful stop of this worker includes the connections that wait at a
    /// listener, since no other worker serves them. If others may still be added to the queue, it
    /// includes all of them for 1 s after the stop began, and after that as long as one waits now.
    pub fn must_drain_backlog(&self, listener: &Listener) -> bool {
        match self.drain().duty(listener.state()) {
            BacklogDuty::None => false,
            BacklogDuty::AwaitHandshakes | BacklogDuty::Empty => true,
            BacklogDuty::EmptyOnce => has_pending_client(listener),
        }
    }

    /// Returns until when a late handshake may still add a client to a queue that this worker must
    /// empty. `None` if none can, or not any more: then an empty queue stays empty.
    pub fn backlog_deadline(&self) -> Option<MonotonicTime> {
        let since = self.lifecycle.stopping_since().filter(|_| self.is_draining())?;
        let states = self.listeners.iter().map(|listener| listener.state());
        accept_policy::handshakes_end(self.drain(), since, states)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.lifecycle.stop_request() == StopRequest::Graceful
    }

    fn drain(&self) -> Drain {
        let (elapsed, orphaned) = (self.lifecycle.stopping_for(), self.lifecycle.is_orphaned());
        Drain { elapsed, orphaned }
    }

    /// Returns the service of this worker. If its app is a job, that is one which serves no client.
    pub fn service(&self) -> &'a dyn Service {
        match self.app {
            BootedApp::Service(service) => service.as_ref(),
            BootedApp::Jobs(_) => &NoService,
        }
    }

    /// Returns the settings.
    pub fn settings(&self) -> &'a Settings {
        self.settings
    }

    /// Returns this worker's pool, slot and generation, and its limits.
    pub fn worker(&self) -> &'a WorkerInfo {
        self.worker
    }

    /// Returns the log.
    pub fn log(&self) -> &'a Logger {
        self.log
    }

    /// Returns the worker's lifecycle, which lasts as long as the process: tasks and threads may keep
    /// it.
    pub fn lifecycle(&self) -> &'static Lifecycle {
        self.lifecycle
    }

    /// Logs that accepting pauses, and why.
    pub fn log_accept_pause(&self, error: &io::Error) {
        warn!(self.log, "accept paused"; "slot" => self.worker.slot,
            "error" => %error, "pause_ms" => ACCEPT_PAUSE.as_millis() as u64);
    }

    /// Returns when accepting may resume if it pauses now.
    pub fn accept_resume_at(&self) -> MonotonicTime {
        clock::now().saturating_add(ACCEPT_PAUSE)
    }

    pub(super) fn accept_policy(&self) -> AcceptPolicy {
        AcceptPolicy::new(self.listeners.len(), self.settings.worker_connections, self.turn(0))
    }

    /// Begins a turn of the accept policy. Returns whether all listeners must be looked at anew.
    pub(super) fn begin_turn(&self, policy: &mut AcceptPolicy, client_count: usize) -> bool {
        let publish_clients = |count| self.lifecycle.publish_clients(count);
        let facts = |index| self.listener_facts(index);
        let looks_anew = policy.begin_turn(self.turn(client_count), facts, publish_clients);
        if self.is_draining() {
            for index in 0..self.listeners.len() {
                if policy.lacks_queue_length(index, facts(index)) {
                    policy.set_queue_length(index, self.queue_length(index), facts(index));
                }
            }
        }
        looks_anew
    }

    /// Returns how many clients wait at the nth listener; how many can, if the kernel does not say.
    fn queue_length(&self, index: usize) -> usize {
        let length = listening::accept_queue_length(self.listeners[index].as_fd());
        length.map_or(self.settings.backlog as usize + 1, |length| length as usize)
    }

    /// Returns what the accept policy must know of the worker now.
    fn turn(&self, client_count: usize) -> Turn {
        let lifecycle = self.lifecycle;
        Turn {
            now: clock::now(),
            client_count,
            stop: lifecycle.stop_request(),
            stopping_since: lifecycle.stopping_since(),
            orphaned: lifecycle.is_orphaned(),
            rechecks_requested: lifecycle.rechecks_requested(),
            is_in_drain_mode: lifecycle.is_in_drain_mode(),
        }
    }

    /// Returns what the accept policy must know of the nth listener now.
    pub(super) fn listener_facts(&self, index: usize) -> ListenerFacts {
        let listener = &self.listeners[index];
        ListenerFacts {
            state: listener.state(),
            is_assigned: self.is_assigned(listener),
            is_sharded: listener.is_sharded(),
        }
    }

    /// Calls accept(2) at the nth listener, and logs a lack of resources.
    pub(super) fn accept_from(&self, index: usize) -> (Found, Option<AcceptedStream>) {
        match self.listeners[index].accept() {
            Ok(Some(accepted)) => {
                let counters = self.lifecycle.board_row().worker_counters();
                if counters.add_accepted()
                    && let Some(wait) = socket::time_since_input(accepted.0.as_fd())
                {
                    counters.add_accept_wait(wait);
                }
                (Found::Client, Some(accepted))
            }
            Ok(None) => (Found::Nothing, None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => (Found::ShutDown, None),
            Err(error) => {
                self.log_accept_pause(&error);
                (Found::NoResources { resume_at: self.accept_resume_at() }, None)
            }
        }
    }
}

/// A client that has just been accepted, with the address of a TCP peer.
pub(super) type AcceptedStream = (Stream, Option<SocketAddr>);

/// Returns whether a client waits at a listener. Async-signal-safe.
pub(super) fn has_pending_client(listener: &Listener) -> bool {
    let now = Some(MonotonicTime::default());
    matches!(poll::wait([(listener.as_fd(), Interest::Readable)], now), Ok([true]))
}
