//! What a call of MessagePack-RPC costs: the app `rpc` under two classes, beside a bare epoll loop
//! that answers as many bytes, beside the app `echo`, and beside a plain server in Python.
//!
//! ```text
//! cargo bench --bench rpc_load
//! cargo bench --bench rpc_load -- --connections 64 --pipeline 64 --seconds 5 --rounds 3
//! ```
//!
//! The figure to trust is CPU time a call, user and system, of the server's whole process tree:
//! this load generator shares the processors, so calls a second say as much about it. The servers
//! take turns, round after round. Each has two workers. Needs cc for the bare loop, and python3 with
//! the package msgpack for its server; who is missing is left out.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::unistd::{SysconfVar, sysconf};

use self::common::Server;

mod common;

/// `add(1, 2)` as a request, and its answer. All calls have the message id 7, which is not checked.
const CALL: &[u8] = b"\x94\x00\x07\xa3add\x92\x01\x02";
const ANSWER: &[u8] = b"\x94\x01\x07\xc0\x03";

fn main() {
    let wishes = Options::read();
    println!(
        "{} connections, {} s a turn, {} rounds",
        wishes.connections,
        wishes.time.as_secs(),
        wishes.rounds
    );
    for pipeline in wishes.pipelines.clone() {
        compare(&wishes, pipeline);
    }
}

struct Options {
    connections: usize,
    pipelines: Vec<usize>,
    time: Duration,
    rounds: usize,
}

impl Options {
    fn read() -> Self {
        let mut wishes = Self {
            connections: 64,
            pipelines: vec![64, 1],
            time: Duration::from_secs(3),
            rounds: 3,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--bench" {
                continue; // passed by cargo
            }
            let number = words.next().and_then(|text| text.parse().ok());
            match (word.as_str(), number) {
                ("--connections", Some(number)) => wishes.connections = number,
                ("--pipeline", Some(number)) => wishes.pipelines = vec![number],
                ("--seconds", Some(number)) => wishes.time = Duration::from_secs(number as u64),
                ("--rounds", Some(number)) => wishes.rounds = number,
                _ => panic!("{word}? there are --connections, --pipeline, --seconds and --rounds"),
            }
        }
        wishes
    }
}

/// A server to compare, and its results.
struct Contestant {
    name: &'static str,
    answer: &'static [u8],
    start: fn() -> Option<Box<dyn Running>>,
    costs: Vec<f64>,
    rates: Vec<f64>,
}

/// A running server. Dropping it ends it.
trait Running {
    fn address(&self) -> SocketAddr;
    fn pid(&self) -> u32;
}

impl Running for Server {
    fn address(&self) -> SocketAddr {
        self.address.parse().expect("it listens on a number")
    }

    fn pid(&self) -> u32 {
        Server::pid(self)
    }
}

/// A server that is not Ostler.
struct ForeignServer {
    child: Child,
    address: SocketAddr,
}

impl Running for ForeignServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for ForeignServer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // its workers exit with it
        let _ = self.child.wait();
    }
}

fn start_ostler(class: &str, app: &str) -> Option<Box<dyn Running>> {
    let flags = ["--worker-class", class, "--workers", "2", app];
    Some(Box::new(Server::start(env!("CARGO_BIN_EXE_ostler"), &flags)))
}

fn start_bare() -> Option<Box<dyn Running>> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/bare_epoll.c");
    let program = folder.join("bare_epoll");
    let built = Command::new("cc").args(["-O2", "-o"]).arg(&program).arg(source).status();
    if !built.is_ok_and(|status| status.success()) {
        eprintln!("skipped: bare epoll: cc does not build it");
        return None;
    }
    let sizes = [CALL.len(), ANSWER.len()].map(|size| size.to_string());
    start_foreign(&[&program.to_string_lossy()], &sizes)
}

fn start_python() -> Option<Box<dyn Running>> {
    let has_msgpack = Command::new("python3").args(["-c", "import msgpack"]).output();
    if !has_msgpack.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: Python: no python3 with msgpack");
        return None;
    }
    start_foreign(&["python3", concat!(env!("CARGO_MANIFEST_DIR"), "/benches/rpc_peer.py")], &[])
}

