//! The service of a worker: its methods and limits. Independent of connections.

use super::limits::Limits;
use super::methods::Methods;
use crate::app::WorkerInfo;

/// An [`app::Service`] that speaks MessagePack-RPC and hands each call to its method.
///
/// A connection is kept for further calls under every worker class, as the protocol has no word
/// for its end. So a worker of the class `sync` serves one client until that has left, or has made
/// no call for the time of `keepalive`.
#[derive(Debug)]
pub struct Rpc {
    pub(super) methods: Methods,
    pub(super) worker: WorkerInfo,
    pub(super) limits: Limits,
}

impl Rpc {
    /// A service in its place, within the limits that hold there.
    pub fn new(methods: Methods, worker: &WorkerInfo) -> Self {
        Self { methods, worker: worker.clone(), limits: worker.limits.into() }
    }

    /// The same within other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }
}
