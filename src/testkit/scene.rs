//! One program that is being looked at: started, told things, heard, and ended whatever happens.

use std::env;
use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::feed::{Errand, Regular, Stage, Task};
use super::heard::{Heard, Record, Watched, Worker, listen};
use super::proc::{Stat, comes_true, session_members};
use super::{DEADLINE, Kit, Pid};
use crate::os::testing::{self, bind_to_parent};
use crate::os::signal::Signal;

/// How a class breaks a rule.
#[derive(Debug)]
pub(super) struct Breach {
    pub(super) expected: String,
    pub(super) seen: String,
}

/// What a check comes to.
pub(super) type Verdict = Result<(), Breach>;

/// A breach, in two sentences.
pub(super) fn breach(expected: impl Into<String>, seen: impl Into<String>) -> Breach {
    Breach { expected: expected.into(), seen: seen.into() }
}

/// A running program. Dropping it kills every process that it ever made.
pub(super) struct Scene<'k> {
    kit: &'k Kit,
    pub(super) pid: Pid,
    child: Child,
    heard: Arc<Watched<Heard>>,
    pub(super) stage: Stage,
}

impl<'k> Scene<'k> {
    /// Starts the program with these flags beside the usual ones, and waits until it is ready.
    pub(super) fn start(kit: &'k Kit, flags: &[&str]) -> Result<Self, Breach> {
        let mut scene = Self::spawn(kit, flags)?;
        let expected = "the program is ready";
        let has_failed = |record: &Record| {
            record.message() == "worker exited" && record.text("reason") == Some("boot failure")
        };
        let is_it = |record: &Record| record.message() == "ready" || has_failed(record);
        if has_failed(&scene.wait_for(0, expected, is_it)?) {
            return Err(scene.breach(expected, "a worker does not get ready"));
        }
        scene.stage.address = scene.address();
        Ok(scene)
    }

