//! The control interface: what it shows is true, whatever happens to the workers, and no client of it
//! disturbs the master.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::DEADLINE;
use crate::client::{Answer, Client};
use crate::launch::{Launch, free_address};
use crate::proc::wait_until;
use crate::support::{Exit, Server};

on_every_class_and_tokio!(
    totals_are_exact_over_killed_workers,
    totals_are_exact_over_reloads,
    idle_and_hostile_clients_disturb_nothing,
    ; except tokio:
    status_shows_work_in_progress,
    readiness_ends_when_the_stop_begins,
);

/// A server with both endpoints.
pub(crate) struct Controlled {
    pub(crate) server: Server,
    pub(crate) socket: PathBuf,
    metrics: SocketAddr,
}

impl Controlled {
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::of(Launch::new(flags))
    }

    pub(crate) fn of(launch: Launch) -> Self {
        let (socket, metrics) = (launch.path("control"), free_address());
        let launch = launch.arg("--control-socket").arg(&socket);
        let server = launch.arg("--metrics-bind").arg(metrics.to_string()).start();
        Self { server, socket: socket.into(), metrics }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn connect(&self) -> Client {
        Client::unix(&self.socket).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        let answer = self.connect().get("/v1/status");
        assert_eq!(answer.status(), 200);
        answer.json()
    }

    pub(crate) fn pool(&self) -> Value {
        self.status()["pools"][0].clone()
    }

    pub(crate) fn metrics(&self) -> String {
        self.ask_metrics("/metrics", &[]).text()
    }

    /// Returns the address of the endpoint that only reads.
    pub(crate) fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Asks the endpoint that only reads, with these header fields.
    pub(crate) fn ask_metrics(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let mut client = Client::tcp(self.metrics).unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\n");
        if !fields.iter().any(|(name, _)| *name == "Host") {
            request += &format!("Host: {}\r\n", self.metrics);
        }
        for (name, value) in fields {
            request += &format!("{name}: {value}\r\n");
        }
        client.send(request + "\r\n");
        client.answer()
    }

    /// Waits until the status is as wanted.
    pub(crate) fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait_until(what, || {
            last = self.pool();
            wanted(&last)
        });
        last
    }
}

/// Returns the process of a worker or a master in an answer.
#[track_caller]
pub(crate) fn pid_of(json: &Value) -> Pid {
    Pid::from_raw(json["pid"].as_i64().unwrap() as i32)
}

fn status_shows_work_in_progress(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut busy = it.server.begin("/sleep?ms=1500");
    // A worker is busy a moment before it knows with what.
    let is_known = |pool: &Value| pool["in_flight"] == 1 && pool.to_string().contains("GET /sleep");
    let pool = it.wait_status("the request is in progress", is_known);
    assert_eq!((&pool["ready"], &pool["target"]), (&Value::from(2), &Value::from(2)));
    assert_eq!(pool["class"], class);
    let pids: Vec<_> = it.server.workers().iter().map(|worker| worker.pid.as_raw()).collect();
    let workers = pool["workers"].as_array().unwrap();
    assert_eq!(workers.len(), 2);
    for worker in workers {
        assert!(pids.contains(&pid_of(worker).as_raw()), "{worker}");
        assert_eq!(worker["state"], "ready");
    }
    let units: Vec<_> =
        workers.iter().flat_map(|worker| worker["in_flight"].as_array().unwrap()).collect();
    assert_eq!(units.len(), 1);
    assert_eq!(units[0]["label"], "GET /sleep");
    assert_eq!(busy.answer().status(), 200);
    it.wait_status("the request is done", |pool| {
        pool["in_flight"] == 0 && pool["units_total"] == 1
    });
    it.server.finish();
}

fn totals_are_exact_over_killed_workers(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut sent = 0;
    for _ in 0..3 {
        for _ in 0..10 {
            assert_eq!(it.server.get("/").status(), 200);
            sent += 1;
        }
        it.wait_status("all requests are counted", |pool| pool["units_total"] == sent);
        let victim = it.server.wait_workers(2)[0];
        kill(victim.pid, Signal::SIGKILL).unwrap();
        it.server.wait_exited(victim.pid);
        it.server.wait_replaced(victim);
    }
    let pool = it.wait_status("the last one is ready", |pool| pool["ready"] == 2);
    assert_eq!(pool["units_total"], sent);
    assert_eq!(pool["exits_total"]["crashed"], 3);
    assert_eq!(pool["workers_started_total"], 5);
    let last = &pool["last_exits"][0];
    assert_eq!((&last["reason"], &last["exit"]), (&"crashed".into(), &"SIGKILL".into()));
    let samples = samples(&it.metrics());
    assert_eq!(samples["ostler_requests_total{pool=\"default\"}"], f64::from(sent));
    assert_eq!(samples["ostler_worker_exits_total{pool=\"default\",reason=\"crashed\"}"], 3.0);
    it.server.finish();
}

