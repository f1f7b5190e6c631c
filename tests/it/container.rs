//! The container image, run without a container engine: what `packaging/image/rootfs` makes, in namespaces, as
//! `packaging/image/Containerfile` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use tempfile::TempDir;

use crate::launch::Launch;
use crate::proc::{children, status, wait_until};
use crate::support::Server;

on_every_class_slowly!(
    stop_of_pid_1_drains_and_exits_with_0,
    hang_is_found_without_any_writable_directory,
);

/// The namespaces of a container; its network is this machine's.
const UNSHARE: [&str; 6] = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"];

/// A user that no file names.
const NAMELESS: u32 = 54_321;

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The root of an image.
struct Image {
    root: TempDir,
}

impl Image {
    /// Makes an image of the programs under test, and of others. Returns nothing, and says why, if this
    /// machine does not permit containers.
    fn new(others: &[&str]) -> Option<Self> {
        let can_run = Command::new(UNSHARE[0]).args(&UNSHARE[1..]).arg("true").output();
        let can_run = can_run.is_ok_and(|output| output.status.success());
        if !can_run || !Uid::effective().is_root() {
            eprintln!("skipped: requires root and namespaces");
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let output = Command::new(source("packaging/image/rootfs"))
            .arg(root.path())
            .args([env!("CARGO_BIN_EXE_ostler"), env!("CARGO_BIN_EXE_ostlerctl")])
            .args(others)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        Some(Self { root })
    }

    /// Prepares a container of this user, in which some directories can be written to.
    fn launch(&self, user: u32, writable: &[&str], flags: &[&str]) -> Launch {
        let (script, user) = (source("tests/it/container/run.sh"), user.to_string());
        let (script, root) = (script.to_str().unwrap(), self.root.path().to_str().unwrap());
        let (entrypoint, writable) = (instruction("ENTRYPOINT"), writable.join(":"));
        let words = [script, root, &user, &writable];
        let entrypoint = entrypoint.iter().map(String::as_str);
        let words: Vec<&str> = UNSHARE.into_iter().chain(words).chain(entrypoint).collect();
        Launch::by(&words, flags)
    }
}

/// Returns the words of an instruction of the image, such as `ENTRYPOINT`.
fn instruction(name: &str) -> Vec<String> {
    let text = fs::read_to_string(source("packaging/image/Containerfile")).unwrap();
    let text = text.replace("\\\n", " ");
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    let words: Vec<Value> = serde_json::from_str(&line[line.find('[').unwrap()..]).unwrap();
    words.into_iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Returns the number that PID 1 of a container has outside.
fn pid_1(server: &Server) -> Pid {
    let pid = children(server.pid)[0].pid;
    assert_eq!(status(pid, "NSpid").last().unwrap(), "1");
    pid
}

/// Runs the health check of the image in a container.
fn check_health(server: &Server) -> Output {
    Command::new("nsenter")
        .args(["--mount", "--pid", "--root", "--wd", "--setuid", "10001", "--setgid", "10001"])
        .args(["--target", &pid_1(server).to_string()])
        .args(instruction("HEALTHCHECK"))
        .output()
        .unwrap()
}

#[test]
#[ignore = "slow"]
fn image_serves_and_tells_its_health() {
    let Some(image) = Image::new(&[]) else { return };
    let mut flags = instruction("CMD");
    flags.extend(["--workers".to_owned(), "2".to_owned()]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut server = image.launch(10001, &["/run/ostler"], &flags).start();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    let health = check_health(&server);
    assert!(health.status.success(), "{health:?}");
    let warnings = server.lines().into_iter().filter(|line| line.contains("\"WARN"));
    assert_eq!(warnings.collect::<Vec<_>>(), [""; 0]);
    // The control socket answers as long as the master's loop turns, and not if it is stopped.
    kill(pid_1(&server), Signal::SIGSTOP).unwrap();
    let health = check_health(&server);
    assert!(!health.status.success(), "{health:?}");
    kill(pid_1(&server), Signal::SIGCONT).unwrap();
    kill(pid_1(&server), Signal::SIGTERM).unwrap();
    server.expect_clean_exit();
}

fn stop_of_pid_1_drains_and_exits_with_0(class: &str) {
    let Some(image) = Image::new(&[]) else { return };
    let mut server = image.launch(NAMELESS, &[], &["-k", class, "-w", "2"]).start();
    let mut client = server.begin("/sleep?ms=700");
    kill(pid_1(&server), Signal::SIGTERM).unwrap();
    assert_eq!(client.answer().status(), 200);
    server.expect_clean_exit();
}

/// Heartbeats and the scoreboard need no directory.
fn hang_is_found_without_any_writable_directory(class: &str) {
    let Some(image) = Image::new(&[]) else { return };
    let mut server = image.launch(NAMELESS, &[], &["-k", class, "--timeout", "1s"]).start();
    let worker = server.workers()[0];
    let _client = server.begin("/hang");
    let record = server.wait_for("worker hung", |record| record.message() == "worker hung");
    assert!(record.text("work").unwrap().contains("/hang"), "{record:?}");
    server.wait_replaced(worker);
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    kill(pid_1(&server), Signal::SIGTERM).unwrap();
    server.expect_clean_exit();
}

/// A worker that only waits sends heartbeats; without them it would be aborted after 3 s.
#[test]
#[ignore = "slow"]
fn idle_worker_sends_heartbeats_in_memory() {
    let Some(image) = Image::new(&[]) else { return };
    let mut server = image.launch(NAMELESS, &[], &["-k", "mio", "--timeout", "3s"]).start();
    server.serve_for(Duration::from_millis(100));
    assert!(
        !server.sees_record(Duration::from_secs(7), |record| record.message() == "worker hung")
    );
    kill(pid_1(&server), Signal::SIGTERM).unwrap();
    server.expect_clean_exit();
}

#[test]
#[ignore = "slow"]
fn orphans_are_reaped_by_pid_1() {
    let Some(image) = Image::new(&["/bin/sh", "/bin/sleep"]) else { return };
    let script = "for i in 1 2 3; do (/usr/bin/sleep 5 &); done; exec /usr/bin/sleep 1000";
    let launch = image.launch(NAMELESS, &["/tmp"], &["-k", "exec", "--ready-after", "100ms"]);
    let mut server = launch.program(&["/usr/bin/sh", "-c", script]).start();
    let master = pid_1(&server);
    let is_orphan = |pid: Pid| status(pid, "Name") == ["sleep"];
    let orphans = || children(master).iter().filter(|child| is_orphan(child.pid)).count();
    wait_until("three orphans", || orphans() == 3);
    wait_until("no orphan", || children(master).len() == 1);
    assert!(server.records_of("worker exited").is_empty());
    kill(master, Signal::SIGTERM).unwrap();
    server.expect_clean_exit();
}

#[test]
fn failures_of_pid_1_have_its_exit_codes() {
    let Some(image) = Image::new(&[]) else { return };
    for (flags, key) in [
        (["--workers", "none"], "workers"),
        (["--control-socket", "/none/control.sock"], "--control-socket"),
    ] {
        let inside = image.launch(NAMELESS, &[], &flags).run();
        assert_eq!(inside.exit, Launch::new(&flags).run().exit, "{inside:?}");
        assert!(inside.stderr.contains(key), "{inside:?}");
    }
    // Programs need a directory for their notification socket.
    let launch = image.launch(NAMELESS, &[], &["-k", "exec"]).program(&["/usr/bin/ostlerctl"]);
    let outcome = launch.run();
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    assert!(outcome.stderr.contains("worker_tmp_dir"), "{outcome:?}");
}
