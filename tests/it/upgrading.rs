//! SIGUSR2: a new master takes over from the old one without losing a request, or nothing changes.

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::{Client, is_refused};
use crate::launch::{Launch, wait_free};
use crate::load::Load;
use crate::log_capture::Record;
use crate::proc::{children, is_gone, wait_until};
use crate::support::{Exit, Server};

on_every_class!(
    three_upgrades_lose_nothing,
    upgrade_can_be_cancelled,
    booting_new_master_takes_over_without_loss,
    early_term_does_not_promote_a_failing_new_master,
    term_to_both_masters_stops_both,
    stop_during_promotion_loses_nothing,
);

on_every_class_slowly!(second_term_does_not_wait_for_the_new_master,);

const PROGRAM: &str = env!("CARGO_BIN_EXE_ostler");

/// Prepares a server with a pid file, and a path besides its port.
fn launch(words: &[&str], class: &str) -> Launch {
    let launch = Launch::by(words, &["-k", class, "-w", "2"]);
    let (pidfile, bind) = (launch.path("pid"), format!("unix:{}", launch.path("sock")));
    launch.arg("--pid").arg(pidfile).arg("--bind").arg(bind)
}

/// Returns the pid in a pid file.
fn pid_in(path: impl AsRef<Path>) -> Option<Pid> {
    let text = fs::read_to_string(path).ok()?;
    Some(Pid::from_raw(text.trim().parse().ok()?))
}

fn workers_of(master: Pid) -> Vec<Pid> {
    let mut workers: Vec<_> = children(master)
        .into_iter()
        .filter(|child| child.state != 'Z')
        .map(|child| child.pid)
        .collect();
    workers.sort();
    workers
}

/// Sends USR2, and waits until the new master is ready.
#[track_caller]
fn upgrade(server: &Server, old: Pid) -> Pid {
    let mark = server.mark();
    kill(old, Signal::SIGUSR2).unwrap();
    let new = begin_upgrade(server, mark);
    server.wait_for_new_record(mark, "the new master is ready", |r| r.is("new master ready", new));
    assert_eq!(pid_in(server.path("pid")), Some(old));
    assert_eq!(pid_in(server.path("pid.2")), Some(new));
    new
}

#[track_caller]
fn begin_upgrade(server: &Server, mark: usize) -> Pid {
    let record = server.wait_for_new_record(mark, "upgrade started", |record| {
        record.message() == "upgrade started"
    });
    record.pid().unwrap()
}

/// Waits until the new master is the only one.
#[track_caller]
fn wait_promoted(server: &Server, old: Pid, new: Pid) {
    server.wait_for("promotion", |record| record.is("upgrade complete", new));
    wait_until("the old master exits", || is_gone(old));
    wait_until("the pid file is the new master's", || pid_in(server.path("pid")) == Some(new));
    assert!(!server.path("pid.2").exists());
}

