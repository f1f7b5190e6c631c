//! Errors as responses. Pure.

use crate::http::Response;

/// Returns the response that gives a reason as JSON.
pub(super) fn failure(status: u16, reason: &str) -> Response {
    let body = serde_json::json!({ "error": reason });
    Response::json(format!("{body}\n")).with_status(status)
}
