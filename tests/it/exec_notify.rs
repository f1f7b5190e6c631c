//! The notification socket of a program: which processes reach it, what they may send, and what is
//! left of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Uid, User};

use crate::exec::wait_line;
use crate::exec_programs::{LINGERING, is_installed, python_is_installed};
use crate::launch::Launch;
use crate::log_capture::Record;
use crate::os::SilentMount;
use crate::proc::{descriptors, is_gone, stat, wait_until};
use crate::support::{Exit, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// Prepares a program without a listener, which is ready only when it says so.
fn launch_by(words: &[&str], flags: &[&str], program: &[&str]) -> Launch {
    let own = ["-k", "exec", "--ready-after", "1h", "--bind", "none"];
    Launch::by(words, &[&own, flags].concat()).unbound().program(program)
}

/// A program that prints the path of its socket and then sleeps.
const SILENT: [&str; 3] = ["sh", "-c", "echo socket=$NOTIFY_SOCKET; exec sleep 1000"];

/// Defines `notify(text, descriptors)`.
const NOTIFY: &str = r#"
import os, socket, time
notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notifier.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
def notify(text, descriptors=()):
    socket.send_fds(notifier, [text.encode()], descriptors)
"#;

/// Returns the path of the notification socket, which the program prints.
fn socket_path(server: &Server) -> PathBuf {
    let line = wait_line(server, "its notify socket", |said| said.starts_with("socket="));
    PathBuf::from(line.text("line").unwrap().strip_prefix("socket=").unwrap())
}

#[track_caller]
fn expect_never_ready(server: &Server) {
    let is_ready = |record: &Record| record.message() == "worker ready";
    let ready = server.sees_record(Duration::from_millis(500), is_ready);
    assert!(!ready, "READY=1 of another process counts");
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn notifications_of_other_processes_are_ignored() {
    let server = launch_by(&[PROGRAM], &[], &SILENT).spawn();
    let path = socket_path(&server);
    UnixDatagram::unbound().unwrap().send_to(b"READY=1", &path).unwrap();
    expect_never_ready(&server);
    server.finish();
}

#[test]
fn notification_from_outside_the_pid_namespace_is_ignored() {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if !is_installed(&[&unshare[..], &["true"]].concat()) {
        return;
    }
    let server = launch_by(&[&unshare[..], &[PROGRAM]].concat(), &[], &SILENT).spawn();
    let path = socket_path(&server);
    UnixDatagram::unbound().unwrap().send_to(b"READY=1", &path).unwrap();
    expect_never_ready(&server);
    drop(server);
}

#[test]
fn only_the_workers_user_reaches_the_socket() {
    let Some(nobody) = User::from_name("nobody").unwrap().filter(|_| Uid::effective().is_root())
    else {
        eprintln!("skipped: needs root, and a user called nobody");
        return;
    };
    if !python_is_installed() {
        return;
    }
    let text = format!(
        "{NOTIFY}\nprint('socket=' + os.environ['NOTIFY_SOCKET'], flush=True)\nnotify('READY=1')\n\
         time.sleep(1000)"
    );
    let flags = ["--user", "nobody", "--chdir", "/"];
    let server = launch_by(&[PROGRAM], &flags, &["python3", "-c", &text]).start();
    let path = socket_path(&server);
    let dir = fs::metadata(path.parent().unwrap()).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.uid()), (0o700, nobody.uid.as_raw()));
    let reaches = |uid: u32| {
        let mut command = Command::new("test");
        command.arg("-S").arg(&path).uid(uid).gid(uid).current_dir("/");
        command.status().unwrap().success()
    };
    assert!(reaches(nobody.uid.as_raw()) && !reaches(12345));
    server.finish();
    assert!(!path.parent().unwrap().exists());
}

/// Sends a descriptor whose close(2) blocks. The worker is stopped until its copy is the last.
const LINGER: &str = r#"
import signal
sent = lingering(1000)
os.kill(os.getppid(), signal.SIGSTOP)
notify("FDSTORE=1", [sent.fileno()])
sent.close()
os.kill(os.getppid(), signal.SIGCONT)
"#;

#[test]
fn descriptors_of_a_message_never_block_the_worker() {
    if !python_is_installed() {
        return;
    }
    let text = format!("{NOTIFY}{LINGERING}{LINGER}\nnotify('READY=1')\ntime.sleep(1000)");
    let server = launch_by(&[PROGRAM], &["-t", "10s"], &["python3", "-c", &text]).start();
    assert_eq!(server.records_of("worker hung").len(), 0);
    server.finish();
}

#[test]
fn descriptors_of_messages_are_all_closed() {
    if !python_is_installed() {
        return;
    }
    let text = format!(
        "{NOTIFY}\nfor _ in range(50):\n    notify('STATUS=x', [0] * 250)\n\
         notify('READY=1')\ntime.sleep(1000)"
    );
    let server = launch_by(&[PROGRAM], &[], &["python3", "-c", &text]).start();
    let worker = server.workers()[0].pid;
    wait_until("all are closed", || descriptors(worker).len() < 50);
    server.finish();
}

