//! Server-sent events as text. Pure.
//!
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

use crate::http::{Body, LiveSource, Response};

/// What is sent after a silence: a comment.
pub(super) const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// The type of a stream of events.
pub(super) const CONTENT_TYPE: &str = "text/event-stream";

/// Returns the response that is a stream of events.
pub(super) fn response(source: impl LiveSource + 'static) -> Response {
    Response::new(200, Body::live(source)).header("Content-Type", CONTENT_TYPE)
}

/// Appends one event. `data` is one line, such as JSON.
pub(super) fn append(out: &mut Vec<u8>, id: Option<u64>, event: &str, data: &str) {
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(format!("event: {event}\ndata: {data}\n\n").as_bytes());
}
