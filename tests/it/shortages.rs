//! What a master survives: no process, no disk space, a missing path or directory, and time in
//! which it is stopped.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Uid;

use crate::client::Client;
use crate::launch::Launch;
use crate::load::Load;
use crate::log_capture::Record;
use crate::proc::{stat, wait_until};
use crate::stuck_fs::StuckFs;
use crate::support::{DEADLINE, Exit, Server};

on_every_class_and_tokio!(
    drain_is_extended_by_short_master_stop,
    cont_does_not_hide_a_hang,
    cont_does_not_prolong_a_drain,
    ; except tokio:
    locked_heartbeat_folder_blocks_no_master,
    ; tokio alone:
    stopped_master_kills_no_worker,
    drain_is_extended_by_master_stop,
);

on_every_class_slowly!(stopped_master_kills_no_worker, drain_is_extended_by_master_stop,);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

fn is_failed_reload(record: &Record) -> bool {
    record.message().starts_with("reload failed")
}

/// Reloads, and asserts that it fails for this reason and keeps the workers.
#[track_caller]
fn expect_failed_reload(server: &Server, reason: &str) {
    let (mark, workers) = (server.mark(), server.workers());
    server.signal(Signal::SIGHUP);
    let outcome = server.wait_for_new_record(mark, "a outcome", is_failed_reload);
    let error = outcome.text("error").unwrap_or_default();
    assert!(error.contains(reason), "{outcome:?}");
    assert_eq!(server.workers(), workers, "no old worker has exited");
}

/// Reloads, and asserts that nothing is begun for this reason.
#[track_caller]
fn expect_rejected_reload(server: &Server, reason: &str) {
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let outcome = server
        .wait_for_new_record(mark, "a rejection", |record| record.message() == "reload rejected");
    assert!(outcome.text("error").unwrap().contains(reason), "{outcome:?}");
}

/// Reloads, and asserts success.
#[track_caller]
fn reload(server: &Server) {
    let mark = server.mark();
    server.signal(Signal::SIGHUP);
    let is_outcome =
        |r: &Record| r.message() == "reload complete" || r.message().starts_with("reload ");
    let is_end = |r: &Record| is_outcome(r) && r.message() != "reload started";
    let outcome = server.wait_for_new_record(mark, "the end of a reload", is_end);
    assert_eq!(outcome.message(), "reload complete", "{outcome:?}");
}

/// Sends TTIN, and asserts that the further worker fails to start for this reason, while the others
/// serve.
#[track_caller]
fn expect_failed_growth(server: &Server, reason: &str) {
    let mark = server.mark();
    server.signal(Signal::SIGTTIN);
    let told = server.wait_for_new_record(mark, "the failure", |record| {
        record.message() == "failed to start worker"
    });
    assert!(told.text("error").unwrap().contains(reason), "{told:?}");
    server.serve_for(Duration::from_millis(300));
}

/// Kills a worker, which is replaced.
#[track_caller]
fn kill_worker(server: &Server) {
    let victim = server.wait_workers(2)[0]; // an earlier one may still be exiting
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(victim);
}

/// Any user can hold the lock of a directory that all share, such as /dev/shm.
fn locked_heartbeat_folder_blocks_no_master(class: &str) {
    let launch = Launch::new(&["-k", class, "-w", "2", "--worker-tmp-dir", "beats"]);
    let folder = launch.path("beats");
    fs::create_dir(&folder).unwrap();
    let Some(held) = StuckFs::new(Path::new(&folder)) else { return };
    let server = launch.start();
    kill_worker(&server);
    drop(held);
    server.finish();
}

#[test]
fn master_retries_while_fork_fails() {
    let flags = ["-k", "mio", "-w", "2", "--boot-timeout", "1s"];
    let Some(launch) = as_unprivileged(&flags) else { return };
    let server = launch.start();
    let load = Load::on(server.address());
    // This user has more processes already.
    limit_processes(&server, "1");
    expect_rejected_reload(&server, "failed to fork: Resource temporarily unavailable");
    expect_failed_growth(&server, "failed to fork: Resource temporarily unavailable");
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    server
        .wait_for_new_record(mark, "a rejection", |record| record.message() == "upgrade rejected");
    limit_processes(&server, "1000");
    server.wait_workers(3);
    reload(&server);
    server.wait_workers(3);
    load.finish();
    server.finish();
}

