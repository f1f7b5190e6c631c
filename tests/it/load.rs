//! Clients that send requests without end, and check the answers.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Answer, Client};
use crate::proc::wait_until;

/// If a client was delayed for longer than this, the server may have closed its idle connection:
/// before its first request, or since an earlier one. The client then connects again.
const KEEPALIVE_RACE_MIN: Duration = Duration::from_millis(50);

/// The pause between an answer and a client's next request. It leaves CPU time for the servers and
/// for other tests.
const PAUSE: Duration = Duration::from_millis(1);

/// How many clients a crowd has.
const CROWD: usize = 12;

/// How many connections each client of a flood keeps.
const FLOOD: usize = 16;

/// Where clients connect.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Path(PathBuf),
    Abstract(String),
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl Target {
    /// Opens a connection.
    pub fn connect(&self) -> io::Result<Client> {
        match self {
            Self::Tcp(address) => Client::tcp(*address),
            Self::Path(path) => Client::unix(path),
            Self::Abstract(name) => Client::abstract_unix(name),
        }
    }
}

/// What a client does again and again.
type Custom = fn(&Shared, &Target) -> io::Result<()>;

/// Clients in threads, each with one request at a time.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    tolerance: Tolerance,
    answers: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// Which failures are allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tolerance {
    #[default]
    Nothing,
    /// Connection refused: the client ends.
    Refusal,
    /// No answer on an accepted connection: the client connects again.
    Silence,
}

impl Load {
    /// Starts clients for which every request must be answered.
    pub fn on(address: SocketAddr) -> Self {
        Self::start(address.into(), Tolerance::Nothing, &[fresh, fresh, kept])
    }

    /// Starts clients of a service behind which several servers are. Every request must be answered.
    pub fn on_service(address: SocketAddr) -> Self {
        Self::start(
            address.into(),
            Tolerance::Nothing,
            &[fresh, fresh, kept_by_proxy, kept_by_proxy],
        )
    }

    /// Starts clients that end when their connection is refused. Each accepted connection must be
    /// answered.
    pub fn until_refused(address: SocketAddr) -> Self {
        Self::start(address.into(), Tolerance::Refusal, &[fresh, fresh, kept])
    }

    /// Starts many clients, each of which ends when its connection is refused. Each accepted
    /// connection must be answered.
    pub fn crowd_until_refused(target: Target) -> Self {
        Self::start(target, Tolerance::Refusal, &[fresh as Custom; CROWD])
    }

    /// Starts clients that keep a server busy: each has many connections, and a request in progress on each.
    /// Every request must be answered.
    pub fn flood(address: SocketAddr) -> Self {
        Self::start(address.into(), Tolerance::Nothing, &[flood as Custom; 4])
    }

    /// Starts clients that must always be able to connect, but whose request may be lost.
    pub fn connecting(address: SocketAddr) -> Self {
        Self::start(address.into(), Tolerance::Silence, &[fresh, fresh, kept])
    }

    fn start(target: Target, tolerance: Tolerance, customs: &[Custom]) -> Self {
        let shared = Arc::new(Shared { tolerance, ..Shared::default() });
        let spawn = |custom: &Custom| {
            let (shared, target, custom) = (Arc::clone(&shared), target.clone(), *custom);
            thread::spawn(move || shared.repeat(|| custom(&shared, &target)))
        };
        let threads = customs.iter().map(spawn).collect();
        let load = Self { shared, threads };
        load.wait_answers(10);
        load
    }

    /// Waits for `more` further answers, so that the effects of earlier events have been seen.
    #[track_caller]
    pub fn wait_answers(&self, more: usize) {
        let goal = self.shared.answers.load(Ordering::Relaxed) + more;
        wait_until("clients are answered", || {
            self.shared.answers.load(Ordering::Relaxed) >= goal || !self.failures().is_empty()
        });
    }

    fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap().clone()
    }

    /// Stops the clients. All requests must have been answered.
    #[track_caller]
    pub fn finish(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join();
    }

    /// Waits until the last client has been refused.
    #[track_caller]
    pub fn wait_refused(mut self) {
        wait_until("connections are refused", || self.threads.iter().all(JoinHandle::is_finished));
        self.join();
    }

    #[track_caller]
    fn join(&mut self) {
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        let failures = self.failures();
        let answers = self.shared.answers.load(Ordering::Relaxed);
        assert!(failures.is_empty(), "{} of {answers} failed: {failures:#?}", failures.len());
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if thread::panicking() && !self.failures().is_empty() {
            eprintln!("clients failed meanwhile: {:#?}", self.failures());
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn repeat(&self, custom: impl Fn() -> io::Result<()>) {
        while !self.stopped() {
            match custom() {
                Ok(()) => (),
                Err(error) if self.tolerance == Tolerance::Refusal && is_refusal(&error) => return,
                Err(error) if self.tolerance == Tolerance::Silence && !is_refusal(&error) => (),
                Err(error) => {
                    let mut failures = self.failures.lock().unwrap();
                    failures.push(format!("{error} ({:?})", error.kind()));
                    if failures.len() >= 20 {
                        return;
                    }
                }
            }
        }
    }

    fn check_answer(&self, result: &Answer) -> io::Result<()> {
        if result.status() != 200 || result.body != b"Hello, world!\n" {
            return Err(io::Error::other(format!("{result:?}")));
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether a connection was refused: by the address, or since the path is gone.
pub fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}

/// Opens a connection for each request.
fn fresh(shared: &Shared, target: &Target) -> io::Result<()> {
    let begun = Instant::now();
    let mut client = target.connect().map_err(|error| with_context("connect", error))?;
    let sent = client.try_send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let idle = begun.elapsed();
    match sent.and_then(|()| client.try_answer()) {
        Ok(answer) => {
            client.reset();
            shared.check_answer(&answer)?;
            thread::sleep(PAUSE);
            Ok(())
        }
        Err(_) if idle > KEEPALIVE_RACE_MIN => Ok(()),
        Err(error) => Err(with_context("only request", error)),
    }
}

/// Keeps one connection until the server announces its end.
fn kept(shared: &Shared, target: &Target) -> io::Result<()> {
    keep(shared, target, false)
}

/// Keeps one connection through a proxy, which may pass a request on late.
fn kept_by_proxy(shared: &Shared, target: &Target) -> io::Result<()> {
    keep(shared, target, true)
}

fn keep(shared: &Shared, target: &Target, by_proxy: bool) -> io::Result<()> {
    let mut connection = KeptConnection::open(target, by_proxy)?;
    while !shared.stopped() {
        connection.ask();
        if connection.ends_with_answer(shared)? {
            break;
        }
        thread::sleep(PAUSE);
    }
    connection.client.reset();
    Ok(())
}

/// Keeps many connections. Sends a request over each before it reads the answers.
fn flood(shared: &Shared, target: &Target) -> io::Result<()> {
    let open = || KeptConnection::open(target, false);
    let mut connections = (0..FLOOD).map(|_| open()).collect::<io::Result<Vec<_>>>()?;
    while !shared.stopped() {
        connections.iter_mut().for_each(KeptConnection::ask);
        for connection in &mut connections {
            if connection.ends_with_answer(shared)? {
                *connection = open()?;
            }
        }
    }
    connections.into_iter().for_each(|connection| connection.client.reset());
    Ok(())
}

/// A connection for one request after the other.
struct KeptConnection {
    client: Client,
    /// Whether a proxy may pass a request on late.
    by_proxy: bool,
    /// When the last request was sent, or before that, when the connection was opened.
    asked: Instant,
    /// The same of the request before.
    asked_before: Instant,
    /// How long the connection may have been idle when the last request was sent.
    idle: Duration,
    sent: io::Result<()>,
}

impl KeptConnection {
    fn open(target: &Target, by_proxy: bool) -> io::Result<Self> {
        let now = Instant::now();
        let client = target.connect().map_err(|error| with_context("connect", error))?;
        let (idle, sent) = (Duration::ZERO, Ok(()));
        Ok(Self { client, by_proxy, asked: now, asked_before: now, idle, sent })
    }

    /// Sends a request.
    fn ask(&mut self) {
        // The answer to the last one may have arrived long before this client had time to read it.
        self.asked_before = std::mem::replace(&mut self.asked, Instant::now());
        self.sent = self.client.try_send("GET / HTTP/1.1\r\nHost: test\r\n\r\n");
        self.idle = self.asked_before.elapsed();
    }

    /// Reads the answer. Returns whether the connection ends with it, or has ended because it was idle.
    fn ends_with_answer(&mut self, shared: &Shared) -> io::Result<bool> {
        let sent = std::mem::replace(&mut self.sent, Ok(()));
        match sent.and_then(|()| self.client.try_answer()) {
            Ok(answer) => {
                shared.check_answer(&answer)?;
                Ok(answer.head.closes())
            }
            Err(error) => {
                let idle = if self.by_proxy { self.asked_before.elapsed() } else { self.idle };
                if idle > KEEPALIVE_RACE_MIN {
                    return Ok(true);
                }
                Err(with_context("later request", error))
            }
        }
    }
}

fn with_context(when: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{when}: {error}"))
}
