//! MessagePack-RPC for servers: methods are functions, their arguments and results whatever serde
//! knows.
//!
//! Requests are `[0, id, method, params]`, answers `[1, id, error, result]`, notifications
//! `[2, method, params]`. A client may send many before it reads; they are worked on one after the
//! other, and answered in that order. What fails in a call is told to its caller, and the
//! connection goes on: an unknown method, wrong arguments, an error, a panic. What is no message
//! ends its connection.
//!
//! A worker that leaves ends its side after whole answers, and has not begun the calls that it has
//! not answered: a client that makes those again elsewhere does nothing twice. A worker that dies
//! can promise nothing.
//!
//! Pure: no room here may know of sockets, threads, clocks or the kernel.

mod arguments;
mod call;
mod connection;
mod error;
mod limits;
mod message;
mod methods;
mod scan;
mod service;

#[cfg(test)]
mod tests;

use crate::app::{self, App, BootError, ClientInfo, Connection, WorkerInfo};

use self::connection::RpcConnection;

pub use self::call::{Call, ResultWriter};
pub use self::error::Error;
pub use self::limits::Limits;
pub use self::methods::Methods;
pub use self::service::Rpc;

/// An [`App`] out of a name and a function that makes the service, once in each worker.
///
/// ```no_run
/// use ostler::rpc::{self, Error, Service};
///
/// let app = rpc::app("sums", |_place| {
///     Ok(Service::new().method("double", |(x,): (i64,)| Ok::<_, Error>(x.wrapping_mul(2))))
/// });
/// # let _ = ostler::app::App::name(&app);
/// ```
pub fn app<F>(name: &str, boot: F) -> RpcApp<F>
where
    F: Fn(&WorkerInfo) -> Result<Methods, BootError>,
{
    RpcApp { name: name.to_owned(), boot }
}

/// What [`app()`] makes. It takes no options; an app that does implements [`App`] itself and boots
/// an [`Rpc`].
#[derive(Clone, Debug)]
pub struct RpcApp<F> {
    name: String,
    boot: F,
}

impl<F> App for RpcApp<F>
where
    F: Fn(&WorkerInfo) -> Result<Methods, BootError>,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn boot(&self, worker: &WorkerInfo) -> Result<Box<dyn app::Service>, BootError> {
        Ok(Box::new(Rpc::new((self.boot)(worker)?, worker)))
    }
}

impl app::Service for Rpc {
    fn accept(&self, client: &ClientInfo) -> Box<dyn Connection + '_> {
        Box::new(RpcConnection::new(self, client))
    }
}
