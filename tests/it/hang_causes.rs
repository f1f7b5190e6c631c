//! Why a worker makes no progress, and what the master does: each cause with its record and action.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cgroup::Group;
use crate::client::Client;
use crate::cores::{expect_whole_core, hold_cores, may_dump_cores};
use crate::launch::Launch;
use crate::log_capture::{Record, Worker};
use crate::proc::{stat, status, wait_until};
use crate::stuck_fs::StuckFs;
use crate::support::Server;

on_every_class_and_tokio!(
    each_hang_cause_is_classified,
    core_dumping_worker_is_not_killed,
    sleeping_worker_in_throttled_group_is_blocked,
    ; tokio alone:
    worker_dumping_core_on_abort_is_not_killed,
    worker_dumping_core_in_drain_is_not_killed,
    unkillable_worker_is_killed_once_and_replaced,
    throttled_worker_is_left_alone,
    spinning_worker_in_throttled_group_is_hung,
);

on_every_class_slowly!(
    worker_dumping_core_on_abort_is_not_killed,
    worker_dumping_core_in_drain_is_not_killed,
    unkillable_worker_is_killed_once_and_replaced,
    throttled_worker_is_left_alone,
    spinning_worker_in_throttled_group_is_hung,
);

/// A server of one worker in a directory of its own. The worker dumps core there, and its log's
/// path leads through it.
struct HangCase {
    server: Server,
    dir: TempDir,
}

impl HangCase {
    /// Starts it with a `timeout` of 1 s. `abort_timeout` leaves time for the backtrace, which is
    /// long in a debug build.
    #[track_caller]
    fn new(class: &str, flags: &[&str]) -> Self {
        Self::with_timeout(class, "1s", flags)
    }

    /// Starts it with this `timeout`.
    #[track_caller]
    fn with_timeout(class: &str, timeout: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().to_str().unwrap(), dir.path().join("log"));
        symlink("/proc/self/fd/2", &log).unwrap();
        let common = ["-k", class, "-t", timeout, "--abort-timeout", "2s", "--chdir", path];
        let launch = flags.iter().fold(Launch::new(&common), |launch, flag| launch.arg(flag));
        let launch = if may_dump_cores() {
            launch.with_cores().arg("--rlimit-core").arg("unlimited")
        } else {
            launch
        };
        let server = launch.arg("--log-file").arg(log.to_str().unwrap()).start();
        Self { server, dir }
    }

    /// Blocks creation and removal of files in the worker's directory until the returned value is
    /// dropped.
    fn hold(&self) -> Option<StuckFs> {
        StuckFs::new(self.dir.path())
    }

    /// Blocks core dumps in that directory, if that is where they go.
    fn hold_cores(&self) -> Option<StuckFs> {
        hold_cores(self.dir.path())
    }

    /// Returns the only worker.
    #[track_caller]
    fn worker(&self) -> Worker {
        self.server.wait_workers(1)[0]
    }

    #[track_caller]
    fn ask(&self, path: &str) -> Client {
        let mut client = self.server.connect();
        client.ask(path);
        client
    }

    /// Makes a worker create a file in its directory, as if its log had been moved.
    fn make_a_file(&self, worker: Worker) {
        kill(worker.pid, Signal::SIGUSR1).unwrap();
    }

    /// Waits for the record of the hang's cause.
    #[track_caller]
    fn hang_record(&self, worker: Worker) -> Record {
        let is_it = |r: &Record| r.pid() == Some(worker.pid) && r.text("cause").is_some();
        self.server.wait_for("a cause", is_it)
    }

    /// Returns the records with this message about a worker.
    fn records(&self, message: &str, worker: Worker) -> Vec<Record> {
        let mut records = self.server.records_of(message);
        records.retain(|record| record.pid() == Some(worker.pid));
        records
    }
}

/// Blocks a worker until the returned value is dropped. Returns `None` if the machine does not
/// allow it.
type Cause = fn(&HangCase, Worker) -> Option<Box<dyn std::any::Any>>;

/// The ways to block a worker, each with its expected cause.
const CAUSES: [(&str, Cause); 7] = [
    ("busy", |case, _| Some(Box::new(case.ask("/spin")))),
    ("blocked", |case, _| Some(Box::new(case.ask("/hang")))),
    ("stopped", |_, worker| {
        kill(worker.pid, Signal::SIGSTOP).unwrap();
        Some(Box::new(()))
    }),
    ("frozen", |_, worker| {
        let group = Group::new("freezer")?;
        group.take(worker.pid);
        group.freeze();
        Some(Box::new(group))
    }),
    ("throttled", |case, worker| {
        let group = Group::new("cpu")?;
        group.take(worker.pid);
        group.limit_cpu(1000, 1_000_000);
        Some(Box::new((case.ask("/spin"), group)))
    }),
    ("unkillable", |case, worker| {
        fs::remove_file(case.dir.path().join("log")).unwrap();
        let held = case.hold()?;
        case.make_a_file(worker);
        Some(Box::new(held))
    }),
    ("dumping_core", |case, _| {
        let held = case.hold_cores()?;
        Some(Box::new((held, case.ask("/crash"))))
    }),
];

