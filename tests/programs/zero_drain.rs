//! An HTTP service that closes an idle client at once when its worker drains.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use ostler::app::{App, BootError, Service, WorkerInfo};
use ostler::http::{Http, Request, Response};

struct ZeroDrain;

impl App for ZeroDrain {
    fn name(&self) -> &str {
        "zero_drain"
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        let mut limits = worker.limits;
        limits.drain_idle_timeout = Duration::ZERO;
        Ok(Box::new(Http::new(answer, limits)))
    }
}

fn answer(request: &Request<'_>) -> Response {
    match request.path() {
        "/sleep" => thread::sleep(Duration::from_millis(300)),
        "/long_sleep" => thread::sleep(Duration::from_secs(3)),
        _ => (),
    }
    Response::text("answered\n")
}

fn main() -> ExitCode {
    ostler::main(ZeroDrain)
}