fn totals_are_exact_over_reloads(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    for generation in 2..4 {
        for _ in 0..10 {
            assert_eq!(it.server.get("/").status(), 200);
        }
        let mark = it.server.mark();
        it.server.signal(Signal::SIGHUP);
        it.server.wait_for_new_record(mark, "the reload", |record| {
            record.message() == "reload complete"
        });
        assert_eq!(it.status()["generation"], generation);
    }
    let pool = it.wait_status("the old workers have exited", |pool| {
        pool["workers"].as_array().unwrap().len() == 2
    });
    assert_eq!((&pool["units_total"], &pool["exits_total"]["reload"]), (&20.into(), &4.into()));
    it.server.finish();
}

fn readiness_ends_when_the_stop_begins(class: &str) {
    let mut it = Controlled::start(&["-k", class]);
    assert_eq!(it.connect().get("/readyz").status(), 200);
    assert_eq!(it.ask_metrics("/healthz", &[]).status(), 200);
    let mut busy = it.server.begin("/sleep?ms=1500");
    it.wait_status("the request is in progress", |pool| pool["in_flight"] == 1);
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the stop", |record| record.message() == "stopping");
    let answer = it.ask_metrics("/readyz", &[("Host", "probe.example")]);
    assert_eq!((answer.status(), &answer.body[..]), (503, &b"stopping\n"[..]));
    assert_eq!(it.ask_metrics("/healthz", &[]).status(), 200);
    assert_eq!(it.status()["phase"], "stopping");
    assert_eq!(busy.answer().status(), 200);
    it.server.expect_clean_exit();
    assert!(!it.socket.exists());
}

/// More clients than there is room for, some of which send garbage, send without end, or never read.
fn idle_and_hostile_clients_disturb_nothing(class: &str) {
    let it = Controlled::start(&["-k", class]);
    let mut idle: Vec<_> = (0..200).map(|_| TcpStream::connect(it.metrics).unwrap()).collect();
    let mut garbage = TcpStream::connect(it.metrics).unwrap();
    let _ = garbage.write_all(&[0xff; 1 << 16]);
    let mut endless = TcpStream::connect(it.metrics).unwrap();
    endless.set_write_timeout(Some(DEADLINE)).unwrap();
    let head = b"POST /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1073741824\r\n\r\n";
    endless.write_all(head).unwrap();
    let mut answer = [0; 12];
    endless.set_read_timeout(Some(DEADLINE)).unwrap();
    endless.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    let mut greedy = TcpStream::connect(it.metrics).unwrap();
    greedy.set_nonblocking(true).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", it.metrics).repeat(1000);
    let _ = greedy.write(request.as_bytes());
    assert_eq!(it.ask_metrics("/readyz", &[]).status(), 200);
    assert_eq!(it.status()["ready"], true);
    assert_eq!(it.server.get("/").status(), 200);
    // The clients that have waited for the longest made room.
    let mut byte = [0];
    idle[0].set_read_timeout(Some(DEADLINE)).unwrap();
    assert!(matches!(idle[0].read(&mut byte), Ok(0) | Err(_)));
    it.server.finish();
}

