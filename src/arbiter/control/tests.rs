//! Requests and their answers, over an invented snapshot.

mod commands;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::api::{self, Answer, Api, Endpoint, ROUTES};
use super::metrics::Format;
use super::page;
use super::places::WaitPlaces;
use super::view::{SharedReadiness, SharedView};
use super::{ControlServer, ControlService};
use crate::app::{ClientInfo, Limits, Service, WorkReporter};
use crate::arbiter::operations::{Asked, SharedOperations};
use crate::arbiter::snapshot::{
    ListenerSnapshot, MasterPhase, PoolSnapshot, Snapshot, UnitSnapshot, WorkerSnapshot,
};
use crate::http::Http;
use crate::os::clock;
use crate::session::{Session, Wants};
use crate::settings::Settings;
use crate::time::MonotonicTime;

struct Reporter;

impl WorkReporter for Reporter {
    fn begin_work(&mut self, _label: &[u8]) {}

    fn end_work(&mut self) {}

    fn http_date(&mut self) -> [u8; 29] {
        *b"Thu, 01 Jan 1970 00:00:00 GMT"
    }
}

fn snapshot(label: &str) -> Snapshot {
    let unit = UnitSnapshot { thread: 0, label: label.into(), age: Duration::from_millis(1500) };
    let worker = WorkerSnapshot {
        pid: 42,
        state: "ready",
        heartbeat_age: Some(Duration::from_millis(20)),
        in_flight: vec![unit],
        ..WorkerSnapshot::default()
    };
    let listener = ListenerSnapshot {
        address: "a\"\\\n".into(),
        queue_length: Some(3),
        ..ListenerSnapshot::default()
    };
    let pool = PoolSnapshot {
        name: "web".into(),
        target: 1,
        ready: 1,
        workers: vec![worker],
        waiting_slots: vec![(7, Duration::from_secs(2))],
        listeners: vec![listener],
        ..PoolSnapshot::default()
    };
    Snapshot { phase: MasterPhase::Running, pools: vec![pool], ..Snapshot::default() }
}

/// Returns the service of an endpoint.
fn service(endpoint: Endpoint, snapshot: Snapshot) -> Http<Api> {
    let view = SharedView::default();
    let readiness = SharedReadiness::default();
    readiness.set(snapshot.unready_reason());
    view.set_snapshot(snapshot);
    let api = Api {
        endpoint,
        view,
        readiness,
        operations: SharedOperations::default(),
        events: Arc::new(OnceLock::new()),
        places: WaitPlaces::default(),
        client: Arc::new(Mutex::new("uid 0 pid 7".into())),
        hosts: vec!["box".into()],
    };
    Http::new(api, Limits::default())
}

/// Returns the response to a request for `path` with these lines of the head.
fn ask(endpoint: Endpoint, snapshot: Snapshot, request: &str) -> String {
    let http = service(endpoint, snapshot);
    let (now, info) =
        (MonotonicTime::default(), ClientInfo { address: None, allow_keepalive: true });
    let mut session = Session::new(http.accept(&info), Duration::ZERO, now);
    let (mut spare, mut text) = (Vec::new(), Vec::new());
    session.on_received(request.as_bytes(), &mut spare, &mut Reporter, now);
    while session.wants() == Wants::Write {
        text.extend_from_slice(session.unsent());
        session.on_sent(session.unsent().len(), &mut spare, &mut Reporter, now);
    }
    String::from_utf8(text).unwrap()
}

fn status_of(endpoint: Endpoint, path: &str, fields: &str) -> u16 {
    let request = format!("GET {path} HTTP/1.1\r\n{fields}\r\n");
    ask(endpoint, snapshot(""), &request)[9..12].parse().unwrap()
}

#[test]
fn host_is_checked_where_a_browser_could_be_led() {
    let metrics =
        |path, host: &str| status_of(Endpoint::Metrics, path, &format!("Host: {host}\r\n"));
    for host in ["127.0.0.1", "10.0.0.7:9100", "[::1]:9100", "localhost", "LocalHost:1", "box:9"] {
        assert_eq!(metrics("/v1/status", host), 200, "{host}");
    }
    for host in ["evil.example", "box.evil.example", "127.0.0.1.evil.example", "localhost.evil:80"]
    {
        assert_eq!(metrics("/v1/status", host), 403, "{host}");
        assert_eq!(metrics("/", host), 403, "{host}");
        assert_eq!(metrics("/metrics", host), 200, "{host}");
        assert_eq!(metrics("/readyz", host), 200, "{host}");
    }
    assert_eq!(status_of(Endpoint::Control, "/v1/status", "Host: any.example\r\n"), 200);
}

