//! An HTTP service that runs under any worker class.
//!
//! ```text
//! cargo run --example hello_http -- --worker-class mio --workers 2
//! curl 'http://127.0.0.1:8000/hello?name=Ada'
//! ```
//!
//! The program has the whole command line (`--help`), YAML files and signals.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use ostler::http::{self, Handler, Request, Response};

/// Answers with a greeting and its number. Each worker has one, shared by its threads.
#[derive(Default)]
struct Greeter {
    greetings: AtomicU64,
}

impl Handler for Greeter {
    fn handle(&self, request: &Request<'_>) -> Response {
        match (request.method(), request.path()) {
            ("GET" | "HEAD", "/") => Response::text("Ask for /hello?name=YOU\n"),
            ("GET" | "HEAD", "/hello") => {
                let name = request.query_value("name").unwrap_or("world".into());
                let count = self.greetings.fetch_add(1, Ordering::Relaxed) + 1;
                Response::text(format!("Hello, {name}! Greeting number {count}.\n"))
            }
            (_, "/" | "/hello") => Response::status(405).header("Allow", "GET, HEAD"),
            _ => Response::status(404),
        }
    }
}

fn main() -> ExitCode {
    ostler::main(http::app("hello", |_place| Ok(Greeter::default())))
}
