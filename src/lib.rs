//! Ostler: one master keeps workers alive; each worker serves by a class chosen by name.
//!
//! The modules form layers, lowest first. A module imports lower layers and itself only. See
//! ARCHITECTURE.md.
//!
//! Cargo features: `rpc` (MessagePack-RPC) and `jobs` (schedules for jobs) are on by default;
//! `tokio` (axum, hyper and tonic services), `uring` (a worker class on io_uring) and `testkit` (contract
//! tests for worker classes) are not. `ctl`, on by default, is the program `ostlerctl` and changes nothing in the library. Without
//! features, the library is HTTP and
//! the worker classes.

// The built-in classes are written as if from outside: `use ostler::…`.
extern crate self as ostler;

// 0: the operating system, and pure basics.
pub mod address;
pub mod app;
mod diagnosis;
mod duration;
#[allow(unsafe_code)]
mod os;
mod rng;
pub mod time;

// 1: protocols, and parts that are independent of each other.
mod heartbeat;
pub mod hooks;
pub mod http;
#[cfg(feature = "jobs")]
pub mod job;
mod leader;
pub mod listen;
pub mod log;
mod pidfile;
#[cfg(feature = "rpc")]
pub mod rpc;
pub mod scaling;
mod scoreboard;
pub mod session;
mod systemd;

// 2: the settings.
pub mod settings;

// 3: the contract between runtime and worker classes.
pub mod worker;

// 4: the built-in classes and apps.
pub mod apps;
#[path = "../workers/mod.rs"]
pub mod workers;

// 5: the master.
mod arbiter;

// 6: the builder.
mod runtime;

// 7: the entry points.
pub mod cli;
#[cfg(doctest)]
mod doctests;
mod doctor;
mod program;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use program::main;
/// axum, hyper and tonic services, or raw streams, on a tokio runtime in each worker.
#[cfg(feature = "tokio")]
pub mod tokio {
    pub use crate::program::tokio_main as main;
    pub use crate::workers::tokio::*;
}
pub use runtime::{Runtime, RuntimeError};
