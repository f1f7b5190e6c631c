//! axum on tokio's multi-threaded runtime, without Ostler: the baseline of the class `tokio`.
//!
//! ```text
//! cargo run --release --example axum_alone -- 127.0.0.1:8000 2
//! ```

use std::env;
use std::error::Error;

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = env::args().collect();
    let [_, address, threads] = words.as_slice() else { return Err("ADDRESS THREADS".into()) };
    let runtime =
        Builder::new_multi_thread().worker_threads(threads.parse()?).enable_all().build()?;
    runtime.block_on(async {
        let router = Router::new().route("/", get(|| async { "Hello, world!\n" }));
        Ok(axum::serve(TcpListener::bind(address).await?, router).await?)
    })
}
