//! Limits of one client connection.

use std::time::Duration;

use crate::app;

/// Limits of one MessagePack-RPC connection. If there is a setting, it provides the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a message in bytes: 8 MiB (`limit_request_body`). A larger one closes its
    /// connection.
    pub message: usize,
    /// Maximum size of all partial messages of a worker's clients together, in bytes, but at least one
    /// of `message`: 512 MiB (`limit_bodies`). A larger one closes its connection. Zero is no limit.
    pub partial_messages: usize,
    /// Maximum nesting of arrays and maps, including the message itself: 64. A deeper message closes its
    /// connection.
    pub depth: usize,
    /// Maximum number of calls that run before their responses are sent: 64. Further pipelined calls
    /// wait.
    pub max_pipelined: usize,
    /// Amount of unsent output in bytes above which no further call runs: 64 KiB.
    pub max_pending_output: usize,
    /// Maximum time from the connect to the first byte of a call: 10 s (`header_timeout`).
    pub first_call_timeout: Duration,
    /// Maximum time for each 4 KiB of a message, and for its end: 10 s (`body_timeout`).
    pub read_timeout: Duration,
    /// Maximum idle time between two calls: one hour (`rpc_idle_timeout`). Zero is no limit.
    pub idle_timeout: Duration,
    /// Maximum idle time between two calls if the class serves one client at a time: 5 s (`keepalive`).
    /// Zero closes after the first response.
    pub keepalive: Duration,
    /// How long a draining worker waits for a call that may already be in transit: 100 ms.
    pub drain_idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        app::Limits::default().into()
    }
}

impl From<app::Limits> for Limits {
    fn from(limits: app::Limits) -> Self {
        Self {
            message: limits.max_body_bytes,
            partial_messages: limits.max_bodies_bytes,
            depth: 64,
            max_pipelined: 64,
            max_pending_output: 64 << 10,
            first_call_timeout: limits.header_timeout,
            read_timeout: limits.body_timeout,
            idle_timeout: limits.rpc_idle_timeout,
            keepalive: limits.keepalive,
            drain_idle_timeout: limits.drain_idle_timeout,
        }
    }
}
