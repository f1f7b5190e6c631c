//! The body of a response: the app's, as a part of its unit of work.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use ostler::app::UnitEnd;
use pin_project_lite::pin_project;

use super::guard::RequestGuard;
use super::output::ResponseOutput;
use super::piece::Piece;

/// Why a response is incomplete.
pub(super) type BodyFailure = Box<dyn Error + Send + Sync>;

pin_project! {
    /// The body of a response. Its request ends when it and its pieces are dropped.
    pub(super) struct ResponseBody<B> {
        // `None` for a response of the class itself.
        #[pin]
        body: Option<B>,
        text: Option<Bytes>,
        // Moves into the last piece.
        guard: Option<RequestGuard>,
        // From the first piece on, if it matters.
        output: Option<Arc<ResponseOutput>>,
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn of_app(response: Response<B>, mut guard: RequestGuard) -> Response<Self>
    where
        B: Body,
    {
        guard.on_response(&response, response.body().is_end_stream());
        response.map(|body| Self { body: Some(body), text: None, guard: Some(guard), output: None })
    }

    /// Makes a response of the class itself, after which the connection is closed.
    pub(super) fn of_class(status: StatusCode, mut guard: RequestGuard) -> Response<Self> {
        let reason = status.canonical_reason().unwrap_or("Error");
        let text = Bytes::from(format!("{reason}\n"));
        let is_http2 = guard.is_http2();
        let mut response = Response::new(());
        *response.status_mut() = status;
        let text_type = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text_type);
        if !is_http2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        guard.on_response(&response, false);
        response.map(|()| Self { body: None, text: Some(text), guard: Some(guard), output: None })
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: Into<BodyFailure>,
{
    type Data = Piece<B::Data>;
    type Error = BodyFailure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece<B::Data>>, BodyFailure>>> {
        let this = self.project();
        let Some(mut body) = this.body.as_pin_mut() else {
            let Some(mut guard) = this.guard.take() else { return Poll::Ready(None) };
            guard.on_body_end(UnitEnd::Complete);
            let output = guard.add_output();
            let piece = this.text.take().map(|text| Piece::of_class(text, output, Some(guard)));
            return Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))));
        };
        let Some(guard) = this.guard else {
            // After the last piece.
            let polled = ready!(body.as_mut().poll_frame(cx));
            let of_app = |data| Piece::of_app(data, this.output.clone(), None);
            return Poll::Ready(polled.map(|frame| match frame {
                Ok(frame) => Ok(frame.map_data(of_app)),
                Err(failure) => Err(failure.into()),
            }));
        };
        if this.output.is_none() {
            *this.output = guard.add_output();
        }
        let output = this.output.clone();
        let frame = match guard.run(|| body.as_mut().poll_frame(cx)) {
            Ok(polled) => ready!(polled).map(|frame| frame.map_err(Into::into)),
            Err(_) => Some(Err("the body panicked".into())),
        };
        match frame {
            Some(Ok(frame)) if frame.is_trailers() => {
                // The last frame: hyper does not ask again.
                end_request(this.guard.take(), output);
                Poll::Ready(Some(Ok(frame.map_data(|data| Piece::of_app(data, None, None)))))
            }
            Some(Ok(frame)) => {
                // Over HTTP/1.1, hyper does not ask again after the last byte of a known length.
                let has_all = || !guard.is_http2() && body.size_hint().exact() == Some(0);
                let is_last = frame.is_data() && (body.is_end_stream() || has_all());
                if is_last {
                    guard.on_body_end(UnitEnd::Complete);
                }
                let request = if is_last { this.guard.take() } else { None };
                Poll::Ready(Some(Ok(frame.map_data(|data| Piece::of_app(data, output, request)))))
            }
            Some(Err(failure)) => {
                guard.on_body_end(UnitEnd::Failed);
                Poll::Ready(Some(Err(failure)))
            }
            None => {
                end_request(this.guard.take(), output);
                Poll::Ready(None)
            }
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

/// Ends a request whose body is complete, once the kernel has taken all of its output.
fn end_request(guard: Option<RequestGuard>, output: Option<Arc<ResponseOutput>>) {
    let Some(mut guard) = guard else { return };
    guard.on_body_end(UnitEnd::Complete);
    if let Some(output) = output {
        output.keep_until_taken(guard);
    }
}
