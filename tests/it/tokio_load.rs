//! HTTP/2 under load while workers are replaced: no request is lost.

use std::error::Error;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http::Request;
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::{Signal, kill};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::proc::wait_until;
use crate::support::Exit;
use crate::tokio_class::launch;

const CONNECTIONS: usize = 3;
/// How many requests at a time each connection has.
const STREAMS: usize = 6;

/// Clients that know GOAWAY: a request that the server has refused by it is sent again, and the next
/// ones over a new connection. Every other request must be answered.
struct Http2Load {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answers: AtomicUsize,
    connections: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Http2Load {
    fn on(address: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let its = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let mut clients = JoinSet::new();
                for _ in 0..CONNECTIONS {
                    clients.spawn(run_client(address, Arc::clone(&its)));
                }
                clients.join_all().await;
            });
        });
        Self { shared, thread }
    }

    /// Waits until this many more requests were answered, and checks that none has failed.
    fn wait_answers(&self, count: usize) {
        let wanted = self.shared.answers.load(Ordering::Relaxed) + count;
        wait_until("answers", || {
            self.check();
            self.shared.answers.load(Ordering::Relaxed) >= wanted
        });
    }

    #[track_caller]
    fn check(&self) {
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:#?}");
    }

    /// Ends the clients. Returns how many connections they had.
    fn finish(self) -> usize {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Self { shared, thread } = self;
        thread.join().unwrap();
        let failures = shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "{failures:#?}");
        shared.connections.load(Ordering::Relaxed)
    }
}

/// Sends requests over one connection after the other.
async fn run_client(address: SocketAddr, shared: Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        if let Err(failure) = use_connection(address, &shared).await {
            shared.failures.lock().unwrap().push(failure);
            return;
        }
    }
}

/// Sends requests until the server says good-bye.
async fn use_connection(address: SocketAddr, shared: &Arc<Shared>) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let made = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(|error| format!("handshake: {error:?}"))?;
    shared.connections.fetch_add(1, Ordering::Relaxed);
    let connection = tokio::spawn(connection);
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        streams.spawn(send_requests(sender.clone(), address, Arc::clone(shared)));
    }
    drop(sender);
    let mut end = Ok(());
    while let Some(joined) = streams.join_next().await {
        end = end.and(joined.unwrap());
    }
    let _ = connection.await; // its requests have told how it ended
    end
}

/// Sends one request after the other, until the server refuses one by GOAWAY.
async fn send_requests(
    mut sender: SendRequest<String>,
    address: SocketAddr,
    shared: Arc<Shared>,
) -> Result<(), String> {
    let paths = ["/", "/bytes?n=100000", "/sleep?ms=5"];
    for path in paths.iter().cycle() {
        if shared.stop.load(Ordering::Relaxed) || sender.ready().await.is_err() {
            return Ok(());
        }
        let uri = format!("http://{address}{path}");
        let request = Request::builder().uri(uri).body(String::new()).unwrap();
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(error) if may_be_sent_again(&error) => return Ok(()),
            Err(error) => return Err(format!("{path}: {error:?}")),
        };
        let status = response.status();
        let length = length_of(response.into_body()).await;
        let length = length.map_err(|error| format!("{path}: {status}, body: {error:?}"))?;
        let expected = [14, 100_000, 11];
        let expected = expected[paths.iter().position(|it| it == path).unwrap()];
        if status != 200 || length != expected {
            return Err(format!("{path}: {status}, {length} bytes"));
        }
        shared.answers.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1)).await; // leaves CPU time for others
    }
    Ok(())
}

/// Returns whether the server has not begun with the request (RFC 9113, section 8.7).
fn may_be_sent_again(error: &hyper::Error) -> bool {
    if error.is_canceled() {
        return true; // it was not sent
    }
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|error| {
        let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let is_late = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (is_refused || is_late)
    })
}

async fn length_of(mut body: Incoming) -> Result<usize, hyper::Error> {
    let mut length = 0;
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        length += frame?.data_ref().map_or(0, |data| data.len());
    }
    Ok(length)
}

#[test]
fn http2_requests_survive_reloads_recycling_and_an_upgrade() {
    let flags = ["-w", "2", "--max-requests", "400", "--max-requests-jitter", "100"];
    let Some(launch) = launch(&flags) else { return };
    let server = launch.start();
    let load = Http2Load::on(server.address());
    for _ in 0..4 {
        load.wait_answers(100);
        let mark = server.mark();
        server.signal(Signal::SIGHUP);
        server.wait_for_new_record(mark, "the reload", |it| it.message() == "reload complete");
    }
    let is_recycled = |it: &crate::log_capture::Record| it.text("reason") == Some("recycled");
    server.wait_for("recycling", is_recycled);
    load.wait_answers(100);
    server.signal(Signal::SIGUSR2);
    let ready = server.wait_for("the new master", |it| {
        it.message() == "all workers ready" && it.pid().is_some_and(|pid| pid != server.pid)
    });
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait_exit(), Exit::Code(0));
    load.wait_answers(300);
    let connections = load.finish();
    assert!(connections > 3 * CONNECTIONS, "GOAWAY has moved clients: {connections}");
    kill(ready.pid().unwrap(), Signal::SIGTERM).unwrap();
    server.wait_no_survivors();
}
