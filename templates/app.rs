//! What is served.

use ostler::app::{App, BootError, Options, Place, Refusal, Service};
use ostler::http::{Handler, Http, Request, Response};

/// The app. It is made in the master, before any fork: it opens nothing and starts nothing.
pub struct Hello;

impl App for Hello {
    fn name(&self) -> &str {
        env!("CARGO_PKG_NAME")
    }

    /// Runs in the master, while a person is watching: say no to what cannot work.
    fn check(&self, options: &Options) -> Result<(), Refusal> {
        match options.keys().find(|key| *key != "greeting") {
            None => Ok(()),
            Some(key) => {
                // Told with the file and the line where the option stands.
                let reason = "there is no such option; known is: greeting";
                Err(Refusal::of_option(key, reason))
            }
        }
    }

    /// Runs once in each worker, after the fork: open databases and start threads here.
    fn boot(&self, place: &Place) -> Result<Box<dyn Service>, BootError> {
        let greeting = place.options.get("greeting");
        let greeting = greeting.map_or("Hello", String::as_str).to_owned();
        Ok(Box::new(Http::new(Greeter { greeting }, place.limits)))
    }
}

/// Answers the requests of one worker, from all of its threads.
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
