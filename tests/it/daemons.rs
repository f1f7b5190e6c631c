//! Daemons: the launching command reports the outcome, and the tests find the rest by the pid file.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;

use crate::launch::Launch;
use crate::load::Load;
use crate::proc::{children, is_gone, session_members, stat, wait_until, working_directory};
use crate::support::{Exit, Server};

on_every_class!(
    daemon_serves_until_stopped,
    daemon_upgrade_under_load_loses_nothing,
    sigttin_starts_one_worker_of_a_suspended_daemon,
);

/// A daemon, found by the name in its process titles. Dropping it kills every process of that name.
pub struct Daemon {
    /// The launching process, which has exited, and the directory.
    pub launcher: Server,
    pub name: ProcessMarker,
}

/// A process name that no other server has.
pub struct ProcessMarker(String);

impl ProcessMarker {
    fn of(launch: &Launch) -> Self {
        Self(format!("daemon-{}", launch.port()))
    }

    /// Returns all processes of this name.
    pub fn processes(&self) -> Vec<Pid> {
        let mark = self.0.as_bytes();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid: &i32| {
                let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                words.windows(mark.len()).any(|window| window == mark)
            })
            .map(Pid::from_raw)
            .collect()
    }
}

impl Drop for ProcessMarker {
    fn drop(&mut self) {
        // A dying master may fork once more, so look again.
        while let [first, rest @ ..] = &self.processes()[..] {
            for pid in [first].into_iter().chain(rest) {
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
    }
}

/// Prepares a daemon that has relative paths for everything.
pub fn launch(flags: &[&str], settings: &str) -> (Launch, ProcessMarker) {
    let launch = Launch::new(&["-D", "-w", "2", "-p", "pid", "--log-file", "log", "-c", "conf"]);
    // An empty file is refused by reloads and upgrades.
    let settings = if settings.is_empty() { "workers: 2\n" } else { settings };
    fs::write(launch.path("conf"), settings).unwrap();
    let name = ProcessMarker::of(&launch);
    let launch = launch.arg("-n").arg(&name.0);
    (flags.iter().fold(launch, |launch, flag| launch.arg(flag)), name)
}

impl Daemon {
    #[track_caller]
    pub fn start(flags: &[&str], settings: &str) -> Self {
        let (launch, name) = launch(flags, settings);
        let daemon = Self { launcher: launch.spawn(), name };
        assert_eq!(daemon.launcher.wait_exit(), Exit::Code(0), "{:?}", daemon.launcher.lines());
        daemon
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.launcher.path(name)
    }

    #[track_caller]
    pub fn master(&self) -> Pid {
        pid_in(&self.path("pid")).unwrap()
    }

    pub fn records(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Returns how often this message was logged.
    pub fn count(&self, message: &str) -> usize {
        self.records().iter().filter(|record| record["msg"] == message).count()
    }

    pub fn workers(&self) -> Vec<Pid> {
        let alive = children(self.master()).into_iter().filter(|child| child.state != 'Z');
        let mut pids: Vec<_> = alive.map(|child| child.pid).collect();
        pids.sort();
        pids
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(self.master(), signal).unwrap();
    }

    #[track_caller]
    pub fn finish(self) {
        self.signal(Signal::SIGTERM);
        wait_until("no process is left", || self.name.processes().is_empty());
        for name in ["pid", "pid.2", "sock"] {
            assert!(!self.path(name).exists(), "{name} stays");
        }
        assert_eq!(self.count("stopped"), self.count("master started"));
    }
}

fn pid_in(path: &Path) -> Option<Pid> {
    Some(Pid::from_raw(fs::read_to_string(path).ok()?.trim().parse().ok()?))
}

fn daemon_serves_until_stopped(class: &str) {
    let daemon = Daemon::start(&["-k", class], "");
    // The command has exited, so the daemon serves.
    assert_eq!(daemon.launcher.get("/").text(), "Hello, world!\n");
    assert_eq!(daemon.workers().len(), 2);
    daemon.launcher.wait_silence();
    assert!(daemon.launcher.lines().is_empty(), "{:?}", daemon.launcher.lines());
    daemon.finish();
}

#[test]
fn exec_program_runs_in_daemon_start_dir() {
    let flags = ["-k", "exec", "--ready-after", "100ms"];
    let (launch, name) = launch(&flags, "bind: []\nworkers: 1\n");
    fs::write(launch.path("script"), "pwd >told; exec sleep 1000\n").unwrap();
    let launch = launch.unbound().program(&["sh", "script"]);
    let daemon = Daemon { launcher: launch.spawn(), name };
    assert_eq!(daemon.launcher.wait_exit(), Exit::Code(0), "{:?}", daemon.launcher.lines());
    assert_eq!(working_directory(daemon.master()), Path::new("/"));
    let told = fs::read_to_string(daemon.path("told")).unwrap();
    assert_eq!(Path::new(told.trim()), daemon.path(".").canonicalize().unwrap());
    daemon.finish();
}

#[test]
fn command_waits_until_daemon_serves() {
    let (launch, name) = launch(&[], "");
    let launcher = launch.env("DEMO_BOOT_SLEEP_MS", "1000").spawn();
    let daemon = Daemon { launcher, name };
    wait_until("a master", || daemon.path("pid").exists());
    assert_eq!(daemon.launcher.exit(), None, "no worker serves yet");
    assert_eq!(daemon.launcher.wait_exit(), Exit::Code(0));
    assert_eq!(daemon.launcher.get("/").text(), "Hello, world!\n");
    daemon.finish();
}

#[test]
fn daemon_is_detached_from_launcher() {
    let daemon = Daemon::start(&["-k", "mio"], "");
    let (master, launcher) = (daemon.master(), daemon.launcher.pid);
    let state = stat(master).unwrap();
    assert_ne!(state.parent, launcher);
    assert!(![launcher, Pid::this(), master].contains(&state.session), "{state:?}");
    assert!(session_members(launcher).is_empty());
    let dirs = [master, daemon.workers()[0]].map(working_directory);
    assert_eq!(dirs, [Path::new("/"), Path::new("/")]);
    for process in [master, daemon.workers()[0]] {
        for fd in 0..3 {
            let target = fs::read_link(format!("/proc/{process}/fd/{fd}")).unwrap();
            assert_eq!(target, Path::new("/dev/null"), "{process}, {fd}");
        }
    }
    daemon.finish();
}

#[test]
fn daemon_in_removed_dir_says_so() {
    let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$0\" \"$@\"";
    let words = ["sh", "-c", script, env!("CARGO_BIN_EXE_ostler")];
    let outcome = Launch::by(&words, &["-D", "--pid", "pid"]).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains("failed to open the working directory"), "{outcome:?}");
}

#[test]
fn daemon_resolves_paths_in_start_dir() {
    let socket = "bind: [\"unix:sock\"]\n";
    let (launch, name) = launch(&[], socket);
    let daemon = Daemon { launcher: launch.unbound().spawn(), name };
    assert_eq!(daemon.launcher.wait_exit(), Exit::Code(0), "{:?}", daemon.launcher.lines());
    let get = |path: &str| crate::client::Client::unix(&daemon.path("sock")).unwrap().get(path);
    assert_eq!(get("/env?name=COLOUR").status(), 404);
    fs::write(daemon.path("conf"), format!("{socket}env: [\"COLOUR=blue\"]\n")).unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the reload is done", || daemon.count("reload complete") == 1);
    wait_until("the old workers exit", || daemon.count("worker exited") == 2);
    assert_eq!(get("/env?name=COLOUR").text(), "blue");
    // A rejected reload does not change the directory either.
    fs::write(daemon.path("conf"), "nonsense: 1\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the reload is rejected", || daemon.count("reload rejected") == 1);
    assert_eq!(working_directory(daemon.master()), Path::new("/"));
    assert_eq!(get("/env?name=COLOUR").text(), "blue");
    fs::rename(daemon.path("log"), daemon.path("log.1")).unwrap();
    daemon.signal(Signal::SIGUSR1);
    wait_until("the log is reopened", || daemon.count("logs reopened") == 1);
    daemon.signal(Signal::SIGTERM);
    wait_until("no process is left", || daemon.name.processes().is_empty());
    assert!(!daemon.path("pid").exists() && !daemon.path("sock").exists());
}

#[test]
fn daemon_workers_are_suspended_and_resumed() {
    let daemon = Daemon::start(&["-k", "mio"], "");
    let old = daemon.workers();
    let master = daemon.master();
    for round in 1..=2 {
        daemon.signal(Signal::SIGWINCH);
        wait_until("the workers exit", || daemon.workers().is_empty());
        assert_eq!(daemon.master(), master);
        // Clients that connect while no worker runs wait in the queue.
        let mut client = daemon.launcher.connect();
        client.ask("/");
        daemon.signal(Signal::SIGHUP);
        assert_eq!(client.answer().text(), "Hello, world!\n");
        wait_until("new workers are ready", || daemon.count("worker ready") == 2 + 2 * round);
        wait_until("two of them", || daemon.workers().len() == 2);
    }
    assert!(daemon.workers().iter().all(|pid| !old.contains(pid)));
    daemon.finish();
}

fn sigttin_starts_one_worker_of_a_suspended_daemon(class: &str) {
    let daemon = Daemon::start(&["-k", class], "");
    daemon.signal(Signal::SIGWINCH);
    wait_until("the workers exit", || daemon.workers().is_empty());
    let mut client = daemon.launcher.connect();
    client.ask("/");
    daemon.signal(Signal::SIGTTOU);
    wait_until("there is none to remove", || daemon.count("worker count at limit") == 1);
    daemon.signal(Signal::SIGTTIN);
    assert_eq!(client.answer().text(), "Hello, world!\n");
    assert_eq!(daemon.workers().len(), 1);
    daemon.signal(Signal::SIGTTIN);
    wait_until("another one", || daemon.workers().len() == 2);
    daemon.finish();
}

/// Asserts that the daemon fails to start: an exit code, a reason on the terminal, and no file or
/// process left.
#[track_caller]
pub fn expect_startup_failure(launch: Launch, name: &ProcessMarker, code: i32, words: &[&str]) {
    let server = launch.spawn();
    assert_eq!(server.wait_exit(), Exit::Code(code), "{:?}", server.lines());
    server.wait_silence();
    let said = server.lines().join("\n");
    for word in words {
        assert!(said.contains(word), "{word} is missing: {said}");
    }
    assert!(said.lines().count() <= 3, "{said}");
    wait_until("no process is left", || name.processes().is_empty());
    assert!(!server.path("pid").exists());
}

#[test]
fn port_in_use_is_reported_to_terminal() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (launch, name) = launch(&["--bind", &address], "");
    expect_startup_failure(launch, &name, 1, &[&address]);
}

#[test]
fn failed_boot_is_reported_to_terminal() {
    let (launch, name) = launch(&["--boot-retries", "2"], "");
    let launch = launch.env("DEMO_FAIL_BOOT", "1");
    expect_startup_failure(launch, &name, 3, &["DEMO_FAIL_BOOT"]);
}

#[test]
fn bad_settings_are_reported_to_terminal() {
    for (settings, word) in
        [("nonsense: 1\n", "nonsense"), ("user: nobody-there\n", "nobody-there")]
    {
        let (launch, name) = launch(&[], settings);
        expect_startup_failure(launch, &name, 1, &[word]);
    }
}

#[test]
fn unusable_heartbeat_dir_is_reported_to_terminal() {
    let (launch, name) = launch(&["--worker-tmp-dir", "/proc"], "");
    expect_startup_failure(launch, &name, 1, &["--worker-tmp-dir", "/proc"]);
}

#[test]
fn killed_launcher_leaves_daemon_running() {
    let (launch, name) = launch(&[], "");
    let launcher = launch.env("DEMO_BOOT_SLEEP_MS", "500").spawn();
    let daemon = Daemon { launcher, name };
    wait_until("a master", || daemon.path("pid").exists());
    daemon.launcher.signal(Signal::SIGKILL);
    daemon.launcher.wait_exit();
    wait_until("it serves", || daemon.count("all workers ready") == 1);
    assert_eq!(daemon.launcher.get("/").text(), "Hello, world!\n");
    daemon.finish();
}

#[test]
fn second_instance_is_rejected() {
    let daemon = Daemon::start(&["--single-instance"], "");
    let master = daemon.master().to_string();
    let second =
        Launch::new(&["--single-instance", "-p"]).arg(daemon.path("pid").to_str().unwrap());
    let outcome = second.plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains(&master), "{outcome:?}");
    assert_eq!(daemon.master().to_string(), master);
    daemon.finish();
    // The name makes the instance unique, with a pid file or without.
    let dir = tempfile::tempdir().unwrap();
    let lone = |name: &str| {
        Launch::new(&["--single-instance", "-n", name])
            .env("XDG_RUNTIME_DIR", dir.path().to_str().unwrap())
    };
    let first = lone("lone").start();
    let outcome = lone("lone").plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(outcome.stderr.contains(&first.pid.to_string()), "{outcome:?}");
    let pidfile = dir.path().join("other.pid");
    let beside = |name: &str| lone(name).arg("-p").arg(pidfile.to_str().unwrap());
    let outcome = beside("lone").plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    assert!(!pidfile.exists());
    let other = beside("other").start();
    let outcome = lone("other").plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    other.finish();
    first.finish();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "both files are removed");
    lone("lone").start().finish();
}

