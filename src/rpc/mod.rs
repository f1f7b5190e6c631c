//! MessagePack-RPC for servers: methods are functions. Their arguments and results are any types that
//! serde supports.
//!
//! Requests are `[0, id, method, params]`, responses `[1, id, error, result]`, notifications
//! `[2, method, params]`. A client may pipeline calls: they run one after the other, and are answered
//! in that order. If a call fails (unknown method, bad arguments, an error, a panic), its caller gets
//! an error and the connection stays open. An invalid message closes its connection.
//!
//! A draining worker half-closes after whole responses, and has not begun the calls that it has not
//! answered. A client can therefore retry those elsewhere, and no call runs twice. A worker that
//! crashes gives no such guarantee.
//!
//! Pure: no file here uses sockets, threads, clocks or the kernel.

mod arguments;
mod call;
mod connection;
mod error;
mod limits;
mod logging;
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

/// Creates an [`App`] from a name and a function that creates the methods, once in each worker.
///
/// ```no_run
/// use ostler::rpc::{self, Error, Methods};
///
/// let app = rpc::app("sums", |_worker| {
///     Ok(Methods::new().method("double", |(x,): (i64,)| Ok::<_, Error>(x.wrapping_mul(2))))
/// });
/// # let _ = ostler::app::App::name(&app);
/// ```
pub fn app<F>(name: &str, boot: F) -> RpcApp<F>
where
    F: Fn(&WorkerInfo) -> Result<Methods, BootError>,
{
    RpcApp { name: name.to_owned(), boot }
}

/// The app that [`app()`] creates. It takes no options. For an app with options, implement [`App`] and
/// return an [`Rpc`] from [`App::boot`].
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
