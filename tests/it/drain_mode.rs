//! Drain mode: `/readyz` fails while the pool serves as before, until it is ended.

use std::net::TcpStream;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::control::Controlled;
use crate::ctl::run;
use crate::launch::free_address;
use crate::load::Load;
use crate::log_capture::Record;
use crate::pools::PoolsConfig;
use crate::proc::wait_until;

on_every_class_and_tokio!(drained_pool_serves_and_is_not_ready);

impl Controlled {
    /// Returns the status and the body of `/readyz`.
    #[track_caller]
    fn readiness(&mut self) -> (u16, String) {
        let answer = self.ask_metrics("/readyz", &[]);
        (answer.status(), String::from_utf8_lossy(&answer.body).into_owned())
    }

    /// Turns the drain mode on or off, and checks that this is answered at once.
    #[track_caller]
    fn set_drain_mode(&self, target: &str) {
        let (status, operation) = self.post(target);
        assert_eq!((status, &operation["state"]), (200, &json!("done")), "{operation}");
    }
}

fn drained(pool: &str) -> (u16, String) {
    (503, format!("pool {pool:?} is in drain mode\n"))
}

fn ready() -> (u16, String) {
    (200, "ready\n".to_owned())
}

fn drained_pool_serves_and_is_not_ready(class: &str) {
    let mut it = Controlled::start(&["-k", class, "-w", "2"]);
    let workers = it.server.wait_workers(2);
    let load = Load::on(it.server.address());
    assert_eq!(it.readiness(), ready());
    for _ in 0..2 {
        it.set_drain_mode("/v1/drain");
        assert_eq!(it.readiness(), drained("default"));
    }
    assert_eq!(it.ask_metrics("/healthz", &[]).status(), 200);
    assert_eq!((&it.status()["ready"], &it.status()["phase"]), (&json!(false), &json!("running")));
    assert_eq!((&it.pool()["drain_mode"], &it.pool()["ready"]), (&json!(true), &json!(2)));
    let metrics = it.ask_metrics("/metrics", &[]);
    assert!(metrics.text().contains("ostler_drain_mode{pool=\"default\"} 1\n"));
    load.wait_answers(10);
    // A worker that exits is replaced.
    kill(workers[0].pid, Signal::SIGTERM).unwrap();
    it.server.wait_replaced(workers[0]);
    assert_eq!(it.post("/v1/reload").0, 200);
    assert_eq!(it.readiness(), drained("default"));
    load.wait_answers(10);
    for _ in 0..2 {
        it.set_drain_mode("/v1/undrain?pool=default");
        assert_eq!(it.readiness(), ready());
    }
    let metrics = it.ask_metrics("/metrics", &[]);
    assert!(metrics.text().contains("ostler_drain_mode{pool=\"default\"} 0\n"));
    load.finish();
    for message in ["drain mode started", "drain mode ended"] {
        let records = it.server.records_of(message);
        assert_eq!(records.len(), 1, "{message}");
    }
    it.set_drain_mode("/v1/drain?wait=1");
    it.server.finish();
}

/// Starts the pools `web` and `other`.
fn two_pools() -> (Controlled, PoolsConfig) {
    let (launch, mut config) = PoolsConfig::launch();
    config.bind("web", free_address()).bind("other", free_address()).write();
    (Controlled::of(launch), config)
}

