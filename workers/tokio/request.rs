//! A request: it goes to the app, and its answer comes back, as one unit of work.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::process;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, header};
use pin_project_lite::pin_project;
use slog::{error, warn};
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use super::body::{Body, BodyError, SharedFailure};
use super::guard::RequestGuard;
use super::response::{BodyFailure, ResponseBody};

pin_project! {
    /// The answer to a request. It never fails: what the app cannot answer, the class does.
    pub(super) struct Answer<S: Service<Request<Body>>> {
        #[pin]
        call: Call<S>,
        // Taken by the response.
        guard: Option<RequestGuard>,
        body_failure: Option<SharedFailure>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

pin_project! {
    #[project = CallProjection]
    enum Call<S: Service<Request<Body>>> {
        Refused { status: StatusCode },
        Waiting { service: S, request: Option<Request<Body>> },
        Running { #[pin] answer: S::Future },
    }
}

impl<S: Service<Request<Body>>> Answer<S> {
    pub(super) fn new(
        service: S,
        request: Request<Body>,
        guard: RequestGuard,
        limit: Duration,
    ) -> Self {
        let body_failure = Some(request.body().failure());
        let timer = (!limit.is_zero()).then(|| Box::pin(sleep(limit)));
        let call = Call::Waiting { service, request: Some(request) };
        Self { call, guard: Some(guard), body_failure, timer }
    }

    pub(super) fn refused(status: StatusCode, guard: RequestGuard) -> Self {
        let call = Call::Refused { status };
        Self { call, guard: Some(guard), body_failure: None, timer: None }
    }
}

impl<S, B> Future for Answer<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BodyFailure>,
    B: http_body::Body,
{
    type Output = Result<Response<ResponseBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(guard) = this.guard.as_ref() else { return Poll::Pending };
        let mut call = this.call;
        let outcome = match guard.run(|| poll_call(call.as_mut(), cx)) {
            Ok(Poll::Pending) => match this.timer.as_mut() {
                None => return Poll::Pending,
                Some(timer) => {
                    ready!(timer.as_mut().poll(cx));
                    let worker = guard.worker();
                    warn!(worker.log(), "request timed out"; "pid" => process::id(),
                        "slot" => worker.info().slot, "label" => guard.label_text());
                    Err(StatusCode::GATEWAY_TIMEOUT)
                }
            },
            Ok(Poll::Ready(Ok(answer))) => answer.map_err(|failure| {
                let worker = guard.worker();
                error!(worker.log(), "service failed"; "pid" => process::id(),
                    "slot" => worker.info().slot, "label" => guard.label_text(),
                    "error" => failure.to_string());
                StatusCode::INTERNAL_SERVER_ERROR
            }),
            Ok(Poll::Ready(Err(status))) => Err(status),
            Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR), // the panic hook has logged it
        };
        let outcome = match this.body_failure.as_ref().and_then(SharedFailure::get) {
            Some(BodyError::TooLarge) => Err(StatusCode::PAYLOAD_TOO_LARGE),
            Some(BodyError::TooSlow) => Err(StatusCode::REQUEST_TIMEOUT),
            Some(BodyError::Broken(_)) | None => outcome,
        };
        let Some(guard) = this.guard.take() else { return Poll::Pending };
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

/// What the app answers, or the status with which the class refuses the request.
type Called<T> = Result<Result<T, BodyFailure>, StatusCode>;

fn poll_call<S>(mut call: Pin<&mut Call<S>>, cx: &mut Context<'_>) -> Poll<Called<S::Response>>
where
    S: Service<Request<Body>>,
    S::Error: Into<BodyFailure>,
{
    loop {
        match call.as_mut().project() {
            CallProjection::Refused { status } => return Poll::Ready(Err(*status)),
            CallProjection::Waiting { service, request } => {
                if let Err(failure) = ready!(service.poll_ready(cx)) {
                    return Poll::Ready(Ok(Err(failure.into())));
                }
                let Some(request) = request.take() else { return Poll::Pending };
                let answer = service.call(request);
                call.set(Call::Running { answer });
            }
            CallProjection::Running { answer } => {
                return answer.poll(cx).map(|answer| Ok(answer.map_err(Into::into)));
            }
        }
    }
}
