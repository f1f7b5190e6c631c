//! HTTP/1.1 and 1.0 for servers: bytes in, bytes out, and requests for those who prefer them.
//!
//! Pure: no room here may know of sockets, threads, clocks or the kernel. Framing is strict (RFC
//! 9112): what two readers could understand in two ways is refused, and the connection ends.

mod body;
mod chunked;
mod connection;
mod error;
mod handler;
mod head;
mod request;
mod response;
mod scan;
mod sending;
#[cfg(test)]
mod tests;

use crate::app::{App, BootError, ClientInfo, Connection, Service, WorkerInfo};

use self::connection::HttpConnection;

pub use self::body::{Body, More, Source};
pub use self::handler::{Handler, Http};
pub use self::head::Version;
pub use self::request::Request;
pub use self::response::Response;

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

impl<H: Handler> Service for Http<H> {
    fn accept(&self, client: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(HttpConnection::new(self, client))
    }
}
