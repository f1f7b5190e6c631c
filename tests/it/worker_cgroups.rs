//! A control group for each worker, if one is delegated to the master: no process that a worker has
//! started outlives it, in whatever session or group it is.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown};

use crate::cgroup::{Group, group_of};
use crate::launch::Launch;
use crate::log_capture::{Record, Worker};
use crate::proc::{is_gone, stat, wait_until};
use crate::support::{Exit, Server};

on_every_class!(
    each_worker_has_its_own_group,
    stray_ends_with_its_worker,
    stray_ends_with_recycled_worker,
    reload_leaves_no_process_behind,
    oom_kill_is_reported_in_worker_group,
    worker_frozen_in_its_group_is_left_alone,
);

/// Returns the path of a worker's group.
fn worker_cgroup(group: &Group, master: Pid, worker: Pid) -> PathBuf {
    group.path().join(format!("ostler-worker-{master}-{worker}"))
}

/// Returns the names of the groups that a master's ready workers should have.
fn worker_cgroups(server: &Server, workers: &[Worker]) -> Vec<String> {
    let name = |worker: &Worker| format!("ostler-worker-{}-{}", server.pid, worker.pid);
    let mut names: Vec<_> = workers.iter().map(name).collect();
    names.sort();
    names
}

fn delegated() -> Option<Group> {
    let can_stray = Command::new("setsid").arg("true").stderr(Stdio::null()).status();
    if !can_stray.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no program setsid");
        return None;
    }
    Group::for_a_server(true)
}

/// Makes a worker start a process that is in no process group or session of the worker.
#[track_caller]
fn stray(server: &Server) -> Pid {
    let stray = Pid::from_raw(server.get("/stray?s=1000").text().trim().parse().unwrap());
    wait_until("the stray is in its own session", || {
        stat(stray).is_some_and(|stat| stat.session == stray)
    });
    stray
}

#[track_caller]
fn wait_gone(group: &Group, server: &Server, worker: Pid, stray: Pid) {
    wait_until("the stray ends too", || is_gone(stray));
    let group_path = worker_cgroup(group, server.pid, worker);
    wait_until("the group is removed", || !group_path.exists());
}

/// Stops a server, and asserts that no group is left.
#[track_caller]
fn finish(group: &Group, server: Server) {
    server.finish();
    assert_eq!(group.inner(), [""; 0]);
}

fn each_worker_has_its_own_group(class: &str) {
    let Some(group) = delegated() else { return };
    let server = group.launch(&["-k", class, "-w", "3"]).start();
    let workers = server.wait_workers(3);
    assert_eq!(group.inner(), worker_cgroups(&server, &workers));
    for worker in &workers {
        let group_path = worker_cgroup(&group, server.pid, worker.pid);
        assert_eq!(group_of(worker.pid).file_name(), group_path.file_name());
    }
    assert_eq!(group_of(server.pid).file_name(), group.path().file_name());
    let [told] = &server.records_of("cgroup delegated")[..] else { panic!("once") };
    assert_eq!(told.text("path"), group.path().to_str());
    finish(&group, server);
}

fn stray_ends_with_its_worker(class: &str) {
    let Some(group) = delegated() else { return };
    let server = group.launch(&["-k", class]).start();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT] {
        let victim = server.wait_workers(1)[0];
        let stray = stray(&server);
        assert_eq!(group_of(stray), group_of(victim.pid));
        kill(victim.pid, signal).unwrap();
        wait_gone(&group, &server, victim.pid, stray);
        server.wait_replaced(victim);
    }
    let last = stray(&server);
    finish(&group, server);
    assert!(is_gone(last), "the stray has outlived the server");
}

fn stray_ends_with_recycled_worker(class: &str) {
    let Some(group) = delegated() else { return };
    let server = group.launch(&["-k", class, "--max-requests", "5"]).start();
    let victim = server.wait_workers(1)[0];
    let stray = stray(&server);
    let exited = server.serve_until("its end", |record| record.is("worker exited", victim.pid));
    assert_eq!(exited.text("reason"), Some("recycled"));
    wait_gone(&group, &server, victim.pid, stray);
    server.wait_replaced(victim);
    finish(&group, server);
}

fn reload_leaves_no_process_behind(class: &str) {
    let Some(group) = delegated() else { return };
    let server = group.launch(&["-k", class, "-w", "2"]).start();
    let victims = server.wait_workers(2);
    let stray = stray(&server);
    server.signal(Signal::SIGHUP);
    for victim in &victims {
        server.wait_exited(victim.pid);
    }
    wait_until("the stray ends too", || is_gone(stray));
    let workers = server.wait_workers(2);
    wait_until("there are groups for the new workers alone", || {
        group.inner() == worker_cgroups(&server, &workers)
    });
    finish(&group, server);
}

