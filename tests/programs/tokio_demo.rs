//! The app `demo` as an axum router: the same paths, for the tests of the worker class `tokio`.

use std::convert::Infallible;
use std::pin::Pin;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{env, hint, process, thread};

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Router};
use http_body::{Frame, SizeHint};
use ostler::tokio::{App, ClientStream, RequestContext, Worker};
use serde::Deserialize;
use slog::info;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Deserialize)]
struct Milliseconds {
    ms: u64,
}

#[derive(Deserialize)]
struct Count {
    n: u64,
}

#[derive(Deserialize)]
struct Code {
    #[serde(default)]
    code: i32,
}

#[derive(Deserialize)]
struct Mebibytes {
    mb: usize,
}

#[derive(Deserialize)]
struct Seconds {
    s: u64,
}

#[derive(Deserialize)]
struct Name {
    name: String,
}

async fn boot(worker: Worker) -> Result<Router, ostler::app::BootError> {
    if let Ok(delay) = env::var("DEMO_BOOT_SLEEP_MS") {
        tokio::time::sleep(Duration::from_millis(delay.parse()?)).await;
    }
    match env::var("DEMO_FAIL_BOOT").as_deref() {
        Err(_) | Ok("" | "0") => (),
        Ok("panic") => panic!("DEMO_FAIL_BOOT is set"),
        Ok(_) => return Err("DEMO_FAIL_BOOT is set, so the demo fails to boot".into()),
    }
    if let Ok(delay) = env::var("DEMO_EXIT_AFTER_MS") {
        let delay = Duration::from_millis(delay.parse()?);
        thread::spawn(move || {
            thread::sleep(delay);
            process::exit(7);
        });
    }
    Ok(router(worker))
}

fn router(worker: Worker) -> Router {
    assert!(worker.log_tracing_events());
    tracing::info!(answer = 42, "app booted");
    let requests = Arc::new(AtomicU64::new(0));
    Router::new()
        .route("/", any(|| async { "Hello, world!\n" }))
        .route("/pid", get(|| async { format!("{}\n", process::id()) }))
        .route(
            "/info",
            get(async move || info_of(&worker, requests.fetch_add(1, Ordering::Relaxed))),
        )
        .route("/sleep", get(sleep))
        .route("/hang", get(hang))
        .route("/stream_hang", get(|| async { Body::new(HangingBody) }))
        .route("/await", get(std::future::pending::<()>))
        .route("/spend", get(spend))
        .route("/all_hang", get(all_hang))
        .route("/one_hangs", get(async || _ = tokio::spawn(async { thread::sleep(Duration::MAX) })))
        .route(
            "/block",
            get(async |Query(Milliseconds { ms }): Query<Milliseconds>| {
                thread::sleep(Duration::from_millis(ms));
            }),
        )
        .route("/task", get(task))
        .route(
            "/task_sleep",
            get(
                async |Query(Milliseconds { ms }): Query<Milliseconds>,
                       Extension(context): Extension<RequestContext>| {
                    let time = Duration::from_millis(ms);
                    context
                        .worker()
                        .spawn("sleeper", async move { tokio::time::sleep(time).await });
                },
            ),
        )
        .route(
            "/block_in_place",
            get(async |Query(Milliseconds { ms }): Query<Milliseconds>| {
                tokio::task::block_in_place(|| thread::sleep(Duration::from_millis(ms)));
            }),
        )
        .route(
            "/messages",
            get(async |Query(Count { n }): Query<Count>| messages(n as usize).await),
        )
        .route("/meet", get(async || tokio::task::block_in_place(meet)))
        .route("/sized", get(sized))
        .route("/head_only", get(async |Query(Count { n }): Query<Count>| head_only(n)))
        .route(
            "/task_hang",
            get(async |Extension(context): Extension<RequestContext>| {
                context.worker().spawn("sweeper", async { thread::sleep(Duration::MAX) });
            }),
        )
        .route(
            "/wait_for_stop",
            get(async |Extension(context): Extension<RequestContext>| {
                context.shutdown().requested().await;
                "the worker stops\n"
            }),
        )
        .route("/upgrade", get(upgrade))
        .route("/spin", get(spin))
        .route("/crash", get(async || -> StatusCode { process::abort() }))
        .route(
            "/exit",
            get(async |Query(code): Query<Code>| -> StatusCode { process::exit(code.code) }),
        )
        .route("/panic", get(async || -> StatusCode { panic!("requested by /panic") }))
        .route("/child", get(async |Query(Seconds { s }): Query<Seconds>| child(&["sleep"], s)))
        .route(
            "/stray",
            get(async |Query(Seconds { s }): Query<Seconds>| child(&["setsid", "sleep"], s)),
        )
        .route("/leak", get(async |Query(Mebibytes { mb }): Query<Mebibytes>| leak(mb)))
        .route("/bytes", get(async |Query(Count { n }): Query<Count>| bytes(n)))
        .route(
            "/event",
            get(async || {
                let _span = tracing::info_span!("span").entered();
                tracing::debug!("not logged");
                tracing::warn!(stock = 7, item = "oats", "stock {}", "low");
            }),
        )
        .route(
            "/id",
            get(async |Extension(context): Extension<RequestContext>| context.id().to_string()),
        )
        .route(
            "/trailers",
            get(async |Query(Count { n }): Query<Count>| Body::new(WithTrailers::of(n))),
        )
        .route("/text", get(async |Query(Count { n }): Query<Count>| "x".repeat(n as usize)))
        .route("/echo", any(echo))
        .route("/early", any(early))
        .route("/env", get(variable))
        .layer(axum::extract::DefaultBodyLimit::disable()) // limit_request_body holds
}

