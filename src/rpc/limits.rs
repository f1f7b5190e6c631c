//! What one client of the protocol may cost.

use std::time::Duration;

use crate::app;

/// What MessagePack-RPC may spend on one client. The defaults are those of the settings, as far as
/// there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, in bytes: 8 MiB (`limit_request_body`). A larger one ends its connection.
    pub message: usize,
    /// Deepest nesting of arrays and maps, of which the message itself is the first: 64. A deeper
    /// one ends its connection.
    pub depth: usize,
    /// Most calls that are worked on before their answers are sent: 64. Of a client that sends
    /// more at once, the others wait.
    pub max_pipelined: usize,
    /// Output in bytes after which no call is worked on until the client has taken it: 64 KiB.
    pub max_pending_output: usize,
    /// From the connect to the first byte of a call: 10 s (`header_timeout`).
    pub first_call_timeout: Duration,
    /// Silence within a message: 10 s (`body_timeout`).
    pub read_timeout: Duration,
    /// Idle time between two calls: 5 s (`keepalive`). Zero closes after the first answer.
    pub keepalive: Duration,
    /// How long a worker that leaves waits for a call that may already be on its way: 100 ms.
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
            depth: 64,
            max_pipelined: 64,
            max_pending_output: 64 << 10,
            first_call_timeout: limits.header_timeout,
            read_timeout: limits.body_timeout,
            keepalive: limits.keepalive,
            drain_idle_timeout: limits.drain_idle_timeout,
        }
    }
}
