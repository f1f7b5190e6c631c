//! The app: what the workers serve.

use ostler::app::{App, BootError, ConfigError, Options, Service, WorkerInfo};
use ostler::http::{Handler, Http, Request, Response};

/// The app. The master creates it before any fork: it opens nothing and starts nothing.
pub struct Hello;

impl App for Hello {
    fn name(&self) -> &str {
        env!("CARGO_PKG_NAME")
    }

    /// Runs in the master before any fork. Reject options that cannot work.
    fn check(&self, options: &Options) -> Result<(), ConfigError> {
        match options.keys().find(|key| *key != "greeting") {
            None => Ok(()),
            Some(key) => {
                // The message also names the file and the line of the option.
                let reason = "unknown option; available: greeting";
                Err(ConfigError::for_option(key, reason))
            }
        }
    }

    /// Runs once in each worker, after the fork. Open databases and start threads here.
    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        let greeting = worker.options.get("greeting");
        let greeting = greeting.map_or("Hello", String::as_str).to_owned();
        Ok(Box::new(Http::new(Greeter { greeting }, worker.limits)))
    }
}

/// Answers the requests of one worker. All threads of the worker share it.
struct Greeter {
    greeting: String,
}

impl Handler for Greeter {
    fn handle(&self, request: &Request<'_>) -> Response {
        match (request.method(), request.path()) {
            ("GET" | "HEAD", "/") => {
                let name = request.query_value("name");
                let name = name.as_deref().unwrap_or("world");
                Response::text(format!("{}, {name}!\n", self.greeting))
            }
            (_, "/") => Response::status(405).header("Allow", "GET, HEAD"),
            _ => Response::status(404),
        }
    }
}
