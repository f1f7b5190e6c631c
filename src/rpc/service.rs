//! The service of a worker: its methods and limits. Independent of connections.

use super::limits::Limits;
use super::methods::Methods;
use crate::app::{BodyBudget, WorkerInfo};

/// An [`app::Service`](crate::app::Service) that speaks MessagePack-RPC and runs the method of each call.
///
/// The connection stays open for further calls under every worker class, because the protocol cannot
/// announce a close, for as long as `rpc_idle_timeout` allows between two calls. A worker of the class
/// `sync` serves one client until it disconnects, or makes no call for the time of `keepalive`.
#[derive(Debug)]
pub struct Rpc {
    pub(super) methods: Methods,
    pub(super) worker: WorkerInfo,
    pub(super) limits: Limits,
    /// The memory of partial messages.
    pub(super) partial_messages: BodyBudget,
}

impl Rpc {
    /// Creates a service with the limits of the worker.
    pub fn new(methods: Methods, worker: &WorkerInfo) -> Self {
        let limits = worker.limits.into();
        Self { methods, worker: worker.clone(), limits, partial_messages: BodyBudget::default() }
    }

    /// Replaces the limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }
}