#[test]
fn settings_and_operations_are_for_control_socket() {
    for path in ["/v1/config", "/v1/operations", "/v1/operations/1"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let refused = ask(Endpoint::Metrics, snapshot(""), &request);
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(refused.contains(" is answered at control_socket only\"}"), "{refused}");
        let answered = ask(Endpoint::Control, snapshot(""), &request);
        assert!(!answered.starts_with("HTTP/1.1 403 "), "{answered}");
    }
}

#[test]
fn foreign_origin_is_refused_everywhere() {
    for endpoint in [Endpoint::Control, Endpoint::Metrics] {
        for path in ["/", "/metrics", "/healthz", "/readyz", "/v1/status"] {
            let ask = |origin: &str| {
                status_of(endpoint, path, &format!("Host: localhost:1\r\nOrigin: {origin}\r\n"))
            };
            assert_eq!(ask("http://localhost:1"), 200, "{path}");
            for origin in ["http://localhost:2", "https://localhost:1", "null", "http://evil"] {
                assert_eq!(ask(origin), 403, "{origin} {path}");
            }
        }
    }
}

#[test]
fn pages_of_other_sites_hold_no_place() {
    let ask = |path: &str, fields: &str| {
        status_of(Endpoint::Metrics, path, &format!("Host: 127.0.0.1\r\n{fields}"))
    };
    for site in ["cross-site", "same-site"] {
        let image = format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: no-cors\r\n");
        for path in ["/", "/v1/status", "/v1/events", "/v1/openapi.json"] {
            assert_eq!(ask(path, &image), 403, "{path}");
        }
        assert_eq!(ask("/metrics", &image), 200);
        let link = format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: navigate\r\n");
        let frame = format!("{link}Sec-Fetch-Dest: iframe\r\n");
        let link = format!("{link}Sec-Fetch-Dest: document\r\n");
        assert_eq!((ask("/", &link), ask("/", &frame)), (200, 403));
        assert_eq!(ask("/v1/events", &link), 403);
    }
    for site in ["same-origin", "none"] {
        assert_eq!(ask("/v1/status", &format!("Sec-Fetch-Site: {site}\r\n")), 200);
    }
}

#[test]
fn addresses_are_bound_once_there_is_no_other_master() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let settings = Settings { control_socket: Some(path.clone()), ..Settings::default() };
    let service = ControlService::new(&settings, Vec::new());
    let mut server = ControlServer::open(&service, false).unwrap().unwrap();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let now = MonotonicTime::default();
    let mut serve = |at, is_sole| {
        server.serve(at, is_sole, &log, || None, Snapshot::default);
        server.wake_sources(at).deadline
    };
    // The master that has the addresses is awaited, not polled.
    assert_eq!((serve(now, false), path.exists()), (None, false));
    // Something else is at the path.
    std::fs::create_dir(&path).unwrap();
    let retry_at = now.saturating_add(Duration::from_millis(200));
    assert_eq!(serve(now, true), Some(retry_at));
    std::fs::remove_dir(&path).unwrap();
    assert_eq!((serve(now, true), path.exists()), (Some(retry_at), false));
    assert_eq!((serve(retry_at, true), path.exists()), (None, true));
}

/// A server at a control socket of its own, whose clients ask for a snapshot of many workers.
fn serve_many_workers(test: impl FnOnce(&std::path::Path, &mut dyn FnMut() -> usize)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let settings = Settings { control_socket: Some(path.clone()), ..Settings::default() };
    let service = ControlService::new(&settings, Vec::new());
    let mut server = ControlServer::open(&service, true).unwrap().unwrap();
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let mut shown = snapshot("");
    let worker = shown.pools[0].workers[0].clone();
    shown.pools[0].workers = vec![worker; 8000];
    let mut collected = 0;
    // Returns how many snapshots were collected.
    test(&path, &mut || {
        let now = clock::now().max(server.budget.pause_end());
        server.serve(
            now,
            true,
            &log,
            || Some("probed".to_owned()),
            || {
                collected += 1;
                shown.clone()
            },
        );
        collected
    });
}

