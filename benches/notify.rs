//! Measures the cost of a worker class's duties: `notify()` on each turn of its loop, and the marks
//! of a unit of work. A lifecycle exists only in a worker, so a class in a real worker does the
//! timing.
//!
//! ```text
//! cargo bench --bench notify
//! ```

use std::env;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use criterion::Criterion;
use ostler::Runtime;
use ostler::app::WorkReporter;
use ostler::apps::Echo;
use ostler::worker::{StopRequest, WorkerClass, WorkerContext, WorkerError};

use self::common::Server;

mod common;

/// The arguments that tell the server from the bench.
const SERVER: [&str; 4] = ["--worker-class", "meter", "--timeout", "0"];

const OPERATIONS: [&str; 4] = ["notify", "stopping", "begin and drop", "tracker begin and end"];

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(SERVER[0]) {
        return Runtime::new().app(Echo).class(Meter).main();
    }
    let this = env::current_exe().expect("a running program has a path");
    let server = Server::start(this.to_str().expect("the path is UTF-8"), &SERVER);
    let meter = TcpStream::connect(&server.address).expect("the server listens");
    let mut answers = BufReader::new(&meter);
    let mut time = |duty: usize, count: u64| {
        writeln!(&meter, "{duty} {count}").expect("the worker is there");
        let mut nanos = String::new();
        answers.read_line(&mut nanos).expect("the worker is there");
        Duration::from_nanos(nanos.trim().parse().expect("the worker answers with a number"))
    };
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("lifecycle");
    for (duty, name) in OPERATIONS.iter().enumerate() {
        group.bench_function(*name, |bencher| bencher.iter_custom(|count| time(duty, count)));
    }
    group.finish();
    criterion.final_summary();
    ExitCode::SUCCESS
}

/// Runs an operation as often as its only client asks, and answers with the nanoseconds that it
/// took.
struct Meter;

impl WorkerClass for Meter {
    fn name(&self) -> &'static str {
        SERVER[1]
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        ctx.lifecycle().ready();
        let client = loop {
            if let Some((stream, _)) = ctx.listeners()[0].accept()? {
                break TcpStream::from(OwnedFd::from(stream));
            }
            ctx.lifecycle().notify();
            if ctx.lifecycle().poll_stop() != StopRequest::None {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        };
        client.set_nonblocking(false)?;
        for line in BufReader::new(&client).lines() {
            let line = line?;
            let (duty, count) = line.split_once(' ').ok_or("a duty and a count, please")?;
            writeln!(&client, "{}", time(ctx, duty.parse()?, count.parse()?).as_nanos())?;
        }
        Ok(())
    }
}

fn time(ctx: &WorkerContext<'_>, operation: usize, count: u64) -> Duration {
    let (lifecycle, mut tracker) = (ctx.lifecycle(), ctx.lifecycle().tracker());
    let begin = Instant::now();
    match operation {
        0 => (0..count).for_each(|_| lifecycle.notify()),
        1 => (0..count)
            .for_each(|_| assert_eq!(black_box(lifecycle.stop_request()), StopRequest::None)),
        2 => (0..count).for_each(|_| drop(lifecycle.begin_work(black_box("GET /index")))),
        _ => (0..count).for_each(|_| {
            tracker.begin_work(black_box(b"GET /index"));
            tracker.end_work();
        }),
    }
    begin.elapsed()
}
