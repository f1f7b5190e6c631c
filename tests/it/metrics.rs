//! What workers count and the master shows of it: durations, bytes, clients; and the texts for scrapers.

use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::Client;
use crate::control::{Controlled, samples};
use crate::launch::Launch;
use crate::proc::{threads_stand_still, wait_until};

on_every_class!(
    work_is_timed_and_counted,
    counts_do_not_go_back_when_workers_are_killed,
    totals_are_exact_over_kills_reloads_and_an_upgrade,
    wait_before_the_accept_is_sampled,
);

fn work_is_timed_and_counted(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2", "--timeout", "4s"]);
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut received = 0;
    for _ in 0..10 {
        let mut client = it.server.connect();
        client.send(request);
        received += client.rest().len();
    }
    let pool = it.wait_status("all requests are counted", |pool| pool["units_total"] == 10);
    assert_eq!(pool["bytes_in_total"], 10 * request.len());
    assert_eq!(pool["bytes_out_total"], received);
    assert_eq!((&pool["accepted_total"], &pool["refused_total"]), (&10.into(), &0.into()));
    assert_eq!(pool["near_misses_total"], 0);
    assert_eq!(it.server.get("/sleep?ms=2200").status(), 200); // more than half of `timeout`
    let pool = it.wait_status("all requests are counted", |pool| pool["units_total"] == 11);
    assert_eq!(pool["near_misses_total"], 1);
    let latency = &pool["latency_ms"];
    assert!(latency["p50"].as_f64().unwrap() < 2200.0, "{latency}");
    assert!(latency["p99"].as_f64().unwrap() >= 2200.0 * 0.9, "{latency}");
    assert!(latency["max"].as_f64().unwrap() >= 2200.0, "{latency}");
    assert!(pool["busy_seconds_total"].as_f64().unwrap() >= 2.2, "{pool}");
    let buckets = pool["latency"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|bucket| bucket[1].as_u64().unwrap()).sum::<u64>(), 11);
    let workers = pool["workers"].as_array().unwrap();
    let sum = |key: &str| workers.iter().map(|it| it[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("units"), sum("near_misses"), sum("accepted")), (11, 1, 11));
    assert_eq!(Value::from(sum("bytes_in")), pool["bytes_in_total"]);
    let samples = samples(&it.metrics());
    let duration = |suffix: &str| samples[&format!("ostler_request_duration_seconds_{suffix}")];
    assert_eq!(duration("count{pool=\"default\"}"), 11.0);
    assert_eq!(duration("bucket{pool=\"default\",le=\"1.0\"}"), 10.0);
    assert_eq!(duration("bucket{pool=\"default\",le=\"60.0\"}"), 11.0);
    assert!(duration("sum{pool=\"default\"}") >= 2.2);
    assert_eq!(samples["ostler_connections_accepted_total{pool=\"default\"}"], 11.0);
    it.server.finish();
}

fn counts_do_not_go_back_when_workers_are_killed(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut busy = it.server.begin("/sleep?ms=60000");
    let before = it.wait_status("the request is in progress", |pool| {
        pool["in_flight"] == 1 && pool["busy_seconds_total"].as_f64().unwrap() > 0.05
    });
    for _ in 0..10 {
        assert_eq!(it.server.get("/").status(), 200);
    }
    let all = it.wait_status("all requests are counted", |pool| pool["units_total"] == 10);
    for worker in it.server.wait_workers(2) {
        kill(worker.pid, Signal::SIGKILL).unwrap();
        it.server.wait_replaced(worker);
    }
    let _ = busy.rest();
    let after = it.wait_status("all are ready", |pool| pool["ready"] == 2);
    for key in ["units_total", "bytes_in_total", "bytes_out_total", "accepted_total", "latency"] {
        assert_eq!(after[key], all[key], "{key}");
    }
    let busy_seconds = |pool: &Value| pool["busy_seconds_total"].as_f64().unwrap();
    assert!(busy_seconds(&after) >= busy_seconds(&before), "{before} {after}");
    it.server.finish();
}

