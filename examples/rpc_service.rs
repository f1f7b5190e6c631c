//! A MessagePack-RPC service that runs under any worker class.
//!
//! ```text
//! cargo run --example rpc_service -- --worker-class mio --workers 2
//! cargo run --example rpc_client -- 127.0.0.1:8000
//! ```
//!
//! The program has the whole command line (`--help`), YAML files and signals.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use ostler::rpc::{self, Error, Methods};

/// Returns the methods. Runs once in each worker, after the fork: state that they share, here a
/// number, is per worker.
fn methods() -> Methods {
    let tickets = AtomicU64::new(1);
    Methods::new()
        .method("sum", |numbers: Vec<f64>| Ok::<_, Error>(numbers.iter().sum::<f64>()))
        .method("divide", |(a, b): (i64, i64)| a.checked_div(b).ok_or("there is no such number"))
        // A panic, as here past the end of the list, is an error answer to the caller.
        .method("nth", |(list, n): (Vec<String>, usize)| Ok::<_, Error>(list[n].clone()))
        .method("ticket", move |()| Ok::<_, Error>(tickets.fetch_add(1, Ordering::Relaxed)))
        .method_with("whoami", |call, ()| {
            let peer = call.peer().map(|address| address.to_string());
            Ok::<_, Error>((peer, call.worker().slot))
        })
}

fn main() -> ExitCode {
    ostler::main(rpc::app("calculator", |_place| Ok(methods())))
}
