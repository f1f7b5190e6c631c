//! Measures the cost of a request between two system calls: bytes in, bytes out, through a session.
//!
//! ```text
//! cargo bench --bench session
//! ```

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ostler::app::{App, ClientInfo, Limits, Options, Service, WorkReporter, WorkerInfo};
use ostler::apps::{Echo, RpcDemo};
use ostler::http::{Http, Request, Response};
use ostler::session::{Session, Wants};
use ostler::time::MonotonicTime;

const SMALL: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n";
const CLIENT: ClientInfo = ClientInfo { address: None, allow_keepalive: true };

criterion_group!(benches, http, rpc, echo);
criterion_main!(benches);

/// Does as the runtime's reporter, without a scoreboard.
struct NoopReporter;

impl WorkReporter for NoopReporter {
    fn begin_work(&mut self, label: &[u8]) {
        black_box(label);
    }

    fn end_work(&mut self) {}

    fn http_date(&mut self) -> [u8; 29] {
        *b"Thu, 01 Jan 1970 00:00:00 GMT"
    }
}

/// A client, and the buffers that its thread lends it.
struct Client<'s> {
    session: Session<'s>,
    spare: Vec<u8>,
}

impl<'s> Client<'s> {
    fn new(service: &'s dyn Service) -> Self {
        let session = Session::new(
            service.accept(&CLIENT),
            Duration::from_secs(30),
            MonotonicTime::default(),
        );
        Self { session, spare: Vec::new() }
    }

    /// Passes input to the session and takes all output. Returns the number of bytes of output.
    fn exchange(&mut self, input: &[u8]) -> usize {
        let now = black_box(MonotonicTime::from_nanos(1));
        self.session.on_received(input, &mut self.spare, &mut NoopReporter, now);
        let mut total = 0;
        while self.session.wants() == Wants::Write {
            let sent = black_box(self.session.unsent()).len();
            self.session.on_sent(sent, &mut self.spare, &mut NoopReporter, now);
            total += sent;
        }
        total
    }
}

fn http(criterion: &mut Criterion) {
    let service = Http::new(|_: &Request<'_>| Response::text("Hello, world!\n"), Limits::default());
    let browser = browser_request();
    let inputs = [
        ("a small request", 1, SMALL.to_owned()),
        ("a browser's request", 1, browser.clone()),
        ("16 small requests at once", 16, SMALL.repeat(16)),
        ("a body of 16 KiB", 1, post("", &"x".repeat(16 << 10))),
        ("a body of 16 chunks of 1 KiB", 1, post("chunked", &"x".repeat(16 << 10))),
    ];
    let mut group = criterion.benchmark_group("http");
    for (name, requests, input) in &inputs {
        group.throughput(Throughput::Elements(*requests));
        let mut client = Client::new(&service);
        assert!(client.exchange(input.as_bytes()) > 100, "{name} is answered");
        group.bench_function(*name, |bencher| bencher.iter(|| client.exchange(input.as_bytes())));
    }
    group.throughput(Throughput::Elements(1));
    let mut client = Client::new(&service);
    group.bench_function("a browser's request, byte by byte", |bencher| {
        bencher
            .iter(|| browser.as_bytes().chunks(1).map(|byte| client.exchange(byte)).sum::<usize>());
    });
    group.bench_function("a small request on a new connection", |bencher| {
        bencher.iter(|| Client::new(&service).exchange(SMALL.as_bytes()));
    });
    group.finish();
}

fn rpc(criterion: &mut Criterion) {
    let service = RpcDemo.boot(&worker_info()).expect("rpc needs nothing");
    let mut client = Client::new(service.as_ref());
    let mut group = criterion.benchmark_group("rpc");
    for calls in [1, 64] {
        let input = b"\x94\x00\x07\xa3add\x92\x01\x02".repeat(calls);
        assert_eq!(client.exchange(&input), 5 * calls, "all are answered");
        group.throughput(Throughput::Elements(calls as u64));
        group.bench_function(format!("add, {calls} at once"), |bencher| {
            bencher.iter(|| client.exchange(&input));
        });
    }
    group.finish();
}

fn echo(criterion: &mut Criterion) {
    let service = Echo.boot(&worker_info()).expect("echo needs nothing");
    let mut client = Client::new(service.as_ref());
    let mut group = criterion.benchmark_group("echo");
    group.throughput(Throughput::Elements(1));
    group.bench_function("64 bytes", |bencher| bencher.iter(|| client.exchange(&[b'x'; 64])));
    group.finish();
}

fn worker_info() -> WorkerInfo {
    WorkerInfo {
        pool: "bench".to_owned(),
        slot: 0,
        generation: 1,
        class: "mio",
        options: Options::new(),
        limits: Limits::default(),
    }
}

/// Returns a request with as many fields as a browser sends.
fn browser_request() -> String {
    let mut request =
        String::from("GET /some/page?with=a&query=yes HTTP/1.1\r\nHost: example.com\r\n");
    for field in 0..14 {
        let value = "v".repeat(20 + field * 3);
        write!(request, "X-Field-Number-{field}: {value}\r\n").expect("a string takes all");
    }
    request + "\r\n"
}

fn post(coding: &str, body: &str) -> String {
    if coding.is_empty() {
        return format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    let mut request = format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n");
    for chunk in body.as_bytes().chunks(1 << 10) {
        let chunk = str::from_utf8(chunk).expect("the body is ASCII");
        write!(request, "{:x}\r\n{chunk}\r\n", chunk.len()).expect("a string takes all");
    }
    request + "0\r\n\r\n"
}
