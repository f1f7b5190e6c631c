//! Ostler: one master keeps workers alive; each worker serves by a class chosen by name.
//!
//! The modules stand on floors, lowest first; each imports lower floors and its own only. See
//! ARCHITECTURE.md.

// The built-in classes are written as if from outside: `use ostler::…`.
extern crate self as ostler;

// 0: the kernel, and what is pure.
pub mod address;
pub mod app;
mod diagnosis;
mod duration;
#[allow(unsafe_code)]
mod os;
pub mod time;

// 1: pieces that know nothing of each other.
mod heartbeat;
pub mod hooks;
pub mod http;
#[cfg(feature = "jobs")]
pub mod job;
pub mod listen;
pub mod log;
mod pidfile;
#[cfg(feature = "rpc")]
pub mod rpc;
mod scoreboard;
pub mod session;
mod systemd;

// 2: what a person may ask for.
pub mod settings;

// 3: the contract of the worker classes.
pub mod worker;

// 4: the built-in classes and apps.
pub mod apps;
#[path = "../workers/mod.rs"]
pub mod workers;

// 5: the master.
mod arbiter;

// 6: the builder.
mod runtime;

// 7: the doors.
pub mod cli;
#[cfg(doctest)]
mod doctests;
mod program;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use program::main;
pub use runtime::{Runtime, RuntimeError};
