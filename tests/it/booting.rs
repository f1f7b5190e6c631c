//! Workers that fail to boot, boot slowly, or exit soon after.

use std::time::{Duration, Instant};

use crate::launch::Launch;
use crate::log_capture::Record;
use crate::support::{DEADLINE, Exit, Server};

/// How long all slots of a pool may wait at once, if it has served.
const OUTAGE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

on_every_class_and_tokio!(
    pool_never_ready_stops_the_master,
    worker_slow_boot_within_timeout_is_left_alone,
    crash_before_serving_backs_off,
    ; except tokio:
    panic_during_boot_is_in_exit_record_and_last_words,
    poison_requests_restart_workers_at_once,
    crashes_beyond_restart_limit_wait_but_one_slot_is_tried,
);

fn pool_never_ready_stops_the_master(class: &str) {
    let launch = Launch::new(&["-k", class, "-w", "2"]).env("DEMO_FAIL_BOOT", "1");
    let (pidfile, sock) = (launch.path("pid"), launch.path("sock"));
    let bind = format!("unix:{sock}");
    let begun = Instant::now();
    let server = launch.arg("-p").arg(pidfile).arg("-b").arg(bind).spawn();
    assert_eq!(server.wait_exit_within(Duration::from_secs(15)), Some(Exit::Code(3)));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    server.wait_silence();
    let exited = server.records_of("worker exited");
    assert!(!exited.is_empty());
    for record in exited {
        assert_eq!(record.text("reason"), Some("boot_failed"), "{record:?}");
    }
    assert!(server.records_of("worker ready").is_empty());
    assert!(server.records_of("all workers ready").is_empty());
    assert!(!server.path("pid").exists());
    assert!(!server.path("sock").exists());
    server.wait_no_survivors();
}

fn worker_slow_boot_within_timeout_is_left_alone(class: &str) {
    let flags = ["-k", class, "-t", "1s", "--boot-timeout", "15s"];
    let server = Launch::new(&flags).env("DEMO_BOOT_SLEEP_MS", "2000").start();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert!(server.records_of("worker hung").is_empty());
    assert!(server.records_of("worker exited").is_empty());
    server.finish();
}

/// Returns the delay of a restart, from the record of the exit.
#[track_caller]
fn restart_in(exited: &Record) -> Duration {
    assert_eq!(exited.text("reason"), Some("crashed"), "{exited:?}");
    Duration::from_millis(exited.number("restart_in_ms").unwrap().try_into().unwrap())
}

fn crash_before_serving_backs_off(class: &str) {
    let server = Launch::new(&["-k", class]).env("DEMO_EXIT_AFTER_MS", "100").start();
    let end = server.wait_exit_within(Duration::from_secs(4));
    assert_eq!(end, None, "a server that was ready once never gives up");
    let started = server.records_of("worker started").len();
    assert!((2..=20).contains(&started), "{started} workers in four seconds");
    // On a busy machine, a worker may exit so late that it counts as having served.
    let mut exits = server.records_of("worker exited");
    exits.retain(|exited| exited.number("uptime_ms") < Some(1000));
    assert!(!exits.is_empty());
    for exited in exits {
        let delay = restart_in(&exited);
        assert!(Duration::ZERO < delay && delay <= OUTAGE_RETRY_INTERVAL, "{exited:?}");
        assert_eq!(exited.number("code"), Some(7), "{exited:?}");
    }
    server.finish();
}

fn poison_requests_restart_workers_at_once(class: &str) {
    let server = Server::start(&["-k", class, "-w", "2"]);
    let mut poison: Vec<_> = (0..40).map(|_| server.connect()).collect();
    poison.iter_mut().for_each(|client| client.ask("/crash"));
    drop(poison);
    let end = Instant::now() + 3 * DEADLINE;
    let mut answers = 0;
    while answers < 10 {
        assert!(Instant::now() < end, "not served: {:?}", server.records_of("worker exited").len());
        answers = if server.try_get("/").is_ok() { answers + 1 } else { 0 };
    }
    let exits = server.records_of("worker exited");
    assert!(!exits.is_empty());
    for exited in exits {
        assert_eq!(restart_in(&exited), Duration::ZERO, "{exited:?}");
    }
    server.wait_workers(2);
    server.finish();
}

fn crashes_beyond_restart_limit_wait_but_one_slot_is_tried(class: &str) {
    let flags = ["-w", "2", "--restart-limit", "3", "--restart-interval", "1h"];
    let server = Server::start(&[&["-k", class][..], &flags].concat());
    let crash = || {
        let mark = server.mark();
        server.connect().ask("/crash");
        let is_exit = |record: &Record| record.message() == "worker exited";
        restart_in(&server.wait_for_new_record(mark, "a crash", is_exit))
    };
    for _ in 0..3 {
        server.wait_workers(2);
        assert_eq!(crash(), Duration::ZERO);
    }
    server.wait_workers(2);
    assert!(crash() > DEADLINE, "the other worker serves meanwhile");
    for _ in 0..3 {
        server.get("/");
        crash();
    }
    // No longer than a client waits.
    server.get("/");
    server.finish();
}

