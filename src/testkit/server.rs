//! One program that is being looked at: started, told things, heard, and ended whatever happens.

use std::env;
use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::log_capture::{LogCapture, Record, Watched, Worker, capture};
use super::proc::{Stat, becomes_true, session_members};
use super::workload::{PendingWork, RepeatClient, ServerInfo, Task};
use super::{ContractTest, DEADLINE, Pid};
use crate::os::signal::Signal;
use crate::os::testing::{self, bind_to_parent};

/// How a class breaks a rule.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) expected: String,
    pub(super) seen: String,
}

/// What a check comes to.
pub(super) type CheckResult = Result<(), Violation>;

/// A breach, in two sentences.
pub(super) fn violation(expected: impl Into<String>, seen: impl Into<String>) -> Violation {
    Violation { expected: expected.into(), seen: seen.into() }
}

/// A running program. Dropping it kills every process that it ever made.
pub(super) struct TestServer<'k> {
    test: &'k ContractTest,
    pub(super) pid: Pid,
    child: Child,
    log: Arc<Watched<LogCapture>>,
    pub(super) info: ServerInfo,
}

impl<'k> TestServer<'k> {
    /// Starts the program with these flags beside the usual ones, and waits until it is ready.
    pub(super) fn start(test: &'k ContractTest, flags: &[&str]) -> Result<Self, Violation> {
        let mut server = Self::spawn(test, flags)?;
        let expected = "the program is ready";
        let has_failed = |record: &Record| {
            record.message() == "worker exited" && record.text("reason") == Some("boot_failed")
        };
        let is_it = |record: &Record| record.message() == "all workers ready" || has_failed(record);
        if has_failed(&server.wait_for(0, expected, is_it)?) {
            return Err(server.violation(expected, "a worker does not get ready"));
        }
        server.info.address = server.address();
        Ok(server)
    }

    fn spawn(test: &'k ContractTest, flags: &[&str]) -> Result<Self, Violation> {
        let failed = |what: &str, error: std::io::Error| {
            violation(
                format!("{} can be started", test.program.display()),
                format!("{what}: {error}"),
            )
        };
        let folder = new_folder().map_err(|error| failed("no folder for it", error))?;
        let mut command = Command::new(&test.program);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["OSTLER_", "LISTEN_", "NOTIFY_"].iter().any(|mark| text.starts_with(mark)) {
                command.env_remove(&name);
            }
        }
        // Of a flag that is given twice, the last holds.
        command.args([
            "--worker-class",
            &test.class,
            "--workers",
            "2",
            "--graceful-timeout",
            "30s",
        ]);
        command.args(["--log-format", "json", "--log-file", "-", "--log-level", "info"]);
        command.args(test.workload.arguments(&folder)).args(flags).args(&test.arguments);
        command.envs(test.workload.variables(&folder)).envs(test.variables.iter().cloned());
        command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null());
        bind_to_parent(&mut command);
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| failed("it cannot be executed", error))?;
        let log = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            capture(stderr, Arc::clone(&log));
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        Ok(Self { test, pid, child, log, info: ServerInfo { folder, address: None } })
    }

    fn address(&self) -> Option<std::net::SocketAddr> {
        let log = self.log.lock();
        let listening = log.records.iter().find(|record| record.message() == "listening")?;
        listening.text("address")?.parse().ok()
    }

    /// Begins a unit of work, or says why it cannot be begun.
    pub(super) fn try_begin(&self, task: Task) -> Result<Box<dyn PendingWork>, String> {
        self.test.workload.begin(&self.info, task)
    }

    /// Begins a unit of work.
    pub(super) fn begin(&self, task: Task) -> Result<Box<dyn PendingWork>, Violation> {
        self.try_begin(task)
            .map_err(|error| self.violation(format!("work can be brought: {task:?}"), error))
    }

    /// Has units of work done, one after the other.
    pub(super) fn work(&self, times: usize) -> CheckResult {
        for _ in 0..times {
            self.finish(self.begin(Task::Quick)?, "work that is brought is done")?;
        }
        Ok(())
    }

    /// Waits until a unit of work is done.
    pub(super) fn finish(&self, pending: Box<dyn PendingWork>, expected: &str) -> CheckResult {
        pending.wait(DEADLINE).map(|_| ()).map_err(|error| self.violation(expected, error))
    }

    /// Somebody who asks for nothing.
    pub(super) fn idle_client(&self) -> Result<Option<Box<dyn std::any::Any + Send>>, Violation> {
        let idler = self.test.workload.idle_client(&self.info);
        idler.map_err(|error| self.violation("an idle client can connect", error))
    }

    /// A client who comes again and again.
    pub(super) fn repeat_client(&self) -> Option<RepeatClient> {
        self.test.workload.repeat_client(&self.info)
    }

    /// Tells the master something.
    pub(super) fn signal(&mut self, signal: Signal) -> CheckResult {
        if let Some(status) = self.exit_status_within(Duration::ZERO) {
            return Err(self.violation("the master stays", format!("it has left: {status}")));
        }
        testing::send_signal(self.pid, signal); // it has not been reaped, so the number is its own
        Ok(())
    }

    /// Kills the master.
    pub(super) fn kill_master(&mut self) -> CheckResult {
        // It has not been reaped by anybody else, and `Child` knows whether it has been by us.
        let killed = self.child.kill();
        killed.map_err(|error| self.violation("the master can be killed", error.to_string()))?;
        self.expect_exit("the master dies", DEADLINE).map(|_| ())
    }

    /// The workers that are ready, in the order of their slots.
    pub(super) fn workers(&self) -> Vec<Worker> {
        self.log.lock().workers()
    }

    /// Waits until exactly so many workers are ready.
    pub(super) fn wait_workers(&self, count: usize) -> Result<Vec<Worker>, Violation> {
        let look = |log: &LogCapture| Some(log.workers()).filter(|workers| workers.len() == count);
        self.log.wait(DEADLINE, look).ok_or_else(|| {
            let there = self.workers().len();
            self.violation(format!("{count} workers are ready"), format!("{there} are, in the end"))
        })
    }

    /// Waits until another worker is ready in the place of this one.
    pub(super) fn wait_replaced(&self, old: Worker) -> Result<Worker, Violation> {
        let look = |log: &LogCapture| {
            let mut workers = log.workers().into_iter();
            workers.find(|worker| worker.slot == old.slot && worker.pid != old.pid)
        };
        self.log.wait(DEADLINE, look).ok_or_else(|| {
            let expected = format!("worker {} in slot {} is replaced", old.pid, old.slot);
            self.violation(expected, "nobody gets ready in its place")
        })
    }

    /// Waits for the record of a worker's end.
    pub(super) fn wait_exited(&self, pid: Pid) -> Result<Record, Violation> {
        let expected = format!("worker {pid} ends");
        self.wait_for(0, &expected, |record| record.is("worker exited", pid))
    }

    /// Waits for a record that so many others come before, or more.
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
        found.ok_or_else(|| self.violation(expected, "nothing of the kind is in the log"))
    }

    /// A record that comes within a time, if one does.
    pub(super) fn sees_record(
        &self,
        timeout: Duration,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<Record> {
        let look = |log: &LogCapture| log.records.iter().find(|record| wanted(record)).cloned();
        self.log.wait(timeout, look)
    }

    /// All records so far.
    pub(super) fn records(&self) -> Vec<Record> {
        self.log.lock().records.clone()
    }

    /// Waits for the end of the master.
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

    /// Waits for the end of a program that was told to stop: with 0, and nobody left.
    pub(super) fn expect_clean_exit(&mut self, timeout: Duration) -> CheckResult {
        let status = self.expect_exit("the program ends when it is told to", timeout)?;
        if status.code() != Some(0) {
            return Err(self.violation("the program ends with 0", status.to_string()));
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

    /// Who should have gone, and whether it sleeps or computes.
    fn describe_survivors(&self, timeout: Duration) -> String {
        let left: Vec<_> = self.survivors().iter().map(describe).collect();
        format!("there are, after {timeout:?}: {}", left.join("; "))
    }

    fn survivors(&self) -> Vec<Stat> {
        session_members(self.pid)
    }

    /// A breach, with the last words of the log.
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
        let _ = self.child.kill(); // it may have ended already
        let _ = self.child.wait();
        // Whoever the master left behind is found by its session, which no stranger can join.
        becomes_true(DEADLINE, || {
            let survivors = self.survivors();
            survivors.iter().for_each(|survivor| testing::send_sigkill(survivor.pid));
            survivors.is_empty()
        });
        let _ = fs::remove_dir_all(&self.info.folder);
    }
}

fn new_folder() -> std::io::Result<std::path::PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("ostler-testkit-{}-{number}", std::process::id());
    let folder = env::temp_dir().join(name);
    fs::create_dir(&folder)?;
    Ok(folder)
}

