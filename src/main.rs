//! The `ostler` program: the built-in apps under the built-in classes.

use std::process::ExitCode;

use ostler::Runtime;
use ostler::apps::{Demo, Echo, Rpc, Tick};

fn main() -> ExitCode {
    Runtime::new().app(Demo).app(Echo).app(Rpc).app(Tick::default()).main()
}
