//! What workers count and the master shows of it: durations, bytes, clients; and the texts for scrapers.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::control::{Controlled, samples};
use crate::launch::Launch;

on_every_class!(work_is_timed_and_counted, counts_do_not_go_back_when_workers_are_killed);

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

/// Python with `prometheus_client`: `OSTLER_TEST_PYTHON`, or `python3`.
fn parser() -> Option<Command> {
    let python = std::env::var_os("OSTLER_TEST_PYTHON").unwrap_or_else(|| "python3".into());
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
