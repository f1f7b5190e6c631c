//! A request: it goes to the app, and its answer comes back, as one unit of work.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::process;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use ostler::time::MonotonicTime;
use pin_project_lite::pin_project;
use slog::{error, warn};
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use super::alarm::poll_timer;
use super::body::{Body, BodyError, SharedFailure};
use super::context::RequestContext;
use super::guard::RequestGuard;
use super::record::RequestRecord;
use super::response::{BodyFailure, ResponseBody};
use super::state::ConnectionState;
use super::tracking::Label;

pin_project! {
    /// The answer to a request. It never fails: what the app cannot answer, the class does.
    pub(super) struct Answer<S: Service<Request<Body>>> {
        #[pin]
        call: Call<S>,
        // Taken by the response.
        guard: Option<RequestGuard>,
        body_failure: SharedFailure,
        timer: Option<Pin<Box<Sleep>>>,
    }

    impl<S: Service<Request<Body>>> PinnedDrop for Answer<S> {
        // hyper may drop it unpolled, such as after an error of the stream. The request counts all the same.
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let (Some(guard), CallProjection::Waiting { waiting }) = (this.guard, this.call.project()) {
                let _ = waiting.begin(guard);
            }
        }
    }
}

pin_project! {
    #[project = CallProjection]
    enum Call<S: Service<Request<Body>>> {
        Waiting { waiting: Waiting<S> },
        Running { #[pin] answer: S::Future },
    }
}

/// A request that waits until the app is ready for it.
struct Waiting<S> {
    service: S,
    /// `None` once the app has it.
    request: Option<Request<Incoming>>,
    has_body: bool,
    began_at: MonotonicTime,
}

impl<S: Service<Request<Body>>> Answer<S> {
    #[inline]
    pub(super) fn new(
        service: S,
        request: Request<Incoming>,
        state: &Arc<ConnectionState>,
    ) -> Self {
        let (guard, has_body, began_at) = receive(state, request.body());
        let waiting = Waiting { service, request: Some(request), has_body, began_at };
        let call = Call::Waiting { waiting };
        Self { call, guard: Some(guard), body_failure: SharedFailure::default(), timer: None }
    }
}

/// Takes in a request. A function of its own, so that hyper's call of the service is inlined: the answer is
/// then built where it stays.
#[inline(never)]
fn receive(state: &Arc<ConnectionState>, body: &Incoming) -> (RequestGuard, bool, MonotonicTime) {
    let guard = RequestGuard::begin(Arc::clone(state));
    (guard, !body.is_end_stream(), state.worker().lifecycle().now())
}

impl<S> Waiting<S> {
    /// Begins the request, unless it has begun: its unit of work, its context, and its record.
    ///
    /// # Errors
    /// The status with which the class refuses it.
    fn begin(&mut self, guard: &mut RequestGuard) -> Result<(), StatusCode> {
        let Some(request) = self.request.as_mut().filter(|_| !guard.has_begun()) else {
            return Ok(());
        };
        let worker = guard.worker();
        let label = Label::new(&[request.method().as_str(), request.uri().path()]);
        guard.begin_unit(label, self.began_at);
        let context = RequestContext::new(guard.connection().info(), worker, request.headers());
        if worker.lifecycle().logs_units() {
            guard.set_record(RequestRecord::new(request, context.clone()), self.began_at);
        }
        if !has_valid_host(request) {
            return Err(StatusCode::BAD_REQUEST);
        }
        // Its tunnel would belong to no request: the connection would count as idle, and be closed.
        if guard.is_http2() && request.method() == Method::CONNECT {
            return Err(StatusCode::NOT_IMPLEMENTED);
        }
        if request.body().size_hint().lower() > worker.info().limits.max_body_bytes as u64 {
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        request.extensions_mut().insert(context); // each extension costs an allocation
        Ok(())
    }

    /// Returns whether the request has a body that the app does not get, unless it is called yet.
    fn keeps_body(&self) -> bool {
        self.has_body && self.request.is_some()
    }
}

/// Returns whether a request has the field `Host` that HTTP/1.1 demands, once. HTTP/2 has another.
fn has_valid_host<B>(request: &Request<B>) -> bool {
    if request.version() != Version::HTTP_11 {
        return true;
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    hosts.next().is_some() && hosts.next().is_none()
}

impl<S, B> Future for Answer<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BodyFailure>,
    B: http_body::Body,
{
    type Output = Result<Response<ResponseBody<B>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.as_mut().poll_outcome(cx);
        let this = self.project();
        if let Some(guard) = this.guard {
            guard.connection().set_awaiting(polled.is_pending());
        }
        let outcome = ready!(polled);
        let Some(guard) = this.guard.take() else { return Poll::Pending };
        if let CallProjection::Waiting { waiting } = this.call.project()
            && waiting.keeps_body()
        {
            guard.connection().set_unread_body();
        }
        let outcome = match this.body_failure.get() {
            Some(BodyError::TooLarge) => Err(StatusCode::PAYLOAD_TOO_LARGE),
            Some(BodyError::TooSlow) => Err(StatusCode::REQUEST_TIMEOUT),
            Some(BodyError::Broken(_)) | None => outcome,
        };
        Poll::Ready(Ok(match outcome {
            Err(status) => ResponseBody::of_class(status, guard),
            Ok(mut response) => {
                if guard.closes_connection() && !guard.is_http2() {
                    let close = HeaderValue::from_static("close");
                    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                        response.headers_mut().insert(header::CONNECTION, close);
                    }
                }
                ResponseBody::of_app(response, guard)
            }
        }))
    }
}

impl<S> Answer<S>
where
    S: Service<Request<Body>>,
    S::Error: Into<BodyFailure>,
{
    /// Returns what the app answers, or the status that the class answers instead.
    fn poll_outcome(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<S::Response, StatusCode>> {
        let this = self.project();
        let Some(guard) = this.guard else { return Poll::Pending };
        let mut call = this.call;
        if let CallProjection::Waiting { waiting } = call.as_mut().project()
            && !guard.has_begun()
        {
            waiting.begin(guard)?;
            let limit = guard.worker().settings().request_timeout;
            if !limit.is_zero() {
                let waited = guard.worker().lifecycle().now().duration_since(waiting.began_at);
                *this.timer = Some(Box::pin(sleep(limit.saturating_sub(waited))));
            }
        }
        let (worker, connection) = (guard.worker(), guard.connection());
        match guard.run(|| poll_call(call, connection, this.body_failure, cx)) {
            Ok(Poll::Ready(answer)) => Poll::Ready(answer.map_err(|failure| {
                error!(worker.log(), "service failed"; "pid" => process::id(),
                    "slot" => worker.info().slot, "label" => guard.label_text(),
                    "error" => failure.to_string());
                StatusCode::INTERNAL_SERVER_ERROR
            })),
            Ok(Poll::Pending) => {
                let Some(timer) = this.timer else { return Poll::Pending };
                ready!(poll_timer(timer, cx));
                warn!(worker.log(), "request timed out"; "pid" => process::id(),
                    "slot" => worker.info().slot, "label" => guard.label_text());
                Poll::Ready(Err(StatusCode::GATEWAY_TIMEOUT))
            }
            // The panic hook has logged it.
            Err(_) => Poll::Ready(Err(StatusCode::INTERNAL_SERVER_ERROR)),
        }
    }
}

/// Calls the app once it is ready, and polls its answer.
fn poll_call<S>(
    mut call: Pin<&mut Call<S>>,
    connection: &Arc<ConnectionState>,
    body_failure: &mut SharedFailure,
    cx: &mut Context<'_>,
) -> Poll<Result<S::Response, BodyFailure>>
where
    S: Service<Request<Body>>,
    S::Error: Into<BodyFailure>,
{
    loop {
        match call.as_mut().project() {
            CallProjection::Waiting { waiting } => {
                if let Err(failure) = ready!(waiting.service.poll_ready(cx)) {
                    return Poll::Ready(Err(failure.into()));
                }
                let Some(request) = waiting.request.take() else { return Poll::Pending };
                let body_of = waiting.has_body.then_some(connection);
                let request = request.map(|incoming| Body::new(incoming, body_of));
                *body_failure = request.body().failure();
                let answer = waiting.service.call(request);
                call.set(Call::Running { answer });
            }
            CallProjection::Running { answer } => {
                return answer.poll(cx).map_err(Into::into);
            }
        }
    }
}
