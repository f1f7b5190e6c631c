//! The `ostler` program: the built-in apps under the built-in classes, and `ostler new`.

mod scaffold;

use std::env;
use std::process::ExitCode;

use ostler::Runtime;
use ostler::apps::{Demo, Echo, RpcDemo, Tick};

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    if let Some(code) = scaffold::run(&args) {
        return code;
    }
    Runtime::new()
        .app(Demo)
        .app(Echo)
        .app(RpcDemo)
        .app(Tick::default())
        .after_help(scaffold::HELP_NOTE)
        .main()
}
