//! Drain mode of one worker: it accepts no clients, finishes those that it has, and stays.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::client::Client;
use crate::control::{Controlled, pid_of};
use crate::ctl::run;
use crate::example::example;
use crate::launch::{Launch, free_address};
use crate::load::Load;
use crate::log_capture::Record;
use crate::pools::PoolsConfig;
use crate::proc::{threads_stand_still, wait_until};

on_every_class_and_tokio!(
    drained_worker_leaves_clients_to_others,
    drained_worker_finishes_its_clients,
    idle_connection_of_drained_worker_is_closed,
    queue_of_drained_worker_is_served_by_others,
    drain_modes_under_load_lose_nothing,
    replacement_of_drained_worker_serves,
    drained_worker_stops_as_any,
);

impl Controlled {
    /// Begins the drain mode of a worker, and waits until it has no clients. Returns its process.
    #[track_caller]
    fn drain(&self, slot: usize) -> Pid {
        let (status, operation) = self.post(&format!("/v1/drain?slot={slot}"));
        let result = &operation["result"];
        assert_eq!((status, &result["drain_mode"]), (200, &json!(true)), "{operation}");
        assert_eq!((&result["slot"], &operation["command"]), (&json!(slot), &json!("drain")));
        pid_of(result)
    }

    #[track_caller]
    fn undrain(&self, slot: usize) {
        let (status, operation) = self.post(&format!("/v1/undrain?slot={slot}"));
        let result = &operation["result"];
        assert_eq!((status, &result["drain_mode"]), (200, &json!(false)), "{operation}");
    }

