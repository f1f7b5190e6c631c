//! The `ostlerctl` program: shows what a running master does, and changes it, over its control socket.
//!
//! It trusts no master: what one sends is limited, and made safe before it reaches a terminal.

mod args;
mod ask;
mod change;
mod commands;
mod events;
mod failure;
mod http;
mod locate;
mod operation;
mod output;
mod show;
mod sse;
mod status;
mod text;
mod top;
mod why;

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use args::Args;
use failure::Failure;
use http::{Client, Interrupt};

/// The environment variable with the path of the control socket, which is also a setting of the master.
const SOCKET_VARIABLE: &str = "OSTLER_CONTROL_SOCKET";
const DEFAULT_NAME: &str = "ostler";
/// How long a client waits for an answer, unless told otherwise.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args = match args::parse(env::args_os()) {
        Ok(args) => args,
        Err(error) => {
            // Nothing is left to say if it cannot be printed.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message().is_empty() {
                let _ = writeln!(io::stderr(), "ostlerctl: {}", failure.message());
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    let (socket, owner) = socket_path(args.socket, args.name)?;
    let timeout = args.timeout.unwrap_or(ANSWER_TIMEOUT);
    let client = Client { socket, owner, timeout, interrupt: Interrupt::default() };
    commands::run(&client, args.request, args.timeout)
}

/// Returns the path of the control socket, and the user that must listen there, if that is known. What
/// the command line says comes before the environment.
fn socket_path(
    socket: Option<PathBuf>,
    name: Option<String>,
) -> Result<(PathBuf, Option<u32>), Failure> {
    let variable = || env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
    let from_variable = if name.is_some() { None } else { variable().map(PathBuf::from) };
    match socket.or(from_variable) {
        Some(path) => Ok((path, None)),
        None => {
            let found = locate::find(name.as_deref().unwrap_or(DEFAULT_NAME));
            found.map(|(path, user)| (path, Some(user))).map_err(Failure::new)
        }
    }
}
