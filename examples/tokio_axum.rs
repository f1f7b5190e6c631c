//! A shop as an axum router: state of the worker, an option, a background task, a slow request. Run it
//! with `cargo run --example tokio_axum -- -w 2 shop stock=100`.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Router};
use ostler::app::BootError;
use ostler::tokio::{RequestContext, Shutdown, Worker};
use tokio::time::{interval, sleep};

struct Shop {
    stock: AtomicU64,
}

async fn open_shop(worker: Worker) -> Result<Router, BootError> {
    let stock = worker.option("stock").unwrap_or("1000").parse()?;
    let shop = Arc::new(Shop { stock: AtomicU64::new(stock) });
    worker.spawn("restock", restock(Arc::clone(&shop), worker.shutdown()));
    Ok(Router::new()
        .route("/", get(|| async { "Hello, world!\n" }))
        .route("/buy", post(buy))
        .route("/me", get(me))
        .route("/pid", get(|| async { std::process::id().to_string() }))
        .route("/sleep", get(slow))
        .route("/hang", get(|| async { std::thread::sleep(Duration::MAX) }))
        .route("/panic", get(|| async { panic!("asked to") as () }))
        .with_state(shop))
}

async fn buy(State(shop): State<Arc<Shop>>) -> (StatusCode, String) {
    let stock = &shop.stock;
    match stock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
        Ok(left) => (StatusCode::OK, format!("{} left\n", left - 1)),
        Err(_) => (StatusCode::CONFLICT, "sold out\n".into()),
    }
}

async fn me(context: Extension<RequestContext>) -> String {
    let (client, worker) = (context.client(), context.worker());
    format!("{:?} at slot {}, {}\n", client.address, worker.info().slot, context.id())
}

/// A request that awaits delays no other, and is not hung. One that blocks its thread for longer than
/// `timeout`, such as `/hang`, is.
async fn slow(Query(query): Query<HashMap<String, u64>>) -> &'static str {
    sleep(Duration::from_millis(query.get("ms").copied().unwrap_or(0))).await;
    "slept\n"
}

/// Adds an item each minute, until the worker stops.
async fn restock(shop: Arc<Shop>, shutdown: Shutdown) {
    let mut minutes = interval(Duration::from_secs(60));
    loop {
        tokio::select! {
            _ = minutes.tick() => shop.stock.fetch_add(1, Ordering::Relaxed),
            () = shutdown.requested() => return,
        };
    }
}

fn main() -> ExitCode {
    ostler::tokio::main("shop", open_shop)
}
