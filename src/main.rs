//! The `ostler` program: the built-in apps under the built-in classes, and `ostler new`.

mod scaffold;

use std::env;
use std::process::ExitCode;

use ostler::Runtime;
use ostler::apps::{Demo, Echo, RpcDemo, Tick};

fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().skip(1).collect();
    if let Some(code) = scaffold::obey(&words) {
        return code;
    }
    Runtime::new().app(Demo).app(Echo).app(RpcDemo).app(Tick::default()).note(scaffold::NOTE).main()
}
