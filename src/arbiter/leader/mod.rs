//! The leadership of this master: a child keeps the lease, and what it reports says what the led pools
//! may do. The end of the term is published to the workers, whose fence kills them then.

#[cfg(feature = "leader")]
mod child;
#[cfg(feature = "leader")]
mod etcd;
#[cfg(feature = "leader")]
mod http_client;
#[cfg(feature = "leader")]
mod kubernetes;
mod lease;
#[cfg(feature = "leader")]
mod query;
mod snapshot;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use slog::{Logger, info, warn};

use crate::leader::identity::readable;
use crate::leader::report::{MESSAGE_BYTES, Report};
use crate::leader::term::{Duty, Term};
use crate::os::clock;
use crate::os::helper_process::HelperProcess;
use crate::os::memory::PublishedMemory;
use crate::settings::Settings;
use crate::time::MonotonicTime;
#[cfg(feature = "leader")]
use child::keep;
use lease::{ACKNOWLEDGE, LeaseConfig, RELEASE};
#[cfg(feature = "leader")]
pub(crate) use query::ask_store;
pub(super) use snapshot::LeaderSnapshot;

/// How long after its start the child is started again at the soonest, after it has ended.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// How long the store may take to end the lease when the master stops.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// The leadership of this master.
pub(super) struct Leader {
    lease: LeaseConfig,
    term: Term,
    child: Option<Child>,
    /// When the child is started again.
    restart_at: MonotonicTime,
    /// Where workers read the end of the term.
    term_end: &'static PublishedMemory,
    /// What has been logged last.
    logged: Logged,
    /// The failure of the store that has been logged last, and when. `None` once the store has answered.
    logged_error: Option<(String, MonotonicTime)>,
    transitions: u64,
    /// Until when the end of the lease is waited for.
    release_until: Option<MonotonicTime>,
}

/// The settings demand the feature.
#[cfg(not(feature = "leader"))]
fn keep(_: &mut File, _: &mut File, _: &LeaseConfig) {}

/// The settings demand the feature.
#[cfg(not(feature = "leader"))]
pub(crate) fn ask_store(_: &Settings) -> Vec<Result<Option<String>, String>> {
    Vec::new()
}

struct Child {
    helper: HelperProcess,
    commands: File,
}

#[derive(Default, PartialEq, Eq)]
struct Logged {
    duty: Option<Duty>,
    holder: Option<String>,
}

impl Leader {
    /// Returns the leadership that the settings ask for, if they do.
    ///
    /// # Errors
    /// `ENOMEM`, `EMFILE` or `ENFILE`.
    pub(super) fn new(settings: &Settings) -> io::Result<Option<Self>> {
        let Some(lease) = LeaseConfig::new(settings) else { return Ok(None) };
        // The leak does no harm: there is one master in a process.
        let term_end: &'static PublishedMemory = Box::leak(Box::new(PublishedMemory::new(1)?));
        Ok(Some(Self {
            term: Term::new(lease.ttl),
            lease,
            child: None,
            restart_at: MonotonicTime::default(),
            term_end,
            logged: Logged::default(),
            logged_error: None,
            transitions: 0,
            release_until: None,
        }))
    }

