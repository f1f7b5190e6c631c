//! HTTP/1.1 and 1.0 for servers: bytes in, bytes out, and requests for those who prefer them.
//!
//! Pure: no room here may know of sockets, threads, clocks or the kernel. Framing is strict (RFC
//! 9112): what two readers could understand in two ways is refused, and the connection ends.

mod body;
mod chunked;
mod connection;
mod error;
mod head;
mod request;
mod response;
mod scan;
mod sending;
#[cfg(test)]
mod tests;

use crate::app::{App, BootError, ClientInfo, Connection, Limits, Service, WorkerInfo};

use self::connection::HttpConnection;

pub use self::body::{Body, More, Source};
pub use self::request::{Request, Version};
pub use self::response::Response;

/// Answers requests. One handler serves all clients of a worker, from all its threads.
///
/// ```
/// use ostler::http::{Handler, Request, Response};
///
/// struct Greeter;
///
/// impl Handler for Greeter {
///     fn handle(&self, request: &Request<'_>) -> Response {
///         match request.path() {
///             "/" => Response::text("hello\n"),
///             _ => Response::status(404),
///         }
///     }
/// }
/// ```
pub trait Handler: Send + Sync {
    /// Answers one request, whose body has arrived whole.
    ///
    /// # Panics
    /// A panic is caught and answered with 500; the connection and the worker go on.
    fn handle(&self, request: &Request<'_>) -> Response;
}

impl<F> Handler for F
where
    F: Fn(&Request<'_>) -> Response + Send + Sync,
{
    fn handle(&self, request: &Request<'_>) -> Response {
        self(request)
    }
}

/// An [`App`] out of a name and a function that makes the handler, once in each worker.
///
/// ```no_run
/// use ostler::http::{self, Request, Response};
///
/// let app = http::app("hello", |_| Ok(|_: &Request<'_>| Response::text("hi\n")));
/// # let _ = ostler::app::App::name(&app);
/// ```
pub fn app<F, H>(name: &str, boot: F) -> HttpApp<F>
where
    F: Fn(&WorkerInfo) -> Result<H, BootError>,
    H: Handler + 'static,
{
    HttpApp { name: name.to_owned(), boot }
}

/// What [`app`] makes. It takes no options; an app that does implements [`App`] itself and boots
/// an [`Http`].
#[derive(Clone, Debug)]
pub struct HttpApp<F> {
    name: String,
    boot: F,
}

impl<F, H> App for HttpApp<F>
where
    F: Fn(&WorkerInfo) -> Result<H, BootError>,
    H: Handler + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(Http::new((self.boot)(worker)?, worker.limits)))
    }
}

/// A [`Service`] that speaks HTTP and hands each request to its handler.
#[derive(Debug)]
pub struct Http<H> {
    handler: H,
    limits: Limits,
}

impl<H: Handler> Http<H> {
    /// A service over `handler`, within `limits`.
    pub fn new(handler: H, limits: Limits) -> Self {
        Self { handler, limits }
    }
}

impl<H: Handler> Service for Http<H> {
    fn accept(&self, client: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(HttpConnection::new(self, client))
    }
}
