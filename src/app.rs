//! What a person writes: the program, its service in a worker, one client's connection.
//!
//! Pure: nothing here owns a descriptor, reads a clock or calls the kernel. Three nouns for three
//! lifetimes: an [`App`] is made in the master and stays inert, a [`Service`] lives in one worker
//! and is shared by its threads, a [`Connection`] serves one client. Where there are no clients, a
//! [`Job`] stands in for a service.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

mod job;
mod worker_info;

pub use job::{Job, JobContext, NextRun};
pub use worker_info::{Limits, Options, WorkerInfo};

/// Why an app could not boot. Logged by the worker, repeated by the master when it gives up.
pub type BootError = Box<dyn Error + Send + Sync>;

/// Why the options of an app, or the settings of a worker class, make no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    reason: String,
    option: Option<String>,
}

impl ConfigError {
    /// A refusal with its reason: what was found, why it cannot work, what to do instead.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), option: None }
    }

    /// A refusal of one of the app's options: the message begins with the place where it was set,
    /// and with its name.
    pub fn for_option(option: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), option: Some(option.into()) }
    }

    /// The option of the app that is to blame, if it is one alone.
    pub fn option(&self) -> Option<&str> {
        self.option.as_deref()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl Error for ConfigError {}

/// A program. It is made in the master before any fork, so it must hold no thread, socket or lock;
/// [`App::boot`] is where resources are opened.
pub trait App {
    /// The name by which the command line and YAML files choose it.
    fn name(&self) -> &str;

    /// Judges the options in the master, before any fork, while a person is watching.
    ///
    /// # Errors
    /// The reason for which these options cannot work. Unless overridden, any option is refused.
    fn check(&self, options: &Options) -> Result<(), ConfigError> {
        match options.keys().next() {
            None => Ok(()),
            Some(key) => {
                let why = format!("app {:?} does not have this option", self.name());
                Err(ConfigError::for_option(key, why))
            }
        }
    }

    /// Makes the service. Runs once in each worker, after the fork and the privilege drop. To be
    /// implemented unless the app [is a job](Self::is_job).
    ///
    /// # Errors
    /// Whatever keeps the app from serving; the worker then ends with exit code 3.
    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        let _ = worker;
        let what = "implement App::boot, or return true from App::is_job";
        Err(format!("app {:?} does not create a service: {what}", self.name()).into())
    }

    /// Whether the app is a job, which has no clients and listens nowhere, rather than a service.
    /// Asked in the master, before any fork: a worker class that runs no jobs is refused then, and
    /// so is an address. It is not one unless overridden.
    fn is_job(&self) -> bool {
        false
    }

    /// Makes the job of one thread. Runs in each worker as [`boot`](Self::boot) would, once for
    /// each thread that runs jobs; these are numbered from 0.
    ///
    /// # Errors
    /// Whatever keeps the job from running; the worker then ends with exit code 3.
    fn job(&self, worker: &WorkerInfo, thread: usize) -> Result<Box<dyn Job>, BootError> {
        let _ = (worker, thread);
        Err(format!("app {:?} does not create a job: implement App::job", self.name()).into())
    }
}

/// One per worker, shared by its threads.
pub trait Service: Send + Sync {
    /// A client has come.
    fn accept(&self, client: &ClientInfo) -> Box<dyn Connection + '_>;
}

/// Who is at the other end, and what it may hope for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// The address, for TCP; a unix socket's client has none.
    pub address: Option<SocketAddr>,
    /// Whether the class can serve other clients while this one keeps its connection. `sync` cannot:
    /// a protocol that can announce an end, such as HTTP, then closes after the first answer.
    pub allow_keepalive: bool,
}

/// One client: bytes in, bytes out. It owns no socket, clock or thread, so a test feeds it bytes,
/// and it must give the same answers however the bytes were cut.
///
/// While output waits to be sent, neither [`receive`](Self::receive) nor
/// [`proceed`](Self::proceed) is called: a client that does not read is not served further.
pub trait Connection: Send {
    /// Bytes from the peer, never kept back by the caller: what cannot be used yet must be stored
    /// here. An empty slice means that the peer will send no more; it may still be reading.
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next;

    /// All output has been sent, and the last answer was [`Next::Continue`].
    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next;

    /// The peer has used up its [`patience`](Self::patience).
    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next;

