//! The end of a worker whose class never asks whether it is to stop: it is taken from outside the
//! class what a class would have given. Everything here but the making runs in a signal's handler,
//! between any two instructions of the class: no lock, no memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::context::{BACKLOG_DRAIN_MAX, HANDSHAKE_MAX};
use crate::listen::{Listener, ListenerState};
use crate::os::fd_table::{self, LocalAddress, Visit};
use crate::os::poll::{self, Interest};
use crate::os::signal::{Signal, SignalDrain};
use crate::os::{clock, file};
use crate::scoreboard::{Scoreboard, WorkerStatus};
use crate::time::MonotonicTime;

/// At how many looks in a row there must be nothing to do: a thread of the class may just have let
/// somebody in who is not to be seen yet.
const IDLE_CHECKS: u8 = 2;

/// Looks after the end of a worker.
pub(crate) struct ForcedDrain {
    board: Arc<Scoreboard>,
    row: usize,
    master_wakeup: OwnedFd,
    entries: Vec<Entry>,
    /// How long an orphan may live.
    limit: Duration,
    /// When the worker was told to leave, in nanoseconds; 0 before.
    signaled_at: AtomicU64,
    orphaned: AtomicBool,
    /// It is to leave at once.
    quick_stop: AtomicBool,
    idle_checks: AtomicU8,
}

/// A listener as it was when the class began.
struct Entry {
    listener: Arc<Listener>,
    fd: RawFd,
    socket: file::FileId,
    local_address: Option<LocalAddress>,
}

impl ForcedDrain {
    /// A guard of the worker in this row.
    ///
    /// # Errors
    /// `EMFILE`.
    pub(crate) fn new(
        board: Arc<Scoreboard>,
        row: usize,
        master_wakeup: &OwnedFd,
        listeners: &[Arc<Listener>],
    ) -> io::Result<Self> {
        let entries = listeners.iter().map(|listener| {
            let fd = listener.as_raw_fd();
            let (listener, socket) = (Arc::clone(listener), file::id(fd)?);
            Ok(Entry { listener, fd, socket, local_address: fd_table::local_address(fd) })
        });
        Ok(Self {
            board,
            row,
            master_wakeup: master_wakeup.try_clone()?,
            entries: entries.collect::<io::Result<_>>()?,
            limit: Duration::MAX,
            signaled_at: AtomicU64::new(0),
            orphaned: AtomicBool::new(false),
            quick_stop: AtomicBool::new(false),
            idle_checks: AtomicU8::new(0),
        })
    }

    /// The same, for a worker that may live so long when its master has died.
    pub(crate) fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn signaled_at(&self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.signaled_at.load(Ordering::Relaxed))
    }

    /// Whether somebody waits at a listener, or may be about to come, for whom nobody else would be
    /// there: see `WorkerContext::must_empty`.
    fn must_drain_backlog(&self, entry: &Entry, draining_for: Duration) -> bool {
        let orphaned = self.orphaned.load(Ordering::Relaxed);
        match entry.listener.state() {
            ListenerState::NotListening => false,
            ListenerState::DrainBounded => {
                draining_for < HANDSHAKE_MAX || has_pending_client(entry)
            }
            ListenerState::DrainUnbounded => {
                draining_for < BACKLOG_DRAIN_MAX && has_pending_client(entry)
            }
            ListenerState::Open => {
                orphaned && draining_for < BACKLOG_DRAIN_MAX && has_pending_client(entry)
            }
        }
    }

    /// Takes a listener out of the class's hands, under whatever number it has it.
    fn close(&self, entry: &Entry) {
        let is_it = |number| file::id(number).is_ok_and(|socket| socket == entry.socket);
        fd_table::for_each_fd(|number| {
            if is_it(number) {
                let _ = fd_table::replace_with_dead_socket(number); // no descriptors: tried again at the next look
            }
            Visit::Continue
        });
    }

    /// Whether a client is connected, as far as can be seen.
    fn has_clients(&self) -> bool {
        let is_client = |number| {
            let berth = fd_table::local_address(number);
            berth.is_some()
                && self.entries.iter().any(|entry| entry.local_address == berth)
                && fd_table::is_connected(number)
        };
        let mut found = false;
        let seen = fd_table::for_each_fd(|number| {
            found = is_client(number);
            if found { Visit::Stop } else { Visit::Continue }
        });
        found || !seen
    }
}

/// Whether somebody waits at a listener.
fn has_pending_client(entry: &Entry) -> bool {
    let ready = || {
        poll::wait([(entry.listener.as_fd(), Interest::Readable)], Some(MonotonicTime::default()))
    };
    fd_table::is_listening(entry.fd) && matches!(ready(), Ok([true]))
}

impl SignalDrain for ForcedDrain {
    fn on_stop_requested(&self, signal: Signal) {
        match signal {
            Signal::ParentDeath => self.orphaned.store(true, Ordering::Relaxed),
            Signal::Int | Signal::Quit => self.quick_stop.store(true, Ordering::Relaxed),
            _ => (),
        }
        if self.signaled_at() == MonotonicTime::default() {
            self.signaled_at.store(clock::now().as_nanos(), Ordering::Relaxed);
        }
        self.board.row(self.row).set_status(WorkerStatus::Draining);
        let _ = file::wake_pipe(&self.master_wakeup);
    }

    fn may_exit(&self) -> bool {
        let draining_for = clock::now().duration_since(self.signaled_at());
        let late = self.orphaned.load(Ordering::Relaxed) && draining_for >= self.limit;
        if late || self.quick_stop.load(Ordering::Relaxed) {
            return true;
        }
        let mut backlog_pending = false;
        for entry in &self.entries {
            if self.must_drain_backlog(entry, draining_for) {
                backlog_pending = true;
            } else if fd_table::is_listening(entry.fd) {
                self.close(entry);
            }
        }
        if backlog_pending || self.board.row(self.row).is_busy() || self.has_clients() {
            self.idle_checks.store(0, Ordering::Relaxed);
            return false;
        }
        self.idle_checks.fetch_add(1, Ordering::Relaxed) + 1 >= IDLE_CHECKS
    }
}
