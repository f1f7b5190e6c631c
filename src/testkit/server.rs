//! A running program under test: starts it, signals it, reads its log, and kills all of it at the end.

use std::env;
use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::deadline::DEADLINE;
use super::inspect::processes_with_variable;
use super::log_capture::{LogCapture, Record, Watched, Worker, capture};
use super::proc::{Stat, becomes_true, session_members};
use super::target::TestTarget;
use super::workload::{PendingWork, RepeatClient, ServerInfo, Task};
use crate::os::process::Pid;
use crate::os::signal::Signal;
use crate::os::testing::{self, bind_to_parent};

/// The variable by which processes are found that have left the session of their program.
const MARK: &str = "TESTKIT_DIR";

/// How a class violates a rule.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) expected: String,
    pub(super) seen: String,
}

/// The result of a check.
pub(super) type CheckResult = Result<(), Violation>;

/// Creates a violation.
pub(super) fn violation(expected: impl Into<String>, seen: impl Into<String>) -> Violation {
    Violation { expected: expected.into(), seen: seen.into() }
}

/// A running program. Dropping it kills every process of its session.
pub(super) struct TestServer<'t> {
    target: &'t TestTarget,
    pub(super) pid: Pid,
    child: Child,
    log: Arc<Watched<LogCapture>>,
    mark: String,
    pub(super) info: ServerInfo,
}

impl<'t> TestServer<'t> {
    /// Starts the program with these flags after the standard ones, and waits until it is ready.
    pub(super) fn start(target: &'t TestTarget, flags: &[&str]) -> Result<Self, Violation> {
        let mut server = Self::spawn(target, flags)?;
        let expected = "the program becomes ready";
        let has_failed = |record: &Record| {
            record.message() == "worker exited" && record.text("reason") == Some("boot_failed")
        };
        let is_result =
            |record: &Record| record.message() == "all workers ready" || has_failed(record);
        if has_failed(&server.wait_for(0, expected, is_result)?) {
            return Err(server.violation(expected, "a worker failed to boot"));
        }
        server.info.address = server.address();
        Ok(server)
    }

