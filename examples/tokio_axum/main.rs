//! A worker class on tokio: each worker has a runtime of one thread, which serves an axum router.
//!
//! ```text
//! cargo run --example tokio_axum -- --worker-class tokio --workers 2
//! curl 'http://127.0.0.1:8000/sleep?ms=500'
//! ```

mod porter;

use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request};
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use ostler::Runtime;
use ostler::app::Desk;
use ostler::apps::Demo;
use ostler::worker::{Lifecycle, Stop, WorkerClass, WorkerContext, WorkerError};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// What is served: any axum router. A handler that waits holds up nobody; one that blocks the
/// thread for longer than `timeout` is found, and named.
fn router() -> Router {
    let sleeps = |Query(query): Query<HashMap<String, u64>>| async move {
        sleep(Duration::from_millis(query.get("ms").copied().unwrap_or(0))).await;
        "slept\n"
    };
    Router::new()
        .route("/", get(|| async { "Hello, world!\n" }))
        .route("/pid", get(|| async { std::process::id().to_string() }))
        .route("/sleep", get(sleeps))
        .route("/hang", get(|| async { std::thread::sleep(Duration::MAX) }))
}

/// Serves what the function makes, once in each worker.
struct Tokio(fn() -> Router);

impl WorkerClass for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(ctx, (self.0)()))
    }
}

async fn serve(ctx: &WorkerContext<'_>, router: Router) -> Result<(), WorkerError> {
    let (life, news) = (ctx.life(), Notify::new());
    let router = router.layer(middleware::from_fn(move |request, next| mark(life, request, next)));
    let (porter, arrivals, over) = porter::new();
    let server = axum::serve(arrivals, router).with_graceful_shutdown(over);
    let porter = async {
        porter.keep_the_door(ctx, &news).await?;
        pending().await // the server has been told, and ends when its clients have left
    };
    tokio::select! {
        result = async { server.await } => Ok(result?),
        result = porter => result,
        result = live(life, &news) => result,
    }
}

/// Beats, and heeds signals. Returns if the worker is to leave at once.
async fn live(life: &'static Lifecycle, news: &Notify) -> Result<(), WorkerError> {
    let signals = porter::watch(life.wake_fd())?;
    let pulse = life.pulse().unwrap_or(Duration::from_secs(3600));
    life.ready();
    while life.stop() < Stop::Now {
        life.notify();
        news.notify_one();
        if let Ok(guard) = timeout(pulse, signals.readable()).await {
            guard?.clear_ready(); // before the signals are taken: a later one makes it ready again
        }
    }
    Ok(())
}

/// Marks a request as a unit of work. Its seat is taken only while its own code runs, of which one
/// thread runs one at a time: a request that waits is no hang.
async fn mark(life: &'static Lifecycle, request: Request, next: Next) -> Response {
    let label = format!("{} {}", request.method(), request.uri().path());
    let (mut desk, mut answer) = (life.desk(0).beating(), pin!(next.run(request)));
    let mut response = poll_fn(|cx| {
        desk.begin(label.as_bytes());
        let polled = answer.as_mut().poll(cx);
        desk.leave();
        polled
    })
    .await;
    desk.end();
    if life.stopping() != Stop::None {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn main() -> ExitCode {
    Runtime::new().app(Demo).class(Tokio(router)).main()
}
