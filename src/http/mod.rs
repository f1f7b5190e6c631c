//! HTTP/1.0 and 1.1 for servers: a [`Connection`] that passes whole requests to a [`Handler`].
//!
//! Pure: no file here uses sockets, threads, clocks or the kernel. Framing is strict (RFC 9112): a
//! request that two parsers could read differently is rejected, and its connection closes.

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
mod target;
#[cfg(test)]
mod tests;

use crate::app::{App, BootError, ClientInfo, Connection, Service, WorkerInfo};

use self::connection::HttpConnection;

pub(crate) use self::body::LiveSource;
pub use self::body::{Body, More, Source};
pub use self::handler::{Handler, Http};
pub use self::head::Version;
pub use self::request::Request;
pub use self::response::Response;

/// Creates an [`App`] from a name and a function that creates the handler, once in each worker.
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

/// The app that [`app`] creates. It takes no options. For an app with options, implement [`App`] and
/// return an [`Http`] from [`App::boot`].
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