/// Stops the current master, and waits until no process and no file is left.
#[track_caller]
fn finish(server: &Server, master: Pid) {
    kill(master, Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
    server.wait_silence();
    for name in ["pid", "pid.2", "sock"] {
        assert!(!server.path(name).exists(), "{name} stays");
    }
}

#[track_caller]
fn expect_served(server: &Server) {
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    let mut client = Client::unix(&server.path("sock")).unwrap();
    assert_eq!(client.get("/").text(), "Hello, world!\n");
}

fn three_upgrades_lose_nothing(class: &str) {
    let server = launch(&[PROGRAM], class).start();
    let load = Load::on(server.address());
    let mut master = server.pid;
    for _ in 0..3 {
        let old_workers = workers_of(master);
        let new = upgrade(&server, master);
        assert_ne!(new, master);
        wait_until("its workers", || workers_of(new).len() == 2);
        load.wait_answers(20);
        expect_served(&server);
        kill(master, Signal::SIGTERM).unwrap();
        wait_promoted(&server, master, new);
        wait_until("the old workers exit", || old_workers.iter().all(|&pid| is_gone(pid)));
        load.wait_answers(20);
        expect_served(&server);
        master = new;
    }
    load.finish();
    assert_eq!(server.wait_exit(), Exit::Code(0));
    // After three upgrades, the master can still reload its inherited sockets.
    let mark = server.mark();
    kill(master, Signal::SIGHUP).unwrap();
    server.wait_for_new_record(mark, "reload complete", |record| {
        record.message() == "reload complete"
    });
    expect_served(&server);
    finish(&server, master);
}

fn upgrade_can_be_cancelled(class: &str) {
    let server = launch(&[PROGRAM], class).start();
    let workers = workers_of(server.pid);
    let load = Load::on(server.address());
    for _ in 0..2 {
        let new = upgrade(&server, server.pid);
        load.wait_answers(20);
        let new_workers = workers_of(new);
        kill(new, Signal::SIGTERM).unwrap();
        wait_untouched(&server, new, &new_workers, &workers);
    }
    load.finish();
    finish(&server, server.pid);
}

/// Waits until a new master has exited, and asserts that all is as it was before.
#[track_caller]
fn wait_untouched(server: &Server, new: Pid, new_workers: &[Pid], workers: &[Pid]) {
    wait_until("the new master exits", || is_gone(new));
    wait_until("its workers exit", || new_workers.iter().all(|&pid| is_gone(pid)));
    wait_until("its zombie is reaped", || workers_of(server.pid) == workers);
    wait_until("its pid file is removed", || !server.path("pid.2").exists());
    assert_eq!(pid_in(server.path("pid")), Some(server.pid));
    assert_eq!(server.exit(), None);
    expect_served(server);
}

#[test]
fn second_upgrade_at_once_is_rejected() {
    let server = launch(&[PROGRAM], "mio").start();
    let new = upgrade(&server, server.pid);
    for master in [server.pid, new] {
        let mark = server.mark();
        kill(master, Signal::SIGUSR2).unwrap();
        let refused = |record: &Record| record.message() == "upgrade rejected";
        let record = server.wait_for_new_record(mark, "upgrade rejected", refused);
        // The record names the other master.
        let other = if master == server.pid { new } else { server.pid };
        assert!(record.text("error").unwrap().contains(&other.to_string()), "{record:?}");
    }
    assert_eq!(server.records_of("upgrade started").len(), 1);
    kill(server.pid, Signal::SIGTERM).unwrap();
    wait_promoted(&server, server.pid, new);
    // The new master can be upgraded in turn.
    let newer = upgrade(&server, new);
    kill(new, Signal::SIGTERM).unwrap();
    wait_promoted(&server, new, newer);
    finish(&server, newer);
}

/// A copy of the program that a test can damage.
struct Copy {
    dir: TempDir,
}

impl Copy {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let copy = Self { dir };
        // Copied by another process: a child of another test must not inherit a descriptor that is
        // open for writing to a program, or exec fails with ETXTBSY.
        let copied = Command::new("cp").arg(PROGRAM).arg(copy.path()).status().unwrap();
        assert!(copied.success());
        copy
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    fn path_string(&self) -> String {
        self.path().into_os_string().into_string().unwrap()
    }

    /// Replaces the copy by other content.
    fn replace(&self, content: &str, mode: &str) {
        let script = "cat > \"$0.new\" && chmod \"$1\" \"$0.new\" && mv -f \"$0.new\" \"$0\"";
        let mut shell = Command::new("sh")
            .args(["-c", script, &self.path_string(), mode])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        shell.stdin.take().unwrap().write_all(content.as_bytes()).unwrap();
        assert!(shell.wait().unwrap().success());
    }

    fn restore(&self) {
        let script = "cp \"$1\" \"$0.new\" && mv -f \"$0.new\" \"$0\"";
        let status = Command::new("sh").args(["-c", script, &self.path_string(), PROGRAM]).status();
        assert!(status.unwrap().success());
    }
}

fn is_error(record: &Record) -> bool {
    record.text("level") == Some("ERROR")
}

#[test]
fn broken_program_changes_nothing() {
    let copy = Copy::new();
    let server = launch(&[&copy.path_string()], "mio").start();
    let workers = workers_of(server.pid);
    let spoils: [(&str, &dyn Fn()); 5] = [
        ("no program", &|| copy.replace("this is no program", "755")),
        ("not executable", &|| copy.replace("#!/bin/sh\nexit 0\n", "644")),
        ("crashes", &|| copy.replace("#!/bin/sh\nexit 1\n", "755")),
        ("exits", &|| copy.replace("#!/bin/sh\nexit 0\n", "755")),
        ("deleted", &|| fs::remove_file(copy.path()).unwrap()),
    ];
    for (what, spoil) in spoils {
        spoil();
        let mark = server.mark();
        server.signal(Signal::SIGUSR2);
        let failed = |record: &Record| {
            record.message().starts_with("upgrade failed") || record.message() == "upgrade rejected"
        };
        server.wait_for_new_record(mark, what, failed);
        wait_until("its zombie is reaped", || children(server.pid).len() == 2);
        wait_untouched(&server, Pid::from_raw(i32::MAX), &[], &workers);
        // A record that comes after all records of the upgrade.
        let mark_after = server.mark();
        server.signal(Signal::SIGUSR1);
        server.wait_for_new_record(mark_after, "an answer", |record| {
            record.message() == "logs reopened"
        });
        let errors: Vec<_> =
            server.records()[mark..].iter().filter(|r| is_error(r)).cloned().collect();
        assert_eq!(errors.len(), 1, "{what}: {errors:#?}");
    }
    copy.restore();
    let new = upgrade(&server, server.pid);
    server.signal(Signal::SIGTERM);
    wait_promoted(&server, server.pid, new);
    finish(&server, new);
}

#[test]
fn failed_boot_of_new_master_changes_nothing() {
    let copy = Copy::new();
    let server = launch(&[&copy.path_string()], "mio").start();
    let workers = workers_of(server.pid);
    copy.replace(&format!("#!/bin/sh\nDEMO_FAIL_BOOT=1 exec '{PROGRAM}' \"$@\"\n"), "755");
    let mark = server.mark();
    let load = Load::on(server.address());
    server.signal(Signal::SIGUSR2);
    let new = begin_upgrade(&server, mark);
    server.wait_for_new_record(mark, "upgrade failed", |record| {
        record.message().starts_with("upgrade failed") && record.pid() == Some(new)
    });
    wait_untouched(&server, new, &[], &workers);
    load.finish();
    finish(&server, server.pid);
}

#[test]
#[ignore = "slow"]
fn new_master_never_ready_is_killed() {
    let copy = Copy::new();
    let server = launch(&[&copy.path_string()], "mio").arg("--boot-timeout").arg("500ms").start();
    let workers = workers_of(server.pid);
    copy.replace("#!/bin/sh\nexec sleep 600\n", "755");
    let begin = Instant::now();
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let new = begin_upgrade(&server, mark);
    wait_until("it is killed", || is_gone(new));
    assert!(begin.elapsed() >= Duration::from_millis(500));
    wait_untouched(&server, new, &[], &workers);
    let failed = |record: &&Record| record.message().starts_with("upgrade failed");
    let failures: Vec<_> = server.records().iter().filter(failed).cloned().collect();
    assert_eq!(failures.len(), 1, "{failures:#?}");
    finish(&server, server.pid);
}

#[test]
fn killed_new_master_changes_nothing() {
    let server = launch(&[PROGRAM], "mio").start();
    let workers = workers_of(server.pid);
    for _ in 0..2 {
        let new = upgrade(&server, server.pid);
        let new_workers = workers_of(new);
        kill(new, Signal::SIGKILL).unwrap();
        wait_gone_but_for_pidfile(&server, new, &new_workers, &workers);
    }
    finish(&server, server.pid);
}

/// Waits as `wait_untouched`. A killed master cannot remove its pid file.
#[track_caller]
fn wait_gone_but_for_pidfile(server: &Server, new: Pid, new_workers: &[Pid], workers: &[Pid]) {
    let _ = fs::remove_file(server.path("pid.2"));
    wait_untouched(server, new, new_workers, workers);
}

#[test]
fn new_master_is_promoted_when_old_one_is_killed() {
    let server = launch(&[PROGRAM], "mio").start();
    let workers = workers_of(server.pid);
    let new = upgrade(&server, server.pid);
    server.signal(Signal::SIGKILL);
    wait_promoted(&server, server.pid, new);
    wait_until("its workers exit", || workers.iter().all(|&pid| is_gone(pid)));
    expect_served(&server);
    let newer = upgrade(&server, new);
    kill(new, Signal::SIGTERM).unwrap();
    wait_promoted(&server, new, newer);
    finish(&server, newer);
}

#[test]
fn suspended_workers_resume_when_the_new_master_dies() {
    let server = launch(&[PROGRAM], "mio").start();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let load = Load::on(server.address());
        let old = workers_of(server.pid);
        let new = upgrade(&server, server.pid);
        server.signal(Signal::SIGWINCH);
        wait_until("the old workers exit", || old.iter().all(|&pid| is_gone(pid)));
        load.wait_answers(20);
        load.finish();
        let new_workers = workers_of(new);
        kill(new, signal).unwrap();
        wait_until("the new master exits", || is_gone(new));
        wait_until("its workers exit", || new_workers.iter().all(|&pid| is_gone(pid)));
        wait_until("the old one has workers again", || workers_of(server.pid).len() == 2);
        let _ = fs::remove_file(server.path("pid.2"));
        expect_served(&server);
    }
    finish(&server, server.pid);
}

