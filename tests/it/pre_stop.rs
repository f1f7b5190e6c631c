//! `pre_stop`: after SIGTERM clients are still accepted for a time, while `/readyz` fails.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::control::Controlled;
use crate::launch::Launch;
use crate::support::Exit;
use crate::systemd::{FakeManager, Notification};

on_every_class_and_tokio!(
    clients_are_accepted_until_a_second_term,
    int_ends_requests_during_pre_stop,
);

/// Longer than any test waits.
const LONG: [&str; 2] = ["--pre-stop", "10m"];

fn start(flags: &[&str]) -> Controlled {
    Controlled::start(&[flags, &LONG].concat())
}

/// Sends SIGTERM, and waits until it has been taken as the beginning of the delay.
#[track_caller]
fn term(it: &Controlled) {
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the delay", |record| record.message() == "pre-stop started");
}

fn clients_are_accepted_until_a_second_term(class: &str) {
    let mut it = start(&["-k", class, "-w", "2"]);
    assert_eq!(it.ask_metrics("/readyz", &[]).status(), 200);
    let mut kept = it.server.connect();
    kept.get("/");
    term(&it);
    let answer = it.ask_metrics("/readyz", &[]);
    let reason = b"stopping soon, still accepting (pre_stop)\n";
    assert_eq!((answer.status(), &answer.body[..]), (503, &reason[..]));
    assert_eq!(it.ask_metrics("/healthz", &[]).status(), 200);
    assert_eq!(it.status()["phase"], "pre_stop");
    assert_eq!(it.status()["ready"], false);
    for _ in 0..20 {
        assert_eq!(it.server.get("/").text(), "Hello, world!\n");
    }
    // Without KillMode=mixed, systemd sends SIGTERM to workers too.
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let victim = it.server.wait_workers(2)[0];
        kill(victim.pid, signal).unwrap();
        it.server.wait_replaced(victim);
        assert_eq!(it.server.get("/").text(), "Hello, world!\n");
    }
    let mut busy = it.server.begin("/sleep?ms=700");
    assert!(it.server.records_of("stopping").is_empty());
    it.server.signal(Signal::SIGTERM);
    let stopping = it.server.wait_for("the stop", |record| record.message() == "stopping");
    assert_eq!(stopping.text("mode"), Some("graceful"));
    assert_eq!(busy.answer().status(), 200);
    it.server.expect_clean_exit();
    assert_eq!(it.server.records_of("pre-stop started").len(), 1);
}

fn int_ends_requests_during_pre_stop(class: &str) {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let mut it = start(&["-k", class]);
        let mut client = it.server.begin("/sleep?ms=600000");
        term(&it);
        it.server.signal(signal);
        it.server.expect_clean_exit();
        client.expect_end();
        assert_eq!(it.server.records_of("stopping")[0].text("mode"), Some("quick"));
    }
}

#[test]
fn pre_stop_ends_by_itself_and_loses_nothing() {
    let mut it = Controlled::start(&["-k", "mio", "-w", "2", "--pre-stop", "700ms"]);
    let begun = Instant::now();
    term(&it);
    it.server.serve_until("the stop", |record| record.message() == "stopping");
    assert!(begun.elapsed() >= Duration::from_millis(700));
    let stopping = it.server.records_of("stopping").remove(0);
    assert_eq!(stopping.text("by"), Some("signal SIGTERM"));
    it.server.expect_clean_exit();
}

#[test]
fn service_that_was_never_ready_stops_at_once() {
    let launch = Launch::new(&LONG).env("DEMO_BOOT_SLEEP_MS", "600000");
    let mut server = launch.spawn();
    server.wait_for("a worker", |record| record.message() == "worker started");
    server.signal(Signal::SIGTERM);
    server.expect_clean_exit();
    assert!(server.records_of("pre-stop started").is_empty());
}

