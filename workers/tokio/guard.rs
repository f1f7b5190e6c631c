//! The guard of a request: it is in progress until this is dropped.

use std::sync::Arc;

use http::Response;
use ostler::app::UnitEnd;
use ostler::time::MonotonicTime;
use ostler::worker::StopRequest;

use super::output::ResponseOutput;
use super::record::RequestRecord;
use super::state::ConnectionState;
use super::tracking::{Label, Panic, UnitGuard};
use super::worker::Worker;

/// A request in progress, until the kernel has its whole response. It is boxed, since it moves from the
/// answer to the body to its last piece, through the buffers of hyper.
pub(super) struct RequestGuard(Box<Inner>);

struct Inner {
    /// `None` once hyper has the whole body: a client that has the response finds the unit counted.
    unit: Option<UnitGuard>,
    began_at: MonotonicTime,
    state: Arc<ConnectionState>,
    /// The key of its output, over HTTP/2.
    output: Option<usize>,
    /// `None` without an access log.
    log: Option<Box<Logged>>,
}

/// A request that is logged.
struct Logged {
    record: RequestRecord,
    output: Option<Arc<ResponseOutput>>,
    /// How the response ends, if the kernel takes all of it.
    end: UnitEnd,
}

impl RequestGuard {
    pub(super) fn begin(label: Label, state: Arc<ConnectionState>) -> Self {
        state.on_request();
        let unit = UnitGuard::of_request(label, state.worker());
        let (began_at, unit) = (unit.began_at(), Some(unit));
        Self(Box::new(Inner { unit, began_at, state, output: None, log: None }))
    }

    /// Makes it write a record when the request ends.
    pub(super) fn set_record(&mut self, record: RequestRecord) {
        self.0.log = Some(Box::new(Logged { record, output: None, end: UnitEnd::Aborted }));
    }

    pub(super) fn run<T>(&self, code: impl FnOnce() -> T) -> Result<T, Panic> {
        match &self.0.unit {
            Some(unit) => unit.run(code),
            None => Ok(code()),
        }
    }

    /// Takes in the head of the response. `is_empty` says that there is no body.
    pub(super) fn on_response<B>(&mut self, response: &Response<B>, is_empty: bool) {
        let began_at = self.0.began_at;
        if let Some(log) = &mut self.0.log {
            let status = response.status();
            log.record.on_response(status, response.headers(), began_at);
            if is_empty || !log.record.allows_body(status) {
                log.end = UnitEnd::Complete;
            }
        }
    }

    /// Takes in how the body of the response has ended.
    pub(super) fn on_body_end(&mut self, end: UnitEnd) {
        self.0.unit = None;
        if let Some(log) = &mut self.0.log {
            log.end = end;
        }
    }

    /// Returns what follows the output of the response, if that matters.
    pub(super) fn add_output(&mut self) -> Option<Arc<ResponseOutput>> {
        if !self.0.state.is_http2() && self.0.log.is_none() {
            return None;
        }
        let output = Arc::new(ResponseOutput::new(self.worker()));
        if self.0.state.is_http2() {
            self.0.output = Some(self.0.state.outputs().add(Arc::clone(&output)));
        }
        if let Some(log) = &mut self.0.log {
            log.output = Some(Arc::clone(&output));
        }
        Some(output)
    }

    pub(super) fn worker(&self) -> Worker {
        self.0.state.worker()
    }

    pub(super) fn label_text(&self) -> String {
        self.0.unit.as_ref().map(UnitGuard::label_text).unwrap_or_default()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.0.state.is_http2()
    }

    pub(super) fn is_worker_stopping(&self) -> bool {
        self.worker().lifecycle().stop_request() != StopRequest::None
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(key) = self.output {
            self.state.outputs().remove(key);
        }
        if let Some(log) = self.log.take() {
            let Logged { record, output, end } = *log;
            let (bytes, lost) = output.map_or((0, 0), |output| output.taken_and_lost());
            let end = if lost > 0 { UnitEnd::Aborted } else { end };
            record.write(bytes, end, self.began_at);
        }
        self.state.on_response_end(self.state.worker().lifecycle().now());
    }
}
