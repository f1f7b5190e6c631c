//! Jobs: loops without a socket are supervised like any worker, and a class without jobs rejects
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use chrono::{Datelike, TimeDelta, Utc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launch::{Launch, wait_free};
use crate::log_capture::Record;
use crate::proc::{descriptors_to, wait_until};
use crate::recycling::expect_never_fewer_than;
use crate::support::{Exit, Server};

on_job_classes!(
    runs_happen_in_each_thread_and_are_counted,
    hung_run_is_logged_with_label,
    sleeping_job_is_left_alone,
    panicking_job_continues_after_pause,
    recycling_by_runs_never_lacks_workers,
    draining_worker_finishes_its_run,
    sleeping_job_drains_at_once,
    run_beyond_graceful_timeout_is_killed,
    quick_stop_ends_job_at_once,
    reload_replaces_job,
    killed_worker_job_is_restarted,
    killed_master_job_exits,
    cron_schedule_is_kept,
);

mod slow {
    use super::{
        dates_are_kept_when_summer_time_ends, missing_wall_timer_falls_back_to_a_deadline,
    };
    on_slow_class!(sync: dates_are_kept_when_summer_time_ends, missing_wall_timer_falls_back_to_a_deadline);
    on_slow_class!(threads: dates_are_kept_when_summer_time_ends, missing_wall_timer_falls_back_to_a_deadline);
}

/// Prepares a server of `tick`, which shows its runs in the log only.
fn launch(class: &str, flags: &[&str], options: &[&str]) -> Launch {
    let launch = Launch::new(&["-k", class, "--threads", "2"]).unbound();
    let words = flags.iter().chain(&["tick"]).chain(options);
    words.fold(launch, |launch, word| launch.arg(word))
}

fn start(class: &str, flags: &[&str], options: &[&str]) -> Server {
    launch(class, flags, options).start()
}

fn is_tick(record: &Record) -> bool {
    record.message() == "tick"
}

/// Returns the worker whose run is the first in the log after a mark.
#[track_caller]
fn ticking(server: &Server, mark: usize) -> Pid {
    server.wait_for_new_record(mark, "a run", is_tick).pid().unwrap()
}

fn threads_of(class: &str) -> i64 {
    if class == "threads" { 2 } else { 1 }
}

fn runs_happen_in_each_thread_and_are_counted(class: &str) {
    let mut server = start(class, &["-w", "2"], &["every=50ms"]);
    for worker in server.wait_workers(2) {
        assert!(descriptors_to(worker.pid, "socket:").is_empty(), "a job has no listener");
        for thread in 0..threads_of(class) {
            let is_its =
                |r: &Record| r.is("tick", worker.pid) && r.number("thread_index") == Some(thread);
            wait_until("a few runs", || server.records().iter().filter(|r| is_its(r)).count() >= 3);
        }
    }
    assert!(server.records_of("listening").is_empty());
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    let mut runs = BTreeMap::new();
    for tick in server.records_of("tick") {
        *runs.entry(tick.pid().unwrap().as_raw()).or_insert(0) += 1;
    }
    for exited in server.records_of("worker exited") {
        assert_eq!(exited.number("units"), runs.remove(&exited.pid().unwrap().as_raw()));
    }
    assert!(runs.is_empty(), "{runs:?}");
}

fn hung_run_is_logged_with_label(class: &str) {
    let flags = ["-t", "1s", "--abort-timeout", "300ms", "--graceful-timeout", "5s"];
    let server = start(class, &flags, &["every=100ms", "hang_on=4"]);
    let victim = server.wait_workers(1)[0];
    let hung = server.wait_for("the hang", |record| record.is("worker hung", victim.pid));
    assert_eq!(hung.text("work"), Some("tick 4"), "{hung:?}");
    let exited = server.wait_exited(victim.pid);
    assert_eq!(exited.text("reason"), Some("hung"), "{exited:?}");
    assert!(matches!(exited.text("signal"), Some("SIGABRT" | "SIGKILL")), "{exited:?}");
    server.wait_replaced(victim);
}

fn sleeping_job_is_left_alone(class: &str) {
    let server = start(class, &["-t", "1s"], &["every=1h"]);
    ticking(&server, 0);
    assert!(!server.sees_record(Duration::from_secs(3), |r| r.message() == "worker hung"));
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

fn panicking_job_continues_after_pause(class: &str) {
    let mut server = start(class, &[], &["every=10ms", "panic_on=1"]);
    let worker = server.wait_workers(1)[0];
    let panic = server.wait_for("the panic", |record| record.message() == "worker panicked");
    assert!(panic.text("error").unwrap_or_default().contains("panic_on=1"), "{panic:?}");
    let is_pause = |record: &Record| record.message() == "job paused after panic";
    let pause = server.wait_for("the pause", is_pause);
    assert_eq!((pause.number("pause_ms"), pause.number("consecutive")), (Some(100), Some(1)));
    let thread_index = pause.number("thread_index");
    let is_next = |r: &Record| r.is("tick", worker.pid) && r.number("thread_index") == thread_index;
    let next = server.wait_for_new_record(server.mark(), "the next run", is_next);
    assert!(next.number("run") > Some(1));
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    let exited = server.wait_exited(worker.pid);
    assert_eq!(exited.number("units"), Some(server.records_of("tick").len() as i64));
}

fn recycling_by_runs_never_lacks_workers(class: &str) {
    let server = start(class, &["-w", "2", "--max-requests", "5"], &["every=20ms"]);
    let ends = || server.records_of("worker exited");
    wait_until("six workers have been recycled", || ends().len() >= 6);
    for exited in ends() {
        assert_eq!(exited.text("reason"), Some("recycled"), "{exited:?}");
        assert_eq!(exited.number("code"), Some(0), "{exited:?}");
        assert!(exited.number("units") >= Some(5), "{exited:?}");
    }
    expect_never_fewer_than(&server, 2);
    server.finish();
}

fn draining_worker_finishes_its_run(class: &str) {
    let mut server = start(class, &[], &["every=1h", "work_ms=1000"]);
    let worker = ticking(&server, 0);
    let runs = server.records_of("tick").len();
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    let ends = server.records_of("tick finished");
    assert!(ends.len() >= runs, "{runs} runs, {} ends", ends.len());
    assert_eq!(ends[0].pid(), Some(worker));
    assert_eq!(server.wait_exited(worker).text("reason"), Some("requested"));
}

fn sleeping_job_drains_at_once(class: &str) {
    // A worker that slept on would be cut off after an hour, longer than the test waits.
    let server = start(class, &["--graceful-timeout", "1h"], &["every=1h"]);
    let worker = server.wait_workers(1)[0];
    let ticks = threads_of(class) as usize;
    wait_until("each thread has run", || server.records_of("tick").len() == ticks);
    kill(worker.pid, Signal::SIGTERM).unwrap();
    assert_eq!(server.wait_exited(worker.pid).number("code"), Some(0));
    server.wait_replaced(worker);
    server.finish();
}

fn run_beyond_graceful_timeout_is_killed(class: &str) {
    let server = start(class, &["--graceful-timeout", "500ms"], &["hang_on=1"]);
    let worker = ticking(&server, 0);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    let exited = server.wait_exited(worker);
    assert_eq!(exited.text("signal"), Some("SIGKILL"), "{exited:?}");
    server.wait_no_survivors();
}

fn quick_stop_ends_job_at_once(class: &str) {
    let flags = ["--graceful-timeout", "1h", "--abort-timeout", "300ms"];
    let server = start(class, &flags, &["hang_on=1"]);
    ticking(&server, 0);
    server.signal(Signal::SIGINT);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    server.wait_no_survivors();
}

fn reload_replaces_job(class: &str) {
    let server = start(class, &["-w", "2"], &["every=20ms"]);
    let old = server.wait_workers(2);
    server.signal(Signal::SIGHUP);
    server.wait_for("the reload", |record| record.message() == "reload complete");
    for worker in old {
        let exited = server.wait_exited(worker.pid);
        assert_eq!((exited.text("reason"), exited.number("code")), (Some("reload"), Some(0)));
    }
    let mark = server.mark();
    for worker in server.wait_workers(2) {
        server.wait_for_new_record(mark, "its run", |record| record.is("tick", worker.pid));
    }
    expect_never_fewer_than(&server, 2);
    server.finish();
}

fn killed_worker_job_is_restarted(class: &str) {
    let server = start(class, &[], &["every=1h"]);
    let victim = server.wait_workers(1)[0];
    ticking(&server, 0);
    kill(victim.pid, Signal::SIGKILL).unwrap();
    let replacement = server.wait_replaced(victim);
    server.wait_for("its run", |record| record.is("tick", replacement.pid));
    server.finish();
}

fn killed_master_job_exits(class: &str) {
    let server = start(class, &["--graceful-timeout", "1h"], &["every=1h"]);
    ticking(&server, 0);
    server.signal(Signal::SIGKILL);
    server.wait_no_survivors();
    // A worker finishes its run first.
    let server = start(class, &[], &["every=1h", "work_ms=1500"]);
    let worker = ticking(&server, 0);
    server.signal(Signal::SIGKILL);
    server.wait_for("its end", |record| record.is("tick finished", worker));
    server.wait_no_survivors();
}

fn cron_schedule_is_kept(class: &str) {
    let server = start(class, &["-t", "1s"], &["cron=* * * * * *"]);
    let worker = ticking(&server, 0);
    let runs = 3 * threads_of(class) as usize;
    wait_until("each thread's third date", || server.records_of("tick").len() >= runs);
    assert!(server.records_of("tick").iter().all(|tick| tick.pid() == Some(worker)));
    server.finish();
}

fn dates_are_kept_when_summer_time_ends(class: &str) {
    let change = Utc::now() + TimeDelta::seconds(4);
    // Summer time is one hour ahead of UTC. Its last day is counted from 0 and includes 29 February.
    let local = change + TimeDelta::hours(1);
    let zone = format!("WIN0SUM,0/0,{}/{}", local.ordinal0(), local.format("%H:%M:%S"));
    let server = launch(class, &[], &["cron=* * * * * *"]).env("TZ", zone).start();
    ticking(&server, 0);
    let behind = change + TimeDelta::seconds(2);
    wait_until("the change", || Utc::now() > behind);
    let mark = server.records().len();
    let runs = 3 * threads_of(class) as usize;
    wait_until("dates behind the change", || {
        server.records()[mark..].iter().filter(|record| is_tick(record)).count() >= runs
    });
    let ticks = server.records_of("tick").len() as i64;
    let seconds = (Utc::now() - change).num_seconds() + 4;
    assert!(ticks <= (seconds + 2) * threads_of(class), "{ticks} in {seconds} s");
    server.finish();
}

/// A filter of system calls may not know timerfd_create(2).
fn missing_wall_timer_falls_back_to_a_deadline(class: &str) {
    let launch = Launch::new(&["-k", class, "--threads", "1", "tick", "cron=* * * * * *"]);
    let server = launch.unbound().without_call(libc::SYS_timerfd_create).start();
    let is_warning =
        |record: &Record| record.message().starts_with("failed to set wall-clock timer");
    let warning = server.wait_for("a warning", is_warning);
    let worker = ticking(&server, 0);
    wait_until("a few dates", || server.records_of("tick").len() >= 4);
    assert!(descriptors_to(worker, "timerfd").is_empty());
    assert_eq!(server.records_of(warning.message()).len(), 1, "once");
    server.finish();
}

#[test]
#[ignore = "slow"]
fn hung_run_does_not_end_runs_of_other_threads() {
    let flags = ["-t", "4s", "--abort-timeout", "300ms", "--graceful-timeout", "20s"];
    // When one run has hung for `timeout`, the other thread is in the middle of its second run.
    let server = start("threads", &flags, &["every=1ms", "work_ms=2600", "hang_on=1"]);
    let victim = server.wait_workers(1)[0];
    server.wait_for("the hang", |record| record.is("worker hung", victim.pid));
    let exited = server.wait_exited(victim.pid);
    assert_eq!(exited.text("reason"), Some("hung"), "{exited:?}");
    expect_never_fewer_than(&server, 1);
    let runs = |message| server.records().iter().filter(|r| r.is(message, victim.pid)).count();
    assert_eq!(runs("tick finished"), 2);
    assert_eq!(runs("tick"), 3, "the one that hangs has not ended, and no other has begun");
}

const MIO: &str = "--worker-class: \"mio\" does not run jobs, and app \"tick\" is a job; \
    available: sync, threads";

#[test]
fn class_without_jobs_is_rejected() {
    let outcome = launch("mio", &[], &[]).run();
    assert_eq!((outcome.exit, outcome.stdout.as_str()), (Exit::Code(1), ""));
    assert_eq!(outcome.stderr, format!("ostler: {MIO}"));
    let outcome = launch("mio", &["--check-config"], &[]).run();
    assert_eq!(outcome.exit, Exit::Code(1));
    assert_eq!(outcome.stderr, format!("ostler: {MIO}"));
}

#[test]
fn reload_to_class_without_jobs_changes_nothing() {
    let launch = Launch::new(&[]).unbound();
    let path = launch.path("settings.yaml");
    fs::write(&path, "app:\n  name: tick\n  every: 20ms\n").unwrap();
    let server = launch.arg("--config").arg(&path).start();
    let worker = server.wait_workers(1)[0];
    for (text, why) in [
        (
            "worker_class: mio\napp: tick\n",
            "settings.yaml:1: worker_class: \"mio\" does not run jobs",
        ),
        ("app: tick\n\nbind: ':1'\n", "settings.yaml:3: bind: app \"tick\" is a job"),
        ("app:\n  name: tick\n  cron: hourly\n", "settings.yaml:3: app.cron: \"hourly\" is not"),
    ] {
        let mark = server.mark();
        fs::write(&path, text).unwrap();
        server.signal(Signal::SIGHUP);
        let is_rejection = |record: &Record| record.message() == "reload rejected";
        let refused = server.wait_for_new_record(mark, "the rejection", is_rejection);
        assert!(refused.text("error").unwrap_or_default().contains(why), "{refused:?}");
        let mark = server.mark();
        assert_eq!(ticking(&server, mark), worker.pid);
    }
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

#[test]
fn reload_switches_from_clients_to_job_and_back() {
    let launch = Launch::new(&[]).unbound();
    let (path, port) = (launch.path("settings.yaml"), launch.port());
    let clients = format!("bind: 127.0.0.1:{port}\n");
    fs::write(&path, &clients).unwrap();
    let server = launch.arg("--config").arg(&path).start();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    for _ in 0..2 {
        let mark = server.mark();
        fs::write(&path, "app: {name: tick, every: 20ms}\n").unwrap();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "the reload", |record| {
            record.message() == "reload complete"
        });
        ticking(&server, mark);
        assert!(server.try_get("/").is_err(), "no listener is left");
        wait_free(SocketAddr::from((Ipv4Addr::LOCALHOST, port))); // the old worker has drained
        let mark = server.mark();
        fs::write(&path, &clients).unwrap();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "the reload", |record| {
            record.message() == "reload complete"
        });
        assert_eq!(server.get("/").text(), "Hello, world!\n");
    }
    server.finish();
}

#[test]
fn invalid_job_option_is_rejected_with_source() {
    for (options, why) in [
        (&["every=0"][..], "APP: every: \"0\" is too short: the minimum is 1ms"),
        (&["cron=61 * * * *"], "APP: cron: \"61 * * * *\" is not a cron expression ("),
        (
            &["cron=@daily", "every=1s"],
            "APP: cron: a job has one schedule: give either every or cron",
        ),
        (&["work_ms=-1"], "APP: work_ms: \"-1\" is not a whole number"),
        (
            &["evry=1s"],
            "APP: evry: app \"tick\" does not have this option; available: every, cron, ",
        ),
    ] {
        let outcome = launch("sync", &[], options).run();
        assert_eq!(outcome.exit, Exit::Code(1), "{options:?}");
        assert!(outcome.stderr.starts_with(&format!("ostler: {why}")), "{}", outcome.stderr);
    }
    for (text, why) in [
        (
            "app:\n  name: tick\n  cron: '0 0 31 2 *'\n",
            "3: app.cron: \"0 0 31 2 *\" matches no date",
        ),
        ("app:\n  name: tick\n\n  every: soon\n", "4: app.every: \"soon\" is not a duration"),
        (
            "app: tick\nbind: ':1'\n",
            "2: bind: app \"tick\" is a job and does not listen: remove bind",
        ),
        ("app: demo\nbind: []\n", "2: bind: is empty, but worker class sync serves clients"),
    ] {
        let launch = Launch::new(&["--check-config"]).unbound();
        let path = launch.path("x.yaml");
        fs::write(&path, text).unwrap();
        let outcome = launch.arg("-c").arg(&path).run();
        assert_eq!(outcome.exit, Exit::Code(1), "{text}");
        assert!(outcome.stderr.starts_with(&format!("ostler: {path}:{why}")), "{}", outcome.stderr);
    }
}

#[test]
fn printed_job_config_has_no_listener_and_loads() {
    let outcome = launch("threads", &["--print-config"], &["cron=*/5 * * * *"]).run();
    assert_eq!(outcome.exit, Exit::Code(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("\nbind: []  # default\n"), "{}", outcome.stdout);
    let launch = Launch::new(&["--check-config"]).unbound();
    let path = launch.path("x.yaml");
    fs::write(&path, &outcome.stdout).unwrap();
    let outcome = launch.arg("-c").arg(&path).run();
    assert_eq!(outcome.exit, Exit::Code(0), "{}", outcome.stderr);
}
