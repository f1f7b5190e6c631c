//! A worker class on tokio: each worker has a single-threaded runtime, which serves an axum router.
//!
//! ```text
//! cargo run --example tokio_axum -- --workers 2
//! curl 'http://127.0.0.1:8000/sleep?ms=500'
//! ```

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::TcpStream as Socket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::routing::get;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ostler::Runtime;
use ostler::app::WorkReporter;
use ostler::listen::Stream;
use ostler::worker::{
    Accept, Acceptor, Lifecycle, StopRequest, WorkerClass, WorkerContext, WorkerError,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest, copy, join, sink};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

/// How long a draining worker waits for a request that may be on its way.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(100);

/// Returns the router to serve, here a demo. A handler that awaits delays no other; a handler that
/// blocks the thread for longer than `timeout` is found hung, and its label logged.
fn router() -> Router {
    let sleeps = |Query(query): Query<HashMap<String, u64>>| async move {
        sleep(Duration::from_millis(query.get("ms").copied().unwrap_or(0))).await;
        "slept\n"
    };
    Router::new()
        .route("/", get(|| async { "Hello, world!\n" }))
        .route("/pid", get(|| async { std::process::id().to_string() }))
        .route("/sleep", get(sleeps))
        .route("/hang", get(|| async { std::thread::sleep(Duration::MAX) }))
        .route("/panic", get(|| async { panic!("asked to") as () }))
}

/// Serves the router that the function returns, made once in each worker.
struct Tokio(fn() -> Router);

impl WorkerClass for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn needs_app(&self) -> bool {
        false
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        // In the worker: no thread of a runtime survives a fork.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let end = runtime.block_on(serve(ctx, (self.0)()));
        runtime.shutdown_background(); // a blocked thread of its pool ends with the process
        end
    }
}

async fn serve(ctx: &WorkerContext<'_>, router: Router) -> Result<(), WorkerError> {
    let (lifecycle, router) = (ctx.lifecycle(), TowerToHyperService::new(router));
    let (mut acceptor, mut clients) = (ctx.acceptor(), JoinSet::new());
    let (stop, told) = watch::channel(StopRequest::None);
    let listeners = ctx.listeners().iter().map(|listener| observe(listener.as_fd()));
    let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
    let signals = observe(lifecycle.wake_fd())?;
    let head_timeout = Some(ctx.worker().limits.header_timeout).filter(|limit| !limit.is_zero());
    stop.send_replace(lifecycle.poll_stop()); // from now on this class polls for a stop
    lifecycle.ready();
    loop {
        let until = match acceptor.poll(clients.len()) {
            Accept::Client(stream, _) => {
                clients.spawn(drive(lifecycle, head_timeout, stream, router.clone(), told.clone()));
                yield_now().await; // other workers get some of a burst, and other tasks their turn
                continue;
            }
            Accept::Pending { deadline: until } => until,
            Accept::Finished => return Ok(()),
        };
        let wait = until.map_or(Duration::from_secs(3600), |at| at.duration_since(lifecycle.now()));
        tokio::select! {
            listener = readable_listener(&listeners, &acceptor) => acceptor.mark_readable(listener?),
            Some(_) = clients.join_next() => while clients.try_join_next().is_some() {},
            guard = signals.readable() => {
                guard?.clear_ready(); // first: a later signal sets it again
                stop.send_replace(lifecycle.poll_stop());
            }
            () = sleep(wait) => (),
        }
    }
}

/// How long a client may go on sending after the last response, and how much.
const LINGERING_TIMEOUT: Duration = Duration::from_secs(2);
const LINGERING_BYTES: u64 = 1 << 20;

/// Serves one client, and closes its connection.
async fn drive(
    lifecycle: &'static Lifecycle,
    head_timeout: Option<Duration>,
    stream: Stream,
    router: TowerToHyperService<Router>,
    told: watch::Receiver<StopRequest>,
) {
    let socket = Socket::from(OwnedFd::from(stream)); // or a unix socket: the calls are the same
    let Ok(mut stream) = TcpStream::from_std(socket) else { return };
    answer(lifecycle, head_timeout, &mut stream, router, told).await;
    linger(stream).await;
}

/// Answers one client's requests, and ignores its errors. The head of a request is limited by
/// `header_timeout`.
async fn answer(
    lifecycle: &'static Lifecycle,
    head_timeout: Option<Duration>,
    stream: &mut TcpStream,
    router: TowerToHyperService<Router>,
    mut told: watch::Receiver<StopRequest>,
) {
    let (reader, writer) = stream.split();
    let service = service_fn(|request: Request<Incoming>| {
        let label = format!("{} {}", request.method(), request.uri().path());
        track(lifecycle, label, router.call(request))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout);
    let mut client = pin!(http.serve_connection(TokioIo::new(join(reader, writer)), service));
    let drain_started = async {
        let _ = told.wait_for(|stop| *stop != StopRequest::None).await;
        sleep(DRAIN_IDLE_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        _ = &mut client => return,
        () = drain_started => client.as_mut().graceful_shutdown(),
    }
    let _ = client.await;
}

/// Reads on if the client has sent more than was read: closing the socket would reset the connection,
/// and cut off the response. hyper has ended the output.
async fn linger(stream: TcpStream) {
    if let Ok(1..) = stream.try_read(&mut [0]) {
        let mut rest = stream.take(LINGERING_BYTES);
        let _ = timeout(LINGERING_TIMEOUT, copy(&mut rest, &mut sink())).await;
    }
}

/// Marks a request as a unit of work. The thread's entry is set only while the request's own code
/// runs, one request at a time: a request that awaits is not hung.
async fn track<E>(
    lifecycle: &'static Lifecycle,
    label: String,
    answer: impl Future<Output = Result<Response, E>>,
) -> Result<Response, E> {
    let started_at = lifecycle.now();
    let mut answer = pin!(answer);
    let mut response = poll_fn(|cx| {
        let mut tracker = lifecycle.tracker().with_heartbeat(); // of this thread; idle when dropped
        tracker.begin_work(label.as_bytes());
        answer.as_mut().poll(cx)
    })
    .await?;
    lifecycle.tracker().end_work_since(started_at);
    if lifecycle.stop_request() != StopRequest::None {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Makes tokio watch a descriptor for reading.
#[expect(unsafe_code)]
fn observe(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: it is borrowed for as long as it is registered, so it stays open and the same.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Waits until a client connects to a listener of interest: tokio's readiness is edge-triggered.
async fn readable_listener(
    listeners: &[AsyncFd<BorrowedFd<'_>>],
    acceptor: &Acceptor<'_>,
) -> io::Result<usize> {
    poll_fn(|cx| {
        for index in (0..listeners.len()).filter(|index| acceptor.is_interested(*index)) {
            if let Poll::Ready(guard) = listeners[index].poll_read_ready(cx) {
                return Poll::Ready(guard.map(|mut guard| guard.clear_ready()).map(|()| index));
            }
        }
        Poll::Pending
    })
    .await
}

fn main() -> ExitCode {
    Runtime::new().class(Tokio(router)).default_class("tokio").main()
}
