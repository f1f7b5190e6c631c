//! HTTP/1.1 and HTTP/2 for a tower service, by hyper.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use ostler::settings::Settings;
use tokio::net::TcpStream;
use tower_service::Service;

use super::batch::{InBatches, RequestExecutor};
use super::body::Body;
use super::connection::{self, End, IdleStream};
use super::deadline::PhaseLimits;
use super::idle_clients::{IdleClient, IdleClients, Resumption};
use super::linger::{self, LingerLimits};
use super::request::Answer;
use super::response::{BodyFailure, ResponseBody};
use super::serve::{NewClient, Serve};
use super::state::{ClosedStream, ConnectionState};
use super::stream::ClientStream;
use super::worker::Worker;

/// How many requests of one HTTP/2 connection may be in progress.
const HTTP2_STREAMS_MAX: u32 = 200;
/// How many streams that the client has reset may wait before the connection is closed.
const HTTP2_RESETS_MAX: usize = 20;
/// How many streams may be reset because of the client's errors before the connection is closed.
const HTTP2_ERRORS_MAX: usize = 64;
/// How many bytes of request bodies that no app has read may wait: of one stream, and of all.
const HTTP2_WINDOW: u32 = 1 << 20;
/// How many bytes of a response may wait for a window, before its body is asked for more.
const HTTP2_OUTPUT_MAX: usize = 256 << 10;
const HTTP2_FRAME_MAX: u32 = 16 << 10;

const RESPONSE_408: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// A tower service that can be served.
pub(super) trait HttpService:
    Service<
        Request<Body>,
        Response = Response<<Self as HttpService>::ResponseBody>,
        Error: Into<BodyFailure>,
        Future: Send + 'static,
    > + Clone
    + Send
    + 'static
{
    type ResponseBody: http_body::Body<Data: Send, Error: Into<BodyFailure>> + Send + 'static;
}

impl<S, B> HttpService for S
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BodyFailure>,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BodyFailure>,
{
    type ResponseBody = B;
}

/// Serves requests with a tower service.
pub(super) struct HttpServer<S> {
    service: S,
    config: Arc<Config>,
    idle_clients: &'static IdleClients,
}

struct Config {
    http1: http1::Builder,
    http2: http2::Builder<RequestExecutor>,
    phases: PhaseLimits,
    lingering: LingerLimits,
}

impl<S: HttpService> HttpServer<S> {
    /// # Errors
    /// The kernel has no memory or descriptor for an epoll set.
    pub(super) fn new(service: S, worker: &Worker) -> io::Result<Self> {
        let config = Arc::new(Config::new(worker));
        let app = service.clone();
        let resumed_config = Arc::clone(&config);
        let lifecycle = worker.lifecycle();
        let idle_clients =
            IdleClients::start(*worker, config.phases, move |idle_clients, client, why| {
                let Some((stream, mut state)) = client.into_parts() else {
                    return lifecycle.count_refused_client();
                };
                if why == Resumption::Input {
                    state.restart(lifecycle.now()); // its head has begun, though it is not read yet
                }
                let service = RequestService {
                    app: app.clone(),
                    state: Arc::new(ConnectionState::from_idle(state)),
                    config: Arc::clone(&resumed_config),
                };
                let stage = match why {
                    Resumption::Input => Stage::resumed(stream, Vec::new(), &service.state),
                    Resumption::End => Stage::Idle(stream),
                };
                tokio::spawn(serve_client(stage, service, idle_clients));
            })?;
        Ok(Self { service, config, idle_clients })
    }
}

impl Config {
    fn new(worker: &Worker) -> Self {
        let limits = &worker.info().limits;
        let settings = worker.settings();
        Self {
            http1: http1_builder(settings),
            http2: http2_builder(settings),
            phases: PhaseLimits {
                header_timeout: limits.header_timeout,
                keepalive: limits.keepalive,
                write_timeout: settings.write_timeout,
                drain_idle_timeout: limits.drain_idle_timeout,
            },
            lingering: LingerLimits::new(settings),
        }
    }
}

fn http1_builder(settings: &Settings) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.keep_alive(!settings.keepalive.is_zero());
    builder.half_close(true); // the stream finds out which client has gone
    builder.max_header_size(usize::try_from(settings.limit_request_head).unwrap_or(usize::MAX));
    if settings.limit_request_fields < 100 {
        builder.max_headers(settings.limit_request_fields); // 100 is hyper's own, and costs nothing
    }
    builder
}

fn http2_builder(settings: &Settings) -> http2::Builder<RequestExecutor> {
    let mut builder = http2::Builder::new(RequestExecutor);
    builder
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_pending_accept_reset_streams(HTTP2_RESETS_MAX)
        .max_local_error_reset_streams(HTTP2_ERRORS_MAX)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW)
        .max_send_buf_size(HTTP2_OUTPUT_MAX)
        .max_frame_size(HTTP2_FRAME_MAX)
        .max_header_list_size(u32::try_from(settings.limit_request_head).unwrap_or(u32::MAX));
    builder
}

