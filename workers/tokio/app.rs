//! An app of the class: a name, and an asynchronous function that each worker calls once.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use hyper::body::Incoming;
use ostler::app::{
    self, BootError, ClientInfo, ConfigError, Connection, Options, Service, WorkerInfo,
};

use super::body::Body;
use super::http::HttpServer;
use super::response::BodyFailure;
use super::serve::{Booting, Serve};
use super::stream::ClientStream;
use super::streams::StreamServer;
use super::worker::Worker;

/// The name of the class.
pub(super) const CLASS: &str = "tokio";

/// A program of the worker class `tokio`. Its function runs in each worker, on the runtime.
pub struct App {
    name: String,
    options: Option<Vec<String>>,
    boot: Arc<Boot>,
}

impl App {
    /// Creates an app that serves HTTP with a [`tower_service::Service`], such as an axum router or
    /// tonic's services. An error of `boot` is a failed boot.
    pub fn new<F, R, S, B>(name: impl Into<String>, boot: F) -> Self
    where
        F: Fn(Worker) -> R + Send + Sync + 'static,
        R: Future<Output = Result<S, BootError>> + 'static,
        S: tower_service::Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BodyFailure>,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BodyFailure>,
    {
        Self::from_boot(name.into(), move |worker| {
            let service = boot(worker);
            Box::pin(async move {
                Ok(Box::new(HttpServer::new(service.await?, &worker)?) as Box<dyn Serve>)
            })
        })
    }

    /// Creates an app that serves the bare stream of each client, over TCP or a unix socket. What `boot`
    /// returns is called for each client. The future that this returns is one unit of work. A draining
    /// worker waits for it: end it when [`Worker::shutdown`] is requested.
    pub fn streams<F, R, H, C>(name: impl Into<String>, boot: F) -> Self
    where
        F: Fn(Worker) -> R + Send + Sync + 'static,
        R: Future<Output = Result<H, BootError>> + 'static,
        H: Fn(ClientStream, ClientInfo) -> C + 'static,
        C: Future<Output = ()> + Send + 'static,
    {
        Self::from_boot(name.into(), move |worker| {
            let handler = boot(worker);
            Box::pin(async move {
                Ok(Box::new(StreamServer::new(handler.await?, &worker)) as Box<dyn Serve>)
            })
        })
    }

    fn from_boot(name: String, boot: impl Fn(Worker) -> Booting + Send + Sync + 'static) -> Self {
        Self { name, options: None, boot: Arc::new(boot) }
    }

    /// Names the options of the app. Another is then a configuration error before any fork. Without this
    /// call, all are accepted.
    #[must_use]
    pub fn options<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.options = Some(names.into_iter().map(Into::into).collect());
        self
    }
}

/// Begins the boot of an app.
type Boot = dyn Fn(Worker) -> Booting + Send + Sync;

impl app::App for App {
    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self, options: &Options) -> Result<(), ConfigError> {
        let Some(known) = &self.options else { return Ok(()) };
        match options.keys().find(|key| !known.contains(key)) {
            None => Ok(()),
            Some(key) => {
                let known = known.join(", ");
                let reason = format!("app {:?} has no such option; available: {known}", self.name);
                Err(ConfigError::for_option(key, reason))
            }
        }
    }

    fn worker_class(&self) -> Option<&str> {
        Some(CLASS)
    }

    fn boot(&self, _: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(Booted(Arc::clone(&self.boot))))
    }
}

/// What an app hands to the class: it serves no client itself.
pub(super) struct Booted(Arc<Boot>);

impl Booted {
    pub(super) fn boot(&self, worker: Worker) -> Booting {
        self.0(worker)
    }
}

impl Service for Booted {
    fn accept(&self, _: &ClientInfo) -> Box<dyn Connection + '_> {
        unreachable!("no other class serves the app")
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

/// Makes a service whose requests have hyper's body fit for [`App::new`]. `body_timeout`, and
/// `limit_request_body` for a body without a length, do not hold for it.
pub fn from_incoming<S>(service: S) -> FromIncoming<S> {
    FromIncoming(service)
}

/// A service whose requests have hyper's body. Made by [`from_incoming`].
#[derive(Clone, Debug)]
pub struct FromIncoming<S>(S);

impl<S: tower_service::Service<Request<Incoming>>> tower_service::Service<Request<Body>>
    for FromIncoming<S>
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.0.call(request.map(Body::into_incoming))
    }
}
