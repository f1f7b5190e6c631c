//! An axum service. A master process starts the workers; each worker calls `boot` and serves the router
//! that it returns.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use ostler::app::BootError;
use ostler::tokio::Worker;

/// What the requests of a worker share. Connect to databases in `boot`.
#[derive(Clone)]
struct Shared {
    greeting: String,
}

async fn boot(worker: Worker) -> Result<Router, BootError> {
    let greeting = worker.option("greeting").unwrap_or("Hello").to_owned();
    let router = Router::new()
        .route("/", get(greet))
        .route("/pid", get(|| async { std::process::id().to_string() }))
        // For tests/serves.rs: a handler that blocks its thread hangs the worker.
        .route("/hang", get(|| async { std::thread::sleep(Duration::MAX) }))
        .with_state(Shared { greeting });
    Ok(router)
}

async fn greet(State(shared): State<Shared>) -> String {
    format!("{}, world!\n", shared.greeting)
}

fn main() -> ExitCode {
    ostler::tokio::main("@NAME@", boot)
}
