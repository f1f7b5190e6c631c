//! `demo`: an HTTP service for trying out workers. Its paths answer, sleep, hang, burn CPU time, leak
//! memory, crash or exit. Never expose it to a public network.

use std::env;
use std::fmt::Display;
use std::hint;
use std::io;
use std::process::{self, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::app::{App, BootError, Service, WorkerInfo};
use crate::http::{Body, Handler, Http, More, Request, Response, Source};

/// Bytes in a mebibyte, the unit of `/leak`.
const MIB: usize = 1 << 20;

/// The exit code of a worker that exits because of `DEMO_EXIT_AFTER_MS`.
const EXIT_AFTER: i32 = 7;

/// The app `demo`, over HTTP.
///
/// | path | response |
/// |---|---|
/// | `/` | `Hello, world!` |
/// | `/pid` | the worker's process id |
/// | `/info` | JSON: pid, pool, slot, class, generation, requests |
/// | `/sleep?ms=N` | after N milliseconds |
/// | `/long?ms=N` | after N milliseconds, with an extended deadline: not a hang |
/// | `/hang`, `/spin` | none: the handler sleeps, or burns CPU time, forever |
/// | `/crash`, `/exit?code=N` | none: the worker aborts, or exits with the code (default 0) |
/// | `/panic` | 500; the worker survives |
/// | `/child?s=N` | the process ID of a child that the worker has started, which sleeps for N seconds |
/// | `/stray?s=N` | the same for a child in a session, and so a process group, of its own |
/// | `/leak?mb=N` | after N mebibytes have been allocated, written and leaked |
/// | `/bytes?n=N` | N bytes, produced while they are sent |
/// | `/echo` | the request's body, with its content type |
/// | `/env?name=N` | the value of an environment variable, or 404 |
///
/// Environment variables: `DEMO_FAIL_BOOT` (not empty, not `0`) makes the boot of a worker fail (`panic`: panic),
/// `DEMO_BOOT_SLEEP_MS` delays it, and `DEMO_EXIT_AFTER_MS` makes the worker exit with code 7 that long
/// after its boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demo;

impl App for Demo {
    fn name(&self) -> &str {
        "demo"
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        if let Some(delay) = milliseconds("DEMO_BOOT_SLEEP_MS")? {
            thread::sleep(delay);
        }
        if env::var_os("DEMO_FAIL_BOOT").is_some_and(|value| !value.is_empty() && value != "0") {
            assert!(
                env::var_os("DEMO_FAIL_BOOT").is_none_or(|value| value != "panic"),
                "DEMO_FAIL_BOOT is set"
            );
            return Err("DEMO_FAIL_BOOT is set, so the demo fails to boot".into());
        }
        if let Some(delay) = milliseconds("DEMO_EXIT_AFTER_MS")? {
            thread::Builder::new().name("demo-exit".to_owned()).spawn(move || {
                thread::sleep(delay);
                process::exit(EXIT_AFTER);
            })?;
        }
        let handler = DemoHandler { worker: worker.clone(), requests: AtomicU64::new(0) };
        Ok(Box::new(Http::new(handler, worker.limits)))
    }
}

struct DemoHandler {
    worker: WorkerInfo,
    requests: AtomicU64,
}

impl Handler for DemoHandler {
    fn handle(&self, request: &Request<'_>) -> Response {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let response = match request.path() {
            "/" => Ok(Response::text("Hello, world!\n")),
            "/pid" => Ok(Response::text(format!("{}\n", process::id()))),
            "/info" => Ok(self.info(requests)),
            "/sleep" => required(request, "ms").map(sleep),
            "/long" => required(request, "ms").map(|ms: u64| {
                request.extend_deadline(Duration::from_millis(ms.saturating_add(1000)));
                sleep(ms)
            }),
            "/hang" => loop {
                thread::sleep(Duration::from_secs(3600));
            },
            "/spin" => loop {
                hint::spin_loop();
            },
            "/crash" => process::abort(),
            "/exit" => optional(request, "code").map(|code| process::exit(code.unwrap_or(0))),
            "/panic" => panic!("requested by /panic"),
            "/child" => required(request, "s").map(|s: u64| child(&["sleep"], s)),
            "/stray" => required(request, "s").map(|s: u64| child(&["setsid", "sleep"], s)),
            "/leak" => required(request, "mb").map(leak),
            "/bytes" => required(request, "n").map(bytes),
            "/echo" => Ok(echo(request)),
            "/env" => required(request, "name").map(|name: String| variable(&name)),
            _ => Ok(Response::status(404)),
        };
        response.unwrap_or_else(|error| error)
    }
}

