//! Drains a worker whose class never polls for a stop: its listeners are taken away, and it exits once
//! its clients have gone. Everything here but the construction runs in a signal handler, between any
//! two instructions of the class: it takes no lock and allocates nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::accept_policy::Drain;
use super::context::has_pending_client;
use crate::listen::Listener;
use crate::os::fd_table::{self, LocalAddress, Visit};
use crate::os::signal::{Signal, SignalDrain};
use crate::os::{clock, file, listening};
use crate::scoreboard::{Scoreboard, WorkerStatus};
use crate::time::MonotonicTime;

/// How many checks in a row must find nothing to do: a thread of the class may just have accepted a
/// client that the first check does not see yet.
const IDLE_CHECKS: u8 = 2;

/// The forced drain of one worker. Its fields are atomic, since a handler may interrupt another.
pub(crate) struct ForcedDrain {
    board: Arc<Scoreboard>,
    row: usize,
    master_wakeup: OwnedFd,
    entries: Vec<Entry>,
    /// How long the worker may live after the master's death.
    limit: Duration,
    /// When the worker was asked to stop, in nanoseconds; 0 before.
    signaled_at: AtomicU64,
    orphaned: AtomicBool,
    quick_stop: AtomicBool,
    idle_checks: AtomicU8,
}

/// A listener as it was when the class began to run.
struct Entry {
    listener: Arc<Listener>,
    fd: RawFd,
    socket: file::FileId,
    local_address: Option<LocalAddress>,
}

impl ForcedDrain {
    /// Creates the forced drain of the worker in this row.
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

    /// Sets how long the worker may live after the master's death.
    pub(crate) fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn signaled_at(&self) -> MonotonicTime {
        MonotonicTime::from_nanos(self.signaled_at.load(Ordering::Relaxed))
    }

    fn drain(&self) -> Drain {
        let elapsed = clock::now().duration_since(self.signaled_at());
        Drain { elapsed, orphaned: self.orphaned.load(Ordering::Relaxed) }
    }

    /// Takes away all listeners to whose queues nothing more is owed. Returns whether those are all.
    fn close_drained(&self, drain: Drain, has_clients: bool) -> bool {
        let mut all = true;
        for entry in self.entries.iter().filter(|entry| fd_table::is_listening(entry.fd)) {
            let duty = drain.duty(entry.listener.state());
            // The cheap question first: most duties are met, or not, whatever the queue holds.
            let is_met = duty.is_met(false, has_clients)
                || duty.is_met(true, has_clients) && is_seen_empty(&entry.listener, has_clients);
            if is_met {
                self.close(entry);
            }
            all &= is_met;
        }
        all
    }

    /// Takes a listener away from the class, under every descriptor number that leads to it.
    fn close(&self, entry: &Entry) {
        let is_listener = |number| file::id(number).is_ok_and(|socket| socket == entry.socket);
        fd_table::for_each_fd(|number| {
            if is_listener(number) {
                // If there are no descriptors, the next check tries again.
                let _ = fd_table::replace_with_dead_socket(number);
            }
            Visit::Continue
        });
    }

    /// Returns whether a client is connected. If that cannot be seen, one may be.
    fn has_clients(&self) -> bool {
        let is_client = |number| {
            let address = fd_table::local_address(number);
            address.is_some()
                && self.entries.iter().any(|entry| entry.local_address == address)
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

/// Returns whether no client waits. Where that cannot be seen, the class has accepted all of them if
/// it has no client.
fn is_seen_empty(listener: &Listener, has_clients: bool) -> bool {
    !has_pending_client(listener)
        || !has_clients && listening::is_unix_socket_shut_down(listener.as_fd())
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
        let drain = self.drain();
        let is_late = drain.orphaned && drain.elapsed >= self.limit;
        if is_late || self.quick_stop.load(Ordering::Relaxed) {
            return true;
        }
        let has_clients = self.board.row(self.row).is_busy() || self.has_clients();
        if !self.close_drained(drain, has_clients) || has_clients {
            self.idle_checks.store(0, Ordering::Relaxed);
            return false;
        }
        self.idle_checks.fetch_add(1, Ordering::Relaxed) + 1 >= IDLE_CHECKS
    }
}