#[test]
fn stop_command_is_delayed_and_stop_now_is_not() {
    let mut it = start(&["-k", "mio"]);
    let (status, operation) = it.post("/v1/stop?wait=0");
    assert_eq!((status, &operation["progress"]["phase"]), (202, &"pre_stop".into()));
    it.server.wait_for("the delay", |record| record.message() == "pre-stop started");
    for target in ["/v1/reload", "/v1/scale?workers=3", "/v1/recycle", "/v1/upgrade"] {
        assert!(it.refusal(target, 409).contains("stopping"), "{target}");
    }
    assert_eq!(it.server.get("/").status(), 200);
    let (status, second) = it.post("/v1/stop?now=1");
    assert_eq!((status, &second["id"]), (200, &operation["id"]), "{second}");
    it.server.expect_clean_exit();

    let mut it = start(&["-k", "mio"]);
    assert_eq!(it.post("/v1/stop?now=1").0, 200);
    it.server.expect_clean_exit();
    assert!(it.server.records_of("pre-stop started").is_empty());
}

/// The manager learns at once that the service stops, and how long that may take; nothing makes it ready
/// again, not even a reload that ends meanwhile.
#[test]
fn service_manager_is_told_when_the_delay_begins() {
    let manager = FakeManager::new();
    let flags = ["-k", "mio", "-w", "2", "--pre-stop", "10m", "--graceful-timeout", "20s"];
    let launch = Launch::new(&flags).env("NOTIFY_SOCKET", &manager.name);
    let it = Controlled::of(launch.env("DEMO_BOOT_SLEEP_MS", "300"));
    manager.wait_for(0, "READY=1");
    it.server.signal(Signal::SIGHUP);
    it.server.wait_for("the reload", |record| record.message() == "reload started");
    let mark = manager.mark();
    term(&it);
    let stopping = manager.wait_for(mark, "STOPPING=1");
    let micros =
        |it: &Notification| it.value("EXTEND_TIMEOUT_USEC").unwrap().parse::<u64>().unwrap();
    assert!(micros(&stopping) >= 620_000_000, "{stopping:?}");
    assert_eq!(stopping.value("STATUS"), Some("stopping in 600s, still accepting"));
    it.server.wait_for("its end", |record| record.message() == "reload complete");
    assert_eq!(it.status()["generation"], 2);
    let mark = manager.mark();
    it.server.signal(Signal::SIGTERM);
    let again = manager.wait_for(mark, "STOPPING=1");
    assert!(micros(&again) < 60_000_000, "{again:?}");
    assert_eq!(it.server.wait_exit(), Exit::Code(0));
    let words = manager.notifications();
    let behind = words.iter().skip_while(|word| !word.has("STOPPING=1"));
    assert!(behind.clone().all(|word| !word.has("READY=1")), "{words:#?}");
}

#[test]
fn reload_and_upgrade_do_not_begin_during_pre_stop() {
    let launch = Launch::new(&["-k", "mio", "--pre-stop", "10m"]);
    let settings = launch.path("settings.yaml");
    fs::write(&settings, "timeout: 20s\n").unwrap();
    let mut it = Controlled::of(launch.arg("--config").arg(&settings));
    term(&it);
    it.server.signal(Signal::SIGHUP);
    it.server.signal(Signal::SIGUSR2);
    it.server.wait_for("the upgrade", |record| record.message() == "upgrade rejected");
    assert_eq!(it.server.get("/").status(), 200);
    assert!(it.server.records_of("reload started").is_empty());
    it.server.signal(Signal::SIGTERM);
    it.server.expect_clean_exit();
}

/// The new master serves the addresses, so that the old one need not wait.
#[test]
fn old_master_of_an_upgrade_does_not_wait() {
    let it = start(&["-k", "mio", "-w", "2"]);
    it.server.signal(Signal::SIGUSR2);
    it.server.wait_for("the new master", |record| record.message() == "new master ready");
    it.server.signal(Signal::SIGTERM);
    let done = it.server.wait_for("its end", |record| record.message() == "upgrade complete");
    assert!(it.server.records_of("pre-stop started").is_empty());
    assert_eq!(it.server.get("/").status(), 200);
    let new = nix::unistd::Pid::from_raw(i32::try_from(done.number("pid").unwrap()).unwrap());
    kill(new, Signal::SIGTERM).unwrap();
    it.server.wait_for("the delay", |record| record.message() == "pre-stop started");
    kill(new, Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}