/// Returns whether a command can run `true` here. If not, the test that needs it is skipped.
fn is_permitted(words: &[&str]) -> bool {
    let mut probe = Command::new(words[0]);
    let status = probe.args(&words[1..]).arg("true").stderr(Stdio::null()).status();
    let permitted = status.is_ok_and(|status| status.success());
    if !permitted {
        eprintln!("skipped: this machine does not allow {words:?}");
    }
    permitted
}

/// Returns the command prefix that runs a command as a user without privileges. That user may
/// change the limits of its processes; root in a container may not.
fn unprivileged_prefix() -> &'static [&'static str] {
    if Uid::effective().is_root() {
        &["setpriv", "--reuid", "4200000", "--regid", "4200000", "--clear-groups"]
    } else {
        &["env"]
    }
}

/// Sets the soft limit of processes that the master's user may have when it forks.
#[track_caller]
fn limit_processes(server: &Server, soft: &str) {
    let words = [unprivileged_prefix(), &["prlimit", "--pid"]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(server.pid.to_string()).arg(format!("--nproc={soft}:"));
    assert!(command.status().unwrap().success());
}

/// Prepares a server of a user without privileges, whose processes the kernel counts.
pub fn as_unprivileged(flags: &[&str]) -> Option<Launch> {
    if !is_permitted(&[unprivileged_prefix(), &["prlimit", "--nproc=1000:"]].concat()) {
        return None;
    }
    let launch = Launch::by(&[unprivileged_prefix(), &["./ostler"]].concat(), flags);
    // The program's directory may be closed to other users.
    // Another process copies it: a child of a test beside this one must not inherit a descriptor that
    // writes it, which would make it busy.
    let copied = Command::new("cp").args([PROGRAM, &launch.path("ostler")]).status().unwrap();
    assert!(copied.success());
    for path in [launch.dir().to_owned(), launch.dir().join("ostler")] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    Some(launch)
}

/// Prepares a server in whose working directory `small` is a disk of a few files.
fn on_small_disk(flags: &[&str]) -> Option<Launch> {
    let unshare: &[&str] = if Uid::effective().is_root() {
        &["unshare", "--mount", "--propagation", "private"]
    } else {
        &["unshare", "--map-root-user", "--mount", "--propagation", "private"]
    };
    const MOUNT: &str = "mount -t tmpfs -o nr_inodes=24,size=256k none small";
    let probe = format!("mkdir -p $1/small && cd $1 && {MOUNT}; exit $?");
    let scratch = tempfile::tempdir().unwrap();
    let tried = [unshare, &["sh", "-c", &probe, "sh", scratch.path().to_str().unwrap()]].concat();
    if !is_permitted(&tried) {
        return None;
    }
    let script = format!("{MOUNT} && exec \"$@\"");
    let launch = Launch::by(&[unshare, &["sh", "-c", &script, "sh", PROGRAM]].concat(), flags);
    fs::create_dir(launch.dir().join("small")).unwrap();
    Some(launch)
}

/// Fills the disk `small` of a server. Dropping the files frees it.
fn fill(server: &Server) -> Vec<tempfile::NamedTempFile> {
    // The path as the master sees it, which has a mount namespace of its own.
    let own = server.path("small");
    let dir = format!("/proc/{}/root{}", server.pid, own.display());
    let mut files = Vec::new();
    loop {
        match tempfile::NamedTempFile::new_in(&dir) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == ErrorKind::StorageFull => return files,
            Err(error) => panic!("{dir}: {error}"),
        }
        assert!(files.len() < 1000, "{dir} is no small disk");
    }
}

#[test]
fn full_heartbeat_dir_affects_only_new_workers() {
    let flags = ["-k", "mio", "-w", "2", "--boot-timeout", "1s", "--worker-tmp-dir", "small"];
    let Some(launch) = on_small_disk(&flags) else { return };
    let server = launch.start();
    let load = Load::on(server.address());
    let files = fill(&server);
    expect_failed_reload(&server, "No space left on device");
    expect_failed_growth(&server, "No space left on device");
    drop(files);
    server.wait_workers(3);
    reload(&server);
    load.finish();
    server.finish();
}

