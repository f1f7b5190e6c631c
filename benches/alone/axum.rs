//! One axum router, on tokio alone or under the class `tokio`: the class against its baseline.
//!
//! ```text
//! cargo run --release --example axum_hello -- alone 127.0.0.1:8000 2
//! cargo run --release --example axum_hello -- --bind 127.0.0.1:8000 --threads 2
//! ```

use std::collections::HashMap;
use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::Query;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

async fn sleep(query: HashMap<String, u64>) -> &'static str {
    tokio::time::sleep(Duration::from_millis(query["ms"])).await;
    "slept\n"
}

fn router() -> Router {
    Router::new()
        .route("/", get(|| async { "Hello, world!\n" }))
        .route("/sleep", get(|query: Query<HashMap<_, _>>| sleep(query.0)))
        .with_state(()) // as `axum::serve` does it: otherwise each request makes its route
}

/// Serves as the documentation of axum does it, with the runtime that the class has for as many threads.
fn serve_alone(address: &str, threads: &str) -> Result<(), Box<dyn Error>> {
    let runtime = match threads.parse()? {
        1 => Builder::new_current_thread().enable_all().build()?,
        threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build()?,
    };
    runtime.block_on(async { Ok(axum::serve(TcpListener::bind(address).await?, router()).await?) })
}

fn main() -> ExitCode {
    let words: Vec<_> = env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "alone", address, threads] => match serve_alone(address, threads) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        _ => ostler::tokio::main("hello", |_| async { Ok(router()) }),
    }
}
