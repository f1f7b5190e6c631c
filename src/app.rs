//! The traits that an application implements: the program, its service in a worker, the connection
//! of a client.
//!
//! Pure: nothing here owns a descriptor, reads a clock or calls the kernel. The traits have three
//! lifetimes: an [`App`] is created in the master and stays inert, a [`Service`] lives in one worker
//! and is shared by its threads, a [`Connection`] serves one client. If there are no clients, a
//! [`Job`] replaces the service.

use std::any::Any;
use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::MonotonicTime;

mod body_budget;
mod job;
mod unit;
mod worker_info;

pub(crate) use body_budget::{BodyBudget, BodyShare};
pub use job::{Job, JobContext, NextRun};
pub use unit::{RequestId, Unit, UnitEnd, UnitKind, UnitRequest, UnitResponse, valid_traceparent};
pub use worker_info::{Limits, Options, WorkerInfo};

/// The reason why an app failed to boot. The worker logs it; the master repeats it when it gives up.
pub type BootError = Box<dyn Error + Send + Sync>;

/// The reason why options of an app, or settings of a worker class, are invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    reason: String,
    option: Option<String>,
}

impl ConfigError {
    /// Creates an error. State in `reason` what was found, why it cannot work, and what to do instead.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), option: None }
    }

    /// Creates an error about one option of the app. The message begins with the place where the
    /// option was set, and with its name.
    pub fn for_option(option: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), option: Some(option.into()) }
    }

    /// Returns the invalid option of the app, if the error is about a single one.
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

/// A program. It is created in the master before any fork, so it must hold no thread, socket or lock.
/// Open resources in [`App::boot`].
pub trait App {
    /// Returns the name that selects the app on the command line and in YAML files.
    fn name(&self) -> &str;

    /// Checks the options in the master, before any fork, so that a mistake is reported at start-up.
    ///
    /// # Errors
    /// Why these options cannot work. The default implementation rejects every option.
    fn check(&self, options: &Options) -> Result<(), ConfigError> {
        match options.keys().next() {
            None => Ok(()),
            Some(key) => {
                let reason = format!("app {:?} does not have this option", self.name());
                Err(ConfigError::for_option(key, reason))
            }
        }
    }

    /// Creates the service. Runs once in each worker, after the fork and the privilege drop. Implement
    /// it unless the app [is a job](Self::is_job).
    ///
    /// # Errors
    /// Why the app cannot serve; the worker then exits with code 3.
    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        let _ = worker;
        let advice = "implement App::boot, or return true from App::is_job";
        Err(format!("app {:?} does not create a service: {advice}", self.name()).into())
    }

    /// Returns whether the app is a job, which has no clients and no addresses, instead of a service.
    /// Called in the master, before any fork: for a job, an address or a worker class that cannot run
    /// jobs is an error. The default is false.
    fn is_job(&self) -> bool {
        false
    }

    /// Returns the name of the only worker class that can serve the app. Another class is a configuration
    /// error, and a program whose default app it is has this default class. The default is `None`: any
    /// class can.
    fn worker_class(&self) -> Option<&str> {
        None
    }

    /// Creates the job of one thread. Runs in each worker in the place of [`boot`](Self::boot), once
    /// for each thread that runs jobs. Threads are numbered from 0.
    ///
    /// # Errors
    /// Why the job cannot run; the worker then exits with code 3.
    fn job(&self, worker: &WorkerInfo, thread: usize) -> Result<Box<dyn Job>, BootError> {
        let _ = (worker, thread);
        Err(format!("app {:?} does not create a job: implement App::job", self.name()).into())
    }
}

/// The service of a worker, shared by its threads.
pub trait Service: Send + Sync {
    /// Creates the connection of a new client.
    fn accept(&self, client: &ClientInfo) -> Box<dyn Connection + '_>;

    /// Returns what a worker class needs of an app that [only it](App::worker_class) can serve. The class
    /// knows the type. The default is `None`.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

/// What a protocol knows about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// The client's address for TCP; none for a unix socket.
    pub address: Option<SocketAddr>,
    /// Whether the class can serve other clients while this connection is open. `sync` cannot: a
    /// protocol that can announce a close, such as HTTP, then closes after the first response.
    pub allow_keepalive: bool,
}