fn each_hang_cause_is_classified(class: &str) {
    let verdicts: Vec<String> = thread::scope(|scope| {
        let tries = CAUSES.map(|(expected, cause)| {
            // A worker that crashes must be at its core dump when it is judged, on a busy machine too.
            let case = move || HangCase::with_timeout(class, "3s", &[]);
            scope.spawn(move || verdict_on(&case(), expected, cause))
        });
        tries.into_iter().filter_map(|it| it.join().unwrap()).collect()
    });
    let distinct: BTreeSet<_> = verdicts.iter().collect();
    assert!(distinct.len() == verdicts.len() && verdicts.len() >= 3, "{verdicts:?}");
}

/// Hangs a worker by this cause. Asserts that it is found, and returns it.
#[track_caller]
fn verdict_on(case: &HangCase, expected: &str, cause: Cause) -> Option<String> {
    let worker = case.worker();
    let kept = cause(case, worker)?;
    let record = case.hang_record(worker);
    assert_eq!(record.text("cause"), Some(expected), "{record:?}");
    // A cause outside the worker extends its timeout instead of ending it.
    let (message, action) = match expected {
        "frozen" | "throttled" => ("worker frozen or throttled, timeout extended", None),
        "dumping_core" => ("worker dumping core", None),
        "stopped" | "unkillable" => ("worker hung", Some("killed")),
        _ => ("worker hung", Some("aborted")),
    };
    assert_eq!((record.message(), record.text("action")), (message, action), "{record:?}");
    drop(kept);
    if action.is_some() {
        assert_eq!(case.server.wait_exited(worker.pid).text("reason"), Some("hung"));
    }
    record.text("cause").map(str::to_owned)
}

/// Asserts that a worker whose core dump takes longer than any timeout is not killed, and that the
/// core is whole.
#[track_caller]
fn expect_dump_completes(case: &HangCase, worker: Worker, held: StuckFs, reason: &str) {
    let server = &case.server;
    let said = server.wait_for("the dump", |r| r.is("worker dumping core", worker.pid));
    assert_eq!(said.text("cause"), Some("dumping_core"));
    server.wait_replaced(worker);
    server.serve_for(Duration::from_millis(2500));
    assert_eq!(status(worker.pid, "CoreDumping"), ["1"], "the dump has ended");
    for (message, count) in [("worker dumping core", 1), ("worker exited", 0), ("worker killed", 0)]
    {
        let records = case.records(message, worker);
        assert_eq!(records.len(), count, "{records:#?}");
    }
    drop(held);
    let exited = server.wait_exited(worker.pid);
    assert_eq!(exited.text("reason"), Some(reason), "{exited:?}");
    // A KILL would have cut the dump short.
    let end = (exited.text("signal"), exited.text("core"));
    assert_eq!(end, (Some("SIGABRT"), Some("dumped")), "{exited:?}");
    expect_whole_core(case.dir.path());
    assert_eq!(server.get("/").text(), "Hello, world!\n");
}

fn core_dumping_worker_is_not_killed(class: &str) {
    let case = HangCase::new(class, &["--graceful-timeout", "1s"]);
    let worker = case.worker();
    let Some(held) = case.hold_cores() else { return };
    let _client = case.ask("/crash");
    expect_dump_completes(&case, worker, held, "crashed");
    case.server.finish();
}

fn worker_dumping_core_on_abort_is_not_killed(class: &str) {
    let case = HangCase::new(class, &["--graceful-timeout", "1s"]);
    let worker = case.worker();
    let Some(held) = case.hold_cores() else { return };
    let _client = case.ask("/spin");
    let hung = case.server.wait_for("the hang", |r| r.is("worker hung", worker.pid));
    assert_eq!(hung.text("cause"), Some("busy"), "{hung:?}");
    expect_dump_completes(&case, worker, held, "hung");
    case.server.finish();
}

fn worker_dumping_core_in_drain_is_not_killed(class: &str) {
    let case = HangCase::with_timeout(class, "1h", &["--graceful-timeout", "1s"]);
    let worker = case.worker();
    let Some(held) = case.hold_cores() else { return };
    let _client = case.ask("/crash");
    wait_until("the worker dumps core", || status(worker.pid, "CoreDumping") == ["1"]);
    case.server.signal(Signal::SIGHUP);
    // The drain has reached its limit.
    expect_dump_completes(&case, worker, held, "reload");
    case.server.finish();
}

/// Returns the signals pending for a process as a whole.
fn pending(pid: Pid) -> u64 {
    u64::from_str_radix(&status(pid, "ShdPnd")[0], 16).unwrap()
}