    fn spawn(target: &'t TestTarget, flags: &[&str]) -> Result<Self, Violation> {
        let failed = |what: &str, error: std::io::Error| {
            violation(format!("{} starts", target.program.display()), format!("{what}: {error}"))
        };
        let dir = new_dir().map_err(|error| failed("failed to create its directory", error))?;
        let mut command = Command::new(&target.program);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["OSTLER_", "LISTEN_", "NOTIFY_"].iter().any(|mark| text.starts_with(mark)) {
                command.env_remove(&name);
            }
        }
        // If a flag is given twice, the last one wins.
        command.args([
            "--worker-class",
            &target.class,
            "--workers",
            "2",
            "--graceful-timeout",
            "30s",
        ]);
        command.args(["--log-format", "json", "--log-file", "-", "--log-level", "info"]);
        command.args(target.workload.arguments(&dir)).args(flags).args(&target.arguments);
        let mark = format!("{MARK}={}", dir.display());
        command.env(MARK, &dir);
        command.envs(target.workload.variables(&dir)).envs(target.variables.iter().cloned());
        command.current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::null());
        bind_to_parent(&mut command);
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| failed("failed to execute it", error))?;
        let log = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            capture(stderr, Arc::clone(&log));
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        target.on_started(pid);
        Ok(Self { target, pid, child, log, mark, info: ServerInfo { dir, address: None } })
    }

    fn address(&self) -> Option<std::net::SocketAddr> {
        let log = self.log.lock();
        let listening = log.records.iter().find(|record| record.message() == "listening")?;
        listening.text("address")?.parse().ok()
    }

    /// Begins a unit of work. The error describes why it cannot begin.
    pub(super) fn try_begin(&self, task: Task) -> Result<Box<dyn PendingWork>, String> {
        self.target.workload.begin(&self.info, task)
    }

    /// Begins a unit of work. A failure is a violation.
    pub(super) fn begin(&self, task: Task) -> Result<Box<dyn PendingWork>, Violation> {
        self.try_begin(task)
            .map_err(|error| self.violation(format!("work begins: {task:?}"), error))
    }

    /// Runs quick units of work, one after the other.
    pub(super) fn work(&self, times: usize) -> CheckResult {
        for _ in 0..times {
            self.finish(self.begin(Task::Quick)?, "work that has begun completes")?;
        }
        Ok(())
    }

    /// Waits until a unit of work is complete.
    pub(super) fn finish(&self, pending: Box<dyn PendingWork>, expected: &str) -> CheckResult {
        pending.wait(DEADLINE).map(|_| ()).map_err(|error| self.violation(expected, error))
    }

    /// Connects a client that sends no request.
    pub(super) fn idle_client(&self) -> Result<Option<Box<dyn std::any::Any + Send>>, Violation> {
        let client = self.target.workload.idle_client(&self.info);
        client.map_err(|error| self.violation("an idle client connects", error))
    }

    /// Returns a client that stays connected.
    pub(super) fn repeat_client(&self) -> Option<RepeatClient> {
        self.target.workload.repeat_client(&self.info)
    }

    /// Sends a signal to the master.
    pub(super) fn signal(&mut self, signal: Signal) -> CheckResult {
        if let Some(status) = self.exit_status_within(Duration::ZERO) {
            return Err(self.violation("the master runs", format!("it has exited: {status}")));
        }
        testing::send_signal(self.pid, signal); // not reaped yet, so the PID is not reused
        Ok(())
    }

    /// Kills the master.
    pub(super) fn kill_master(&mut self) -> CheckResult {
        // Only this `Child` reaps it, and knows whether it has: the PID is not reused.
        let killed = self.child.kill();
        killed.map_err(|error| self.violation("SIGKILL reaches the master", error.to_string()))?;
        self.expect_exit("the master dies", DEADLINE).map(|_| ())
    }

    /// Returns the workers that are ready, in the order of their slots.
    pub(super) fn workers(&self) -> Vec<Worker> {
        self.log.lock().workers()
    }

    /// Waits until exactly `count` workers are ready.
    pub(super) fn wait_workers(&self, count: usize) -> Result<Vec<Worker>, Violation> {
        let look = |log: &LogCapture| Some(log.workers()).filter(|workers| workers.len() == count);
        self.log.wait(DEADLINE, look).ok_or_else(|| {
            let ready = self.workers().len();
            self.violation(format!("{count} workers are ready"), format!("{ready} are ready"))
        })
    }

    /// Waits until another worker is ready in the slot of this one.
    pub(super) fn wait_replaced(&self, old: Worker) -> Result<Worker, Violation> {
        let look = |log: &LogCapture| {
            let mut workers = log.workers().into_iter();
            workers.find(|worker| worker.slot == old.slot && worker.pid != old.pid)
        };
        self.log.wait(DEADLINE, look).ok_or_else(|| {
            let expected = format!("worker {} in slot {} is replaced", old.pid, old.slot);
            self.violation(expected, "no other worker becomes ready in this slot")
        })
    }

    /// Waits for the log record of a worker's exit.
    pub(super) fn wait_exited(&self, pid: Pid) -> Result<Record, Violation> {
        let expected = format!("worker {pid} exits");
        self.wait_for(0, &expected, |record| record.is("worker exited", pid))
    }

    /// Returns whether the log says that a worker has exited.
    pub(super) fn has_exited(&self, pid: Pid) -> bool {
        self.log.lock().records.iter().any(|record| record.is("worker exited", pid))
    }

    /// Waits for a log record with index `mark` or higher.
    pub(super) fn wait_for(
        &self,
        mark: usize,
        expected: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Record, Violation> {
        let look = |log: &LogCapture| {
            let found = log.records[mark..].iter().find(|record| wanted(record)).cloned();
            (found.is_some() || log.closed).then_some(found)
        };
        let found = self.log.wait(DEADLINE, look).flatten();
        found.ok_or_else(|| self.violation(expected, "the log has no such record"))
    }

    /// Returns the first matching record that is logged before the timeout.
    pub(super) fn sees_record(
        &self,
        timeout: Duration,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<Record> {
        let look = |log: &LogCapture| log.records.iter().find(|record| wanted(record)).cloned();
        self.log.wait(timeout, look)
    }

    /// Returns all records so far.
    pub(super) fn records(&self) -> Vec<Record> {
        self.log.lock().records.clone()
    }

    /// Waits for the exit of the master.
    pub(super) fn expect_exit(
        &mut self,
        expected: &str,
        timeout: Duration,
    ) -> Result<ExitStatus, Violation> {
        self.exit_status_within(timeout)
            .ok_or_else(|| self.violation(expected, self.describe_survivors(timeout)))
    }

    fn exit_status_within(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let mut status = None;
        becomes_true(timeout, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    /// Waits for the exit of a program that was told to stop: with code 0, and no process left.
    pub(super) fn expect_clean_exit(&mut self, timeout: Duration) -> CheckResult {
        let status = self.expect_exit("the program exits when it is told to stop", timeout)?;
        if status.code() != Some(0) {
            return Err(self.violation("the program exits with code 0", status.to_string()));
        }
        self.expect_no_survivors(timeout)
    }

    /// Waits until no process of the program is left.
    pub(super) fn expect_no_survivors(&self, timeout: Duration) -> CheckResult {
        if becomes_true(timeout, || self.survivors().is_empty()) {
            return Ok(());
        }
        Err(self.violation("no process is left", self.describe_survivors(timeout)))
    }

    /// Describes the processes that should have exited, with their states and CPU times.
    fn describe_survivors(&self, timeout: Duration) -> String {
        let left: Vec<_> = self.survivors().iter().map(describe).collect();
        format!("after {timeout:?}, these are left: {}", left.join("; "))
    }

    /// Returns the processes that inherited the program's environment, in whatever session.
    pub(super) fn strays(&self) -> Vec<Stat> {
        processes_with_variable(&self.mark)
    }

    fn survivors(&self) -> Vec<Stat> {
        session_members(self.pid)
    }

    /// Creates a violation with the last lines of the log.
    pub(super) fn violation(
        &self,
        expected: impl Into<String>,
        seen: impl Into<String>,
    ) -> Violation {
        const LINES: usize = 8;
        const LENGTH: usize = 200;
        let log = self.log.lock();
        let mut seen = seen.into();
        for line in &log.lines[log.lines.len().saturating_sub(LINES)..] {
            seen.push_str("\n  ");
            seen.extend(line.chars().take(LENGTH));
        }
        violation(expected, seen)
    }
}

impl Drop for TestServer<'_> {
    fn drop(&mut self) {
        self.target.on_exited(self.pid); // before its PID can be reused
        let _ = self.child.kill(); // it may have exited already
        let _ = self.child.wait();
        // Processes that outlive the master are found by its session, which no other process can join.
        becomes_true(DEADLINE, || {
            let mut survivors = self.survivors();
            survivors.extend(self.strays());
            survivors.iter().for_each(|survivor| testing::send_sigkill(survivor.pid));
            survivors.is_empty()
        });
        let _ = fs::remove_dir_all(&self.info.dir);
    }
}

fn new_dir() -> std::io::Result<std::path::PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("ostler-testkit-{}-{number}", std::process::id());
    let dir = env::temp_dir().join(name);
    fs::create_dir(&dir)?;
    Ok(dir)
}

/// Runs `body` while clients send units of work one after the other, and reports their first failure.
pub(super) fn under_load(
    server: &mut TestServer<'_>,
    body: impl FnOnce(&mut TestServer<'_>) -> CheckResult,
) -> CheckResult {
    let target = server.target;
    let info = server.info.clone();
    let repeat_client = server.repeat_client();
    let (stop, failures) = (Watched::<bool>::default(), Watched::<Vec<String>>::default());
    let fresh = || {
        let pending = target.workload.begin(&info, Task::Quick)?;
        pending.wait(DEADLINE).map(|_| ())
    };
    let repeat = |mut run_unit: Box<dyn FnMut() -> Result<(), String> + Send + '_>| {
        while !*stop.lock() {
            if let Err(error) = run_unit() {
                return failures.change(|all| all.push(error));
            }
        }
    };
    let result = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| repeat(Box::new(fresh)));
        }
        if let Some(mut run_unit) = repeat_client {
            let repeat = &repeat;
            scope.spawn(move || repeat(Box::new(move || run_unit().map(|_| ()))));
        }
        let result = body(server);
        stop.change(|stop| *stop = true);
        result
    });
    result?;
    let failures = failures.lock();
    match failures.first() {
        None => Ok(()),
        Some(error) => Err(server.violation("all work that begins meanwhile completes", error)),
    }
}

/// Formats the time since `begun`: `after 1.5 s`.
pub(super) fn since(begun: Instant) -> String {
    format!("after {:.1} s", begun.elapsed().as_secs_f32())
}

/// Formats a process: `4711 (R, 11.9 s of CPU time)`.
fn describe(stat: &Stat) -> String {
    let Stat { pid, state, ticks, .. } = stat;
    let seconds = *ticks as f64 / 100.0;
    format!("{pid} ({state}, {seconds:.1} s of CPU time)")
}

/// Formats the log record of a worker's exit: `reason: requested, code: 1`.
pub(super) fn describe_exit(exited: &Record) -> String {
    let text = |name: &str| Some(format!("{name}: {}", exited.text(name)?));
    let code = exited.number("code").map(|code| format!("code: {code}"));
    let parts: Vec<_> = [text("reason"), code, text("signal")].into_iter().flatten().collect();
    parts.join(", ")
}
