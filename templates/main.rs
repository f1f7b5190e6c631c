//! The program: an app and a worker class of its own, beside the built-in classes.

mod app;
mod class;

use std::process::ExitCode;

use ostler::Runtime;
use ostler::apps::Demo;

fn main() -> ExitCode {
    // The first app is served, unless another is named: `demo` is there for tests/kit.rs.
    Runtime::new()
        .app(app::Hello)
        .app(Demo)
        .class(class::Solo)
        .main()
}