    fn spawn(kit: &'k Kit, flags: &[&str]) -> Result<Self, Breach> {
        let failed = |what: &str, error: std::io::Error| {
            breach(format!("{} can be started", kit.program.display()), format!("{what}: {error}"))
        };
        let folder = new_folder().map_err(|error| failed("no folder for it", error))?;
        let mut command = Command::new(&kit.program);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if ["OSTLER_", "LISTEN_", "NOTIFY_"].iter().any(|mark| text.starts_with(mark)) {
                command.env_remove(&name);
            }
        }
        // Of a flag that is given twice, the last holds.
        command.args(["--worker-class", &kit.class, "--workers", "2", "--graceful-timeout", "30s"]);
        command.args(["--log-format", "json", "--log-file", "-", "--log-level", "info"]);
        command.args(kit.feed.arguments(&folder)).args(flags).args(&kit.arguments);
        command.envs(kit.feed.variables(&folder)).envs(kit.variables.iter().cloned());
        command.current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null());
        bind_to_parent(&mut command);
        let child = command.stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| failed("it cannot be executed", error))?;
        let heard = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            listen(stderr, Arc::clone(&heard));
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        Ok(Self { kit, pid, child, heard, stage: Stage { folder, address: None } })
    }

    fn address(&self) -> Option<std::net::SocketAddr> {
        let heard = self.heard.lock();
        let listening = heard.records.iter().find(|record| record.message() == "listening")?;
        listening.text("address")?.parse().ok()
    }

    /// Begins a unit of work, or says why it cannot be begun.
    pub(super) fn begin_plain(&self, task: Task) -> Result<Box<dyn Errand>, String> {
        self.kit.feed.begin(&self.stage, task)
    }

    /// Begins a unit of work.
    pub(super) fn begin(&self, task: Task) -> Result<Box<dyn Errand>, Breach> {
        self.begin_plain(task)
            .map_err(|error| self.breach(format!("work can be brought: {task:?}"), error))
    }

    /// Has units of work done, one after the other.
    pub(super) fn work(&self, times: usize) -> Verdict {
        for _ in 0..times {
            self.finish(self.begin(Task::Quick)?, "work that is brought is done")?;
        }
        Ok(())
    }

    /// Waits until a unit of work is done.
    pub(super) fn finish(&self, errand: Box<dyn Errand>, expected: &str) -> Verdict {
        errand.wait(DEADLINE).map(|_| ()).map_err(|error| self.breach(expected, error))
    }

    /// Somebody who asks for nothing.
    pub(super) fn idler(&self) -> Result<Option<Box<dyn std::any::Any + Send>>, Breach> {
        let idler = self.kit.feed.idler(&self.stage);
        idler.map_err(|error| self.breach("an idle client can connect", error))
    }

    /// A client who comes again and again.
    pub(super) fn regular(&self) -> Option<Regular> {
        self.kit.feed.regular(&self.stage)
    }

    /// Tells the master something.
    pub(super) fn tell(&mut self, signal: Signal) -> Verdict {
        if let Some(status) = self.exit_within(Duration::ZERO) {
            return Err(self.breach("the master stays", format!("it has left: {status}")));
        }
        testing::send_signal(self.pid, signal); // it has not been reaped, so the number is its own
        Ok(())
    }

    /// Kills the master.
    pub(super) fn behead(&mut self) -> Verdict {
        // It has not been reaped by anybody else, and `Child` knows whether it has been by us.
        let killed = self.child.kill();
        killed.map_err(|error| self.breach("the master can be killed", error.to_string()))?;
        self.expect_exit("the master dies", DEADLINE).map(|_| ())
    }

    /// The workers that are ready, in the order of their slots.
    pub(super) fn workers(&self) -> Vec<Worker> {
        self.heard.lock().workers()
    }

    /// Waits until exactly so many workers are ready.
    pub(super) fn wait_workers(&self, count: usize) -> Result<Vec<Worker>, Breach> {
        let look = |heard: &Heard| Some(heard.workers()).filter(|workers| workers.len() == count);
        self.heard.wait(DEADLINE, look).ok_or_else(|| {
            let there = self.workers().len();
            self.breach(format!("{count} workers are ready"), format!("{there} are, in the end"))
        })
    }

    /// Waits until another worker is ready in the place of this one.
    pub(super) fn wait_replaced(&self, old: Worker) -> Result<Worker, Breach> {
        let look = |heard: &Heard| {
            let mut workers = heard.workers().into_iter();
            workers.find(|worker| worker.slot == old.slot && worker.pid != old.pid)
        };
        self.heard.wait(DEADLINE, look).ok_or_else(|| {
            let expected = format!("worker {} in slot {} is replaced", old.pid, old.slot);
            self.breach(expected, "nobody gets ready in its place")
        })
    }

    /// Waits for the record of a worker's end.
    pub(super) fn wait_exited(&self, pid: Pid) -> Result<Record, Breach> {
        let expected = format!("worker {pid} ends");
        self.wait_for(0, &expected, |record| record.says("worker exited", pid))
    }

    /// Waits for a record that so many others come before, or more.
    pub(super) fn wait_for(
        &self,
        mark: usize,
        expected: &str,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Record, Breach> {
        let look = |heard: &Heard| {
            let found = heard.records[mark..].iter().find(|record| wanted(record)).cloned();
            (found.is_some() || heard.ended).then_some(found)
        };
        let found = self.heard.wait(DEADLINE, look).flatten();
        found.ok_or_else(|| self.breach(expected, "nothing of the kind is in the log"))
    }

    /// A record that comes within a time, if one does.
    pub(super) fn hears(
        &self,
        patience: Duration,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<Record> {
        let look = |heard: &Heard| heard.records.iter().find(|record| wanted(record)).cloned();
        self.heard.wait(patience, look)
    }

    /// All records so far.
    pub(super) fn records(&self) -> Vec<Record> {
        self.heard.lock().records.clone()
    }

    /// Waits for the end of the master.
    pub(super) fn expect_exit(
        &mut self,
        expected: &str,
        patience: Duration,
    ) -> Result<ExitStatus, Breach> {
        self.exit_within(patience).ok_or_else(|| self.breach(expected, self.who_is_left(patience)))
    }

    fn exit_within(&mut self, patience: Duration) -> Option<ExitStatus> {
        let mut status = None;
        comes_true(patience, || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        });
        status
    }

    /// Waits for the end of a program that was told to stop: with 0, and nobody left.
    pub(super) fn expect_clean_end(&mut self, patience: Duration) -> Verdict {
        let status = self.expect_exit("the program ends when it is told to", patience)?;
        if status.code() != Some(0) {
            return Err(self.breach("the program ends with 0", status.to_string()));
        }
        self.expect_nobody(patience)
    }

    /// Waits until no process of the program is left.
    pub(super) fn expect_nobody(&self, patience: Duration) -> Verdict {
        if comes_true(patience, || self.survivors().is_empty()) {
            return Ok(());
        }
        Err(self.breach("no process is left", self.who_is_left(patience)))
    }

    /// Who should have gone, and whether it sleeps or computes.
    fn who_is_left(&self, patience: Duration) -> String {
        let left: Vec<_> = self.survivors().iter().map(describe).collect();
        format!("there are, after {patience:?}: {}", left.join("; "))
    }

    fn survivors(&self) -> Vec<Stat> {
        session_members(self.pid)
    }

    /// A breach, with the last words of the log.
    pub(super) fn breach(&self, expected: impl Into<String>, seen: impl Into<String>) -> Breach {
        const LINES: usize = 8;
        const LENGTH: usize = 200;
        let heard = self.heard.lock();
        let mut seen = seen.into();
        for line in &heard.lines[heard.lines.len().saturating_sub(LINES)..] {
            seen.push_str("\n  ");
            seen.extend(line.chars().take(LENGTH));
        }
        breach(expected, seen)
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended already
        let _ = self.child.wait();
        // Whoever the master left behind is found by its session, which no stranger can join.
        comes_true(DEADLINE, || {
            let survivors = self.survivors();
            survivors.iter().for_each(|survivor| testing::send_sigkill(survivor.pid));
            survivors.is_empty()
        });
        let _ = fs::remove_dir_all(&self.stage.folder);
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
    scene: &mut Scene<'_>,
    body: impl FnOnce(&mut Scene<'_>) -> Verdict,
) -> Verdict {
    let (kit, stage) = (scene.kit, scene.stage.clone());
    let regular = scene.regular();
    let (stop, complaints) = (Watched::<bool>::default(), Watched::<Vec<String>>::default());
    let fresh = || {
        let errand = kit.feed.begin(&stage, Task::Quick)?;
        errand.wait(DEADLINE).map(|_| ())
    };
    let repeat = |mut custom: Box<dyn FnMut() -> Result<(), String> + Send + '_>| {
        while !*stop.lock() {
            if let Err(complaint) = custom() {
                return complaints.change(|all| all.push(complaint));
            }
        }
    };
    let verdict = thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| repeat(Box::new(fresh)));
        }
        if let Some(mut regular) = regular {
            let repeat = &repeat;
            scope.spawn(move || repeat(Box::new(move || regular().map(|_| ()))));
        }
        let verdict = body(scene);
        stop.change(|stop| *stop = true);
        verdict
    });
    verdict?;
    let complaints = complaints.lock();
    match complaints.first() {
        None => Ok(()),
        Some(complaint) => {
            Err(scene.breach("everything that is begun meanwhile is done", complaint))
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
pub(super) fn ending(exited: &Record) -> String {
    let text = |name: &str| Some(format!("{name}: {}", exited.text(name)?));
    let code = exited.number("code").map(|code| format!("code: {code}"));
    let told: Vec<_> = [text("reason"), code, text("signal")].into_iter().flatten().collect();
    told.join(", ")
}
