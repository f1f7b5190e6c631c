//! The body of a response: the app's, as a part of its unit of work.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::guard::RequestGuard;

/// Why a response is incomplete.
pub(super) type BodyFailure = Box<dyn Error + Send + Sync>;

pin_project! {
    /// The body of a response. Its request ends when it is dropped.
    pub(super) struct ResponseBody<B> {
        // `None` for a response of the class itself.
        #[pin]
        body: Option<B>,
        text: Option<Bytes>,
        guard: RequestGuard,
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn of_app(response: Response<B>, guard: RequestGuard) -> Response<Self> {
        response.map(|body| Self { body: Some(body), text: None, guard })
    }

    /// Makes a response of the class itself, after which the connection is closed.
    pub(super) fn of_class(status: StatusCode, guard: RequestGuard) -> Response<Self> {
        let reason = status.canonical_reason().unwrap_or("Error");
        let text = Bytes::from(format!("{reason}\n"));
        let is_http2 = guard.is_http2();
        let mut response = Response::new(Self { body: None, text: Some(text), guard });
        *response.status_mut() = status;
        let text_type = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text_type);
        if !is_http2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
    B::Error: Into<BodyFailure>,
{
    type Data = B::Data;
    type Error = BodyFailure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BodyFailure>>> {
        let this = self.project();
        match this.body.as_pin_mut() {
            None => Poll::Ready(this.text.take().map(|text| Ok(Frame::data(text.into())))),
            Some(body) => match this.guard.run(|| body.poll_frame(cx)) {
                Ok(polled) => polled.map_err(Into::into),
                Err(_) => Poll::Ready(Some(Err("the body panicked".into()))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            None => self.text.is_none(),
            Some(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.body, &self.text) {
            (Some(body), _) => body.size_hint(),
            (None, text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
