//! A running server as its tests see it: request, signal, wait, and clean up in every case.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::{Answer, Client};
use crate::connection::{Remote, remote};
use crate::launch::Launch;
use crate::log_capture::{LogCapture, Record, Watched, Worker};
use crate::proc::{Stat, session_members, wait_until};

/// The longest wait for an event. The machine may be slow, and shared.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    pub exit: Exit,
    pub stdout: String,
    pub stderr: String,
}

/// A running server. Dropping it kills every process of its session.
pub struct Server {
    pub pid: Pid,
    pub(crate) port: u16,
    pub(crate) log: Arc<Watched<LogCapture>>,
    pub(crate) end: Arc<Watched<Option<Exit>>>,
    pub(crate) stdout: File,
    pub(crate) dir: TempDir,
}

impl Server {
    /// Starts a server with these flags on a free port, and waits for its first workers.
    #[track_caller]
    pub fn start(flags: &[&str]) -> Self {
        Launch::new(flags).start()
    }

    /// Returns the address at which it listens by default.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Returns a path in the server's working directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens a connection.
    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::tcp(self.address()).unwrap()
    }

    /// Sends a request over a connection of its own. It must be answered.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap()
    }

    /// Sends a request over a connection of its own, which the server must close after its answer.
    pub fn try_get(&self, path: &str) -> io::Result<Answer> {
        let mut client = Client::tcp(self.address())?;
        let answer = client.try_get_last(path)?;
        client.expect_end();
        // Thousands of closed connections need not stay in TIME-WAIT for a minute.
        client.reset();
        Ok(answer)
    }

    /// Returns the worker that answers.
    #[track_caller]
    pub fn answering_pid(&self) -> Pid {
        Pid::from_raw(self.get("/pid").text().trim().parse().unwrap())
    }

    /// Sends a request, and waits until a worker has read it.
    #[track_caller]
    pub fn begin(&self, path: &str) -> Client {
        let mut client = self.connect();
        client.ask(path);
        self.wait_taken(&client);
        client
    }

    /// Waits until a worker has accepted this client and read all that it sent.
    #[track_caller]
    pub fn wait_taken(&self, client: &Client) {
        let port = client.port();
        wait_until("a worker reads the request", || remote(self.port, port) != Remote::Waiting);
    }

    /// Sends a signal to the master.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        // The master is reaped only under the lock, so its number is still its own.
        let end = self.end.lock();
        assert_eq!(*end, None, "the master has exited already: {:?}", self.tail());
        kill(self.pid, signal).unwrap();
    }

    /// Sends a signal to every process of the session, as a terminal does.
    #[track_caller]
    pub fn signal_group(&self, signal: Signal) {
        let end = self.end.lock();
        assert_eq!(*end, None, "the master has exited already");
        kill(Pid::from_raw(-self.pid.as_raw()), signal).unwrap();
    }

    /// Returns the number of records. Later records are behind this mark.
    pub fn mark(&self) -> usize {
        self.log.lock().records.len()
    }

    /// Waits for a record.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        self.wait_for_new_record(0, what, wanted)
    }

    /// Waits for a record behind a mark.
    #[track_caller]
    pub fn wait_for_new_record(
        &self,
        mark: usize,
        what: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Record {
        let look = |log: &LogCapture| {
            let found = log.records[mark..].iter().find(|record| wanted(record)).cloned();
            (found.is_some() || log.closed).then_some(found)
        };
        let found = self.log.wait(DEADLINE, look).flatten();
        found.unwrap_or_else(|| panic!("no record of: {what}"))
    }

    /// Returns whether a record comes within a time.
    pub fn sees_record(&self, timeout: Duration, wanted: impl Fn(&Record) -> bool) -> bool {
        self.log
            .wait(timeout, |log| log.records.iter().find_map(|r| wanted(r).then_some(())))
            .is_some()
    }

    /// Returns all records so far.
    pub fn records(&self) -> Vec<Record> {
        self.log.lock().records.clone()
    }

    /// Returns all records so far with this message.
    pub fn records_of(&self, message: &str) -> Vec<Record> {
        let mut records = self.records();
        records.retain(|record| record.message() == message);
        records
    }

    /// Returns all lines so far, records or not.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Returns the workers that are ready, in the order of their slots.
    pub fn workers(&self) -> Vec<Worker> {
        self.log.lock().workers()
    }

    /// Waits until exactly `count` workers are ready.
    #[track_caller]
    pub fn wait_workers(&self, count: usize) -> Vec<Worker> {
        let look = |log: &LogCapture| Some(log.workers()).filter(|workers| workers.len() == count);
        self.log.wait(DEADLINE, look).unwrap_or_else(|| panic!("never {count} workers"))
    }

    /// Waits until another worker is ready in the slot of this one.
    #[track_caller]
    pub fn wait_replaced(&self, old: Worker) -> Worker {
        let look = |log: &LogCapture| {
            let mut workers = log.workers().into_iter();
            workers.find(|worker| worker.slot == old.slot && worker.pid != old.pid)
        };
        self.log.wait(DEADLINE, look).unwrap_or_else(|| panic!("{old:?} is not replaced"))
    }

    /// Waits for the record of a worker's exit.
    #[track_caller]
    pub fn wait_exited(&self, pid: Pid) -> Record {
        self.wait_for("worker exited", |record| record.is("worker exited", pid))
    }

    /// Sends requests until a record comes; each must be answered. Only the last may have met the
    /// worker whose exit the record reports.
    #[track_caller]
    pub fn serve_until(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Record {
        let end = Instant::now() + DEADLINE;
        while !self.sees_record(Duration::from_millis(10), &wanted) {
            assert!(Instant::now() < end, "no record of: {what}");
            match self.try_get("/") {
                Ok(answer) => assert_eq!(answer.text(), "Hello, world!\n"),
                Err(error) => {
                    assert!(
                        self.sees_record(DEADLINE, &wanted),
                        "{error}, without a record of: {what}"
                    );
                }
            }
        }
        self.wait_for(what, wanted)
    }

    /// Sends requests for this time; each must be answered.
    #[track_caller]
    pub fn serve_for(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            assert_eq!(self.get("/").text(), "Hello, world!\n");
        }
    }

    /// Returns how the master ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.end.lock()
    }

    /// Waits for the end of the master.
    #[track_caller]
    pub fn wait_exit(&self) -> Exit {
        self.wait_exit_within(DEADLINE).expect("the master does not exit")
    }

    /// Waits at most this long for the end of the master.
    pub fn wait_exit_within(&self, timeout: Duration) -> Option<Exit> {
        self.end.wait(timeout, |end| *end)
    }

    /// Waits until the last process that could write to the log has exited.
    #[track_caller]
    pub fn wait_silence(&self) {
        let silence = self.log.wait(DEADLINE, |log| log.closed.then_some(()));
        assert!(silence.is_some(), "processes are left: {:?}", self.survivors());
    }

    /// Returns the members of the server's session that still run.
    pub fn survivors(&self) -> Vec<Stat> {
        session_members(self.pid)
    }

    /// Waits until no member of the session runs.
    #[track_caller]
    pub fn wait_no_survivors(&self) {
        wait_until("all processes exit", || self.survivors().is_empty());
    }

    /// Stops the server, and asserts a clean exit: exit code 0, no process left, only records on
    /// stderr, nothing on stdout.
    #[track_caller]
    pub fn finish(mut self) {
        self.signal(Signal::SIGTERM);
        self.expect_clean_exit();
    }

    /// Waits for the end of a server that was asked to stop, and asserts a clean exit.
    #[track_caller]
    pub fn expect_clean_exit(&mut self) {
        assert_eq!(self.wait_exit(), Exit::Code(0));
        self.wait_no_survivors();
        self.wait_silence();
        let noise = self.log.lock().unparsed.clone();
        assert!(noise.is_empty(), "not records: {noise:#?}");
        assert_eq!(self.stdout(), "");
    }

    /// Waits for a server that exits by itself. Returns its outcome, and what `look` returns before
    /// the directory is removed.
    #[track_caller]
    pub fn into_outcome<R>(mut self, look: impl FnOnce() -> R) -> (Outcome, R) {
        let exit = self.wait_exit();
        self.wait_silence();
        let stderr = self.lines().join("\n");
        (Outcome { exit, stdout: self.stdout(), stderr }, look())
    }

    fn stdout(&mut self) -> String {
        let mut text = String::new();
        self.stdout.seek(SeekFrom::Start(0)).unwrap();
        self.stdout.read_to_string(&mut text).unwrap();
        text
    }

    fn tail(&self) -> Vec<String> {
        let log = self.log.lock();
        log.lines[log.lines.len().saturating_sub(40)..].to_vec()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the last log lines of {}:\n{}", self.pid, self.tail().join("\n"));
        }
        let end = self.end.lock();
        if end.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        drop(end);
        // Processes that the master left behind are found by its session, which no other process
        // can join.
        for survivor in self.survivors() {
            let _ = kill(survivor.pid, Signal::SIGKILL);
        }
    }
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        }
    }
}
