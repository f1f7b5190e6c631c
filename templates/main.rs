//! The program: an app and a worker class of its own, beside the built-in classes.

mod app;
mod class;

use std::process::ExitCode;

use ostler::Runtime;

fn main() -> ExitCode {
    Runtime::new().app(app::Hello).class(class::Solo).main()
}