#[test]
fn window_size_change_is_ignored() {
    let server = launch(&[PROGRAM], "mio").start();
    let workers = workers_of(server.pid);
    let mark = server.mark();
    server.signal(Signal::SIGWINCH);
    server.wait_for_new_record(mark, "WINCH", |record| record.text("signal") == Some("WINCH"));
    expect_served(&server);
    assert_eq!(workers_of(server.pid), workers);
    finish(&server, server.pid);
}

/// Prepares a server that reads its addresses from a file.
fn launch_from_file(addresses: &[String]) -> Launch {
    let launch = Launch::new(&["-k", "mio", "-w", "2"]).unbound();
    let pidfile = launch.path("pid");
    let settings = launch.path("settings.yaml");
    write_addresses(Path::new(&settings), addresses);
    launch.arg("--pid").arg(pidfile).arg("--config").arg(settings)
}

fn write_addresses(settings: &Path, addresses: &[String]) {
    fs::write(settings, format!("bind: {addresses:?}\n")).unwrap();
}

fn two_addresses() -> [String; 2] {
    [(); 2].map(|()| format!("127.0.0.1:{}", Launch::new(&[]).port()))
}

#[track_caller]
fn expect_answer(address: &str) {
    let mut client = Client::tcp(address.parse().unwrap()).unwrap();
    assert_eq!(client.get("/").text(), "Hello, world!\n", "{address}");
}