/// Starts a server with its port, the number of its workers and `more` as arguments. The kernel
/// ends it with this process.
fn start_foreign(program: &[&str], more: &[String]) -> Option<Box<dyn Running>> {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(program);
    let child = command.args([&address.port().to_string(), "2"]).args(more).spawn().ok()?;
    while TcpStream::connect(address).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
    Some(Box::new(ForeignServer { child, address }))
}

fn compare(options: &Options, pipeline: usize) {
    let contestant = |name, answer, start| Contestant {
        name,
        answer,
        start,
        costs: Vec::new(),
        rates: Vec::new(),
    };
    let mut all = vec![
        contestant("bare epoll", &[0; ANSWER.len()][..], start_bare as fn() -> _),
        contestant("rpc, mio", ANSWER, || start_ostler("mio", "rpc")),
        contestant("rpc, threads", ANSWER, || start_ostler("threads", "rpc")),
        contestant("echo, mio", CALL, || start_ostler("mio", "echo")),
        contestant("Python", ANSWER, start_python),
    ];
    for _ in 0..options.rounds {
        for one in &mut all {
            let Some(server) = (one.start)() else { continue };
            let load = |time| {
                load(server.address(), options.connections, pipeline, one.answer, time)
                    .expect("the server answers")
            };
            load(options.time / 4); // warm-up
            let (before, begin) = (cpu_seconds(server.pid()), Instant::now());
            let calls = load(options.time) as f64;
            one.rates.push(calls / begin.elapsed().as_secs_f64());
            one.costs.push((cpu_seconds(server.pid()) - before) * 1e6 / calls);
        }
    }
    println!("\npipelined by {pipeline}");
    println!("  {:14}{:>12}{:>14}{:>10}{:>10}", "", "calls/s", "CPU µs/call", "× bare", "× echo");
    let costs: Vec<f64> = all.iter_mut().map(|one| median(&mut one.costs)).collect();
    for (one, cost) in all.iter_mut().zip(&costs) {
        let (bare, echo) = (cost / costs[0], cost / costs[3]);
        let rate = median(&mut one.rates);
        println!("  {:14}{rate:>12.0}{cost:>14.3}{bare:>10.2}{echo:>10.2}", one.name);
    }
}

fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A connection, and how many bytes of the answers to its last calls have arrived.
struct Caller {
    stream: TcpStream,
    answered: usize,
}

/// Calls over `connections` connections, `pipeline` calls at once, for a time, and then until all
/// are answered. Returns the number of calls.
fn load(
    address: SocketAddr,
    connections: usize,
    pipeline: usize,
    answer: &[u8],
    time: Duration,
) -> io::Result<u64> {
    let (calls, answers) = (CALL.repeat(pipeline), answer.repeat(pipeline));
    let mut poll = Poll::new()?;
    let mut callers = Vec::new();
    for number in 0..connections {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut source = SourceFd(&stream.as_raw_fd());
        poll.registry().register(&mut source, Token(number), Interest::READABLE)?;
        stream.write_all(&calls)?;
        callers.push(Caller { stream, answered: 0 });
    }
    let (mut events, mut input) = (Events::with_capacity(connections), vec![0; 1 << 16]);
    let (end, mut done, mut open) = (Instant::now() + time, 0, connections);
    while open > 0 {
        poll.poll(&mut events, None)?;
        let over = Instant::now() >= end;
        for event in &events {
            let caller = &mut callers[event.token().0];
            loop {
                let n = match caller.stream.read(&mut input) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(n) => n,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                };
                assert!(answers[caller.answered..].starts_with(&input[..n]), "a wrong answer");
                caller.answered += n;
                if caller.answered == answers.len() {
                    caller.answered = 0;
                    done += pipeline as u64;
                    if over {
                        open -= 1;
                    } else {
                        caller.stream.write_all(&calls)?;
                    }
                }
                if n < input.len() {
                    break;
                }
            }
        }
    }
    Ok(done)
}

/// Returns the user and system time of a process and its children so far.
fn cpu_seconds(pid: u32) -> f64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let own = ticks(pid);
    let theirs: f64 =
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(ticks).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    (own + theirs) / per_second as f64
}

fn ticks(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name is in parentheses and may contain any character, so fields are counted from the last
    // one.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum()
}