impl DemoHandler {
    fn info(&self, requests: u64) -> Response {
        let info = json!({
            "pid": process::id(),
            "pool": self.worker.pool,
            "slot": self.worker.slot,
            "class": self.worker.class,
            "generation": self.worker.generation,
            "requests": requests,
        });
        Response::json(format!("{info}\n"))
    }
}

fn sleep(ms: u64) -> Response {
    thread::sleep(Duration::from_millis(ms));
    Response::text(format!("slept {ms} ms\n"))
}

fn child(args: &[&str], s: u64) -> Response {
    let mut command = Command::new(args[0]);
    command.args(&args[1..]).arg(s.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
    // The child is not awaited; the exit of the worker ends it.
    match command.spawn() {
        Ok(child) => Response::text(format!("{}\n", child.id())),
        Err(error) => {
            Response::text(format!("failed to start {}: {error}\n", args[0])).with_status(500)
        }
    }
}

fn leak(mb: u64) -> Response {
    for done in 0..mb {
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(MIB).is_err() {
            let text = format!("out of memory after {done} MiB\n");
            return Response::text(text).with_status(507);
        }
        bytes.resize(MIB, 0xa5_u8); // not zero, so that every page is written
        hint::black_box(Vec::leak(bytes));
    }
    Response::text(format!("leaked {mb} MiB\n"))
}

fn bytes(n: u64) -> Response {
    Response::new(200, Body::stream(Zeros { left: n }, Some(n)))
        .header("Content-Type", "application/octet-stream")
}

fn echo(request: &Request<'_>) -> Response {
    let content_type = request.header("content-type").unwrap_or(b"application/octet-stream");
    Response::new(200, request.body().to_vec()).header("Content-Type", content_type)
}

fn variable(name: &str) -> Response {
    // `var_os` accepts any name: one with `=` or NUL is never set.
    match env::var_os(name) {
        Some(value) => Response::text(value.to_string_lossy().into_owned()),
        None => Response::text("no such variable\n").with_status(404),
    }
}

/// A source of `left` bytes, all ASCII `0`.
struct Zeros {
    left: u64,
}

impl Source for Zeros {
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> io::Result<More> {
        let piece = usize::try_from(self.left).map_or(max_len, |left| left.min(max_len));
        out.resize(out.len() + piece, b'0');
        self.left -= piece as u64;
        Ok(if self.left == 0 { More::No } else { More::Yes })
    }
}

/// Returns the parsed value of a query field, if present; a 400 if it is invalid.
fn optional<T: FromStr<Err: Display>>(
    request: &Request<'_>,
    name: &str,
) -> Result<Option<T>, Response> {
    let Some(text) = request.query_value(name) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|error| {
        Response::text(format!("invalid value {text:?} for {name}: {error}\n")).with_status(400)
    })
}

/// Returns the parsed value of a query field; a 400 if it is missing or invalid.
fn required<T: FromStr<Err: Display>>(request: &Request<'_>, name: &str) -> Result<T, Response> {
    optional(request, name)?.ok_or_else(|| {
        let path = request.path();
        Response::text(format!("{path} requires {name}, such as {path}?{name}=1\n"))
            .with_status(400)
    })
}

/// Returns a time in milliseconds from the environment; none if the variable is missing or empty.
fn milliseconds(variable: &str) -> Result<Option<Duration>, BootError> {
    match env::var_os(variable) {
        Some(text) if !text.is_empty() => parse_delay(variable, &text.to_string_lossy()).map(Some),
        _ => Ok(None),
    }
}