#[track_caller]
fn send_hup(server: &Server, master: Pid) {
    let mark = server.mark();
    kill(master, Signal::SIGHUP).unwrap();
    let over = |record: &Record| record.message().starts_with("reload ");
    let is_end = |record: &Record| over(record) && record.message() != "reload started";
    let end = server.wait_for_new_record(mark, "the end of a reload", is_end);
    assert_eq!(end.message(), "reload complete", "{end:?}");
}

fn booting_new_master_takes_over_without_loss(class: &str) {
    let copy = Copy::new();
    let server = launch(&[&copy.path_string()], class).start();
    copy.replace(&format!("#!/bin/sh\nDEMO_BOOT_SLEEP_MS=500 exec '{PROGRAM}' \"$@\"\n"), "755");
    let load = Load::on(server.address());
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let new = begin_upgrade(&server, mark);
    server.wait_for_new_record(mark, "its workers boot", |record| {
        record.message() == "worker started"
    });
    server.signal(Signal::SIGTERM);
    wait_promoted(&server, server.pid, new);
    server.wait_for_new_record(mark, "it is ready", |record| record.is("all workers ready", new));
    load.wait_answers(20);
    load.finish();
    finish(&server, new);
}

/// Starts a server whose new master boots for `boot_ms`. Upgrades, and waits until the new workers
/// boot. Returns the server, the new master, and the mark before the upgrade.
fn with_booting_new_master(class: &str, boot_ms: u32, flags: &[&str]) -> (Server, Pid, usize) {
    let copy = Copy::new();
    let launch = launch(&[&copy.path_string()], class);
    let server = flags.iter().fold(launch, |launch, flag| launch.arg(flag)).start();
    let script = format!("#!/bin/sh\nDEMO_BOOT_SLEEP_MS={boot_ms} exec '{PROGRAM}' \"$@\"\n");
    copy.replace(&script, "755");
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let new = begin_upgrade(&server, mark);
    let boots = |record: &Record| record.message() == "worker started";
    server.wait_for_new_record(mark, "its workers boot", boots);
    (server, new, mark)
}

#[track_caller]
fn wait_deferred(server: &Server, mark: usize) {
    let is_deferred = |record: &Record| record.message().starts_with("stop deferred");
    server.wait_for_new_record(mark, "the stop waits", is_deferred);
}