/// Connects a client, and sends a request.
fn connect(path: &std::path::Path, request: &str) -> UnixStream {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    client
}

/// Reads what there is. Returns false at the end of the stream.
fn read_all(client: &mut UnixStream, received: &mut Vec<u8>) -> bool {
    match client.read_to_end(received) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::WouldBlock => true,
        Err(_) => false,
    }
}

#[test]
fn one_snapshot_suffices_for_an_answer_of_many_turns() {
    serve_many_workers(|path, serve| {
        let request = "GET /v1/status HTTP/1.0\r\n\r\n";
        let (mut client, mut received, mut turns) = (connect(path, request), Vec::new(), 0);
        while read_all(&mut client, &mut received) {
            assert!(serve() <= 1);
            turns += 1;
        }
        // A unix socket takes less at a time than the answer has.
        assert!(received.len() > 2_000_000 && turns > 2, "{} bytes, {turns} turns", received.len());
        let body = String::from_utf8(received).unwrap();
        let body = body.split_once("\r\n\r\n").unwrap().1;
        let status: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(status["pools"][0]["workers"].as_array().unwrap().len(), 8000);
        // What needs no snapshot causes none, and the next request that needs one gets a new one.
        for (path_asked, answer) in [("/healthz", "ok\n"), ("/readyz", "probed\n")] {
            let request = format!("GET {path_asked} HTTP/1.0\r\n\r\n");
            let (mut client, mut received) = (connect(path, &request), Vec::new());
            while read_all(&mut client, &mut received) {
                assert_eq!(serve(), 1);
            }
            assert!(String::from_utf8(received).unwrap().ends_with(&format!("\r\n\r\n{answer}")));
        }
        let (mut client, mut received) =
            (connect(path, "GET /metrics HTTP/1.0\r\n\r\n"), Vec::new());
        while read_all(&mut client, &mut received) {
            serve();
        }
        assert_eq!(serve(), 2);
    });
}

#[test]
fn clients_that_read_nothing_hold_bounded_memory() {
    serve_many_workers(|path, serve| {
        let request = "GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut clients = Vec::new();
        for number in 1..=12 {
            clients.push(connect(path, request));
            while serve() < number {}
        }
        // A turn may have ended before the last answer was rendered.
        for _ in 0..3 {
            serve();
        }
        let is_open = |client: &mut UnixStream| read_all(client, &mut Vec::new());
        let open: Vec<bool> = clients.iter_mut().map(is_open).collect();
        assert!(!open[0] && open[11], "{open:?}");
        let kept = open.iter().filter(|it| **it).count();
        assert!((2..12).contains(&kept), "the longest silent ones were closed: {open:?}");
    });
}