fn oom_kill_is_reported_in_worker_group(class: &str) {
    let Some(group) = delegated() else { return };
    // In hybrid mode, version 1 has the memory controller.
    let other = if group.bounds_memory() {
        None
    } else {
        let Some(other) = Group::new("memory") else { return };
        Some(other)
    };
    let server = group.launch(&["-k", class]).start();
    let mut victim = server.wait_workers(1)[0];
    if let Some(other) = &other {
        other.take(server.pid);
        kill(victim.pid, Signal::SIGKILL).unwrap();
        victim = server.wait_replaced(victim);
    }
    other.as_ref().unwrap_or(&group).limit_memory(64 << 20);
    assert!(worker_cgroup(&group, server.pid, victim.pid).exists());
    server.connect().ask("/leak?mb=200");
    let exited = server.wait_exited(victim.pid);
    assert_eq!(exited.text("reason"), Some("oom_killed"), "{exited:?}");
    victim = server.wait_replaced(victim);
    kill(victim.pid, Signal::SIGKILL).unwrap();
    assert_eq!(server.wait_exited(victim.pid).text("reason"), Some("crashed"));
    server.wait_replaced(victim);
    drop(other);
    finish(&group, server);
}

fn worker_frozen_in_its_group_is_left_alone(class: &str) {
    let Some(group) = delegated() else { return };
    let flags = ["-k", class, "-w", "2", "-t", "1s", "--abort-timeout", "500ms"];
    let server = group.launch(&flags).start();
    let victim = server.wait_workers(2)[0];
    let switch = worker_cgroup(&group, server.pid, victim.pid).join("cgroup.freeze");
    fs::write(&switch, "1").unwrap();
    let is_extended =
        |record: &Record| record.is("worker frozen or throttled, timeout extended", victim.pid);
    let extended = server.wait_for("the extension of its timeout", is_extended);
    assert_eq!(extended.text("cause"), Some("frozen"));
    fs::write(&switch, "0").unwrap();
    server.serve_for(Duration::from_millis(50));
    assert!(server.records_of("worker hung").is_empty());
    finish(&group, server);
}

/// A program that starts an orphaned process in a session of its own, and prints its pid.
const STRAYING: &str =
    "setsid sh -c 'sleep 1000 >/dev/null 2>&1 & echo stray=$!'\nexec sleep 1000\n";

fn launch_straying(group: &Group, flags: &[&str]) -> Launch {
    let launch = group.launch(&["-k", "exec", "--ready-after", "100ms", "-b", "none"]).unbound();
    fs::write(launch.path("script"), STRAYING).unwrap();
    flags.iter().fold(launch, |launch, flag| launch.arg(flag)).program(&["sh", "script"])
}

/// Returns the stray of a worker's program.
#[track_caller]
fn stray_of(server: &Server, worker: Pid) -> Pid {
    let number = |record: &Record| -> Option<i32> {
        let own = record.is("output", worker).then(|| record.text("line")).flatten()?;
        own.strip_prefix("stray=")?.parse().ok()
    };
    let record = server.wait_for("its stray", |record| number(record).is_some());
    Pid::from_raw(number(&record).unwrap())
}

#[test]
fn program_leaves_no_process_behind() {
    let Some(group) = delegated() else { return };
    let server = launch_straying(&group, &[]).start();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let victim = server.wait_workers(1)[0];
        let stray = stray_of(&server, victim.pid);
        assert!(stat(stray).is_some_and(|stat| stat.session != server.pid));
        kill(victim.pid, signal).unwrap();
        wait_gone(&group, &server, victim.pid, stray);
        server.wait_replaced(victim);
    }
    let victim = server.workers()[0];
    let last = stray_of(&server, victim.pid);
    server.signal(Signal::SIGQUIT);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    assert_eq!(group.inner(), [""; 0]);
    assert!(is_gone(last), "the stray has outlived the server");
}

#[test]
fn recycled_program_leaves_no_process_behind() {
    let Some(group) = delegated() else { return };
    let server = launch_straying(&group, &["--max-lifetime", "1s"]).start();
    let victim = server.wait_workers(1)[0];
    let stray = stray_of(&server, victim.pid);
    assert_eq!(server.wait_exited(victim.pid).text("reason"), Some("recycled"));
    wait_gone(&group, &server, victim.pid, stray);
    finish(&group, server);
}

