//! A load generator that sends at a given rate, whether or not earlier requests were answered. It prints
//! percentiles of the response times, in microseconds, and how many requests failed.
//!
//! ```text
//! cargo run --release --example open_loop -- 127.0.0.1:8000 /sleep?ms=5 RATE SECONDS keep-alive|close
//! ```
//!
//! Requests begin at random times, as those of many independent clients do. A response time counts from
//! when the request was due, so a generator that is late does not hide that the server was.

use std::cell::RefCell;
use std::env;
use std::error::Error;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::time;

/// What all requests share.
struct Load {
    address: String,
    request: Vec<u8>,
    keeps_alive: bool,
    idle: RefCell<Vec<TcpStream>>,
    micros: RefCell<Vec<u64>>,
    failed: RefCell<u64>,
}

impl Load {
    async fn send(&self, due: Instant) {
        match time::timeout(Duration::from_secs(20), self.exchange()).await {
            Ok(Ok(())) => {
                let micros = due.elapsed().as_micros();
                self.micros.borrow_mut().push(u64::try_from(micros).unwrap_or(u64::MAX));
            }
            _ => *self.failed.borrow_mut() += 1,
        }
    }

    /// Sends a request, and reads its response to the end.
    async fn exchange(&self) -> Result<(), Box<dyn Error>> {
        let idle = self.idle.borrow_mut().pop();
        let mut stream = match idle {
            Some(stream) => stream,
            None => TcpStream::connect(&self.address).await?,
        };
        stream.set_nodelay(true)?;
        stream.write_all(&self.request).await?;
        let mut response = Vec::with_capacity(1024);
        while !is_complete(&response)? {
            if stream.read_buf(&mut response).await? == 0 {
                return Err("the response is cut off".into());
            }
        }
        if !response.starts_with(b"HTTP/1.1 200 ") {
            return Err("the response is no 200".into());
        }
        if self.keeps_alive {
            self.idle.borrow_mut().push(stream);
        }
        Ok(())
    }
}

/// Returns whether a response has its whole body.
fn is_complete(response: &[u8]) -> Result<bool, Box<dyn Error>> {
    let Some(end) = response.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(false);
    };
    let head = str::from_utf8(&response[..end])?.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.ok_or("the response has no length")?.trim().parse()?;
    Ok(response.len() >= end + 4 + length)
}

/// Returns the times between requests: exponentially distributed, the same in each run.
fn intervals(rate: f64) -> impl Iterator<Item = Duration> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64; // xorshift64
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let uniform = ((state >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-uniform.ln() / rate)
    })
}

async fn run(load: Rc<Load>, rate: f64, length: Duration) {
    let begin = Instant::now();
    let mut due = begin;
    let mut tasks = Vec::new();
    for interval in intervals(rate) {
        due += interval;
        if due - begin > length {
            break;
        }
        time::sleep_until(due.into()).await;
        let load = Rc::clone(&load);
        tasks.push(tokio::task::spawn_local(async move { load.send(due).await }));
    }
    for task in tasks {
        let _ = task.await;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = env::args().skip(1).collect();
    let [address, path, rate, seconds, mode] = &words[..] else {
        return Err("usage: open_loop ADDRESS PATH RATE SECONDS keep-alive|close".into());
    };
    let connection = if mode == "close" { "Connection: close\r\n" } else { "" };
    let load = Rc::new(Load {
        address: address.clone(),
        request: format!("GET {path} HTTP/1.1\r\nHost: x\r\n{connection}\r\n").into_bytes(),
        keeps_alive: mode != "close",
        idle: RefCell::default(),
        micros: RefCell::default(),
        failed: RefCell::default(),
    });
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let length = Duration::from_secs_f64(seconds.parse()?);
    let (shared, rate) = (Rc::clone(&load), rate.parse()?);
    runtime.block_on(LocalSet::new().run_until(run(shared, rate, length)));
    let mut micros = load.micros.take();
    micros.sort_unstable();
    let percentile = |permille| micros.get(micros.len() * permille / 1000).copied().unwrap_or(0);
    let [p50, p99, p999] = [500, 990, 999].map(percentile);
    writeln!(io::stdout(), "{p50} {p99} {p999} {}", load.failed.borrow())?;
    Ok(())
}
