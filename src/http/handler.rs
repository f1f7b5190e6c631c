//! The handler of requests, and the service that holds it. Independent of connections.

use super::request::Request;
use super::response::Response;
use crate::app::{BodyBudget, Limits};

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
    /// Answers one request, after its whole body has arrived.
    ///
    /// # Panics
    /// A panic is caught and answered with status 500. The connection and the worker continue.
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

/// A [`Service`](crate::app::Service) that speaks HTTP and passes each request to its handler.
#[derive(Debug)]
pub struct Http<H> {
    pub(super) handler: H,
    pub(super) limits: Limits,
    pub(super) bodies: BodyBudget,
}

impl<H: Handler> Http<H> {
    /// Creates a service from a handler and limits.
    pub fn new(handler: H, limits: Limits) -> Self {
        Self { handler, limits, bodies: BodyBudget::default() }
    }

    /// Returns the handler.
    #[cfg(test)]
    pub(crate) fn handler_ref(&self) -> &H {
        &self.handler
    }
}