#[test]
fn child_groups_of_a_worker_are_removed() {
    let Some(group) = delegated() else { return };
    let server = group.launch(&[]).start();
    let victim = server.wait_workers(1)[0];
    let stray = stray(&server);
    let group_path = worker_cgroup(&group, server.pid, victim.pid);
    fs::create_dir_all(group_path.join("empty/inner")).unwrap();
    fs::create_dir_all(group_path.join("a/b")).unwrap();
    fs::write(group_path.join("a/b/cgroup.procs"), stray.to_string()).unwrap();
    kill(victim.pid, Signal::SIGKILL).unwrap();
    wait_gone(&group, &server, victim.pid, stray);
    server.wait_replaced(victim);
    finish(&group, server);
}

/// Kills the worker, and asserts that the process it has started ends.
fn expect_no_stray(group: &Group, server: Server) {
    let victim = server.wait_workers(1)[0];
    let stray = stray(&server);
    assert_eq!(group_of(stray), group_of(victim.pid));
    kill(victim.pid, Signal::SIGKILL).unwrap();
    wait_gone(group, &server, victim.pid, stray);
    server.wait_replaced(victim);
    finish(group, server);
}

#[test]
fn workers_of_another_user_get_groups() {
    if !Uid::current().is_root() {
        eprintln!("skipped: only root can run workers as another user");
        return;
    }
    let Some(group) = delegated() else { return };
    let server = group.launch(&["--user", "65534", "--group", "65534"]).start();
    expect_no_stray(&group, server);
}

/// Returns the command prefix that runs a program without privileges. Returns `None` and prints the
/// reason if that fails.
fn unprivileged_prefix() -> Option<[&'static str; 6]> {
    let words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).args([env!("CARGO_BIN_EXE_ostler"), "--version"]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let can = status.is_ok_and(|status| status.success());
    if !can {
        eprintln!("skipped: no other user can run the program here");
    }
    can.then_some(words)
}

/// Changes the owner of the group's files, as a service manager does for a service with `User=`.
fn delegate(group: &Group) {
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        let path = group.path().join(name);
        chown(&path, Some(Uid::from_raw(65534)), Some(Gid::from_raw(65534))).unwrap();
    }
}

#[test]
fn unprivileged_master_uses_delegated_group() {
    let (Some(group), Some(words)) = (delegated(), unprivileged_prefix()) else { return };
    delegate(&group);
    let server = group.launch_by(&words, &[]).start();
    expect_no_stray(&group, server);
}

#[test]
fn unwritable_group_counts_as_not_delegated() {
    let (Some(group), Some(words)) = (delegated(), unprivileged_prefix()) else { return };
    let server = group.launch_by(&words, &[]).start();
    assert!(server.records_of("cgroup delegated").is_empty());
    assert!(server.records_of("failed to create worker cgroup").is_empty());
    finish(&group, server);
}

#[test]
fn next_master_kills_strays_of_killed_master() {
    let Some(group) = delegated() else { return };
    let first = group.launch(&["-w", "2"]).start();
    let stray = stray(&first);
    let groups = worker_cgroups(&first, &first.wait_workers(2));
    first.signal(Signal::SIGKILL);
    first.wait_exit();
    first.wait_no_survivors();
    assert_eq!(group.inner(), groups, "no master could have removed them");
    assert!(!is_gone(stray), "no master could have killed it");
    // Groups that are no worker's are left alone.
    let others = ["ostler-worker-7", "other"].map(|name| group.path().join(name));
    others.iter().for_each(|other| fs::create_dir(other).unwrap());
    let second = group.launch(&[]).start();
    wait_until("the stray ends", || is_gone(stray));
    for group_path in groups {
        wait_until("the group is removed", || !group.path().join(&group_path).exists());
    }
    assert!(others.iter().all(|other| other.exists()));
    others.iter().for_each(|other| fs::remove_dir(other).unwrap());
    finish(&group, second);
}

#[test]
#[ignore = "slow"]
fn next_master_lets_workers_of_killed_master_finish() {
    let Some(group) = delegated() else { return };
    let first = group.launch(&[]).start();
    let worker = first.wait_workers(1)[0];
    let mut client = first.begin("/sleep?ms=3000");
    first.signal(Signal::SIGKILL);
    first.wait_exit();
    let second = group.launch(&[]).start();
    assert_eq!(client.answer().status(), 200);
    let group_path = worker_cgroup(&group, first.pid, worker.pid);
    wait_until("the group is removed once its worker has exited", || !group_path.exists());
    finish(&group, second);
}