fn parse_delay(variable: &str, text: &str) -> Result<Duration, BootError> {
    match text.parse() {
        Ok(ms) => Ok(Duration::from_millis(ms)),
        Err(error) => {
            Err(format!("{variable}={text:?} is not a number of milliseconds: {error}").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{ClientInfo, ConnectionContext, Limits, Next, Options, WorkReporter};

    struct NoopReporter;

    impl WorkReporter for NoopReporter {
        fn begin_work(&mut self, _label: &[u8]) {}
        fn end_work(&mut self) {}
        fn http_date(&mut self) -> [u8; 29] {
            [b'd'; 29]
        }
    }

    fn boot() -> Box<dyn Service> {
        let worker = WorkerInfo {
            pool: "web".to_owned(),
            slot: 3,
            generation: 2,
            class: "sync",
            options: Options::new(),
            limits: Limits::default(),
        };
        Demo.boot(&worker).unwrap()
    }

    /// Sends a request, and returns status, head and body of the response.
    fn send(service: &dyn Service, request: &str) -> (u16, String, String) {
        let mut connection = service.accept(&ClientInfo { address: None, allow_keepalive: false });
        let mut all = Vec::new();
        let mut out = Vec::new();
        let mut next = connection
            .receive(request.as_bytes(), &mut ConnectionContext::new(&mut out, &mut NoopReporter));
        all.append(&mut out);
        while next == Next::Continue {
            next = connection.resume(&mut ConnectionContext::new(&mut out, &mut NoopReporter));
            all.append(&mut out);
        }
        let text = String::from_utf8(all).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), head.to_owned(), body.to_owned())
    }

    fn get(service: &dyn Service, target: &str) -> (u16, String) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let (status, _, body) = send(service, &request);
        (status, body)
    }

    #[test]
    fn each_path_responds() {
        let service = boot();
        let service = service.as_ref();
        assert_eq!(get(service, "/"), (200, "Hello, world!\n".to_owned()));
        assert_eq!(get(service, "/pid"), (200, format!("{}\n", process::id())));
        assert_eq!(get(service, "/sleep?ms=0").0, 200);
        assert_eq!(get(service, "/panic").0, 500);
        assert_eq!(get(service, "/leak?mb=1").0, 200);
        assert_eq!(get(service, "/bytes?n=100000"), (200, "0".repeat(100_000)));
        assert_eq!(get(service, "/bytes?n=0"), (200, String::new()));
        assert_eq!(get(service, "/env?name=CARGO_PKG_NAME"), (200, "ostler".to_owned()));
        assert_eq!(get(service, "/env?name=NO%3DSUCH").0, 404);
        assert_eq!(get(service, "/nowhere").0, 404);
        for invalid in [
            "/sleep",
            "/sleep?ms=x",
            "/bytes?n=-1",
            "/leak?mb=",
            "/child?s=x",
            "/stray?s=x",
            "/env",
            "/exit?code=x",
        ] {
            let (status, body) = get(service, invalid);
            assert!(status == 400 && body.ends_with('\n'), "{invalid}: {body:?}");
        }
    }

    #[test]
    fn info_returns_json_and_counts_requests() {
        let service = boot();
        get(service.as_ref(), "/");
        let (_, body) = get(service.as_ref(), "/info");
        let info: serde_json::Value = serde_json::from_str(&body).unwrap();
        let expected = json!({
            "pid": process::id(), "pool": "web", "slot": 3, "class": "sync", "generation": 2,
            "requests": 2,
        });
        assert_eq!(info, expected);
    }

    #[test]
    fn parse_delay_reads_milliseconds() {
        assert_eq!(parse_delay("A", "1500").unwrap(), Duration::from_millis(1500));
        let error = parse_delay("A", "1s").unwrap_err().to_string();
        assert!(error.starts_with("A=\"1s\" is not"), "{error}");
    }

    #[test]
    fn echo_keeps_the_content_type() {
        let service = boot();
        let post = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n";
        let (_, head, body) = send(service.as_ref(), &format!("{post}Content-Type: a/b\r\n\r\nhi"));
        assert!(head.contains("\r\nContent-Type: a/b") && body == "hi");
        let (_, head, _) = send(service.as_ref(), &format!("{post}\r\nhi"));
        assert!(head.contains("\r\nContent-Type: application/octet-stream"));
    }
}