fn totals_are_exact_over_kills_reloads_and_an_upgrade(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let old = it.status()["pid"].clone();
    let mut sent = 0;
    let mut send = |count: u64| {
        (0..count).for_each(|_| assert_eq!(it.server.get("/").status(), 200));
        sent += count;
        sent
    };
    let all = send(10);
    it.wait_status("all requests are counted", |pool| pool["units_total"] == all);
    let victim = it.server.wait_workers(2)[0];
    kill(victim.pid, Signal::SIGKILL).unwrap();
    it.server.wait_replaced(victim);
    let mark = it.server.mark();
    send(10);
    it.server.signal(Signal::SIGHUP);
    it.server.wait_for_new_record(mark, "the reload", |it| it.message() == "reload complete");
    send(10);
    it.server.signal(Signal::SIGUSR2);
    it.server.wait_for("the new master", |record| record.message() == "new master ready");
    let before = samples(&it.metrics());
    assert_eq!(before["ostler_reloads_total{result=\"done\"}"], 1.0);
    assert_eq!(before["ostler_upgrades_total{result=\"done\"}"], 1.0);
    send(20); // both masters' workers answer
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the take-over", |record| record.message() == "upgrade complete");
    let all = send(10);
    wait_until("the new master answers", || {
        let Ok(mut client) = Client::unix(it.socket()) else { return false };
        client.ask("/v1/status");
        client.try_answer().is_ok_and(|answer| answer.json()["pid"] != old)
    });
    let pool = it.wait_status("all requests are counted", |pool| pool["units_total"] == all);
    assert_eq!(pool["accepted_total"], all);
    assert_eq!(
        (&pool["exits_total"]["crashed"], &pool["exits_total"]["reload"]),
        (&1.into(), &2.into())
    );
    assert_eq!(pool["workers_started_total"], 7);
    let buckets = pool["latency"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|bucket| bucket[1].as_u64().unwrap()).sum::<u64>(), all);
    // The CPU time of a slot is that of its process.
    let is_counter = |name: &str| {
        let family = name.split('{').next().unwrap();
        let ends = ["_total", "_sum", "_count", "_bucket"].iter().any(|end| family.ends_with(end));
        ends && family != "ostler_worker_cpu_seconds_total"
    };
    let counters: Vec<_> = before.iter().filter(|(name, _)| is_counter(name)).collect();
    let mut after = samples(&it.metrics());
    // Some are read by a child, for the next request.
    wait_until("all series", || {
        after = samples(&it.metrics());
        counters.iter().all(|(name, _)| after.contains_key(*name))
    });
    for (name, value) in counters {
        assert!(after[name] >= *value, "{name}: {value} before, {} after", after[name]);
    }
    let new = it.status()["pid"].as_i64().unwrap();
    kill(Pid::from_raw(new as i32), Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

/// The first client and the 62nd one are asked about. The second of these waits for a stopped worker.
fn wait_before_the_accept_is_sampled(class: &str) {
    let it = Controlled::start(&["-k", class]);
    let server = &it.server;
    (0..61).for_each(|_| assert_eq!(server.get("/").status(), 200));
    let worker = server.wait_workers(1)[0];
    kill(worker.pid, Signal::SIGSTOP).unwrap();
    wait_until("all its threads stop", || threads_stand_still(worker.pid));
    let mut waiting = server.connect();
    waiting.ask("/");
    thread::sleep(Duration::from_millis(600)); // this is what is measured
    kill(worker.pid, Signal::SIGCONT).unwrap();
    assert_eq!(waiting.answer().status(), 200);
    let samples = samples(&it.metrics());
    let wait = |part: &str| samples[&format!("ostler_accept_wait_seconds_{part}")];
    assert_eq!(wait("count{pool=\"default\"}"), 2.0);
    assert!(wait("bucket{pool=\"default\",le=\"0.5\"}") <= 1.0);
    assert!(wait("sum{pool=\"default\"}") > 0.5);
    it.server.finish();
}

#[test]
fn programs_have_no_counts_instead_of_zero() {
    let launch = Launch::new(&["-k", "exec"]).program(&["sleep", "1000"]);
    let it = Controlled::of(launch);
    let pool = it.pool();
    for key in ["units_total", "bytes_in_total", "accepted_total", "latency", "latency_ms"] {
        assert_eq!(pool[key], Value::Null, "{key}");
    }
    assert_eq!(
        (&pool["workers"][0]["units"], &pool["workers_started_total"]),
        (&Value::Null, &1.into())
    );
    let samples = samples(&it.metrics());
    for name in [
        "requests_total",
        "in_flight",
        "request_duration_seconds_count",
        "accept_wait_seconds_count",
    ] {
        assert!(!samples.contains_key(&format!("ostler_{name}{{pool=\"default\"}}")), "{name}");
    }
    assert_eq!(samples["ostler_workers_started_total{pool=\"default\"}"], 1.0);
    it.server.finish();
}

#[test]
fn totals_of_a_new_master_that_stops_go_to_the_old_one() {
    let it = Controlled::start(&["-w", "2"]);
    it.server.signal(Signal::SIGUSR2);
    let record = it.server.wait_for("the new master", |it| it.message() == "new master ready");
    (0..40).for_each(|_| assert_eq!(it.server.get("/").status(), 200));
    kill(Pid::from_raw(record.number("pid").unwrap() as i32), Signal::SIGTERM).unwrap();
    it.server.wait_for("its exit", |record| record.message() == "new master exited");
    let pool = it.wait_status("all requests are counted", |pool| pool["units_total"] == 40);
    assert_eq!(pool["workers_started_total"], 4);
    it.server.finish();
}

#[test]
fn memory_and_cpu_time_are_shown_of_each_worker() {
    let it = Controlled::start(&["-w", "3", "-k", "sync"]);
    let used = |key: &str, worker: &Value| worker[key].as_u64().is_some_and(|it| it > 0);
    assert_eq!(it.server.get("/leak?mb=100").status(), 200);
    let pool = it.wait_status("the child has read", |pool| {
        let mut workers = pool["workers"].as_array().unwrap().iter();
        workers.clone().count() == 3
            && workers.clone().all(|worker| used("memory_bytes", worker))
            && workers.any(|worker| used("cpu_ms", worker))
    });
    for worker in pool["workers"].as_array().unwrap() {
        assert!(worker["memory_bytes"].as_u64().unwrap() < 1 << 30, "{worker}");
        assert!(worker["cpu_ms"].is_u64(), "{worker}");
    }
    let samples = samples(&it.metrics());
    let count = |name: &str| samples.keys().filter(|key| key.starts_with(name)).count();
    assert_eq!(count("ostler_worker_memory_bytes{"), 3);
    assert_eq!(count("ostler_worker_cpu_seconds_total{"), 3);
    assert_eq!(count("ostler_tcp_listen_drops_total"), 1);
    assert_eq!(samples["ostler_worker_boot_seconds_count{pool=\"default\"}"], 3.0);
    it.server.finish();
}

#[test]
fn queue_of_a_unix_listener_is_shown() {
    let it = Controlled::start(&["-k", "sync", "-b", "unix:queue"]);
    let connect = || Client::unix(&it.server.path("queue")).unwrap();
    let mut busy = connect();
    busy.ask("/sleep?ms=60000");
    it.wait_status("the request is in progress", |pool| pool["in_flight"] == 1);
    let _waiting: Vec<_> = (0..3).map(|_| connect()).collect();
    let length = |pool: &Value| {
        let mut all = pool["listeners"].as_array().unwrap().iter();
        all.find(|it| it["address"].as_str().unwrap().ends_with("queue")).unwrap()["queue_length"]
            .clone()
    };
    let has_read = |pool: &Value| pool["workers"][0]["memory_bytes"].is_u64();
    let pool = it.wait_status("the child has read", has_read);
    if length(&pool).is_null() {
        eprintln!("skipped: this kernel has no unix_diag");
    } else {
        it.wait_status("the queue is known", |pool| length(pool) == 3);
    }
    it.server.signal(Signal::SIGQUIT);
    it.server.finish();
}

/// Python with `prometheus_client`: `TEST_PYTHON`, or `python3`.
fn parser() -> Option<Command> {
    let python = std::env::var_os("TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let import = ["-c", "import prometheus_client"];
    let is_there = Command::new(&python).args(import).output().is_ok_and(|it| it.status.success());
    if !is_there {
        eprintln!("skipped: {} has no prometheus_client", python.display());
    }
    is_there.then(|| Command::new(python))
}

#[test]
fn parser_of_prometheus_accepts_both_texts() {
    let Some(_) = parser() else { return };
    let launch = Launch::new(&["-w", "2", "-b", "unix:a\\\"b"]);
    let it = Controlled::of(launch);
    let _ = it.connect().get("/v1/status");
    let text = it.metrics();
    let open = it.ask_metrics("/metrics", &[("Accept", "application/openmetrics-text")]);
    let kind = open.head.get("content-type").unwrap();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    for (module, text) in [("parser", text), ("openmetrics.parser", open.text())] {
        let path = it.server.path("metrics");
        std::fs::write(&path, text).unwrap();
        let script = format!(
            "import sys\nfrom prometheus_client.{module} import text_string_to_metric_families\n\
             for family in text_string_to_metric_families(open(sys.argv[1]).read()):\n\
             \x20 assert family.type != 'unknown', family\n  print(family.name)\n"
        );
        let parsed = parser().unwrap().args(["-c", &script]).arg(&path).output().unwrap();
        assert!(parsed.status.success(), "{module}: {}", String::from_utf8_lossy(&parsed.stderr));
        let names = String::from_utf8(parsed.stdout).unwrap();
        assert!(names.contains("ostler_requests\n"), "{module}: {names}");
        assert!(names.contains("ostler_request_duration_seconds\n"), "{module}: {names}");
    }
    it.server.finish();
}
