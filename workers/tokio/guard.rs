//! The guard of a request: it is in progress until this is dropped.

use std::mem;
use std::sync::Arc;

use http::{Response, StatusCode};
use ostler::app::UnitEnd;
use ostler::time::MonotonicTime;

use super::output::OutputKey;
use super::record::{LateRecord, RequestRecord};
use super::state::ConnectionState;
use super::tracking::{Label, Panic, UnitGuard};
use super::worker::Worker;

/// A request in progress, until the kernel has its whole response. It moves from the answer to the body
/// to its last piece, through the buffers of hyper, so it is small.
pub(super) struct RequestGuard {
    state: Arc<ConnectionState>,
    /// From the first poll of the answer until hyper has the whole body: a client that has the response
    /// finds the unit counted.
    unit: Option<Box<UnitGuard>>,
    output: Output,
    /// `None` without an access log.
    log: Option<Box<Logged>>,
}

/// How the output of the response is followed.
#[derive(Clone, Copy)]
enum Output {
    /// There is none yet, or it does not matter.
    None,
    /// The connection has it under this key.
    Followed(OutputKey),
    /// The same, and its last piece has the guard.
    LastPiece(OutputKey),
}

/// A request that is logged.
struct Logged {
    record: RequestRecord,
    began_at: MonotonicTime,
    /// How the response ends, if the kernel takes all of it.
    end: UnitEnd,
}

impl RequestGuard {
    pub(super) fn begin(state: Arc<ConnectionState>) -> Self {
        state.on_request();
        Self { state, unit: None, output: Output::None, log: None }
    }

    /// Begins the unit of work. Its request began at `began_at`.
    pub(super) fn begin_unit(&mut self, label: Label, began_at: MonotonicTime) {
        self.unit = Some(Box::new(UnitGuard::of_request(label, self.worker(), began_at)));
    }

    pub(super) fn has_begun(&self) -> bool {
        self.unit.is_some()
    }

    /// Makes it write a record when the request ends.
    pub(super) fn set_record(&mut self, record: RequestRecord, began_at: MonotonicTime) {
        self.log = Some(Box::new(Logged { record, began_at, end: UnitEnd::Aborted }));
    }

    pub(super) fn run<T>(&self, code: impl FnOnce() -> T) -> Result<T, Panic> {
        match &self.unit {
            Some(unit) => unit.run(code),
            None => Ok(code()),
        }
    }

    /// Takes in the head of the response.
    pub(super) fn on_response<B>(&mut self, response: &Response<B>) {
        if let Some(log) = &mut self.log {
            log.record.on_response(response.status(), response.headers(), log.began_at);
        }
    }

    /// Ends the request if hyper sends the head of its response only: it then never asks for a body.
    pub(super) fn unless_empty(mut self, status: StatusCode, is_empty: bool) -> Option<Self> {
        // Over HTTP/2 it sends whatever body there is.
        let forbids = |log: &Logged| !self.is_http2() && !log.record.allows_body(status);
        if !is_empty && !self.log.as_deref().is_some_and(forbids) {
            return Some(self);
        }
        self.on_body_end(UnitEnd::Complete);
        self.end_when_taken();
        None
    }

    /// Takes in how the body of the response has ended.
    pub(super) fn on_body_end(&mut self, end: UnitEnd) {
        self.unit = None;
        if let Some(log) = &mut self.log {
            log.end = end;
        }
    }

    /// Ends the request, whose body has ended, once the kernel has taken all of its output. If no piece of
    /// it waits, its record is written at the next flush, until which the head of the response may wait,
    /// or its end.
    pub(super) fn end_when_taken(mut self) {
        if let Output::Followed(key) = self.output {
            let state = Arc::clone(&self.state);
            let returned = state.outputs().keep_until_taken(key, self);
            let Some(returned) = returned else { return };
            self = returned;
        }
        let (bytes, lost) = self.end_output();
        if let Some(log) = self.log.take() {
            let Logged { record, began_at, end } = *log;
            let record = LateRecord::new(record, bytes, end_of(end, lost), began_at);
            self.state.late_records().push(record);
        }
    }

    /// Takes in a piece of the output. Returns what the piece keeps, if its output is followed.
    pub(super) fn add_piece(&mut self, length: usize) -> Option<FollowedPiece> {
        let key = self.follow_piece(length)?;
        Some(FollowedPiece { state: Arc::clone(&self.state), key })
    }

    /// Takes in the last piece of the output, which is to have this guard.
    pub(super) fn set_last_piece(&mut self, length: usize) {
        if let Some(key) = self.follow_piece(length) {
            self.output = Output::LastPiece(key);
        }
    }

    fn follow_piece(&mut self, length: usize) -> Option<OutputKey> {
        if !self.is_http2() && self.log.is_none() {
            return None;
        }
        let now = self.worker().lifecycle().now_coarse();
        let mut outputs = self.state.outputs();
        if let Output::Followed(key) = self.output {
            outputs.on_piece(key, length, now);
            return Some(key);
        }
        let key = outputs.add(length, now);
        drop(outputs);
        self.output = Output::Followed(key);
        Some(key)
    }

    /// Takes in that the kernel has taken bytes of the piece that has this guard.
    pub(super) fn on_taken(&self, length: usize) {
        if let Output::LastPiece(key) = self.output {
            take(&self.state, key, length);
        }
    }

    /// Ends the output. Returns how many bytes the kernel has taken, and how many it has not.
    fn end_output(&mut self) -> (u64, u64) {
        match mem::replace(&mut self.output, Output::None) {
            Output::None => (0, 0),
            Output::Followed(key) => self.state.outputs().end_request(key),
            Output::LastPiece(key) => self.state.outputs().end_request_and_piece(key),
        }
    }

    pub(super) fn connection(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    pub(super) fn worker(&self) -> Worker {
        self.state.worker()
    }

    pub(super) fn label_text(&self) -> String {
        self.unit.as_ref().map(|unit| unit.label_text()).unwrap_or_default()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.state.is_http2()
    }

    pub(super) fn closes_connection(&self) -> bool {
        self.worker().closes_connections()
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.unit = None;
        let (bytes, lost) = self.end_output();
        if let Some(log) = self.log.take() {
            let Logged { record, began_at, end } = *log;
            record.write(bytes, end_of(end, lost), began_at);
        }
        self.state.on_response_end();
    }
}

/// Returns how a response has ended, of which the kernel has not taken so many bytes.
fn end_of(end: UnitEnd, lost: u64) -> UnitEnd {
    match end {
        UnitEnd::Complete if lost > 0 => UnitEnd::Aborted,
        end => end, // what the app has not produced, no client has missed
    }
}

/// A piece of a response whose output is followed.
pub(super) struct FollowedPiece {
    state: Arc<ConnectionState>,
    key: OutputKey,
}

impl FollowedPiece {
    /// Takes in that the kernel has taken bytes of the piece.
    pub(super) fn on_taken(&self, length: usize) {
        take(&self.state, self.key, length);
    }
}

impl Drop for FollowedPiece {
    fn drop(&mut self) {
        let kept = self.state.outputs().end_piece(self.key);
        drop(kept); // after the lock is released
    }
}

fn take(state: &ConnectionState, key: OutputKey, length: usize) {
    state.outputs().on_taken(key, length, || state.worker().lifecycle().now_coarse());
}