/// Clients who never stop bringing work, one unit each at a time, and what they have to complain of.
pub(super) fn under_load(
    server: &mut TestServer<'_>,
    body: impl FnOnce(&mut TestServer<'_>) -> CheckResult,
) -> CheckResult {
    let (kit, stage) = (server.test, server.info.clone());
    let repeat_client = server.repeat_client();
    let (stop, failures) = (Watched::<bool>::default(), Watched::<Vec<String>>::default());
    let fresh = || {
        let pending = kit.workload.begin(&stage, Task::Quick)?;
        pending.wait(DEADLINE).map(|_| ())
    };
    let repeat = |mut custom: Box<dyn FnMut() -> Result<(), String> + Send + '_>| {
        while !*stop.lock() {
            if let Err(complaint) = custom() {
                return failures.change(|all| all.push(complaint));
            }
        }
    };
    let result = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| repeat(Box::new(fresh)));
        }
        if let Some(mut regular) = repeat_client {
            let repeat = &repeat;
            scope.spawn(move || repeat(Box::new(move || regular().map(|_| ()))));
        }
        let result = body(server);
        stop.change(|stop| *stop = true);
        result
    });
    result?;
    let failures = failures.lock();
    match failures.first() {
        None => Ok(()),
        Some(complaint) => {
            Err(server.violation("everything that is begun meanwhile is done", complaint))
        }
    }
}

/// When something was begun, to say how long it took.
pub(super) fn since(begun: Instant) -> String {
    format!("after {:.1} s", begun.elapsed().as_secs_f32())
}

/// A process in a few words: `4711 (R, 11.9 s of processor)`.
fn describe(stat: &Stat) -> String {
    let Stat { pid, state, ticks, .. } = stat;
    let seconds = *ticks as f64 / 100.0;
    format!("{pid} ({state}, {seconds:.1} s of processor)")
}

/// What the log says of a worker's end: `reason: asked, code: 1`.
pub(super) fn describe_exit(exited: &Record) -> String {
    let text = |name: &str| Some(format!("{name}: {}", exited.text(name)?));
    let code = exited.number("code").map(|code| format!("code: {code}"));
    let parts: Vec<_> = [text("reason"), code, text("signal")].into_iter().flatten().collect();
    parts.join(", ")
}
