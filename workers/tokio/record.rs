//! The record of a request in the access log.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};
use ostler::app::{Unit, UnitEnd, UnitKind, UnitRequest, UnitResponse};
use ostler::time::MonotonicTime;
use ostler::worker::UnitRecord;

use super::context::RequestContext;

/// The status in the record of a request whose client has gone before the response, as in nginx.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What the record of a request is made from. The app takes the request itself.
pub(super) struct RequestRecord {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    context: RequestContext,
    progress: Progress,
}

enum Progress {
    /// There is no response.
    Waiting,
    /// The response has begun; `None` if it is not drawn.
    Responding(Option<UnitRecord>),
}

impl RequestRecord {
    pub(super) fn new<B>(request: &Request<B>, context: RequestContext) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            context,
            progress: Progress::Waiting,
        }
    }

    /// Returns whether a response to the request has a body.
    pub(super) fn allows_body(&self, status: StatusCode) -> bool {
        self.method != Method::HEAD
            && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            && !status.is_informational()
    }

    /// Takes in the head of the response to the request, which began at `started_at`.
    pub(super) fn on_response(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        started_at: MonotonicTime,
    ) {
        let mut head = format!("{:?} {}\r\n", self.version, status.as_u16()).into_bytes();
        for (name, value) in headers {
            head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        self.begin(status.as_u16(), &head, started_at);
    }

    fn begin(&mut self, status: u16, head: &[u8], started_at: MonotonicTime) {
        let Self { method, uri, version, headers, context, progress } = self;
        let protocol = format!("{version:?}");
        let request = UnitRequest {
            method: method.as_str().as_bytes(),
            path: uri.path().as_bytes(),
            query: uri.query().map(str::as_bytes),
            protocol: protocol.as_bytes(),
            line: None,
            field: &|name| headers.get(name).map(|value| value.as_bytes()),
        };
        let response = UnitResponse { status, head, body_bytes: 0, is_complete: false };
        let client = context.client().address;
        let unit = Unit { kind: UnitKind::Http, client, id: Some(context.id()), request, response };
        let record = context.worker().lifecycle().begin_record(&unit, started_at);
        *progress = Progress::Responding(record);
    }

    /// Writes the record: the kernel has taken so many bytes of the body.
    pub(super) fn write(mut self, bytes: u64, end: UnitEnd, started_at: MonotonicTime) {
        if let Progress::Waiting = self.progress {
            self.begin(CLIENT_CLOSED_REQUEST, b"", started_at);
        }
        if let Progress::Responding(Some(record)) = self.progress {
            record.end(bytes, end);
        }
    }
}

/// A record that is written once the stream of its connection was flushed. If it is dropped before, the
/// client has been disconnected.
pub(super) struct LateRecord {
    /// `None` once it is written.
    record: Option<RequestRecord>,
    bytes: u64,
    end: UnitEnd,
    started_at: MonotonicTime,
}

impl LateRecord {
    pub(super) fn new(
        record: RequestRecord,
        bytes: u64,
        end: UnitEnd,
        started_at: MonotonicTime,
    ) -> Self {
        Self { record: Some(record), bytes, end, started_at }
    }

    fn write(&mut self, end: UnitEnd) {
        if let Some(record) = self.record.take() {
            record.write(self.bytes, end, self.started_at);
        }
    }
}

impl Drop for LateRecord {
    fn drop(&mut self) {
        self.write(UnitEnd::Aborted);
    }
}

/// How many records of one connection may wait for a flush: hyper answers a client that reads nothing.
const LATE_RECORDS_MAX: usize = 128;

/// The records of one connection that wait for a flush. One too many is written early.
#[derive(Default)]
pub(super) struct LateRecords {
    records: Mutex<VecDeque<LateRecord>>,
    /// Whether there are any: most flushes find none.
    has_records: AtomicBool,
}

impl LateRecords {
    pub(super) fn push(&self, record: LateRecord) {
        let mut records = self.lock();
        let first = if records.len() < LATE_RECORDS_MAX { None } else { records.pop_front() };
        records.push_back(record);
        self.has_records.store(true, Ordering::SeqCst);
        drop(records);
        if let Some(mut first) = first {
            first.write(first.end);
        }
    }

    /// Writes the records: the kernel has taken all output.
    #[inline]
    pub(super) fn on_flush(&self) {
        if self.has_records.load(Ordering::SeqCst) {
            self.take().for_each(|mut record| record.write(record.end));
        }
    }

    /// Writes the records: the connection is closed.
    pub(super) fn on_close(&self) {
        self.take().for_each(drop);
    }

    fn take(&self) -> impl Iterator<Item = LateRecord> {
        self.has_records.store(false, Ordering::SeqCst);
        std::mem::take(&mut *self.lock()).into_iter()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<LateRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