#[test]
fn full_pidfile_dir_fails_only_the_upgrade() {
    let Some(launch) = on_small_disk(&["-k", "mio", "-w", "2", "--pid", "small/pid"]) else {
        return;
    };
    let server = launch.start();
    let own = server.path("small/pid");
    let pidfile = PathBuf::from(format!("/proc/{}/root{}", server.pid, own.display()));
    let recorded = || fs::read_to_string(&pidfile).unwrap_or_default();
    let load = Load::on(server.address());
    let files = fill(&server);
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let failure = server.wait_for_new_record(mark, "a failure", |record| {
        record.message().starts_with("upgrade failed")
    });
    assert!(failure.text("error").unwrap().contains("No space left on device"), "{failure:?}");
    server.wait_for_new_record(mark, "its end", |record| record.message() == "new master exited");
    assert_eq!(recorded().trim(), server.pid.to_string());
    reload(&server);
    drop(files);
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let ready = server.wait_for_new_record(mark, "another", |r| r.message() == "new master ready");
    kill(ready.pid().unwrap(), Signal::SIGTERM).unwrap();
    server.wait_for_new_record(mark, "its end", |record| record.message() == "new master exited");
    // A full disk does not keep the master from a clean exit.
    let files = fill(&server);
    load.finish();
    let dir = File::open(pidfile.parent().unwrap()).unwrap();
    // Not `finish`: the new master that failed has written to stderr as well.
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    server.wait_no_survivors();
    assert!(!is_in(&dir, "pid"), "the pid file stays");
    drop(files);
}

/// Returns whether an open directory, whose path may be gone, has a file of this name.
fn is_in(dir: &File, name: &str) -> bool {
    use std::os::fd::AsRawFd;
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name).exists()
}

#[test]
fn master_survives_removal_of_its_socket_path() {
    let launch = Launch::new(&["-k", "mio", "-w", "2"]);
    let path = PathBuf::from(launch.path("sock"));
    let server = launch.arg("--bind").arg(format!("unix:{}", path.display())).start();
    let mut early = Client::unix(&path).unwrap();
    assert_eq!(early.get("/").text(), "Hello, world!\n");
    fs::remove_file(&path).unwrap();
    assert_eq!(early.get("/").text(), "Hello, world!\n");
    drop(early);
    kill_worker(&server);
    reload(&server);
    assert_eq!(
        Client::unix(&path).unwrap().get("/").text(),
        "Hello, world!\n",
        "the path is missing"
    );
    // A file that another process has created there must not be removed.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    server.serve_for(Duration::from_millis(100));
    let kept = server.path("sock");
    server.signal(Signal::SIGTERM);
    server.wait_no_survivors();
    assert_eq!(fs::read_to_string(kept).unwrap(), "precious");
}

/// Starts a server whose working directory is removed. The settings are elsewhere, or removed with
/// it.
fn without_working_dir(config: impl FnOnce(&Launch) -> PathBuf) -> Server {
    let script = "mkdir home && cp settings.yaml home && cd home && exec \"$@\"";
    let launch = Launch::by(&["sh", "-c", script, "sh", PROGRAM], &["-k", "mio", "-w", "2"]);
    fs::write(launch.path("settings.yaml"), "boot_timeout: 10s\n").unwrap();
    let config = config(&launch);
    let server = launch.arg("--config").arg(config.to_str().unwrap()).start();
    fs::remove_dir_all(server.path("home")).unwrap();
    server
}

#[test]
fn removed_working_dir_still_reloads_outside_config() {
    let server = without_working_dir(|launch| launch.path("settings.yaml").into());
    let load = Load::on(server.address());
    reload(&server);
    load.finish();
    kill_worker(&server);
    server.finish();
}

