//! The body of a response: the app's, as a part of its unit of work.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use ostler::app::UnitEnd;
use pin_project_lite::pin_project;

use super::guard::RequestGuard;
use super::piece::Piece;

/// Why a response is incomplete.
pub(super) type BodyFailure = Box<dyn Error + Send + Sync>;

pin_project! {
    /// The body of a response. Its request ends when it and its pieces are dropped.
    pub(super) struct ResponseBody<B> {
        // `None` for a response of the class itself.
        #[pin]
        body: Option<B>,
        text: Option<&'static [u8]>,
        // Moves into the last piece.
        guard: Option<RequestGuard>,
        // How many bytes hyper still sends, if it knows: over HTTP/1.1 it does not ask for more.
        bytes_left: Option<u64>,
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn of_app(response: Response<B>, mut guard: RequestGuard) -> Response<Self>
    where
        B: Body,
    {
        let bytes_left = if guard.is_http2() { None } else { length_of(&response) };
        guard.on_response(&response);
        let is_empty = response.body().is_end_stream() || bytes_left == Some(0);
        let guard = guard.unless_empty(response.status(), is_empty);
        response.map(|body| Self { body: Some(body), text: None, guard, bytes_left })
    }

    /// Makes a response of the class itself, after which the connection is closed.
    pub(super) fn of_class(status: StatusCode, mut guard: RequestGuard) -> Response<Self> {
        let text = text_of(status).as_bytes();
        let is_http2 = guard.is_http2();
        let mut response = Response::new(());
        *response.status_mut() = status;
        let text_type = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, text_type);
        if !is_http2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        guard.on_response(&response);
        let guard = guard.unless_empty(status, false);
        response.map(|()| Self { body: None, text: Some(text), guard, bytes_left: None })
    }
}

/// Returns the body of a response of the class itself.
fn text_of(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "Bad Request\n",
        StatusCode::REQUEST_TIMEOUT => "Request Timeout\n",
        StatusCode::PAYLOAD_TOO_LARGE => "Payload Too Large\n",
        StatusCode::NOT_IMPLEMENTED => "Not Implemented\n",
        StatusCode::GATEWAY_TIMEOUT => "Gateway Timeout\n",
        _ => "Internal Server Error\n",
    }
}

/// Returns how many bytes of a body hyper sends over HTTP/1.1, if it knows this from the beginning.
fn length_of<B: Body>(response: &Response<B>) -> Option<u64> {
    let headers = response.headers();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    let stated = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    response.body().size_hint().exact().or_else(stated)
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
            let text = this.text.take();
            return Poll::Ready(text.map(|text| Ok(Frame::data(Piece::of_class(text, guard)))));
        };
        let Some(guard) = this.guard else {
            // After the last piece: what comes is not followed.
            let polled = ready!(body.as_mut().poll_frame(cx));
            return Poll::Ready(polled.map(|frame| match frame {
                Ok(frame) => Ok(frame.map_data(Piece::apart)),
                Err(failure) => Err(failure.into()),
            }));
        };
        let polled = guard.run(|| body.as_mut().poll_frame(cx));
        guard.connection().set_awaiting(matches!(polled, Ok(Poll::Pending)));
        let frame = match polled {
            Ok(polled) => ready!(polled).map(|frame| frame.map_err(Into::into)),
            Err(_) => Some(Err("the body panicked".into())),
        };
        match frame {
            Some(Ok(frame)) => {
                let Some(length) = frame.data_ref().map(Buf::remaining) else {
                    // Trailers are the last frame: hyper does not ask again.
                    end_request(this.guard.take(), UnitEnd::Complete);
                    return Poll::Ready(Some(Ok(frame.map_data(Piece::apart))));
                };
                let length = match this.bytes_left {
                    None => length,
                    Some(left) => {
                        let sent = length.min(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= sent as u64;
                        sent // hyper cuts the rest off
                    }
                };
                let is_last = body.is_end_stream() || *this.bytes_left == Some(0);
                let mut request = this.guard.take_if(|_| is_last);
                if length == 0 {
                    // hyper drops an empty piece at once.
                    end_request(request, end_of(*this.bytes_left));
                    return Poll::Ready(Some(Ok(frame.map_data(Piece::apart))));
                }
                if let Some(request) = &mut request {
                    request.on_body_end(end_of(*this.bytes_left));
                }
                Poll::Ready(Some(Ok(frame.map_data(|data| match (request, this.guard) {
                    (Some(request), _) => Piece::last(data, length, request),
                    (None, Some(request)) => Piece::new(data, length, request),
                    (None, None) => Piece::apart(data),
                }))))
            }
            Some(Err(failure)) => {
                guard.on_body_end(UnitEnd::Failed);
                Poll::Ready(Some(Err(failure)))
            }
            None => {
                end_request(this.guard.take(), end_of(*this.bytes_left));
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
            (None, text) => SizeHint::with_exact(text.map_or(0, <[u8]>::len) as u64),
        }
    }
}

/// Returns how a body has ended: it may be shorter than the response has stated.
fn end_of(bytes_left: Option<u64>) -> UnitEnd {
    match bytes_left {
        None | Some(0) => UnitEnd::Complete,
        Some(_) => UnitEnd::Failed,
    }
}

/// Ends a request whose body has ended, once the kernel has taken all of its output.
fn end_request(guard: Option<RequestGuard>, end: UnitEnd) {
    let Some(mut guard) = guard else { return };
    guard.on_body_end(end);
    guard.end_when_taken();
}