#[test]
fn systemd_notify_waits_for_its_barrier() {
    if !is_installed(&["systemd-notify", "--version"]) {
        return;
    }
    let text = "systemd-notify --ready && echo accepted; exec sleep 1000";
    let server = launch_by(&[PROGRAM], &[], &["sh", "-c", text]).start();
    wait_line(&server, "the barrier", |said| said == "accepted");
    server.finish();
}

#[test]
fn child_of_program_may_notify() {
    if !python_is_installed() {
        return;
    }
    let script = "python3 -c \"$1\"\nexec sleep 1000\n";
    let text = format!("{NOTIFY}\nnotify('READY=1')");
    launch_by(&[PROGRAM], &[], &["sh", "-c", script, "sh", &text]).start().finish();
}

#[test]
fn file_system_on_the_directory_blocks_nothing() {
    let launch = launch_by(&[PROGRAM], &["-w", "2", "--ready-after", "100ms"], &SILENT);
    let dir = launch.dir().join("run");
    fs::create_dir(&dir).unwrap();
    let server = launch.arg("--worker-tmp-dir").arg("run").start();
    let worker = server.wait_workers(2)[0];
    let mounts: Vec<_> = entries(&dir).iter().map(|it| SilentMount::on(it)).collect();
    if mounts.iter().any(Result::is_err) {
        eprintln!("skipped: no FUSE: {:?}", mounts.iter().find_map(|it| it.as_ref().err()));
        return;
    }
    kill(worker.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(worker);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    drop(mounts); // before the directory of the test is removed
    assert_eq!(entries(&dir).len(), 2, "what was mounted on has been removed");
}

#[test]
fn no_socket_is_left_behind() {
    let start = || {
        let launch = launch_by(&[PROGRAM], &["-w", "2", "--ready-after", "100ms"], &SILENT);
        let dir = launch.dir().join("run");
        fs::create_dir(&dir).unwrap();
        (launch.arg("--worker-tmp-dir").arg("run").start(), dir)
    };
    let (server, dir) = start();
    let workers = server.wait_workers(2);
    let before = entries(&dir);
    assert_eq!(before.len(), 2, "{before:?}");
    for path in &before {
        let socket = path.join("notify");
        assert_eq!(entries(path), [socket]);
    }
    kill(workers[0].pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(workers[0]);
    let after = entries(&dir);
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!(after.iter().filter(|path| before.contains(path)).count(), 1, "{after:?}");
    kill(server.pid, Signal::SIGKILL).unwrap();
    server.wait_no_survivors();
    assert_eq!(entries(&dir).len(), 0, "the workers remove them if the master cannot");
    let (mut server, dir) = start();
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    assert_eq!(entries(&dir).len(), 0);
}

#[test]
fn next_master_removes_what_killed_processes_have_left() {
    let dir = tempfile::tempdir().unwrap();
    let launch = || {
        let launch = launch_by(&[PROGRAM], &["-w", "2", "--ready-after", "100ms"], &SILENT);
        launch.arg("--worker-tmp-dir").arg(dir.path().to_str().unwrap())
    };
    let (killed, other) = (launch().start(), launch().start());
    assert_eq!(entries(dir.path()).len(), 4);
    let [workers, survivors] = [&killed, &other].map(|server| server.wait_workers(2));
    // A stopped master cannot remove anything when its workers die.
    killed.signal(Signal::SIGSTOP);
    wait_until("it is stopped", || stat(killed.pid).is_some_and(|it| it.state == 'T'));
    workers.iter().for_each(|worker| kill(worker.pid, Signal::SIGKILL).unwrap());
    drop(killed);
    wait_until("they are dead", || workers.iter().all(|worker| is_gone(worker.pid)));
    assert_eq!(entries(dir.path()).len(), 4);
    let next = launch().start();
    assert_eq!(entries(dir.path()).len(), 4, "those of the two that run");
    next.finish();
    assert_eq!(entries(dir.path()).len(), 2);
    assert_eq!(other.workers(), survivors);
    other.finish();
    assert_eq!(entries(dir.path()).len(), 0);
}

#[test]
fn too_long_directory_is_rejected() {
    let launch = launch_by(&[PROGRAM], &[], &SILENT);
    let name = "x".repeat(100);
    fs::create_dir(launch.dir().join(&name)).unwrap();
    let outcome = launch.arg("--worker-tmp-dir").arg(&name).plain().run();
    assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
    for words in ["worker-tmp-dir", "bytes too long", "NOTIFY_SOCKET"] {
        assert!(outcome.stderr.contains(words), "no {words} in {outcome:?}");
    }
}

#[test]
fn unreachable_directory_is_reported_with_remedy() {
    if User::from_name("nobody").unwrap().is_none() || !Uid::effective().is_root() {
        eprintln!("skipped: needs root, and a user called nobody");
        return;
    }
    let launch = launch_by(&[PROGRAM], &["--user", "nobody", "--boot-retries", "0"], &SILENT);
    let dir = launch.dir().join("run");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let launch = launch.arg("--chdir").arg("/").arg("--worker-tmp-dir").arg("run");
    let outcome = launch.run();
    assert_eq!(outcome.exit, Exit::Code(3), "{outcome:?}");
    for words in ["NOTIFY_SOCKET", "Permission denied", "worker_tmp_dir"] {
        assert!(outcome.stderr.contains(words), "no {words} in {outcome:?}");
    }
}
