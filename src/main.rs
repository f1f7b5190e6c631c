//! The `ostler` program: the built-in apps under the built-in classes, and `ostler new`.

mod scaffold;

use std::env;
use std::process::ExitCode;

use ostler::Runtime;
#[cfg(feature = "rpc")]
use ostler::apps::RpcDemo;
#[cfg(feature = "jobs")]
use ostler::apps::Tick;
use ostler::apps::{Demo, Echo};

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    if let Some(code) = scaffold::run(&args) {
        return code;
    }
    let runtime = Runtime::new().app(Demo).app(Echo);
    #[cfg(feature = "rpc")]
    let runtime = runtime.app(RpcDemo);
    #[cfg(feature = "jobs")]
    let runtime = runtime.app(Tick::default());
    runtime.after_help(scaffold::HELP_NOTE).main()
}
