//! Which worker serves an app, with which options and limits.

use std::collections::BTreeMap;
use std::time::Duration;

/// Options of an app: the `KEY=VALUE` arguments of the command line, or the `app` map of a YAML file.
pub type Options = BTreeMap<String, String>;

/// Identifies a worker, and holds its options and limits.
#[derive(Clone, Debug)]
pub struct WorkerInfo {
    /// The pool's name.
    pub pool: String,
    /// The worker's slot in its pool, 0 to N-1. A replacement has the slot of the worker that it
    /// replaces; until that worker exits, both have it.
    pub slot: usize,
    /// 1 for the first workers; each reload that begins adds 1, even if it fails.
    pub generation: u32,
    /// The name of the worker class that serves.
    pub class: &'static str,
    /// The app's own options.
    pub options: Options,
    /// The limits of each client connection.
    pub limits: Limits,
}

/// Limits of one client connection. The defaults are those of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of a request's head in bytes: 16 KiB.
    pub max_head_bytes: usize,
    /// Maximum number of header fields of a request: 100.
    pub max_header_fields: usize,
    /// Maximum size of a request's body, or of a message, in bytes: 8 MiB.
    pub max_body_bytes: usize,
    /// Maximum size in bytes of all request bodies of a worker that have not arrived completely:
    /// 512 MiB. Zero is no limit.
    pub max_bodies_bytes: usize,
    /// Maximum time from the first byte of a request (or the connect) to the end of its head: 10 s.
    pub header_timeout: Duration,
    /// Maximum time for each 4 KiB of a body, and between two reads of an RPC message: 10 s.
    pub body_timeout: Duration,
    /// Maximum idle time between two requests of a connection: 5 s. Zero closes the connection
    /// after each response.
    pub keepalive: Duration,
    /// Maximum idle time between two calls of an RPC connection: one hour. Zero is no limit.
    pub rpc_idle_timeout: Duration,
    /// How long a draining worker waits for a request that may already be in transit: 100 ms.
    pub drain_idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_head_bytes: 16 << 10,
            max_header_fields: 100,
            max_body_bytes: 8 << 20,
            max_bodies_bytes: 512 << 20,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(5),
            rpc_idle_timeout: Duration::from_secs(3600),
            drain_idle_timeout: Duration::from_millis(100),
        }
    }
}