#[test]
fn drain_mode_is_of_a_pool_until_a_reload_removes_it() {
    let (mut it, mut config) = two_pools();
    assert_eq!(
        it.refusal("/v1/drain?pool=none", 404),
        "no pool is called \"none\": there are web, other"
    );
    it.refusal("/v1/undrain?pool=none", 404);
    it.refusal("/v1/drain?slot=1", 400); // of which pool?
    assert_eq!(it.readiness(), ready());
    let (_, operation) = it.post("/v1/drain?pool=other");
    assert_eq!(operation["result"], json!({ "drain_mode": true, "pools": ["other"] }));
    assert_eq!((&operation["command"], &operation["pool"]), (&json!("drain"), &json!("other")));
    assert_eq!(it.readiness(), drained("other"));
    let (_, operation) = it.post("/v1/drain");
    assert_eq!(operation["result"], json!({ "drain_mode": true, "pools": ["web", "other"] }));
    assert_eq!(it.readiness(), drained("web"));
    it.set_drain_mode("/v1/undrain?pool=web");
    assert_eq!(it.readiness(), drained("other"));
    config.set("other", "workers", 0).write();
    assert_eq!(it.post("/v1/reload").0, 422, "it is rejected");
    assert_eq!(it.readiness(), drained("other"));
    config.unset("other", "workers").set("other", "env", "[DEMO_FAIL_BOOT=1]").write();
    assert_eq!(it.post("/v1/reload").0, 422, "it is rolled back");
    assert_eq!(it.readiness(), drained("other"));
    config.remove("other").write();
    assert_eq!(it.post("/v1/reload").0, 200);
    wait_until("the other pool is dropped", || it.readiness() == ready());
    config.bind("other", free_address()).write();
    assert_eq!(it.post("/v1/reload").0, 200);
    assert_eq!(it.readiness(), ready());
    it.server.finish();
}

#[test]
fn ostlerctl_drains_and_shows_it() {
    let (mut it, ..) = two_pools();
    let socket = it.socket().to_str().unwrap().to_owned();
    let ctl = |words: &[&str]| run(&[&["--socket", &socket], words].concat());
    let first_word = |text: String| text.split(" done in ").next().unwrap().to_owned();
    let drained_now = ctl(&["drain", "other"]).success();
    assert!(drained_now.ends_with("\nother: in drain mode\n"), "{drained_now}");
    assert_eq!(first_word(drained_now), "drain");
    assert_eq!(it.readiness(), drained("other"));
    let shown = ctl(&["status"]).success();
    assert_eq!(shown.matches("drain_mode").count(), 1, "{shown}");
    let ended = ctl(&["undrain"]).success();
    assert!(ended.ends_with("\nweb: not in drain mode\nother: not in drain mode\n"), "{ended}");
    assert_eq!(it.readiness(), ready());
    ctl(&["drain", "none"]).failure("no pool is called \"none\"");
    it.server.finish();
}

/// The old master answers until it exits.
#[test]
fn upgrade_keeps_drain_mode_and_its_changes() {
    let mut it = Controlled::start(&["-k", "mio"]);
    it.set_drain_mode("/v1/drain");
    it.server.signal(Signal::SIGUSR2);
    let record = |message: &'static str| move |it: &Record| it.message() == message;
    it.server.wait_for("the new master", record("new master ready"));
    assert_eq!(it.server.records_of("drain mode started").len(), 2);
    it.set_drain_mode("/v1/undrain");
    wait_until("both have learnt it", || it.server.records_of("drain mode ended").len() == 2);
    it.set_drain_mode("/v1/drain");
    wait_until("both have learnt it", || it.server.records_of("drain mode started").len() == 4);
    it.server.signal(Signal::SIGTERM);
    let done = it.server.wait_for("its end", record("upgrade complete"));
    wait_until("the new master answers", || TcpStream::connect(it.metrics_address()).is_ok());
    assert_eq!(it.readiness(), drained("default"));
    let new = Pid::from_raw(i32::try_from(done.number("pid").unwrap()).unwrap());
    kill(new, Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

#[test]
fn drain_mode_does_not_change_once_the_master_stops() {
    let mut it = Controlled::start(&["-k", "mio", "--pre-stop", "10m"]);
    it.set_drain_mode("/v1/drain");
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the delay", |record| record.message() == "pre-stop started");
    assert_eq!(it.readiness().1, "stopping soon, still accepting (pre_stop)\n");
    assert!(it.refusal("/v1/undrain", 409).contains("stopping"));
    it.server.signal(Signal::SIGTERM);
    it.server.expect_clean_exit();
}