    /// The worker is leaving: finish what is begun, begin nothing new. Called once, between two
    /// other calls. Output may still be waiting to be sent.
    fn drain(&mut self, ctx: &mut ConnectionContext<'_>) -> Next;

    /// How long the peer may stay silent in the present state. Asked after each other call.
    fn timeout(&self) -> ReadTimeout;
}

/// What to do after sending the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for bytes.
    Read,
    /// Ask again: there is more to say, or more input to look at.
    Continue,
    /// Close the connection.
    Close,
    /// Close, although the peer may still be sending: its bytes are thrown away for a moment, so
    /// that it can read the output before the connection is reset.
    LingeringClose,
}

/// How long a peer may stay silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTimeout {
    /// The longest time between two arrivals.
    Idle(Duration),
    /// Maximum time of one phase, regardless of how many bytes arrive. The time restarts when
    /// `phase` changes.
    Total {
        /// The number of the phase.
        phase: u32,
        /// The maximum time of the phase.
        limit: Duration,
    },
    /// For ever.
    None,
}

/// What a connection is handed besides bytes: a place for its output, and a desk at which it says
/// what it is working on.
pub struct ConnectionContext<'a> {
    /// The output. Append; never remove.
    pub out: &'a mut Vec<u8>,
    reporter: &'a mut dyn WorkReporter,
}

impl<'a> ConnectionContext<'a> {
    /// An exchange over the caller's buffer and desk.
    pub fn new(out: &'a mut Vec<u8>, reporter: &'a mut dyn WorkReporter) -> Self {
        Self { out, reporter }
    }

    /// A unit of work begins under this name, such as `GET /index` or `add`. The runtime notes the
    /// time, and calls the worker hung if the unit takes longer than `timeout`.
    pub fn begin_work(&mut self, label: &[u8]) {
        self.reporter.begin_work(label);
    }

    /// The unit of work needs until so long from now, at least; at most an hour, but it may ask
    /// again. Until then, or until this call of the connection returns, the worker is not taken
    /// for hung on its account.
    pub fn extend_deadline(&mut self, time: Duration) {
        self.reporter.extend_deadline(time);
    }

    /// The unit of work is done, and counted.
    pub fn end_work(&mut self) {
        self.reporter.end_work();
    }

    /// The present date in the form of RFC 9110, section 5.6.7.
    pub fn http_date(&mut self) -> [u8; 29] {
        self.reporter.http_date()
    }

    /// The output, and the time that the unit of work has, for two who use one of them each.
    pub(crate) fn split(&mut self) -> (&mut Vec<u8>, DeadlineExtender<'_>) {
        (self.out, DeadlineExtender(RefCell::new(self.reporter)))
    }
}

/// The time that a unit of work has. Who does the work may ask for more of it.
pub(crate) struct DeadlineExtender<'a>(RefCell<&'a mut dyn WorkReporter>);

impl DeadlineExtender<'_> {
    /// As [`ConnectionContext::extend`].
    pub(crate) fn extend_deadline(&self, time: Duration) {
        self.0.borrow_mut().extend_deadline(time);
    }
}

impl fmt::Debug for DeadlineExtender<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Allowance")
    }
}

/// Where a protocol says what it is working on. The runtime's desk writes to the scoreboard; a
/// test's desk records.
pub trait WorkReporter {
    /// A unit of work begins.
    fn begin_work(&mut self, label: &[u8]);
    /// The unit of work is done, and counted.
    fn end_work(&mut self);
    /// The present date in the form of RFC 9110, section 5.6.7.
    fn http_date(&mut self) -> [u8; 29];
    /// The unit of work needs until so long from now.
    fn extend_deadline(&mut self, _time: Duration) {}
    /// The unit of work goes on under another name.
    fn set_label(&mut self, _label: &[u8]) {}
    /// The connection's code is about to run, until [`leave`](Self::leave).
    fn set_busy(&mut self) {}
    /// The connection's code has returned.
    fn set_idle(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An app that says nothing but its name.
    struct EmptyApp;

    impl App for EmptyApp {
        fn name(&self) -> &str {
            "mute"
        }
    }

    #[test]
    fn app_without_boot_or_job_reports_missing_method() {
        let worker = WorkerInfo {
            pool: "main".to_owned(),
            slot: 0,
            generation: 1,
            class: "sync",
            options: Options::new(),
            limits: Limits::default(),
        };
        let service = EmptyApp.boot(&worker).err().map(|error| error.to_string());
        let expected = "app \"mute\" does not create a service: implement App::boot, or return true from App::is_job";
        assert_eq!(service.as_deref(), Some(expected));
        let job = EmptyApp.job(&worker, 0).err().map(|error| error.to_string());
        assert_eq!(job.as_deref(), Some("app \"mute\" does not create a job: implement App::job"));
    }
}
