//! The guard of a request: it is in progress until this is dropped.

use std::sync::Arc;

use ostler::worker::StopRequest;

use super::state::ConnectionState;
use super::tracking::{Label, Panic, UnitGuard};

/// A request in progress, until its response is complete.
pub(super) struct RequestGuard {
    unit: UnitGuard,
    state: Arc<ConnectionState>,
}

impl RequestGuard {
    pub(super) fn begin(label: Label, state: Arc<ConnectionState>) -> Self {
        state.on_request();
        Self { unit: UnitGuard::of_request(label, state.worker().clone()), state }
    }

    pub(super) fn run<T>(&self, code: impl FnOnce() -> T) -> Result<T, Panic> {
        self.unit.run(code)
    }

    pub(super) fn unit(&self) -> &UnitGuard {
        &self.unit
    }

    pub(super) fn is_http2(&self) -> bool {
        self.state.is_http2()
    }

    pub(super) fn is_worker_stopping(&self) -> bool {
        self.unit.worker().lifecycle().stop_request() != StopRequest::None
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.state.on_response_end();
    }
}