#[test]
fn removed_config_rejects_reload() {
    let server = without_working_dir(|_| "settings.yaml".into());
    let load = Load::on(server.address());
    let (mark, workers) = (server.mark(), server.workers());
    server.signal(Signal::SIGHUP);
    let rejected = server
        .wait_for_new_record(mark, "a rejection", |record| record.message() == "reload rejected");
    assert!(rejected.text("error").unwrap().contains("settings.yaml"), "{rejected:?}");
    assert_eq!(server.workers(), workers);
    load.finish();
    kill_worker(&server);
    server.finish();
}

/// Stops the master alone for this time.
#[track_caller]
fn stop_for(server: &Server, time: Duration) {
    server.signal(Signal::SIGSTOP);
    wait_until("the master is stopped", || stat(server.pid).unwrap().state == 'T');
    thread::sleep(time);
    server.signal(Signal::SIGCONT);
}

fn stopped_master_kills_no_worker(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2", "--timeout", "1s"]);
    let workers = server.wait_workers(2);
    let load = Load::on(server.address());
    let mark = server.mark();
    stop_for(&server, Duration::from_millis(2500));
    server.wait_for_new_record(mark, "the stall", |record| {
        record.message() == "master event loop stalled"
    });
    server.serve_for(Duration::from_millis(1500));
    assert_eq!(server.workers(), workers);
    let faults = ["worker hung", "worker killed", "worker exited"];
    let news = server.records().split_off(mark);
    assert!(!news.iter().any(|record| faults.contains(&record.message())), "{news:#?}");
    load.finish();
    server.finish();
}

/// Sends a request of four seconds, and drains with `graceful_timeout` 3 s, of which the master is
/// stopped for `missed`.
fn drain_past_a_stop(class: &str, missed: Duration) {
    let mut server = Server::start(&["-k", class, "--graceful-timeout", "3s"]);
    let mut client = server.begin("/sleep?ms=4000");
    server.signal(Signal::SIGTERM);
    server.wait_for("stopping", |record| record.message() == "stopping");
    stop_for(&server, missed);
    assert_eq!(client.answer().status(), 200);
    server.expect_clean_exit();
    assert!(server.records_of("worker killed").is_empty());
}

fn drain_is_extended_by_master_stop(class: &str) {
    drain_past_a_stop(class, Duration::from_millis(3600));
}

fn drain_is_extended_by_short_master_stop(class: &str) {
    drain_past_a_stop(class, Duration::from_millis(2500));
}

/// Sends SIGCONT to the master, as any process of its session may, until a record comes. With each
/// one it has slept for longer than what counts as a stall.
#[track_caller]
fn send_cont_until(server: &Server, what: &str, wanted: impl Fn(&Record) -> bool) {
    let end = Instant::now() + DEADLINE;
    while !server.sees_record(Duration::from_millis(600), &wanted) {
        assert!(Instant::now() < end, "no record of: {what}");
        server.signal(Signal::SIGCONT);
    }
}

fn cont_does_not_hide_a_hang(class: &str) {
    let server = Server::start(&["-k", class, "--timeout", "2s"]);
    let _client = server.begin("/hang");
    send_cont_until(&server, "the hang", |record| record.message() == "worker hung");
    server.finish();
}

fn cont_does_not_prolong_a_drain(class: &str) {
    let mut server = Server::start(&["-k", class, "--graceful-timeout", "2s"]);
    let _client = server.begin("/hang");
    server.signal(Signal::SIGTERM);
    send_cont_until(&server, "its end", |record| record.message() == "worker killed");
    server.expect_clean_exit();
}

#[test]
#[ignore = "slow"]
fn drain_ends_after_master_was_stopped() {
    let server = Server::start(&["-k", "mio", "--graceful-timeout", "2s"]);
    let _client = server.begin("/hang");
    let asked = Instant::now();
    server.signal(Signal::SIGTERM);
    server.wait_for("stopping", |record| record.message() == "stopping");
    let drained = asked.elapsed();
    stop_for(&server, Duration::from_secs(3));
    let continued = Instant::now();
    let killed = server.wait_for("its end", |record| record.message() == "worker killed");
    let left = Duration::from_secs(2).saturating_sub(drained + Duration::from_millis(100));
    assert!(killed.seen - continued >= left, "{:?}, not {left:?}", killed.seen - continued);
    server.wait_no_survivors();
}