/// The protocol of one client: bytes in, bytes out. It owns no socket, clock or thread, so a test can
/// feed it bytes. Its responses must not depend on how the input is split.
///
/// While output waits to be sent, neither [`receive`](Self::receive) nor [`resume`](Self::resume) is
/// called: a client that does not read its responses is not served further (backpressure).
pub trait Connection: Send {
    /// Processes bytes from the client. The caller does not keep them: store what cannot be processed
    /// yet. An empty slice means that the client has half-closed: it sends no more, but may still read.
    fn receive(&mut self, input: &[u8], ctx: &mut ConnectionContext<'_>) -> Next;

    /// Continues after [`Next::Continue`], once all output has been sent.
    fn resume(&mut self, ctx: &mut ConnectionContext<'_>) -> Next;

    /// Handles the expiry of [`timeout`](Self::timeout).
    fn on_timeout(&mut self, ctx: &mut ConnectionContext<'_>) -> Next;

    /// Handles the drain of the worker: finish what has begun, begin nothing new. Called once, between
    /// two other calls. Output may still wait to be sent.
    fn drain(&mut self, ctx: &mut ConnectionContext<'_>) -> Next;

    /// Returns the time limit of the client in the current state. Called after each other call.
    fn timeout(&self) -> ReadTimeout;
}

/// What the caller does after it has sent the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Waits for bytes.
    Read,
    /// Calls [`Connection::resume`]: there is more output, or more stored input.
    Continue,
    /// Reads nothing, and calls [`Connection::resume`] at the next [`Session::wake`]. Only the
    /// master's control interface wakes its sessions; no worker class does.
    ///
    /// [`Session::wake`]: crate::session::Session
    #[doc(hidden)]
    Wait,
    /// Closes the connection.
    Close,
    /// Half-closes, reads and discards input, then closes. The client can so read the output before the
    /// kernel resets the connection because of unread input. Limits are the settings
    /// `lingering_timeout` and `lingering_bytes`; it ends earlier if less than 8 KiB arrive within 2 s.
    LingeringClose,
}

/// The time limit of a client from which input is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadTimeout {
    /// Maximum time between two reads. Each byte restarts it.
    Idle(Duration),
    /// Maximum time of one phase, regardless of how many bytes arrive. The time restarts when
    /// `phase` changes.
    Total {
        /// The number of the phase.
        phase: u32,
        /// The maximum time of the phase.
        limit: Duration,
    },
    /// No limit.
    None,
}

/// What a connection gets besides bytes: the output buffer, and the reporter of its units of work.
pub struct ConnectionContext<'a> {
    /// The output. Only append to it.
    pub out: &'a mut Vec<u8>,
    reporter: &'a mut dyn WorkReporter,
}

impl<'a> ConnectionContext<'a> {
    /// Creates a context from the caller's buffer and reporter.
    pub fn new(out: &'a mut Vec<u8>, reporter: &'a mut dyn WorkReporter) -> Self {
        Self { out, reporter }
    }

    /// Begins a unit of work with this label, such as `GET /index` or `add`. If the unit takes longer
    /// than the setting `timeout`, the runtime considers the worker hung.
    pub fn begin_work(&mut self, label: &[u8]) {
        self.reporter.begin_work(label);
    }

    /// Extends the deadline of the unit of work to `time` from now, at most one hour. Call it again to
    /// extend it further. Until then, or until this call of the connection returns, the unit does not
    /// count as hung.
    pub fn extend_deadline(&mut self, time: Duration) {
        self.reporter.extend_deadline(time);
    }

    /// Ends and counts the unit of work.
    pub fn end_work(&mut self) {
        self.reporter.end_work();
    }

    /// Returns whether to return [`Next::Continue`] although more work has been received: there is output,
    /// and the last unit of work took so long (1 ms) that its response should not wait for the next one.
    pub fn should_send(&self) -> bool {
        !self.out.is_empty() && self.reporter.was_long()
    }

    /// Returns the current date in the format of RFC 9110, section 5.6.7.
    pub fn http_date(&mut self) -> [u8; 29] {
        self.reporter.http_date()
    }

    /// Returns whether units of work are logged. Only then call [`log_unit`](Self::log_unit).
    pub fn logs_units(&self) -> bool {
        self.reporter.logs_units()
    }

