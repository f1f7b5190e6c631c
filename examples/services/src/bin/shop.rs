//! A shop with axum and SQLite: the workers share one database. Run it with
//! `cargo run --bin shop -- -w 2 shop database=shop.db`.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use ostler::app::BootError;
use ostler::tokio::{Shutdown, Worker};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

type Db = Arc<Mutex<Connection>>;

#[derive(Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
}

/// Opens the database. An error is a failed boot, and the log has its reason.
async fn open(worker: Worker) -> Result<Router, BootError> {
    let db = Connection::open(worker.option("database")?)?;
    db.busy_timeout(Duration::from_secs(5))?; // another worker writes
    db.pragma_update(None, "journal_mode", "wal")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS orders (item TEXT NOT NULL, count INTEGER NOT NULL)",
    )?;
    let db = Arc::new(Mutex::new(db));
    worker.spawn("tidy", tidy(Arc::clone(&db), worker.shutdown()));
    Ok(Router::new().route("/orders", get(list).post(order)).with_state(db))
}

async fn list(State(db): State<Db>) -> Result<Json<Vec<Order>>, StatusCode> {
    let orders = query(db, |db| {
        let mut rows = db.prepare_cached("SELECT item, count FROM orders ORDER BY rowid")?;
        rows.query_map((), |row| Ok(Order { item: row.get(0)?, count: row.get(1)? }))?.collect()
    });
    orders.await.map(Json)
}

async fn order(State(db): State<Db>, Json(order): Json<Order>) -> Result<StatusCode, StatusCode> {
    let Order { item, count } = order;
    let insert = "INSERT INTO orders (item, count) VALUES (?1, ?2)";
    query(db, move |db| db.prepare_cached(insert)?.execute((item, count))).await?;
    Ok(StatusCode::CREATED)
}

/// Runs a query in a thread that may block.
async fn query<T: Send + 'static>(
    db: Db,
    run: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, StatusCode> {
    let result = spawn_blocking(move || run(&db.lock().unwrap())).await;
    result.ok().and_then(Result::ok).ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// When the worker stops: moves the write-ahead log into the database. The worker waits for it.
async fn tidy(db: Db, shutdown: Shutdown) {
    shutdown.requested().await;
    let _ = query(db, |db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))).await;
}

fn main() -> ExitCode {
    ostler::tokio::main("shop", open)
}
