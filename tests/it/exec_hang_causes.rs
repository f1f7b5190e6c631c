//! The hang cause of an exec worker is that of its program, not of the monitor process.

use std::any::Any;
use std::fs;
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::cgroup::Group;
use crate::cores::{expect_whole_core, hold_cores, may_dump_cores};
use crate::exec::{program_of, wait_line};
use crate::exec_programs::python_is_installed;
use crate::launch::Launch;
use crate::log_capture::{Record, Worker};
use crate::proc::{stat, status, wait_until};
use crate::stuck_fs::StuckFs;
use crate::support::Server;

/// Sends heartbeats until a file `go` exists, then until a file `now` exists, then does what its
/// argument names. Its replacement finds no `go`.
const PROGRAM: &str = r#"
import os, signal, socket, sys, time

def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

def live(path="never"):
    while not os.path.exists("../" + path):
        notify("WATCHDOG=1")
        time.sleep(0.05)

def spin():
    while True:
        pass

def sleep():
    time.sleep(1000)

def stop():
    os.kill(os.getpid(), signal.SIGSTOP)

def spawn():
    # A child on the way to its program holds its parent in state D.
    os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, "fifo", 0, 0)])

def make():
    open("new", "w")

def crash():
    os.abort()

def ignore_abort():
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    time.sleep(1000)

notify("READY=1")
live("go")
os.rename("../go", "../gone")
live("now")
globals()[sys.argv[1]]()
live()
"#;

/// A server with one such program, in a directory of its own.
struct HangCase {
    server: Server,
    worker: Worker,
    program: Pid,
}

impl HangCase {
    #[track_caller]
    fn new(action: &str, grace: &str) -> Self {
        let flags = ["-k", "exec", "--ready-after", "1h", "-t", "1s", "--bind", "none"];
        let mut launch = Launch::new(&flags).unbound().arg("--abort-timeout").arg(grace);
        fs::write(launch.path("app.py"), PROGRAM).unwrap();
        fs::create_dir(launch.path("dir")).unwrap();
        let dir = launch.path("dir");
        mkfifo(&launch.dir().join("dir/fifo"), Mode::S_IRWXU).unwrap();
        if may_dump_cores() {
            launch = launch.with_cores().arg("--rlimit-core").arg("unlimited");
        }
        let launch = launch.arg("--chdir").arg(dir);
        let server = launch.program(&["python3", "../app.py", action]).start();
        let worker = server.wait_workers(1)[0];
        let program = program_of(worker.pid);
        Self { server, worker, program }
    }

    /// Makes the program act, while `help` holds its conditions. Returns `None` if `help` fails.
    #[track_caller]
    fn go<R>(&self, help: impl FnOnce() -> Option<R>) -> Option<R> {
        fs::write(self.server.path("go"), "").unwrap();
        let gone = self.server.path("gone");
        wait_until("the program has seen the file", || gone.exists());
        let kept = help()?;
        fs::write(self.server.path("now"), "").unwrap();
        Some(kept)
    }

    /// Waits for the record with this message about the worker.
    #[track_caller]
    fn wait_for(&self, message: &str) -> Record {
        self.server.wait_for(message, |record| record.is(message, self.worker.pid))
    }
}

/// Sets conditions for the program, which hold until the returned value is dropped. Returns `None`
/// if the machine does not allow them.
type Help = fn(&HangCase) -> Option<Box<dyn Any>>;

const NONE: Help = |_| Some(Box::new(()));
const HOLD: Help = |case| Some(Box::new(StuckFs::new(&case.server.path("dir"))?));

/// The program's action, the expected cause, and the conditions.
const CAUSES: [(&str, &str, Help); 8] = [
    ("spin", "busy", NONE),
    ("sleep", "blocked", NONE),
    ("stop", "stopped", NONE),
    ("spawn", "unkillable", NONE),
    ("make", "unkillable", HOLD),
    ("live", "frozen", |case| {
        let group = Group::new("freezer")?;
        group.take(case.program);
        group.freeze();
        Some(Box::new(group))
    }),
    ("spin", "throttled", |case| {
        let group = Group::new("cpu")?;
        group.take(case.program);
        group.limit_cpu(1000, 1_000_000);
        Some(Box::new(group))
    }),
    ("live", "frozen", |case| {
        let group = Group::new("freezer")?;
        group.take(case.worker.pid);
        group.freeze();
        Some(Box::new(group))
    }),
];

#[test]
#[ignore = "slow"]
fn each_hang_cause_is_classified() {
    if !python_is_installed() {
        return;
    }
    for (behaviour, cause, help) in CAUSES {
        let case = HangCase::new(behaviour, "500ms");
        let Some(kept) = case.go(|| help(&case)) else { continue };
        let is_told = |r: &Record| r.pid() == Some(case.worker.pid) && r.text("cause").is_some();
        let told = case.server.wait_for("a cause", is_told);
        assert_eq!(told.text("cause"), Some(cause), "{behaviour}: {told:?}");
        let action = match cause {
            "frozen" | "throttled" => None,
            "stopped" | "unkillable" => Some("killed"),
            _ => Some("aborted"),
        };
        assert_eq!(told.text("action"), action, "{told:?}");
        if action.is_none() {
            assert_eq!(told.message(), "worker frozen or throttled, timeout extended");
            drop(kept);
        } else {
            let thread = told.number("tid");
            assert_eq!(thread, Some(i64::from(case.program.as_raw())), "{told:?}");
            let exited = case.server.wait_exited(case.worker.pid);
            assert_eq!(exited.text("reason"), Some("hung"), "{exited:?}");
            case.server.wait_replaced(case.worker);
            // One record, one kill, one replacement, whatever becomes of the old worker.
            let hangs = case.server.records_of("worker hung").len();
            let started = case.server.records_of("program started").len();
            assert_eq!((hangs, started), (1, 2), "{behaviour}");
            drop(kept);
        }
        wait_until("it exits, or continues", || {
            let state = stat(case.program).map(|stat| stat.state);
            if action.is_none() { state.is_some() } else { matches!(state, None | Some('Z')) }
        });
    }
}

