//! What the access log is told of a request and its response.

use std::net::SocketAddr;

use crate::app::{RequestId, Unit, UnitHandle, UnitKind, UnitRequest, UnitResponse};
use crate::http::head::{Head, Version};
use crate::http::response::is_token_byte;

/// The longest request line of an invalid request that is logged, in bytes.
const LINE_BYTES_MAX: usize = 2048;

/// A unit of work besides its request.
pub(super) struct Logged<'a> {
    pub(super) client: Option<SocketAddr>,
    pub(super) id: Option<RequestId>,
    pub(super) response: UnitResponse<'a>,
}

/// Returns the response at the start of `bytes`, of which the first `head` are its head.
pub(super) fn response(
    status: u16,
    bytes: &[u8],
    head: usize,
    is_complete: bool,
) -> UnitResponse<'_> {
    let (head, body) = bytes.split_at(head);
    UnitResponse { status, head, body_bytes: body.len() as u64, is_complete }
}

impl<'a> Logged<'a> {
    /// Logs the answer to a valid request.
    pub(super) fn log(self, head: &Head<'_>, handle: &UnitHandle<'_>) {
        let field = |name: &str| {
            let field = head.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            field.map(|field| field.value)
        };
        let version = match head.version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        };
        // The target may hold a scheme and a host besides.
        let line = (!head.target.starts_with(head.path))
            .then(|| format!("{} {} {version}", head.method, head.target));
        let request = UnitRequest {
            method: head.method.as_bytes(),
            path: head.path.as_bytes(),
            query: head.query.map(str::as_bytes),
            protocol: version.as_bytes(),
            line: line.as_deref().map(str::as_bytes),
            field: &field,
        };
        self.log_request(request, handle);
    }

    /// Logs the answer to an invalid request, of which `seen` has arrived.
    pub(super) fn log_rejected(self, seen: &[u8], handle: &UnitHandle<'_>) {
        let line = seen.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = &line[..line.len().min(LINE_BYTES_MAX)];
        let mut words = line.split(|byte| *byte == b' ');
        let request = match (words.next(), words.next(), words.next(), words.next()) {
            (Some(method), Some(target), Some(protocol), None)
                if is_token(method) && protocol.starts_with(b"HTTP/") =>
            {
                let mut parts = target.splitn(2, |byte| *byte == b'?');
                let path = parts.next().unwrap_or_default();
                let query = parts.next();
                UnitRequest { method, path, query, protocol, line: None, field: &|_| None }
            }
            _ => UnitRequest {
                method: b"",
                path: b"",
                query: None,
                protocol: b"",
                line: Some(line),
                field: &|_| None,
            },
        };
        self.log_request(request, handle);
    }

    fn log_request(self, request: UnitRequest<'a>, handle: &UnitHandle<'_>) {
        let Self { client, id, response } = self;
        handle.log_unit(&Unit { kind: UnitKind::Http, client, id, request, response });
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_token_byte)
}
