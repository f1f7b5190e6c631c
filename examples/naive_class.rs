//! Worker classes with little or no contract code: loops that accept and answer. Stop, kill, recycle or
//! hang them: they behave like any other class.
//!
//! ```text
//! cargo run --example naive_class -- --worker-class plain --workers 2
//! curl http://127.0.0.1:8000/
//! ```
//!
//! `plain` is a function over blocking sockets of the standard library, run by `FnClass`. `unaware`
//! calls `ready` and `notify`, and never polls for a stop: on a stop, the runtime drains its
//! listeners and ends the worker after its last client. `helped` has two threads, of which one takes
//! all signals while the other waits for clients.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use ostler::Runtime;
use ostler::apps::Echo;
use ostler::worker::{FnClass, Incoming, StopRequest, WorkerClass, WorkerContext, WorkerError};

fn main() -> ExitCode {
    let plain = FnClass::new("plain", serve);
    Runtime::new().app(Echo).class(plain).class(UnresponsiveClass).class(HelpedClass).main()
}

/// Serves one client after another, while another thread takes all signals.
struct HelpedClass;

impl WorkerClass for HelpedClass {
    fn name(&self) -> &'static str {
        "helped"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let (lifecycle, mut acceptor) = (ctx.lifecycle(), ctx.acceptor());
        thread::scope(|scope| {
            scope.spawn(|| while lifecycle.poll_stop() == StopRequest::None {});
            SigSet::from(Signal::SIGTERM).thread_block()?;
            lifecycle.ready();
            while let Some(mut client) = acceptor.next_client()? {
                client.serve(ctx);
            }
            Ok(())
        })
    }
}

/// Serves one client after another.
fn serve(incoming: Incoming<'_>) -> Result<(), WorkerError> {
    for client in incoming {
        let _ = answer(&client); // a client's error does not concern the worker
    }
    Ok(())
}

struct UnresponsiveClass;

impl WorkerClass for UnresponsiveClass {
    fn name(&self) -> &'static str {
        "unaware"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        ctx.lifecycle().ready();
        for listener in ctx.listeners().iter().cycle() {
            ctx.lifecycle().notify();
            let Some((stream, _)) = listener.accept()? else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            let stream = TcpStream::from(OwnedFd::from(stream));
            stream.set_nonblocking(false)?;
            let _ = answer(&stream);
        }
        Ok(())
    }
}

/// Reads one request, and does what its path names.
fn answer(mut stream: &TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (work, number) = path.split_once('=').unwrap_or((path, "0"));
    let number: u64 = number.parse().map_err(io::Error::other)?;
    let body = match work {
        "/pid" => format!("{}\n", process::id()),
        "/leak?mb" => {
            let bytes = vec![1_u8; usize::try_from(number).unwrap_or(0) << 20];
            format!("{}\n", bytes.leak().len())
        }
        "/sleep?ms" => {
            thread::sleep(Duration::from_millis(number));
            "Slept well\n".to_owned()
        }
        _ => "Hello, world!\n".to_owned(),
    };
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length:";
    write!(stream, "{head} {}\r\n\r\n{body}", body.len())
}
