//! Errors of requests: the status and the reason that the client receives. Independent of the
//! connection.

/// Why a request is rejected and its connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestError {
    /// The status of the response, 400 to 599.
    pub(super) status: u16,
    /// The reason in the body of the response, without a full stop.
    pub(super) reason: &'static str,
}

impl RequestError {
    /// The request's head or body took too long to arrive (RFC 9110, section 15.5.9).
    pub(super) const TIMEOUT: Self = Self::new(408, "request timed out");
    /// A larger body than allowed (RFC 9110, section 15.5.14).
    pub(super) const BODY: Self = Self::new(413, "request body too large");
    /// A request line longer than `max_head_bytes` (RFC 9110, section 15.5.15).
    pub(super) const REQUEST_LINE: Self = Self::new(414, "request line too long");
    /// An expectation other than `100-continue` (RFC 9110, section 15.5.18).
    pub(super) const EXPECTATION: Self =
        Self::new(417, "only the expectation 100-continue is supported");
    /// A head larger than allowed (RFC 6585, section 5).
    pub(super) const HEAD: Self = Self::new(431, "request head too large");
    /// More header fields than allowed (RFC 6585, section 5).
    pub(super) const FIELDS: Self = Self::new(431, "too many header fields");
    /// Larger chunk extensions than allowed (RFC 9112, section 7.1.1).
    pub(super) const EXTENSIONS: Self = Self::new(413, "chunk extensions too large");
    /// A transfer coding other than `chunked` (RFC 9112, section 6.1).
    pub(super) const CODING: Self = Self::new(501, "only the transfer coding chunked is supported");
    /// A body for which the worker has no memory (RFC 9110, section 15.6.4).
    pub(super) const MEMORY: Self = Self::new(503, "too many request bodies at once");
    /// A major version other than 1 (RFC 9110, section 15.6.6).
    pub(super) const VERSION: Self = Self::new(505, "only HTTP/1.0 and HTTP/1.1 are supported");

    /// Creates an error.
    pub(super) const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// Creates the error of a malformed request (RFC 9110, section 15.5.1).
    pub(super) const fn bad_request(reason: &'static str) -> Self {
        Self::new(400, reason)
    }
}