    /// Returns the states of the workers, by slot.
    fn states(&self) -> Vec<String> {
        let workers = self.pool()["workers"].as_array().unwrap().clone();
        workers.iter().map(|it| it["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns the slot of a process.
    #[track_caller]
    fn slot_of(&self, pid: Pid) -> usize {
        let workers = self.pool()["workers"].as_array().unwrap().clone();
        let worker = workers.iter().find(|it| pid_of(it) == pid).expect("a worker");
        worker["slot"].as_u64().unwrap() as usize
    }

    fn is_ready(&self) -> bool {
        self.ask_metrics("/readyz", &[]).status() == 200
    }
}

fn alive(pid: Pid) -> bool {
    kill(pid, None).is_ok()
}

fn drained_worker_leaves_clients_to_others(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    for slot in [0, 1] {
        let drained = it.drain(slot);
        assert_eq!(it.states()[slot], "drained");
        assert_eq!((&it.pool()["ready"], it.is_ready()), (&json!(1), true));
        assert_eq!((&it.pool()["target"], &it.pool()["drain_mode"]), (&json!(2), &json!(false)));
        for _ in 0..30 {
            assert_ne!(it.server.answering_pid(), drained);
        }
        assert_eq!(it.drain(slot), drained, "again");
        assert!(it.metrics().contains("ostler_workers{pool=\"default\",state=\"drained\"} 1\n"));
        it.undrain(slot);
        it.undrain(slot);
        assert_eq!(it.states(), ["ready", "ready"]);
        wait_until("it accepts clients again", || it.server.answering_pid() == drained);
        assert!(alive(drained));
    }
    assert_eq!(it.server.records_of("worker started").len(), 2, "none was replaced");
    for message in ["worker drain mode started", "worker drained", "worker drain mode ended"] {
        wait_until(message, || it.server.records_of(message).len() == 2);
    }
    it.server.finish();
}

fn drained_worker_finishes_its_clients(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut client = it.server.begin("/sleep?ms=6000"); // longer than a pause of the machine
    let workers = it.pool()["workers"].as_array().unwrap().clone();
    let busy = workers.into_iter().find(|it| it["accepted"] == 1).expect("it has the client");
    let slot = busy["slot"].as_u64().unwrap();
    let (status, operation) = it.post(&format!("/v1/drain?slot={slot}&wait=0"));
    assert_eq!((status, &operation["state"]), (202, &json!("running")), "{operation}");
    assert_eq!(it.states()[slot as usize], "draining");
    wait_until("another worker answers", || it.server.answering_pid() != pid_of(&busy));
    let answer = client.answer();
    assert_eq!(answer.status(), 200);
    if class == "tokio" {
        assert_eq!(answer.head.get("connection"), Some("close"), "it learns before the answer");
    }
    client.expect_end();
    let done = |operation: &Value| operation["state"] == "done";
    let path = format!("/v1/operations/{}", operation["id"]);
    wait_until("the operation is done", || done(&it.connect().get(&path).json()));
    assert_eq!(it.states()[slot as usize], "drained");
    assert!(alive(pid_of(&busy)));
    it.server.finish();
}

fn idle_connection_of_drained_worker_is_closed(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2", "--keep-alive", "10m"]);
    let mut idle: Vec<(Pid, Client)> = Vec::new();
    let ask =
        |client: &mut Client| Pid::from_raw(client.get("/pid").text().trim().parse().unwrap());
    wait_until("both workers have a connection", || {
        let mut client = it.server.connect();
        idle.push((ask(&mut client), client));
        idle.iter().any(|(pid, _)| *pid != idle[0].0)
    });
    let (pid, _) = idle[0];
    assert_eq!(it.drain(it.slot_of(pid)), pid);
    for (of, client) in &mut idle {
        if *of == pid {
            client.expect_end();
        } else if class != "sync" {
            assert_eq!(ask(client), *of, "the other worker keeps its connections");
        }
    }
    it.server.finish();
}

/// With a queue for each worker, that of the drained one must not wait for it.
fn queue_of_drained_worker_is_served_by_others(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2", "--reuse-port"]);
    it.server.wait_workers(2);
    let pid = pid_of(&it.pool()["workers"][0]);
    kill(pid, Signal::SIGSTOP).unwrap();
    // SIGSTOP stops one thread after the other; a running one could still accept.
    wait_until("all its threads stop", || threads_stand_still(pid));
    let ask = |_| {
        let mut client = it.server.connect();
        client.ask("/pid");
        client
    };
    // The kernel queues about half of them at the stopped worker.
    let clients: Vec<Client> = (0..30).map(ask).collect();
    assert_eq!(it.post("/v1/drain?slot=0&wait=0").0, 202);
    for mut client in clients {
        assert_ne!(client.answer().text().trim(), pid.to_string());
    }
    kill(pid, Signal::SIGCONT).unwrap();
    wait_until("it is drained", || it.states()[0] == "drained");
    for _ in 0..30 {
        assert_ne!(it.server.answering_pid(), pid);
    }
    it.undrain(0);
    wait_until("it serves its queue again", || it.server.answering_pid() == pid);
    it.server.finish();
}

fn drain_modes_under_load_lose_nothing(class: &str) {
    for flags in [&[][..], &["--reuse-port"]] {
        let it = Controlled::start(&[&["-k", class, "-w", "3"], flags].concat());
        let load = Load::on(it.server.address());
        for round in 0..9 {
            it.drain(round % 3);
            load.wait_answers(10);
            it.undrain(round % 3);
        }
        it.drain(0);
        it.drain(2);
        load.wait_answers(10);
        assert_eq!(it.post("/v1/reload").0, 200);
        wait_until("new workers serve", || it.states() == ["ready"; 3]);
        load.wait_answers(10);
        load.finish();
        it.server.finish();
    }
}

fn replacement_of_drained_worker_serves(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let drained = it.drain(0);
    kill(drained, Signal::SIGTERM).unwrap();
    it.server.wait_exited(drained);
    it.wait_status("a replacement is ready", |pool| pool["ready"] == 2);
    assert_eq!(it.states(), ["ready", "ready"]);
    let drained = it.drain(0);
    assert_eq!(it.post("/v1/recycle?slot=0").0, 200);
    assert!(!alive(drained));
    assert_eq!(it.states(), ["ready", "ready"]);
    it.server.finish();
}

fn drained_worker_stops_as_any(class: &str) {
    let mut it = Controlled::start(&["-k", class, "-w", "2"]);
    it.drain(1);
    it.server.signal(Signal::SIGTERM);
    it.server.expect_clean_exit();
    for exited in it.server.records_of("worker exited") {
        assert_eq!((exited.text("reason"), exited.number("code")), (Some("requested"), Some(0)));
    }
}

#[test]
fn last_serving_worker_is_not_drained() {
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    it.drain(1);
    let reason = it.refusal("/v1/drain?slot=0", 409);
    assert!(reason.contains("no other worker of the pool serves"), "{reason}");
    assert!(it.refusal("/v1/drain?slot=2", 404).contains("no slot 2"));
    // Nor is it removed, and not a drained one by mistake.
    assert!(it.refusal("/v1/scale?workers=1", 409).contains("in drain mode"));
    it.server.signal(Signal::SIGTTOU);
    it.server.wait_for("the limit", |record| record.message() == "worker count at limit");
    assert_eq!(it.states(), ["ready", "drained"]);
    assert_eq!(it.post("/v1/scale?workers=3").0, 200);
    it.drain(0);
    assert_eq!(it.states(), ["drained", "drained", "ready"]);
    assert!(it.refusal("/v1/scale?workers=2", 409).contains("from 3"));
    it.undrain(0);
    assert_eq!(it.post("/v1/scale?workers=2").0, 200);
    assert_eq!(it.states(), ["ready", "drained"]);
    it.server.finish();
}

#[test]
fn worker_of_several_pools_is_named_with_its_pool() {
    let (launch, mut config) = PoolsConfig::launch();
    config.bind("web", free_address()).bind("other", free_address());
    config.set("web", "workers", 2).write();
    let it = Controlled::of(launch);
    assert!(it.refusal("/v1/drain?slot=0", 400).contains("name the pool"));
    assert!(it.refusal("/v1/drain?pool=none&slot=0", 404).contains("there are"));
    assert!(it.refusal("/v1/drain?pool=other&slot=0", 409).contains("no other worker"));
    let socket = it.socket().to_str().unwrap().to_owned();
    let ctl = |words: &[&str]| run(&[&["--socket", &socket], words].concat());
    let outcome = ctl(&["drain", "web/1"]); // it may have shown progress
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let drained = outcome.stdout;
    assert!(
        drained.contains("\nweb/1: worker ") && drained.ends_with(" is drained\n"),
        "{drained}"
    );
    assert!(ctl(&["workers"]).success().contains("drained"));
    assert!(it.is_ready());
    let ended = ctl(&["undrain", "web/1"]).success();
    assert!(ended.ends_with(" is not in drain mode\n"), "{ended}");
    ctl(&["drain", "other/0"]).failure("no other worker of the pool serves");
    it.server.finish();
}

#[test]
fn workers_without_clients_of_their_own_are_not_drained() {
    let launch = Launch::new(&["-k", "exec", "-w", "2", "-t", "0"]);
    let it = Controlled::of(launch.program(&["sleep", "1000"]));
    assert!(it.refusal("/v1/drain?slot=0", 409).contains("class exec runs programs"));
    it.server.finish();
    let launch = Launch::new(&["-k", "sync", "-w", "2"]).unbound().arg("tick");
    let it = Controlled::of(launch);
    assert!(it.refusal("/v1/drain?slot=0", 409).contains("no listeners"));
    it.server.finish();
}

#[test]
fn drain_of_a_worker_fails_when_it_exits_or_is_undrained() {
    let it = Controlled::start(&["-k", "threads", "-w", "2"]);
    let _client = it.server.begin("/sleep?ms=60000");
    let workers =
        it.wait_status("it is in progress", |pool| pool["in_flight"] == 1)["workers"].clone();
    let workers = workers.as_array().unwrap();
    let busy = workers.iter().find(|it| it["in_flight"] != json!([])).unwrap();
    let target = format!("/v1/drain?slot={}&wait=0", busy["slot"]);
    let fails = |id: &Value| {
        let path = format!("/v1/operations/{id}");
        let mut last = Value::Null;
        wait_until("it has failed", || {
            last = it.connect().get(&path).json();
            last["state"] == "failed"
        });
        last["error"].as_str().unwrap().to_owned()
    };
    let (_, operation) = it.post(&target);
    it.undrain(busy["slot"].as_u64().unwrap() as usize);
    assert!(fails(&operation["id"]).contains("was ended"));
    let (_, operation) = it.post(&target);
    kill(pid_of(busy), Signal::SIGKILL).unwrap();
    assert!(fails(&operation["id"]).contains("stops"));
    it.server.finish();
}

/// A class made of a function: its clients are its own, and the runtime knows when they are gone.
#[test]
fn function_finishes_its_clients_and_gets_no_more() {
    let Some(program) = example("naive_class") else { return };
    let it = Controlled::of(Launch::by(&[program.to_str().unwrap()], &["-k", "plain", "-w", "2"]));
    let mut client = it.server.begin("/sleep?ms=1000");
    let pool = it.wait_status("it is in progress", |pool| pool["in_flight"] == 1);
    let workers = pool["workers"].as_array().unwrap();
    let busy = workers.iter().find(|it| it["in_flight"] != json!([])).unwrap();
    let slot = busy["slot"].as_u64().unwrap() as usize;
    assert_eq!(it.drain(slot), pid_of(busy), "it takes until the answer");
    assert_eq!(client.answer().status(), 200);
    for _ in 0..10 {
        assert_eq!(it.server.get("/").status(), 200);
    }
    let accepted = |pool: &Value| pool["workers"][slot]["accepted"].clone();
    assert_eq!(accepted(&it.pool()), 1);
    it.undrain(slot);
    it.drain(1 - slot);
    assert_eq!(it.server.get("/").status(), 200);
    assert_ne!(accepted(&it.pool()), 1);
    it.server.finish();
}

/// No client is left, and the master learns of the end of the work all the same.
#[test]
fn work_without_clients_is_finished_before_a_worker_is_drained() {
    let Some(program) = example("background_work") else { return };
    let flags = ["-k", "background", "-w", "2", "--timeout", "10m"];
    let it = Controlled::of(Launch::by(&[program.to_str().unwrap()], &flags));
    let pid = it.server.answering_pid();
    let mark = it.server.mark();
    assert_eq!(it.drain(it.slot_of(pid)), pid);
    let drained = |record: &Record| record.message() == "worker drained";
    it.server.wait_for_new_record(mark, "it is drained", drained);
    it.server.finish();
}

/// A client that sends on after it was answered, until its connection is closed.
fn lingering_client_keeps_worker_draining(it: Controlled, request: &str) {
    let mut client = it.server.connect();
    client.send(request);
    client.answer();
    let workers = it.pool()["workers"].as_array().unwrap().clone();
    let busy = workers.into_iter().find(|it| it["accepted"] == 1).expect("it has the client");
    assert_eq!(it.post(&format!("/v1/drain?slot={}&wait=0", busy["slot"])).0, 202);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let is_drained = it.server.records_of("worker drained").len() == 1;
        // A pause of this process may have ended it: then the first bytes are answered with a reset.
        if (0..2).any(|_| client.try_send([b'x'; 4096]).is_err()) {
            eprintln!("skipped: the client was slow");
            return;
        }
        assert!(!is_drained, "its client lingers");
        sleep(Duration::from_millis(20));
    }
    drop(client);
    it.server.wait_for("it is drained", |record| record.message() == "worker drained");
    it.server.finish();
}

const LINGERING: [&str; 4] = ["--lingering-timeout", "30s", "--lingering-bytes", "1G"];

#[test]
fn lingering_client_of_sync_keeps_worker_draining() {
    let it = Controlled::start(&[&["-k", "sync", "-w", "2"], &LINGERING[..]].concat());
    let upload = "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 99999999999\r\n\r\n";
    lingering_client_keeps_worker_draining(it, upload);
}

#[test]
fn lingering_client_of_a_function_keeps_worker_draining() {
    let Some(program) = example("naive_class") else { return };
    let flags = [&["-k", "plain", "-w", "2"], &LINGERING[..]].concat();
    let it = Controlled::of(Launch::by(&[program.to_str().unwrap()], &flags));
    let more = "x".repeat(10_000);
    lingering_client_keeps_worker_draining(it, &format!("GET / HTTP/1.1\r\n\r\n{more}"));
}

/// Nobody waits for them.
#[test]
fn repeated_drains_of_a_worker_are_one_operation() {
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let _client = it.server.begin("/sleep?ms=60000");
    let pool = it.wait_status("it is in progress", |pool| pool["in_flight"] == 1);
    let workers = pool["workers"].as_array().unwrap();
    let slot = workers.iter().position(|it| it["in_flight"] != json!([])).unwrap();
    let target = format!("/v1/drain?slot={slot}&wait=0");
    let (_, first) = it.post(&target);
    for _ in 0..70 {
        let (status, again) = it.post(&target);
        assert_eq!((status, &again["id"]), (202, &first["id"]));
    }
    it.undrain(slot);
    it.server.signal(Signal::SIGINT);
}

/// The pool shrinks to the workers that the load needs beside those in drain mode.
#[test]
#[ignore = "slow"]
fn scaling_with_load_keeps_drained_workers() {
    let flags = ["-k", "mio", "-w", "1-4", "--scale-down-after", "300ms"];
    let it = Controlled::start(&flags);
    assert_eq!(it.post("/v1/scale?workers=4").0, 200);
    let drained = it.drain(1);
    it.wait_status("it shrinks to one that serves", |pool| pool["target"] == 2);
    let is_change = |record: &Record| record.message() == "workers scaled";
    assert!(!it.server.sees_record(Duration::from_secs(3), |record| {
        is_change(record) && record.number("to") == Some(1)
    }));
    assert_eq!(it.states(), ["ready", "drained"]);
    assert!(alive(drained));
    it.undrain(1);
    it.wait_status("it shrinks further", |pool| pool["target"] == 1);
    it.server.finish();
}