impl<S: HttpService> Serve for HttpServer<S> {
    fn serve(&self, client: NewClient) {
        let NewClient { stream, info, guard } = client;
        let service = RequestService {
            app: self.service.clone(),
            state: Arc::new(ConnectionState::new(guard, info)),
            config: Arc::clone(&self.config),
        };
        let stream = ClientStream::for_http1(stream, Arc::clone(&service.state));
        tokio::spawn(serve_client(Stage::Active(stream), service, self.idle_clients));
    }
}

/// What a client with a task does.
enum Stage {
    /// It has a protocol.
    Active(ClientStream),
    /// It is between two requests.
    Idle(TcpStream),
}

impl Stage {
    /// A client that goes on with HTTP/1.1 after some requests.
    fn resumed(stream: TcpStream, unread: Vec<u8>, state: &Arc<ConnectionState>) -> Self {
        let released = ClosedStream { stream, unread };
        Self::Active(ClientStream::resume_http1(released, Arc::clone(state)))
    }
}

/// Serves a client until its connection has ended, or until it is one of the idle clients, which need no
/// task.
async fn serve_client<S: HttpService>(
    mut stage: Stage,
    mut service: RequestService<S>,
    idle_clients: &'static IdleClients,
) {
    loop {
        stage = match stage {
            Stage::Active(stream) => {
                // Boxed: a client that is idle does not need it.
                let served = Box::pin(serve_http(stream, service.clone())).await;
                let Some(released) = served else { return };
                let ClosedStream { stream, unread } = released;
                if unread.is_empty() {
                    let Some((stream, kept)) = service.park(idle_clients, stream) else {
                        return;
                    };
                    service = kept;
                    Stage::Idle(stream)
                } else {
                    Stage::resumed(stream, unread, &service.state) // it has the begin of a request
                }
            }
            Stage::Idle(stream) => {
                let (state, config) = (&service.state, &service.config);
                let end = connection::drive(pin!(IdleStream(&stream)), state, config.phases).await;
                if end != End::Finished {
                    return linger::close(stream, state.close_risk(), config.lingering).await;
                }
                Stage::resumed(stream, Vec::new(), state)
            }
        };
    }
}

/// Serves requests until the connection has ended, which returns `None`, or is released.
async fn serve_http<S: HttpService>(
    stream: ClientStream,
    service: RequestService<S>,
) -> Option<ClosedStream> {
    let (state, config) = (Arc::clone(&service.state), Arc::clone(&service.config));
    let io = TokioIo::new(stream);
    let mut http1 = config.http1.serve_connection(io, service.clone()).with_upgrades();
    let mut end = connection::drive(Pin::new(&mut http1), &state, config.phases).await;
    let unparsed = http1.into_parts().map(|parts| parts.read_buf).unwrap_or_default();
    if end == End::Released {
        let mut released = state.take_closed_stream()?;
        released.unread.splice(..0, unparsed);
        // Line ends before a request are ignored (RFC 9112, section 2.2).
        let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let line_ends = released.unread.iter().take_while(|byte| is_line_end(byte)).count();
        released.unread.drain(..line_ends);
        return Some(released);
    }
    if state.is_http2()
        && let Some(closed) = state.take_closed_stream()
    {
        let io = TokioIo::new(ClientStream::for_http2(closed, Arc::clone(&state)));
        let http2 = config.http2.serve_connection(io, service);
        let http2 = pin!(InBatches::new(http2, state.worker()));
        end = connection::drive(http2, &state, config.phases).await;
    }
    match (state.take_closed_stream(), end) {
        (Some(closed), End::HeadTimeout) => {
            linger::close_with(closed.stream, RESPONSE_408, config.lingering).await;
        }
        (Some(_), End::Finished) if state.is_flooding() => (), // its input is not read on
        (Some(closed), End::Finished | End::Idle) if !state.is_half_closed() => {
            linger::close(closed.stream, state.close_risk(), config.lingering).await;
        }
        _ => (),
    }
    None
}

/// Calls the app for the requests of one connection.
struct RequestService<S> {
    app: S,
    state: Arc<ConnectionState>,
    config: Arc<Config>,
}

impl<S> RequestService<S> {
    /// Makes a client one of the idle ones, which need no task. Returns it if that cannot be done, such as
    /// while the app has something of the connection.
    fn park(self, idle_clients: &IdleClients, stream: TcpStream) -> Option<(TcpStream, Self)> {
        let state = match Arc::try_unwrap(self.state) {
            Ok(state) => state.into_idle(),
            Err(state) => return Some((stream, Self { state, ..self })),
        };
        let client = IdleClient::new(stream, state)?;
        let (stream, state) = idle_clients.add(client).err()?.into_parts()?;
        Some((stream, Self { state: Arc::new(ConnectionState::from_idle(state)), ..self }))
    }
}

impl<S: Clone> Clone for RequestService<S> {
    fn clone(&self) -> Self {
        Self {
            app: self.app.clone(),
            state: Arc::clone(&self.state),
            config: Arc::clone(&self.config),
        }
    }
}

impl<S, B> hyper::service::Service<Request<Incoming>> for RequestService<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: Into<BodyFailure>,
    B: http_body::Body,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Infallible;
    type Future = Answer<S>;

    #[inline]
    fn call(&self, request: Request<Incoming>) -> Answer<S> {
        Answer::new(self.app.clone(), request, &self.state)
    }
}