fn early_term_does_not_promote_a_failing_new_master(class: &str) {
    let flags = ["--boot-timeout", "1s"];
    let (server, new, mark) = with_booting_new_master(class, 600_000, &flags);
    let old_workers: Vec<_> = server.records()[..mark]
        .iter()
        .filter(|record| record.message() == "worker ready")
        .filter_map(Record::pid)
        .collect();
    let load = Load::on(server.address());
    server.signal(Signal::SIGTERM);
    wait_deferred(&server, mark);
    load.wait_answers(20);
    let is_cancelled = |record: &Record| record.message().starts_with("stop cancelled");
    server.wait_for_new_record(mark, "the stop is cancelled", is_cancelled);
    wait_until("the new master exits", || is_gone(new));
    load.wait_answers(20);
    load.finish();
    assert!(server.records_of("stopping").is_empty());
    wait_until("the old workers alone", || {
        let mut workers = workers_of(server.pid);
        workers.retain(|pid| !old_workers.contains(pid));
        workers.is_empty()
    });
    // A killed master cannot remove its pid file.
    let _ = fs::remove_file(server.path("pid.2"));
    finish(&server, server.pid);
}

fn second_term_does_not_wait_for_the_new_master(class: &str) {
    let (server, new, mark) = with_booting_new_master(class, 3000, &[]);
    let load = Load::on(server.address());
    server.signal(Signal::SIGTERM);
    wait_deferred(&server, mark);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    wait_promoted(&server, server.pid, new);
    load.wait_answers(20);
    load.finish();
    let messages: Vec<_> = server.records()[mark..]
        .iter()
        .filter(|record| record.pid() == Some(new))
        .map(|record| record.message().to_owned())
        .filter(|message| ["all workers ready", "upgrade complete"].contains(&message.as_str()))
        .collect();
    assert_eq!(messages, ["all workers ready", "upgrade complete"]);
    finish(&server, new);
}

/// A service manager may stop every process of the service.
fn term_to_both_masters_stops_both(class: &str) {
    let (server, new, mark) = with_booting_new_master(class, 600_000, &[]);
    server.signal(Signal::SIGTERM);
    wait_deferred(&server, mark);
    kill(new, Signal::SIGTERM).unwrap();
    assert_eq!(server.wait_exit(), Exit::Code(0));
    server.wait_no_survivors();
}

#[test]
fn inherited_addresses_can_be_changed() {
    let addresses = two_addresses();
    let server = launch_from_file(&addresses).start();
    let new = upgrade(&server, server.pid);
    server.signal(Signal::SIGTERM);
    wait_promoted(&server, server.pid, new);
    for _ in 0..2 {
        write_addresses(&server.path("settings.yaml"), &addresses[..1]);
        send_hup(&server, new);
        wait_free(addresses[1].parse().unwrap());
        write_addresses(&server.path("settings.yaml"), &addresses);
        send_hup(&server, new);
        addresses.iter().for_each(|address| expect_answer(address));
    }
    finish(&server, new);
}

#[test]
fn address_unused_by_new_master_is_closed() {
    let addresses = two_addresses();
    let server = launch_from_file(&addresses).start();
    write_addresses(&server.path("settings.yaml"), &addresses[..1]);
    let new = upgrade(&server, server.pid);
    addresses.iter().for_each(|address| expect_answer(address));
    server.signal(Signal::SIGTERM);
    wait_promoted(&server, server.pid, new);
    expect_answer(&addresses[0]);
    assert!(is_refused(addresses[1].parse().unwrap()));
    finish(&server, new);
}

#[test]
fn address_dropped_by_new_master_is_served_by_old_one() {
    let addresses = two_addresses();
    let server = launch_from_file(&addresses).start();
    let new = upgrade(&server, server.pid);
    write_addresses(&server.path("settings.yaml"), &addresses[..1]);
    send_hup(&server, new);
    addresses.iter().for_each(|address| expect_answer(address));
    kill(new, Signal::SIGTERM).unwrap();
    wait_until("the new master exits", || is_gone(new));
    addresses.iter().for_each(|address| expect_answer(address));
    finish(&server, server.pid);
}