fn info_of(worker: &Worker, before: u64) -> Response {
    let info = worker.info();
    let text = format!(
        r#"{{"pid":{},"pool":"{}","slot":{},"class":"{}","generation":{},"requests":{}}}"#,
        process::id(),
        info.pool,
        info.slot,
        info.class,
        info.generation,
        before + 1
    );
    ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

async fn sleep(Query(Milliseconds { ms }): Query<Milliseconds>) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("slept {ms} ms\n")
}

async fn hang() -> StatusCode {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Never waits for anything, and leaves its task no budget.
async fn spend() {
    loop {
        tokio::task::coop::consume_budget().await;
    }
}

/// Blocks each thread in a task of which the class knows nothing.
async fn all_hang() {
    for _ in 0..2 {
        tokio::spawn(async { thread::sleep(Duration::MAX) });
    }
}

/// Spawns a task that ends some time after the stop.
async fn task(Extension(context): Extension<RequestContext>) -> &'static str {
    let worker = context.worker();
    let (shutdown, log) = (worker.shutdown(), worker.log().clone());
    worker.spawn("task", async move {
        shutdown.requested().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        info!(log, "task ended");
    });
    "spawned\n"
}

/// Upgrades the connection, and keeps it open.
async fn upgrade(mut request: Request) -> Response {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let _upgraded = upgraded.await;
        std::future::pending::<()>().await;
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "x")];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

/// Blocks its thread until three other requests do so, too.
fn meet() -> &'static str {
    static MEETING: Barrier = Barrier::new(4);
    MEETING.wait();
    "met\n"
}

/// Receives messages that are all there, which takes of the task's budget.
async fn messages(count: usize) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel(count);
    (0..count).for_each(|_| sender.try_send(()).expect("the channel has room"));
    for _ in 0..count {
        receiver.recv().await;
    }
}

async fn spin() -> StatusCode {
    loop {
        hint::spin_loop();
    }
}

fn child(args: &[&str], s: u64) -> Response {
    let mut command = Command::new(args[0]);
    command.args(&args[1..]).arg(s.to_string()).stdin(Stdio::null()).stdout(Stdio::null());
    match command.spawn() {
        Ok(child) => format!("{}\n", child.id()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn leak(mb: usize) -> String {
    hint::black_box(Vec::leak(vec![0xa5_u8; mb << 20]));
    format!("leaked {mb} MiB\n")
}

fn bytes(n: u64) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/octet-stream")];
    (content_type, Body::new(Zeros { left: n })).into_response()
}

/// What [`Pieces`] yields, and what the response says of it.
#[derive(Deserialize)]
struct Sized {
    /// `Content-Length`.
    says: Option<u64>,
    /// How many pieces of 1,000 bytes there are.
    pieces: usize,
    /// Whether an empty piece follows, after which the body says that it has ended.
    #[serde(default)]
    empty: bool,
}

/// Answers with a body of which no one knows the length.
async fn sized(Query(Sized { says, pieces, empty }): Query<Sized>) -> Response {
    let mut left = vec![Bytes::from(vec![b'x'; 1000]); pieces];
    if empty {
        left.insert(0, Bytes::new());
    }
    let mut response = Body::new(Pieces { left, knows_end: empty }).into_response();
    if let Some(length) = says {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

/// Answers with a head of `n` bytes and no body.
fn head_only(n: u64) -> Response {
    let value = HeaderValue::try_from("x".repeat(n as usize)).expect("letters are a value");
    ([("x-long", value)], ()).into_response()
}

/// Answers at once, and reads the body a second later.
async fn early(request: Request) -> StatusCode {
    tokio::spawn(async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
    });
    StatusCode::ACCEPTED
}

async fn echo(headers: HeaderMap, body: Bytes) -> Response {
    let default = HeaderValue::from_static("application/octet-stream");
    let content_type = headers.get(header::CONTENT_TYPE).cloned().unwrap_or(default);
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

async fn variable(Query(Name { name }): Query<Name>) -> Response {
    match env::var_os(name) {
        Some(value) => value.to_string_lossy().into_owned().into_response(),
        None => (StatusCode::NOT_FOUND, "no such variable\n").into_response(),
    }
}

/// A body of `left` bytes, all ASCII `0`.
struct Zeros {
    left: u64,
}

impl http_body::Body for Zeros {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static ZEROS: [u8; 16 << 10] = [b'0'; 16 << 10];
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let length = self.left.min(ZEROS.len() as u64);
        self.left -= length;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..length as usize])))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A body without a size hint, in pieces.
struct Pieces {
    left: Vec<Bytes>,
    /// Whether it says that it has ended before it is asked.
    knows_end: bool,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.left.pop().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.knows_end && self.left.is_empty()
    }
}

/// A body that blocks its thread.
struct HangingBody;

impl http_body::Body for HangingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        thread::sleep(Duration::MAX);
        Poll::Ready(None)
    }
}

/// Sends back what a client sends.
async fn echo_bytes(mut stream: ClientStream) {
    let mut bytes = vec![0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

fn main() -> ExitCode {
    let echo = App::streams("echo", |_| async { Ok(|stream, _| echo_bytes(stream)) });
    ostler::Runtime::new().app(App::new("demo", boot)).app(echo).main()
}

/// A body whose last frame is trailers, as gRPC has it.
struct WithTrailers {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl WithTrailers {
    fn of(length: u64) -> Self {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-status", HeaderValue::from_static("0"));
        Self { data: Some("x".repeat(length as usize).into()), trailers: Some(trailers) }
    }
}

impl http_body::Body for WithTrailers {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }
}
