//! The program: the built-in worker classes, and an app and a class of its own.

mod app;
mod class;

use std::process::ExitCode;

use ostler::Runtime;
use ostler::apps::Demo;

fn main() -> ExitCode {
    // The first app is the default. tests/kit.rs needs `demo`, whose paths crash and hang workers.
    Runtime::new()
        .app(app::Hello)
        .app(Demo)
        .class(class::Solo)
        .main()
}