#[test]
fn locked_instance_can_be_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let server = Launch::new(&["--single-instance", "-w", "2"])
        .env("XDG_RUNTIME_DIR", dir.path().to_str().unwrap())
        .start();
    let mark = server.mark();
    server.signal(Signal::SIGUSR2);
    let new = begin_upgrade(&server, mark);
    server.wait_for_new_record(mark, "it is ready", |record| record.is("new master ready", new));
    server.signal(Signal::SIGTERM);
    server.wait_for("promotion", |record| record.is("upgrade complete", new));
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    finish(&server, new);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn new_master_with_bad_settings_reports_reason() {
    let addresses = two_addresses();
    let launch = launch_from_file(&addresses);
    let log = launch.path("log");
    let server = launch.arg("--log-file").arg(&log).spawn();
    let records = || fs::read_to_string(&log).unwrap_or_default();
    wait_until("it is ready", || records().contains("\"all workers ready\""));
    for (text, reason) in [("nonsense: 1\n", "nonsense"), ("", "sets no key")] {
        fs::write(server.path("settings.yaml"), text).unwrap();
        let before = records().len();
        server.signal(Signal::SIGUSR2);
        wait_until("it has failed", || records()[before..].contains("new master exited"));
        let records = records()[before..].to_owned();
        assert!(records.contains("upgrade failed") && records.contains(reason), "{records}");
        expect_answer(&addresses[0]);
    }
    finish(&server, server.pid);
}

fn stop_during_promotion_loses_nothing(class: &str) {
    let server = launch(&[PROGRAM], class).start();
    let new = upgrade(&server, server.pid);
    server.signal(Signal::SIGTERM);
    // The stopped process receives both at once.
    kill(new, Signal::SIGSTOP).unwrap();
    assert_eq!(server.wait_exit(), Exit::Code(0));
    let workers = workers_of(new);
    workers.iter().for_each(|&pid| kill(pid, Signal::SIGSTOP).unwrap());
    // These clients wait in the kernel's queue.
    let mut waiting: Vec<_> = (0..8).map(|_| server.connect()).collect();
    waiting.iter_mut().for_each(|client| client.ask("/"));
    let mark = server.mark();
    kill(new, Signal::SIGTERM).unwrap();
    kill(new, Signal::SIGCONT).unwrap();
    server.wait_for_new_record(mark, "stopping", |record| record.message() == "stopping");
    workers.iter().for_each(|&pid| kill(pid, Signal::SIGCONT).unwrap());
    for client in &mut waiting {
        assert_eq!(client.answer().text(), "Hello, world!\n");
    }
    server.wait_no_survivors();
    for name in ["pid", "pid.2", "sock"] {
        assert!(!server.path(name).exists(), "{name} stays");
    }
}

#[test]
#[ignore = "slow"]
fn two_stopping_masters_do_not_deadlock() {
    let server = launch(&[PROGRAM], "mio").start();
    let mut busy = server.begin("/sleep?ms=10000");
    let new = upgrade(&server, server.pid);
    let mark = server.mark();
    server.signal(Signal::SIGTERM);
    server.wait_for_new_record(mark, "stopping", |record| record.message() == "stopping");
    kill(new, Signal::SIGTERM).unwrap();
    // Both were asked to stop. Clients that connect before the old master has noticed wait for the busy
    // worker.
    let is_exit = |record: &Record| record.message() == "new master exited";
    server.wait_for_new_record(mark, "the exit of the new master", is_exit);
    wait_until("the address is refused", || is_refused(server.address()));
    assert_eq!(server.exit(), None, "the old master still drains");
    assert_eq!(busy.answer().status(), 200);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

#[test]
fn path_taken_by_another_process_is_not_inherited() {
    let server = launch(&[PROGRAM], "sync").start();
    let path = server.path("sock");
    // A hard link keeps the server's inode in use, so that its number is not assigned again.
    fs::hard_link(&path, server.path("kept")).unwrap();
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let mark = server.mark();
    kill(server.pid, Signal::SIGUSR2).unwrap();
    let failed = server.wait_for_new_record(mark, "a failure", is_error);
    assert!(failed.message().starts_with("upgrade failed"), "{failed:?}");
    let error = failed.text("error").unwrap_or_default().to_owned();
    assert!(error.contains("another process is listening there"), "{failed:?}");
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    UnixStream::connect(&path).expect("the other process still listens");
    drop(other);
}