#[test]
fn metrics_have_help_type_and_unique_samples() {
    let it = Controlled::start(&["-w", "3"]);
    let answer = it.ask_metrics("/metrics", &[("Host", "scraper.example")]);
    assert!(answer.head.get("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = answer.text();
    let samples = samples(&text);
    assert_eq!(samples["ostler_workers{pool=\"default\",state=\"ready\"}"], 3.0);
    assert_eq!(samples["ostler_ready"], 1.0);
    for sample in samples.keys() {
        let name = sample.split('{').next().unwrap();
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|it| name.strip_suffix(it));
        let name = part.unwrap_or(name);
        for comment in ["HELP", "TYPE"] {
            assert!(text.contains(&format!("# {comment} {name} ")), "{comment} {name}");
        }
        let is_counter = text.contains(&format!("# TYPE {name} counter"));
        assert_eq!(is_counter, name.ends_with("_total"), "{name}");
    }
    it.server.finish();
}

#[test]
fn page_is_for_browsers_that_know_the_host() {
    let it = Controlled::start(&["--metrics-host", "panel.example"]);
    let port = it.metrics.port();
    let known =
        ["127.0.0.1".into(), format!("localhost:{port}"), "[::1]".into(), "PANEL.example".into()];
    for host in known {
        let answer = it.ask_metrics("/", &[("Host", &host)]);
        assert_eq!(answer.status(), 200, "{host}");
        assert!(answer.head.get("content-security-policy").unwrap().contains("default-src 'none'"));
        assert!(answer.text().contains("state ready\">ready"), "{}", answer.text());
    }
    for path in ["/", "/v1/status"] {
        assert_eq!(it.ask_metrics(path, &[("Host", "evil.example")]).status(), 403, "{path}");
    }
    for origin in ["http://evil.example", "null", "https://127.0.0.1"] {
        for path in ["/", "/v1/status", "/metrics", "/readyz"] {
            let answer = it.ask_metrics(path, &[("Origin", origin)]);
            assert_eq!(answer.status(), 403, "{origin} {path}");
        }
    }
    let own = format!("http://{}", it.metrics);
    assert_eq!(it.ask_metrics("/v1/status", &[("Origin", &own)]).status(), 200);
    let mut client = it.connect();
    client.send("DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status(), answer.head.get("allow")), (405, Some("GET, HEAD")));
    assert_eq!(client.get("/v2").status(), 404);
    it.server.finish();
}

#[test]
fn control_socket_is_private() {
    let it = Controlled::start(&[]);
    assert_eq!(fs::metadata(&it.socket).unwrap().permissions().mode() & 0o777, 0o600);
    it.server.finish();
}

#[test]
fn control_socket_replaces_nothing_but_a_stale_socket() {
    let refused = |make: &dyn Fn(&str)| {
        let launch = Launch::new(&[]);
        let path = launch.path("control");
        make(&path);
        let before = fs::symlink_metadata(&path).unwrap();
        let outcome = launch.arg("--control-socket").arg(&path).run();
        assert_eq!(outcome.exit, Exit::Code(1), "{outcome:?}");
        assert!(outcome.stderr.contains(&path), "{outcome:?}");
        before
    };
    refused(&|path| fs::write(path, "precious").unwrap());
    refused(&|path| symlink("/etc/passwd", path).unwrap());
    refused(&|path| fs::create_dir(path).unwrap());
    let listener = std::cell::OnceCell::new();
    refused(&|path| listener.set(UnixListener::bind(path).unwrap()).unwrap());
    let launch = Launch::new(&[]);
    let path = launch.path("control");
    drop(UnixListener::bind(&path).unwrap());
    launch.arg("--control-socket").arg(&path).start().finish();
}

#[test]
fn new_master_takes_the_addresses_over() {
    let it = Controlled::start(&["-w", "2"]);
    let old = it.status()["pid"].as_i64().unwrap();
    it.server.signal(Signal::SIGUSR2);
    it.server.wait_for("the new master", |record| record.message() == "new master ready");
    assert!(it.status()["peer_pid"].is_i64());
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the take-over", |record| record.message() == "upgrade complete");
    wait_until("the new master answers", || {
        let Ok(mut client) = Client::unix(&it.socket) else { return false };
        client.ask("/v1/status");
        client.try_answer().is_ok_and(|answer| answer.json()["pid"] != old)
    });
    wait_until("so it does over TCP", || TcpStream::connect(it.metrics).is_ok());
    assert_eq!(it.ask_metrics("/readyz", &[]).status(), 200);
    let new = it.status()["pid"].as_i64().unwrap();
    kill(nix::unistd::Pid::from_raw(new as i32), Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

/// Returns the value of each sample by its name and labels; none may occur twice.
pub(crate) fn samples(text: &str) -> HashMap<String, f64> {
    let mut samples = HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(samples.insert(name.to_owned(), value).is_none(), "{line} occurs twice");
    }
    samples
}