#[test]
fn unready_reason_names_the_first_pool_that_cannot_serve() {
    let mut shown = snapshot("");
    assert_eq!(shown.unready_reason(), None);
    shown.pools[0].is_in_drain_mode = true;
    assert_eq!(shown.unready_reason().as_deref(), Some("pool \"web\" is in drain mode"));
    shown.pools[0].ready = 0;
    assert_eq!(shown.unready_reason().as_deref(), Some("pool \"web\" has no ready worker"));
    shown.pools[0].is_suspended = true;
    assert_eq!(shown.unready_reason().as_deref(), Some("pool \"web\" is suspended"));
    for (phase, reason) in
        [(MasterPhase::Starting, "starting"), (MasterPhase::Stopping, "stopping")]
    {
        shown.phase = phase;
        assert_eq!(shown.unready_reason().as_deref(), Some(reason));
        let response =
            ask(Endpoint::Metrics, shown.clone(), "GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert!(response.ends_with(&format!("\r\n\r\n{reason}\n")), "{response}");
    }
}

#[test]
fn texts_of_workers_are_escaped_in_every_format() {
    let label = "<script>&\"'\\\n";
    let get = |path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = ask(Endpoint::Metrics, snapshot(label), &request);
        response.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    assert!(get("/").contains("&lt;script&gt;&amp;&quot;&#39;\\\\n for 1s"), "{}", get("/"));
    let status: serde_json::Value = serde_json::from_str(&get("/v1/status")).unwrap();
    assert_eq!(status["pools"][0]["workers"][0]["in_flight"][0]["label"], label);
    assert_eq!(status["pools"][0]["waiting_slots"][0]["restart_in_ms"], 2000);
    let expected = "ostler_accept_queue{pool=\"web\",address=\"a\\\"\\\\\\n\"} 3\n";
    assert!(get("/metrics").contains(expected), "{}", get("/metrics"));
    assert!(get("/metrics").contains("\nostler_in_flight_age_max_seconds{pool=\"web\"} 1.5\n"));
}

#[test]
fn head_and_other_methods_are_answered_without_body_and_refused() {
    let head = ask(Endpoint::Control, snapshot(""), "HEAD /v1/status HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for (request, allowed) in [("POST /", "GET, HEAD"), ("GET /v1/stop", "POST")] {
        let request = format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n");
        for endpoint in [Endpoint::Control, Endpoint::Metrics] {
            let answer = ask(endpoint, snapshot(""), &request);
            let is_as_said = answer.contains(&format!("\r\nAllow: {allowed}\r\n"));
            assert!(answer.starts_with("HTTP/1.1 405 ") && is_as_said, "{answer}");
        }
    }
    assert_eq!(status_of(Endpoint::Control, "/nothing", "Host: a\r\n"), 404);
}

#[test]
fn guide_has_the_table_of_metrics() {
    let page = include_str!("../../../docs/src/monitoring.md");
    let rows = super::metrics::METRICS.iter().map(|metric| {
        format!(
            "| `{}` | {} | {} |\n",
            metric.name,
            metric.kind.as_str(Format::OpenMetrics),
            metric.help
        )
    });
    assert!(page.contains(&rows.collect::<String>()), "docs/src/monitoring.md lacks a row");
}

#[test]
fn page_policy_has_the_hashes_of_style_and_script() {
    for (directive, text) in [("style", page::STYLE), ("script", page::SCRIPT)] {
        let source = format!("{directive}-src 'sha256-{}';", base64(&Sha256::digest(text)));
        assert!(page::POLICY.contains(&source), "src/arbiter/control/page.rs needs {source}");
    }
    assert!(!page::POLICY.contains("unsafe"), "{}", page::POLICY);
    assert!(!page::SCRIPT.contains("</script") && !page::SCRIPT.contains("<!--"));
}

/// Encodes the 32 bytes of a hash.
fn base64(hash: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let pieces = hash.chunks(3).flat_map(|piece| {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*piece.get(at).unwrap_or(&0)));
        (0..=piece.len()).map(move |at| char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]))
    });
    format!("{}=", pieces.collect::<String>())
}

#[test]
fn open_metrics_is_sent_to_clients_that_prefer_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
        version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let open = [
        "application/openmetrics-text",
        prometheus,
        "text/plain;q=0.4, Application/OpenMetrics-Text; version=\"1.0.0\"; q=0.5",
    ];
    let text = [
        "",
        "*/*",
        "text/html, application/openmetrics-text;q=0.5, text/plain",
        "application/openmetrics-text;version=0.0.1",
        "application/openmetrics-text;q=0",
        "application/openmetrics-text;q=x",
        "application/openmetrics-text;version=2.0.0, text/plain",
    ];
    for (fields, format) in [(&open[..], Format::OpenMetrics), (&text[..], Format::Text)] {
        for field in fields {
            assert_eq!(Format::accepted_by(field.as_bytes()), format, "{field}");
            let request = format!("GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {field}\r\n\r\n");
            let response = ask(Endpoint::Metrics, snapshot(""), &request);
            assert!(response.contains(format.content_type()), "{response}");
            assert_eq!(response.ends_with("\n# EOF\n"), format == Format::OpenMetrics);
            let family = if format == Format::Text { "requests_total" } else { "requests" };
            assert!(response.contains(&format!("# TYPE ostler_{family} counter\n")), "{response}");
            assert!(response.contains("\nostler_requests_total{pool=\"web\"} 0\n"), "{response}");
        }
    }
}
