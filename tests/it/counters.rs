//! The totals of the master and what clients have counted, with many clients at once, over everything that
//! replaces a worker.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::DEADLINE;
use crate::client::Client;
use crate::control::Controlled;
use crate::proc::wait_until;

on_every_class_slowly!(
    totals_equal_those_of_concurrent_clients,
    killed_workers_lose_no_unit_that_was_answered,
);
on_tokio!(totals_equal_those_of_concurrent_clients, killed_workers_lose_no_unit_that_was_answered,);

const KEPT: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
/// How many requests a client sends over a connection that it keeps.
const REQUESTS: usize = 10;
/// The clients: every other one closes after each answer.
const CLIENTS: usize = 6;

/// What clients have counted.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    answers: AtomicU64,
    /// Requests that were not answered, or not wholly: a connection that was kept has ended.
    unanswered: AtomicU64,
    /// Bytes of the requests that were answered.
    sent: AtomicU64,
    received: AtomicU64,
}

/// Clients in threads.
struct Clients {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start(address: SocketAddr) -> Self {
        let (stop, counts) = (Arc::<AtomicBool>::default(), Arc::<Counts>::default());
        let client = |index: usize| {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let requests = if index.is_multiple_of(2) { 1 } else { REQUESTS };
                    counts.converse(address, requests).unwrap();
                }
            })
        };
        let threads = (0..CLIENTS).map(client).collect();
        let clients = Self { stop, counts, threads };
        clients.wait_more();
        clients
    }

    /// Waits until each has had further answers.
    #[track_caller]
    fn wait_more(&self) {
        let goal = get(&self.counts.answers) + 200;
        wait_until("clients are answered", || get(&self.counts.answers) >= goal);
    }

    /// Stops them after their last answers.
    fn finish(self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.counts
    }
}

impl Counts {
    /// Sends requests over one connection, until the server ends it.
    fn converse(&self, address: SocketAddr, requests: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        add(&self.connections, 1);
        for left in (0..requests).rev() {
            let request = if left == 0 { LAST } else { KEPT };
            let Some(answer) = exchange(&mut stream, request) else {
                add(&self.unanswered, 1);
                return Ok(());
            };
            add(&self.answers, 1);
            add(&self.sent, request.len());
            add(&self.received, answer.len());
            thread::sleep(Duration::from_millis(1)); // leaves CPU time to the server and to other tests
            if answer.to_ascii_lowercase().windows(17).any(|part| part == b"connection: close") {
                break;
            }
        }
        Ok(())
    }
}

/// Returns the answer to a request; `None` if the connection ends before it.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> Option<Vec<u8>> {
    stream.write_all(request).ok()?;
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"Hello, world!\n") {
        match stream.read(&mut piece) {
            Ok(0) => return None,
            Ok(length) => answer.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("no answer"),
            Err(_) => return None,
        }
    }
    Some(answer)
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn add(count: &AtomicU64, more: usize) {
    count.fetch_add(more as u64, Ordering::Relaxed);
}

fn totals_equal_those_of_concurrent_clients(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2", "--max-requests", "300"]);
    let old = it.status()["pid"].clone();
    let clients = Clients::start(it.server.address());
    let mark = it.server.mark();
    it.server.signal(Signal::SIGHUP);
    it.server.wait_for_new_record(mark, "the reload", |it| it.message() == "reload complete");
    clients.wait_more();
    let mut recycling = it.connect();
    recycling.send("POST /v1/recycle HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(recycling.answer().status(), 200);
    clients.wait_more();
    it.server.signal(Signal::SIGUSR2);
    let ready = it.server.wait_for("the new master", |it| it.message() == "new master ready");
    clients.wait_more();
    it.server.signal(Signal::SIGTERM);
    it.server.wait_for("the take-over", |record| record.message() == "upgrade complete");
    clients.wait_more();
    let counts = clients.finish();
    wait_until("the new master answers", || {
        let Ok(mut client) = Client::unix(it.socket()) else { return false };
        client.ask("/v1/status");
        client.try_answer().is_ok_and(|answer| answer.json()["pid"] != old)
    });
    // The last units and bytes are counted a moment after their answers have arrived.
    let is_counted = |pool: &serde_json::Value| {
        let number = |key: &str| pool[key].as_u64().unwrap();
        number("units_total") >= get(&counts.answers)
            && number("bytes_out_total") >= get(&counts.received)
    };
    let pool = it.wait_status("all requests are counted", is_counted);
    let number = |key: &str| pool[key].as_u64().unwrap();
    assert_eq!(number("units_total"), get(&counts.answers), "{pool}");
    assert_eq!(number("accepted_total"), get(&counts.connections), "{pool}");
    assert_eq!(number("bytes_out_total"), get(&counts.received), "{pool}");
    let unanswered = get(&counts.unanswered) * KEPT.len() as u64;
    let bytes_in = get(&counts.sent)..=get(&counts.sent) + unanswered;
    assert!(bytes_in.contains(&number("bytes_in_total")), "{bytes_in:?} {pool}");
    let buckets = pool["latency"].as_array().unwrap();
    let counted: u64 = buckets.iter().map(|bucket| bucket[1].as_u64().unwrap()).sum();
    assert_eq!(counted, get(&counts.answers));
    kill(Pid::from_raw(ready.number("pid").unwrap() as i32), Signal::SIGTERM).unwrap();
    it.server.wait_no_survivors();
}

/// A unit is counted before its answer is sent: of a killed worker, at most units are counted whose answers
/// have not arrived.
fn killed_workers_lose_no_unit_that_was_answered(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let clients = Clients::start(it.server.address());
    for _ in 0..3 {
        let victim = it.server.wait_workers(2)[0];
        kill(victim.pid, Signal::SIGKILL).unwrap();
        it.server.wait_replaced(victim);
        clients.wait_more();
    }
    let counts = clients.finish();
    let answers = get(&counts.answers);
    let pool = it.wait_status("all answers are counted", |pool| {
        pool["units_total"].as_u64().unwrap() >= answers
    });
    let units = answers..=answers + get(&counts.unanswered);
    assert!(units.contains(&pool["units_total"].as_u64().unwrap()), "{units:?} {pool}");
    assert!(pool["accepted_total"].as_u64().unwrap() <= get(&counts.connections), "{pool}");
    it.server.finish();
}