#[test]
#[ignore = "slow"]
fn frozen_program_is_left_alone() {
    if !python_is_installed() {
        return;
    }
    let case = HangCase::new("live", "500ms");
    let Some(group) = Group::new("freezer") else { return };
    group.take(case.program);
    group.freeze();
    assert_eq!(
        case.wait_for("worker frozen or throttled, timeout extended").text("cause"),
        Some("frozen")
    );
    let is_hung = |record: &Record| record.message() == "worker hung";
    assert!(!case.server.sees_record(Duration::from_secs(3), is_hung));
    group.thaw();
    assert!(!case.server.sees_record(Duration::from_secs(2), is_hung));
    assert_eq!(program_of(case.worker.pid), case.program);
    assert_eq!(case.server.records_of("worker exited").len(), 0);
    drop(group);
    case.server.finish();
}

#[test]
#[ignore = "slow"]
fn core_dumping_program_is_not_killed() {
    if !python_is_installed() {
        return;
    }
    for (action, reason) in [("crash", "crashed"), ("spin", "hung")] {
        let case = HangCase::new(action, "2s");
        let dir = case.server.path("dir");
        let Some(held) = case.go(|| hold_cores(&dir)) else { return };
        let said = case.wait_for("worker dumping core");
        assert_eq!(said.text("cause"), Some("dumping_core"), "{said:?}");
        case.server.wait_replaced(case.worker);
        assert_eq!(status(case.program, "CoreDumping"), ["1"], "the dump has ended");
        drop(held);
        let exited = case.server.wait_exited(case.worker.pid);
        let end = (exited.text("reason"), exited.text("signal"));
        assert_eq!(end, (Some(reason), Some("SIGABRT")), "{exited:?}");
        expect_whole_core(&case.server.path("dir"));
        case.server.finish();
    }
}

/// Returns the time from a worker's hang record to its KILL.
#[track_caller]
fn hang_to_kill_time(server: &Server, worker: Pid, error: &str) -> Duration {
    let at = |message: &str| {
        let record = server.wait_for(message, |record| record.is(message, worker));
        let stamp = humantime::parse_rfc3339(record.text("ts").unwrap()).unwrap();
        (record, stamp)
    };
    let (hung, aborted): (Record, SystemTime) = at("worker hung");
    let told = (hung.text("error"), hung.text("action"));
    assert_eq!(told, (Some(error), Some("aborted")), "{hung:?}");
    let (_, killed) = at("worker killed");
    let exited = server.wait_exited(worker);
    assert_eq!(exited.text("signal"), Some("SIGKILL"), "{exited:?}");
    killed.duration_since(aborted).unwrap()
}

/// Asserts that the times measured under two settings follow the settings.
#[track_caller]
fn expect_abort_timeouts(graces: [Duration; 2], measured: [Duration; 2]) {
    let early = graces.iter().zip(measured).any(|(grace, time)| time < *grace);
    // The log rounds each to a millisecond.
    assert!(!early, "{measured:?} for {graces:?}");
    assert!(measured[0] < graces[1], "{measured:?} for {graces:?}");
}

const GRACES: [(&str, Duration); 2] =
    [("500ms", Duration::from_millis(500)), ("4s", Duration::from_secs(4))];

#[test]
#[ignore = "slow"]
fn program_ignoring_abort_is_killed_after_abort_timeout() {
    if !python_is_installed() {
        return;
    }
    let measured = GRACES.map(|(grace, _)| {
        let case = HangCase::new("ignore_abort", grace);
        case.go(|| Some(()));
        let time = hang_to_kill_time(&case.server, case.worker.pid, "no_heartbeat");
        let exited = case.server.wait_exited(case.worker.pid);
        assert_eq!(exited.text("reason"), Some("hung"));
        case.server.wait_replaced(case.worker);
        case.server.finish();
        time
    });
    expect_abort_timeouts(GRACES.map(|(_, grace)| grace), measured);
}

#[test]
#[ignore = "slow"]
fn late_boot_ignoring_abort_is_killed_after_abort_timeout() {
    let measured = GRACES.map(|(grace, _)| {
        let flags = ["-k", "exec", "--ready-after", "1h", "--boot-timeout", "2s", "--bind", "none"];
        let launch = Launch::new(&flags).unbound().arg("--abort-timeout").arg(grace);
        let script = "trap '' ABRT; echo ready; while :; do sleep 0.05; done";
        let server = launch.program(&["sh", "-c", script]).spawn();
        let worker =
            wait_line(&server, "the signal is ignored", |said| said == "ready").pid().unwrap();
        let time = hang_to_kill_time(&server, worker, "boot_timeout");
        assert_eq!(server.wait_exited(worker).text("reason"), Some("boot_failed"));
        let is_next = |r: &Record| r.message() == "worker started" && r.pid() != Some(worker);
        server.wait_for("its replacement", is_next);
        time
    });
    expect_abort_timeouts(GRACES.map(|(_, grace)| grace), measured);
}