fn unkillable_worker_is_killed_once_and_replaced(class: &str) {
    let case = HangCase::new(class, &["--graceful-timeout", "1s"]);
    let (server, worker) = (&case.server, case.worker());
    fs::remove_file(case.dir.path().join("log")).unwrap();
    let Some(held) = case.hold() else { return };
    case.make_a_file(worker);
    let hung = server.wait_for("the hang", |r| r.is("worker hung", worker.pid));
    let facts = (hung.text("cause"), hung.text("state"), hung.text("action"));
    assert_eq!(facts, (Some("unkillable"), Some("D"), Some("killed")), "{hung:?}");
    server.wait_replaced(worker);
    // The worker still runs and has a KILL pending. However long it takes, there is no second
    // record and no further worker.
    server.serve_for(Duration::from_secs(3));
    assert_eq!(stat(worker.pid).map(|stat| stat.state), Some('D'));
    let only_kill = 1 << (Signal::SIGKILL as u64 - 1);
    assert_eq!(pending(worker.pid), only_kill, "only KILL was sent");
    for message in ["worker hung", "worker started"] {
        assert_eq!(case.records(message, worker).len(), 1);
    }
    assert_eq!(server.records_of("worker started").len(), 2);
    assert_eq!(server.records_of("worker exited").len(), 0);
    drop(held);
    let exited = server.wait_exited(worker.pid);
    let end = (exited.text("reason"), exited.text("signal"));
    assert_eq!(end, (Some("hung"), Some("SIGKILL")), "{exited:?}");
    case.server.finish();
}

fn throttled_worker_is_left_alone(class: &str) {
    let Some(group) = Group::new("cpu") else { return };
    let case = HangCase::with_timeout(class, "2s", &[]);
    let (server, worker) = (&case.server, case.worker());
    group.take(worker.pid);
    // The longest period allowed, so that few samples see how one ends. The request takes many
    // periods, and little time without a limit, on a busy machine too.
    group.limit_cpu(1000, 1_000_000);
    let mut client = case.ask("/leak?mb=16");
    let extended = server.wait_for("the extension of its timeout", |r| {
        r.is("worker frozen or throttled, timeout extended", worker.pid)
    });
    assert_eq!(extended.text("cause"), Some("throttled"), "{extended:?}");
    server.sees_record(Duration::from_secs(5), |record| record.message() == "worker hung");
    group.unlimit_cpu();
    assert_eq!(client.answer().status(), 200);
    for disturbance in ["worker hung", "worker exited"] {
        let records = server.records_of(disturbance);
        assert!(records.is_empty(), "{records:#?}");
    }
    assert_eq!(server.answering_pid(), worker.pid);
    drop(group);
    case.server.finish();
}

fn spinning_worker_in_throttled_group_is_hung(class: &str) {
    let Some(group) = Group::new("cpu") else { return };
    let case = HangCase::new(class, &[]);
    let (server, worker) = (&case.server, case.worker());
    group.take(worker.pid);
    group.limit_cpu(20_000, 100_000);
    let _client = case.ask("/spin");
    // The worker is throttled because it spins: after its CPU time is used, the timeout applies.
    let hung = server.wait_for("the hang", |r| r.is("worker hung", worker.pid));
    assert_eq!(hung.text("cause"), Some("busy"), "{hung:?}");
    // On a machine that gives it less than the limit, it is not throttled and its timeout not
    // extended.
    let was_extended =
        !case.records("worker frozen or throttled, timeout extended", worker).is_empty();
    assert!(
        !was_extended || hung.number("work_ms") > Some(2000),
        "its timeout was not extended: {hung:?}"
    );
    assert_eq!(server.wait_exited(worker.pid).text("reason"), Some("hung"));
    server.wait_replaced(worker);
    drop(group);
    case.server.finish();
}

fn sleeping_worker_in_throttled_group_is_blocked(class: &str) {
    let Some(group) = Group::new("cpu") else { return };
    let case = HangCase::new(class, &["-w", "2"]);
    let workers = case.server.wait_workers(2);
    // One worker sleeps, and another process uses up the CPU time of both.
    let _client = case.server.begin("/hang");
    let mut hog = std::process::Command::new("sh");
    let mut hog = hog.args(["-c", "while :; do :; done"]).spawn().unwrap();
    let members = workers.iter().map(|worker| worker.pid);
    let of_hog = Pid::from_raw(i32::try_from(hog.id()).unwrap());
    members.chain([of_hog]).for_each(|pid| group.take(pid));
    group.limit_cpu(20_000, 100_000);
    let hung = case.server.wait_for("the hang", |record| record.message() == "worker hung");
    hog.kill().unwrap();
    hog.wait().unwrap();
    assert_eq!(hung.text("cause"), Some("blocked"), "{hung:?}");
    drop(group);
    case.server.finish();
}
