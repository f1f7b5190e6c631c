//! `tokio`: axum, hyper and tonic services, or raw streams, on a tokio runtime in each worker.
//!
//! With the Cargo feature `tokio`. An [`App`] is made from an asynchronous function, which each worker
//! calls once. A request is a unit of work. Only the time in which its code runs counts towards
//! `timeout`: a request that awaits is not hung, and one that blocks its thread is.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     ostler::tokio::main("shop", |worker| async move {
//!         let greeting = worker.option("greeting").unwrap_or("Hello").to_owned();
//!         Ok(Router::new().route("/", get(|| async { greeting })))
//!     })
//! }
//! ```

mod alarm;
mod app;
mod batch;
mod body;
mod class;
mod connection;
mod context;
mod deadline;
#[cfg(feature = "tracing")]
mod events;
mod frames;
mod guard;
mod http;
mod idle_clients;
mod idle_queue;
mod linger;
mod memory_release;
mod output;
mod piece;
mod record;
mod request;
mod request_counts;
mod response;
mod serve;
mod state;
mod stream;
mod streams;
mod tasks;
mod tracking;
mod watched_fd;
mod worker;

pub use self::app::{App, FromIncoming, from_incoming};
pub use self::body::{Body, BodyError};
pub use self::class::TokioClass;
pub use self::context::RequestContext;
pub use self::stream::ClientStream;
pub use self::worker::{Shutdown, Worker};