    /// Returns where workers of led pools read the end of the term.
    pub(super) fn term_end(&self) -> &'static PublishedMemory {
        self.term_end
    }

    /// Takes in what the child has reported, and returns what the led pools do now.
    pub(super) fn advance(&mut self, log: &Logger) -> Duty {
        self.start_child(log);
        self.read_reports(log);
        let duty = self.term.duty(clock::boot_now());
        let end = self.term.until().unwrap_or_default();
        self.term_end.store(0, end.as_nanos());
        self.log_store_error(log);
        self.log_change(duty, log);
        duty
    }

    fn start_child(&mut self, log: &Logger) {
        let now = clock::now();
        if self.child.is_some() || now < self.restart_at || self.release_until.is_some() {
            return;
        }
        self.restart_at = now + RESTART_INTERVAL;
        let lease = &self.lease;
        match HelperProcess::start_with_input(|output, input| keep(output, input, lease)) {
            Ok((helper, commands)) => self.child = Some(Child { helper, commands }),
            Err(error) => {
                warn!(log, "failed to start lease process"; "error" => error.to_string());
            }
        }
    }

    fn read_reports(&mut self, log: &Logger) {
        let Some(child) = &mut self.child else { return };
        while let Some(message) = child.helper.take_message::<MESSAGE_BYTES>() {
            if let Some(report) = Report::decode(&message) {
                self.term.on_report(report, clock::boot_now());
            }
            // EAGAIN: it has not read the ones before. EPIPE: it has ended.
            let _ = child.commands.write(&[ACKNOWLEDGE]);
        }
        if child.helper.has_ended() {
            self.child = None; // the next one goes on with its lease
            if self.release_until.is_none() {
                warn!(log, "lease process exited");
            }
        }
    }

    /// Logs a failure of the store, and another reason at most once in `leader_ttl`.
    fn log_store_error(&mut self, log: &Logger) {
        let Some(error) = self.term.store_error() else {
            self.logged_error = None;
            return;
        };
        let now = clock::now();
        let is_due = |(text, at): &(String, _)| text != error && *at + self.lease.ttl <= now;
        if self.logged_error.as_ref().is_none_or(is_due) {
            warn!(log, "lease store not available"; "key" => &self.lease.key, "error" => error);
            self.logged_error = Some((error.to_owned(), now));
        }
    }

    fn log_change(&mut self, duty: Duty, log: &Logger) {
        let holder = self.term.holder().map(str::to_owned);
        let was_leading = self.is_leading();
        let next = Logged { duty: Some(duty), holder };
        if next == self.logged {
            return;
        }
        self.logged = next;
        if was_leading != self.is_leading() {
            self.transitions = self.transitions.saturating_add(1);
        }
        let key = self.lease.key.as_str();
        match duty {
            Duty::Serve => info!(log, "leading"; "key" => key),
            Duty::Drain => warn!(log, "lease not renewed, draining"; "key" => key),
            Duty::Stand => {
                let holder = self.logged.holder.as_deref().unwrap_or("-");
                info!(log, "standby"; "key" => key, "holder" => holder);
            }
        }
    }

    fn is_leading(&self) -> bool {
        self.logged.duty.is_some_and(|duty| duty > Duty::Stand)
    }

    /// Ends the lease, since no led worker is left. Returns whether that is done, or is given up.
    pub(super) fn release(&mut self, log: &Logger) -> bool {
        let now = clock::now();
        self.read_reports(log);
        let Some(child) = &mut self.child else { return true };
        let until = *self.release_until.get_or_insert_with(|| {
            let _ = child.commands.write(&[RELEASE]);
            now + RELEASE_TIMEOUT
        });
        if until <= now {
            self.child = None; // which kills it: the lease ends by itself
        }
        self.child.is_none()
    }

    /// Returns when there is something to do, if the child reports nothing before.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        let boot_now = clock::boot_now();
        let change = self.term.next_change(boot_now);
        let change = change.map(|at| clock::now() + at.duration_since(boot_now));
        let restarts = self.child.is_none() && self.release_until.is_none();
        let restart = restarts.then_some(self.restart_at);
        let release = self.release_until.filter(|_| self.child.is_some());
        [change, restart, release].into_iter().flatten().min()
    }

    /// Returns the descriptor that is readable when the child has reported.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(|child| child.helper.fd())
    }

    /// Returns what is shown.
    pub(super) fn snapshot(&self) -> LeaderSnapshot {
        let boot_now = clock::boot_now();
        let is_leading = self.is_leading();
        let own_name = || is_leading.then(|| readable(&self.lease.identity).to_owned());
        LeaderSnapshot {
            is_leading,
            transitions: self.transitions,
            key: self.lease.key.clone(),
            holder: self.logged.holder.clone().or_else(own_name),
            ends_in: self.term.until().map(|until| until.duration_since(boot_now)),
            store_error: self.term.store_error().map(str::to_owned),
        }
    }
}