#[test]
fn lone_instance_without_a_directory_of_its_own_is_rejected() {
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), Permissions::from_mode(0o1777)).unwrap();
    // A login has made a directory for the user that runs the tests, but none for this one.
    let unset = Uid::effective().is_root().then_some("");
    for dir in unset.into_iter().chain(shared.path().to_str()) {
        for flags in [&["--single-instance"][..], &["--single-instance", "--check-config"]] {
            let Some(launch) = crate::shortages::as_unprivileged(flags) else { return };
            let outcome = launch.env("XDG_RUNTIME_DIR", dir).plain().run();
            assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
            for words in ["--single-instance: needs a directory", "set pidfile", "XDG_RUNTIME_DIR"]
            {
                assert!(outcome.stderr.contains(words), "{words}: {outcome:?}");
            }
        }
    }
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0);
}

#[test]
fn new_master_of_a_daemon_runs_in_the_root_dir() {
    let daemon = Daemon::start(&[], "");
    let old = daemon.master();
    daemon.signal(Signal::SIGUSR2);
    wait_until("both serve", || daemon.count("new master ready") == 1);
    kill(old, Signal::SIGTERM).unwrap();
    wait_until("the new master takes over", || daemon.count("upgrade complete") == 1);
    let new = daemon.master();
    assert_ne!(new, old);
    let dirs = [new, daemon.workers()[0]].map(working_directory);
    assert_eq!(dirs, [Path::new("/"), Path::new("/")]);
    daemon.finish();
}

fn daemon_upgrade_under_load_loses_nothing(class: &str) {
    let daemon = Daemon::start(&["-k", class], "");
    let load = Load::on(daemon.launcher.address());
    for round in 1..=2 {
        let old = daemon.master();
        daemon.signal(Signal::SIGUSR2);
        wait_until("both serve", || daemon.count("new master ready") == round);
        let new = pid_in(&daemon.path("pid.2")).unwrap();
        kill(old, Signal::SIGTERM).unwrap();
        wait_until("the new master takes over", || pid_in(&daemon.path("pid")) == Some(new));
        wait_until("the old master exits", || is_gone(old));
        load.wait_answers(20);
    }
    // The daemon still resolves paths in its start directory.
    fs::write(daemon.path("conf"), "workers: 2\nenv: [\"COLOUR=blue\"]\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    wait_until("the reload is done", || daemon.count("reload complete") == 1);
    load.finish();
    wait_until("the new environment", || daemon.launcher.get("/env?name=COLOUR").status() == 200);
    daemon.finish();
}