    /// Logs a unit of work whose response has been appended to the output. The record is written once
    /// the output has been sent, or the client has disconnected. If the response is not complete, call
    /// [`log_body`](Self::log_body) for each later piece, and [`log_end`](Self::log_end) after the
    /// last, before another unit is logged.
    pub fn log_unit(&mut self, unit: &Unit<'_>) {
        self.reporter.log_unit(unit);
    }

    /// Counts bytes of the body of the response that was logged last. `appended` is how much was
    /// appended to the output: the bytes and what frames them.
    pub fn log_body(&mut self, bytes: u64, appended: u64) {
        self.reporter.log_body(bytes, appended);
    }

    /// Ends the response that was logged last.
    pub fn log_end(&mut self, end: UnitEnd) {
        self.reporter.log_end(end);
    }

    /// Splits the context into the output and the unit of work, for two separate borrowers.
    pub(crate) fn split(&mut self) -> (&mut Vec<u8>, UnitHandle<'_>) {
        (self.out, UnitHandle(RefCell::new(self.reporter)))
    }
}

/// What a handler reaches of the current unit of work.
pub(crate) struct UnitHandle<'a>(RefCell<&'a mut dyn WorkReporter>);

impl UnitHandle<'_> {
    /// Logs the unit: see [`ConnectionContext::log_unit`].
    pub(crate) fn log_unit(&self, unit: &Unit<'_>) {
        self.0.borrow_mut().log_unit(unit);
    }

    /// Returns the id: see [`WorkReporter::request_id`].
    pub(crate) fn request_id<'f>(
        &self,
        field: &dyn Fn(&str) -> Option<&'f [u8]>,
    ) -> Option<RequestId> {
        self.0.borrow_mut().request_id(field)
    }

    /// Extends the deadline: see [`ConnectionContext::extend_deadline`].
    pub(crate) fn extend_deadline(&self, time: Duration) {
        self.0.borrow_mut().extend_deadline(time);
    }
}

impl fmt::Debug for UnitHandle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnitHandle")
    }
}

/// Receives the units of work of a protocol. The runtime's implementation writes to the scoreboard; a
/// test's implementation records them.
pub trait WorkReporter {
    /// Begins a unit of work.
    fn begin_work(&mut self, label: &[u8]);
    /// Ends and counts the unit of work.
    fn end_work(&mut self);
    /// Returns whether the last unit of work took longer than sending its output would.
    fn was_long(&self) -> bool {
        false
    }
    /// Returns the current date in the format of RFC 9110, section 5.6.7.
    fn http_date(&mut self) -> [u8; 29];
    /// Extends the deadline of the unit of work to `time` from now.
    fn extend_deadline(&mut self, _time: Duration) {}
    /// Changes the label of the unit of work.
    fn set_label(&mut self, _label: &[u8]) {}
    /// Returns whether units of work are logged.
    fn logs_units(&self) -> bool {
        false
    }
    /// Logs a unit of work: see [`ConnectionContext::log_unit`].
    fn log_unit(&mut self, _unit: &Unit<'_>) {}
    /// Counts bytes of the body that was logged last: see [`ConnectionContext::log_body`].
    fn log_body(&mut self, _bytes: u64, _appended: u64) {}
    /// Ends the response that was logged last.
    fn log_end(&mut self, _end: UnitEnd) {}
    /// Returns the id of a request: that of the client if the settings trust it, otherwise a new one.
    /// `field` returns the value of the first header field of a name.
    fn request_id<'f>(&mut self, _field: &dyn Fn(&str) -> Option<&'f [u8]>) -> Option<RequestId> {
        None
    }
    /// Marks the start of the connection's code, until [`set_idle`](Self::set_idle).
    fn set_busy(&mut self) {}
    /// Marks the start of the connection's code, as [`set_busy`](Self::set_busy) does, if that is at
    /// `now`: the clock need not be read.
    fn set_busy_since(&mut self, _now: MonotonicTime) {
        self.set_busy();
    }
    /// Marks the return of the connection's code.
    fn set_idle(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An app that implements only its name.
    struct EmptyApp;

    impl App for EmptyApp {
        fn name(&self) -> &str {
            "empty"
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
        let expected = "app \"empty\" does not create a service: implement App::boot, or return true from App::is_job";
        assert_eq!(service.as_deref(), Some(expected));
        let job = EmptyApp.job(&worker, 0).err().map(|error| error.to_string());
        assert_eq!(job.as_deref(), Some("app \"empty\" does not create a job: implement App::job"));
    }
}