/// Upgrades to a second master. Returns it, and a stray of a worker of each.
#[track_caller]
fn upgrade(group: &Group, server: &Server) -> (Pid, [Pid; 2]) {
    let first = stray(server);
    kill(server.pid, Signal::SIGUSR2).unwrap();
    let ready = |record: &Record| record.message() == "new master ready";
    let new = server.wait_for("the new master is ready", ready).pid().unwrap();
    let prefix = format!("ostler-worker-{new}-");
    let is_of_new = |stray: Pid| {
        let group = group_of(stray);
        group.file_name().unwrap().to_str().unwrap().starts_with(&prefix)
    };
    assert!(!is_of_new(first) && group.inner().iter().any(|name| name.starts_with(&prefix)));
    let mut second = stray(server);
    wait_until("a worker of the new master has a stray", || {
        let found = is_of_new(second);
        if !found {
            second = stray(server);
        }
        found
    });
    (new, [first, second])
}

/// Stops the remaining master, and asserts that no group is left.
#[track_caller]
fn finish_upgraded(group: &Group, server: &Server, new: Pid, stray: Pid) {
    assert!(!is_gone(stray), "the stray of the other master is gone");
    kill(new, Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
    assert_eq!(group.inner(), [""; 0]);
    assert!(is_gone(stray), "the stray has outlived the server");
}

#[test]
fn upgrade_masters_leave_each_other_groups_alone() {
    let Some(group) = delegated() else { return };
    let server = group.launch(&[]).start();
    let victim = server.wait_workers(1)[0];
    let (new, [first, second]) = upgrade(&group, &server);
    assert!(!is_gone(first) && !is_gone(second));
    let group_path = worker_cgroup(&group, server.pid, victim.pid);
    assert!(group_path.exists(), "the new master has removed it");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    assert!(is_gone(first) && !group_path.exists());
    server.wait_for("promotion", |record| record.is("upgrade complete", new));
    finish_upgraded(&group, &server, new, second);
}

#[test]
fn master_kills_strays_of_dead_upgrade_peer() {
    let Some(group) = delegated() else { return };
    let server = group.launch(&[]).start();
    let victim = server.wait_workers(1)[0];
    let (new, [first, second]) = upgrade(&group, &server);
    server.signal(Signal::SIGKILL);
    server.wait_for("promotion", |record| record.is("upgrade complete", new));
    wait_until("the stray ends too", || is_gone(first));
    let group_path = worker_cgroup(&group, server.pid, victim.pid);
    wait_until("the group is removed", || !group_path.exists());
    finish_upgraded(&group, &server, new, second);
}

#[test]
fn master_serves_if_groups_cannot_be_created() {
    let Some(group) = delegated() else { return };
    fs::write(group.path().join("cgroup.max.descendants"), "1").unwrap();
    let server = group.launch(&["-w", "2"]).start();
    server.wait_workers(2);
    let warnings = server.records_of("failed to create worker cgroup");
    let [warning] = &warnings[..] else { panic!("one of two: {warnings:#?}") };
    assert_eq!(warning.text("level"), Some("WARNING"));
    assert!(warning.text("error").is_some_and(|error| !error.is_empty()));
    assert_eq!(group.inner().len(), 1);
    server.serve_for(Duration::from_millis(50));
    finish(&group, server);
}

#[test]
fn undelegated_group_stays_unchanged() {
    let Some(group) = Group::for_a_server(false) else { return };
    let server = group.launch(&["-w", "2"]).start();
    let victim = server.wait_workers(2)[0];
    assert_eq!(group.inner(), [""; 0]);
    assert_eq!(group_of(victim.pid), group_of(server.pid));
    kill(victim.pid, Signal::SIGKILL).unwrap();
    server.wait_replaced(victim);
    assert_eq!(group.inner(), [""; 0]);
    assert!(server.records_of("cgroup delegated").is_empty());
    finish(&group, server);
}

#[test]
fn groups_of_several_pools_are_distinct() {
    let Some(group) = delegated() else { return };
    let launch = group.launch(&[]).unbound();
    let path = launch.path("settings.yaml");
    let text = "pools:\n  a:\n    worker_class: mio\n    bind: unix:a.sock\n  b:\n    worker_class: \
                exec\n    bind: []\n    ready_after: 100ms\n    command: [sh, script]\n";
    fs::write(&path, text).unwrap();
    fs::write(launch.path("script"), STRAYING).unwrap();
    let server = launch.arg("--config").arg(&path).start();
    let started = server.records_of("worker started");
    let program = started.iter().find(|record| record.text("pool") == Some("b")).unwrap();
    let victim = program.pid().unwrap();
    let stray = stray_of(&server, victim);
    assert_eq!(group.inner().len(), 2);
    kill(victim, Signal::SIGKILL).unwrap();
    wait_gone(&group, &server, victim, stray);
    finish(&group, server);
}
