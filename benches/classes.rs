//! Measures a request from end to end under each worker class, from the registry's name to the
//! answer, through the kernel, one client at a time.
//!
//! ```text
//! cargo bench --bench classes
//! ```

use std::io::{Read, Write};
use std::net::TcpStream;

use criterion::{Criterion, criterion_group, criterion_main};

use self::common::Server;

mod common;

const KEEP: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

criterion_group!(benches, keep_alive, close);
criterion_main!(benches);

fn start(class: &str) -> Server {
    let flags = ["--worker-class", class, "--workers", "1"];
    Server::start(env!("CARGO_BIN_EXE_ostler"), &flags)
}

/// Without `sync`, which closes after each answer.
fn keep_alive(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("keep-alive round trip");
    for class in ["mio", "threads"] {
        let server = start(class);
        let mut client = connect(&server);
        group.bench_function(class, |bencher| {
            bencher.iter(|| {
                client.write_all(KEEP).expect("the server reads");
                let mut answer = [0; 512];
                let n = client.read(&mut answer).expect("the server answers");
                assert!(answer[..n].ends_with(b"\r\n\r\nHello, world!\n"), "one whole answer");
            });
        });
    }
    group.finish();
}

fn close(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connect, request, close");
    for class in ["sync", "mio", "threads"] {
        let server = start(class);
        group.bench_function(class, |bencher| {
            bencher.iter(|| {
                let mut client = connect(&server);
                client.write_all(CLOSE).expect("the server reads");
                let mut answer = Vec::with_capacity(512);
                client.read_to_end(&mut answer).expect("the server answers");
                assert!(answer.ends_with(b"\r\n\r\nHello, world!\n"), "one whole answer");
            });
        });
    }
    group.finish();
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(&server.address).expect("the server listens");
    stream.set_nodelay(true).expect("it is a TCP socket");
    stream
}