#[test]
fn class_error_is_in_exit_record_and_last_words() {
    let Some(program) = crate::example::example("queue_consumer") else { return };
    // The folder is relative, and the worker changes its directory.
    let flags = ["-k", "queue", "--chdir", "/", "--boot-retries", "0"];
    let launch = Launch::by(&[program.to_str().unwrap()], &flags).unbound();
    std::fs::create_dir(launch.path("items")).unwrap();
    let server = launch.env("QUEUE", "items").spawn();
    assert_eq!(server.wait_exit(), Exit::Code(3));
    server.wait_silence();
    for message in ["worker class failed", "worker exited", "giving up: no worker became ready"] {
        let records = server.records_of(message);
        let reason = records.first().and_then(|record| record.text("error")).unwrap_or_default();
        assert!(reason.contains("No such file"), "{message}: {:#?}", server.lines());
    }
    let last = server.lines().pop().unwrap_or_default();
    assert!(
        last.starts_with("queue_consumer: giving up") && last.contains("No such file"),
        "{last}"
    );
}

#[test]
fn panic_in_run_is_in_exit_record_and_last_words() {
    let Some(program) = crate::example::example("broken_class") else { return };
    let launch = |class| Launch::by(&[program.to_str().unwrap()], &["-k", class]);
    let server = launch("panics").arg("--boot-retries").arg("0").spawn();
    assert_eq!(server.wait_exit(), Exit::Code(3));
    server.wait_silence();
    let reason = "worker class panicked: the class panics (";
    for message in ["worker exited", "giving up: no worker became ready"] {
        let records = server.records_of(message);
        let said = records.first().and_then(|record| record.text("error")).unwrap_or_default();
        assert!(said.contains(reason), "{message}: {:#?}", server.lines());
    }
    let last = server.lines().pop().unwrap_or_default();
    assert!(last.starts_with("broken_class: giving up") && last.contains(reason), "{last}");

    let server = launch("panics-later").start();
    let exited = server.wait_for("the exit", |record| record.message() == "worker exited");
    let said = exited.text("error").unwrap_or_default();
    assert!(said.contains("worker class panicked: the class panics later ("), "{exited:?}");
    server.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
}

#[test]
fn program_with_own_class_serves_no_demo_without_flags() {
    let Some(program) = crate::example::example("queue_consumer") else { return };
    let launch = |flags: &[&str]| {
        let launch = Launch::by(&[program.to_str().unwrap()], flags).unbound();
        let dir = launch.path("");
        launch.env("QUEUE", dir)
    };
    let server = launch(&[]).start();
    let started = &server.records_of("master started")[0];
    assert_eq!((started.text("app"), started.text("class")), (Some("none"), Some("queue")));
    assert!(server.records_of("listening").is_empty());
    assert!(server.records_of("serving the built-in demo app").is_empty());
    server.finish();
    for (flags, reason) in [
        (&["-k", "mio"][..], "app: this program has no app: choose a worker class that needs none"),
        (&["demo"], "APP: worker class queue serves no app: remove \"demo\""),
    ] {
        let outcome = launch(flags).plain().run();
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        assert!(outcome.stderr.contains(reason), "{outcome:?}");
    }
}

#[test]
fn demo_that_nothing_names_is_served_with_a_warning() {
    for (launch, expected) in [
        (Launch::new(&[]), 1),
        (Launch::new(&["demo"]), 0),
        (Launch::new(&[]).env("OSTLER_APP", "demo"), 0),
        (Launch::new(&["echo"]), 0),
    ] {
        let server = launch.start();
        let warnings = server.records_of("serving the built-in demo app");
        assert_eq!(warnings.len(), expected, "{:#?}", server.lines());
        assert!(warnings.iter().all(|warning| warning.text("level") == Some("WARNING")));
        server.finish();
    }
}

fn panic_during_boot_is_in_exit_record_and_last_words(class: &str) {
    let launch = Launch::new(&["-k", class, "--boot-retries", "0"]);
    let server = launch.env("DEMO_FAIL_BOOT", "panic").spawn();
    assert_eq!(server.wait_exit(), Exit::Code(3));
    server.wait_silence();
    let reason = "app panicked during boot: DEMO_FAIL_BOOT is set (";
    for message in ["worker failed to boot", "worker exited", "giving up: no worker became ready"] {
        let records = server.records_of(message);
        let said = records.first().and_then(|record| record.text("error")).unwrap_or_default();
        assert!(said.contains(reason), "{message}: {:#?}", server.lines());
    }
    assert!(server.lines().pop().unwrap_or_default().contains(reason), "{:#?}", server.lines());
}
