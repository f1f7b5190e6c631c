//! The guard of a request: it is in progress until this is dropped.

use std::sync::Arc;

use http::{Response, StatusCode};
use ostler::app::UnitEnd;
use ostler::time::MonotonicTime;

use super::output::ResponseOutput;
use super::record::{LateRecord, RequestRecord};
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

    /// Takes in the head of the response.
    pub(super) fn on_response<B>(&mut self, response: &Response<B>) {
        let began_at = self.0.began_at;
        if let Some(log) = &mut self.0.log {
            log.record.on_response(response.status(), response.headers(), began_at);
        }
    }

    /// Ends the request if hyper sends the head of its response only: it then never asks for a body.
    pub(super) fn unless_empty(mut self, status: StatusCode, is_empty: bool) -> Option<Self> {
        // Over HTTP/2 it sends whatever body there is.
        let forbids = |log: &Logged| !self.is_http2() && !log.record.allows_body(status);
        if !is_empty && !self.0.log.as_deref().is_some_and(forbids) {
            return Some(self);
        }
        self.on_body_end(UnitEnd::Complete);
        self.end_at_flush();
        None
    }

    /// Ends the request. Its record is written at the next flush, until which the head of the response
    /// may wait, or its end.
    pub(super) fn end_at_flush(mut self) {
        let Some(log) = self.0.log.take() else { return };
        let Logged { record, output, end } = *log;
        let bytes = output.map_or(0, |output| output.taken_and_lost().0);
        let record = LateRecord::new(record, bytes, end, self.0.began_at);
        self.0.state.late_records().push(record);
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

    pub(super) fn closes_connection(&self) -> bool {
        self.worker().closes_connections()
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
            let end = match end {
                UnitEnd::Complete if lost > 0 => UnitEnd::Aborted,
                end => end, // what the app has not produced, no client has missed
            };
            record.write(bytes, end, self.began_at);
        }
        self.state.on_response_end(self.state.worker().lifecycle().now());
    }
}
