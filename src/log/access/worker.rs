//! The access log of a worker, and of each of its threads.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use slog::{Logger, warn};

use super::records::Records;
use super::render::WorkerName;
use super::stamp::Stamps;
use super::{AccessLog, SampleShare};
use crate::app::{RequestId, Unit, UnitEnd};
use crate::log::target::{LogError, RECORD_BYTES_MAX, count_records};
use crate::os::clock;
use crate::rng::Rng;
use crate::time::{ClockReading, MonotonicTime, WallTime};

/// The access log of a worker. Its threads share it.
pub(crate) struct WorkerAccessLog {
    log: Arc<AccessLog>,
    name: WorkerName,
    logger: Logger,
    /// Called for each record that is dropped.
    on_drop: Box<dyn Fn() + Send + Sync>,
    /// Whether the loss of a record was logged since the file was opened.
    loss_logged: AtomicBool,
}

impl WorkerAccessLog {
    pub(crate) fn new(
        log: Arc<AccessLog>,
        name: WorkerName,
        logger: Logger,
        on_drop: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let loss_logged = AtomicBool::new(false);
        Self { log, name, logger, on_drop: Box::new(on_drop), loss_logged }
    }

    /// Opens the file again: see [`AccessLog::reopen`].
    pub(crate) fn reopen(&self) -> Result<(), LogError> {
        self.log.reopen()?;
        self.loss_logged.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Writes one record, or several.
    fn write(&self, records: &[u8]) {
        if self.log.target_file.write_record(records) {
            return;
        }
        (0..count_records(records)).for_each(|_| (self.on_drop)());
        if !self.loss_logged.swap(true, Ordering::Relaxed) {
            warn!(self.logger, "access log records dropped"; "slot" => self.name.slot,
                "pid" => self.name.pid, "dropped" => self.log.target_file.dropped());
        }
    }
}

impl fmt::Debug for WorkerAccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerAccessLog").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How far the output of a client has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientOutput {
    /// All of it.
    Sent,
    /// All but this many bytes, which wait.
    Waiting(u64),
    /// The connection is closed, and this many bytes were not sent.
    Closed(u64),
}

/// The access log of a thread.
pub(crate) struct UnitLog {
    log: Arc<WorkerAccessLog>,
    records: Records,
    /// Whole records to write together, if the thread buffers them: at most [`RECORD_BYTES_MAX`], which
    /// a pipe takes whole or not at all.
    batch: Option<Vec<u8>>,
    /// When the current unit began.
    started: Option<MonotonicTime>,
    /// What draws the sample.
    rng: Rng,
}

/// What the calling thread needs to write records.
struct Buffers {
    /// The dates of the present second.
    stamps: Stamps,
    line: Vec<u8>,
}

thread_local! {
    /// Those of this thread. A record may be written on another thread than it was begun on.
    static BUFFERS: RefCell<Buffers> =
        RefCell::new(Buffers { stamps: Stamps::new(), line: Vec::new() });
}

impl UnitLog {
    pub(crate) fn new(log: Arc<WorkerAccessLog>, seed: u64) -> Self {
        let (records, rng) = (Records::default(), Rng::new(seed));
        Self { log, records, batch: None, started: None, rng }
    }

    /// Makes the thread buffer its records if the settings ask for it. It must call
    /// [`flush`](Self::flush) before it waits.
    pub(crate) fn allow_buffer(&mut self) {
        if self.log.log.config.is_buffered {
            self.batch = Some(Vec::with_capacity(RECORD_BYTES_MAX));
        }
    }

    /// Writes the records that are buffered.
    pub(crate) fn flush(&mut self) {
        if let Some(batch) = &mut self.batch {
            flush(&self.log, batch);
        }
    }

    /// Records the beginning of a unit.
    pub(crate) fn begin(&mut self, now: MonotonicTime) {
        self.started = Some(now);
    }

    /// Adds a unit. `new_id` makes its id, if the format needs one and it has none.
    pub(crate) fn add(&mut self, unit: &Unit<'_>, new_id: impl FnOnce() -> Option<RequestId>) {
        let started = self.started.take();
        if !is_sampled(&self.log, &mut self.rng, unit.response.status) {
            return self.records.skip(unit);
        }
        let started = started.unwrap_or_else(clock::now);
        let WorkerAccessLog { log, name, .. } = &*self.log;
        let format = &log.config.format;
        if unit.id.is_none() && format.has_id() {
            let unit = Unit { id: new_id(), ..*unit };
            self.records.add(format, name, &unit, started);
        } else {
            self.records.add(format, name, unit, started);
        }
    }

    /// Counts bytes of the last unit's body, and of what was appended to the output for them.
    pub(crate) fn count_body(&mut self, bytes: u64, appended: u64) {
        self.records.count_body(bytes, appended);
    }

    /// Ends the last unit.
    pub(crate) fn end(&mut self, end: UnitEnd) {
        self.records.end_last(end);
    }

    /// Returns whether there are records to write.
    #[inline]
    pub(crate) fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    /// Writes the records of units whose output has been sent. Returns those that must wait: pass them
    /// to [`restore`](Self::restore) before the client is served again.
    pub(crate) fn settle(&mut self, output: ClientOutput) -> Option<UnsentRecords> {
        match output {
            ClientOutput::Sent => self.write_ended(),
            ClientOutput::Waiting(_) => (),
            ClientOutput::Closed(lost) => {
                self.records.abort(lost);
                self.write_ended();
            }
        }
        if self.records.is_empty() {
            return None;
        }
        let unsent = if let ClientOutput::Waiting(unsent) = output { unsent } else { 0 };
        let records = std::mem::take(&mut self.records);
        Some(UnsentRecords { log: Arc::clone(&self.log), records, unsent })
    }

    /// Takes records back.
    pub(crate) fn restore(&mut self, mut unsent: UnsentRecords) {
        self.records = std::mem::take(&mut unsent.records);
    }

    fn write_ended(&mut self) {
        let Self { log, records, batch, .. } = self;
        write_ended(log, records, batch.as_mut());
    }
}

/// Returns whether a unit of work with this status is logged. Server errors always are.
fn is_sampled(log: &WorkerAccessLog, rng: &mut Rng, status: u16) -> bool {
    let share = log.log.config.sample;
    if share == SampleShare::ALL || status >= 500 {
        return true;
    }
    let drawn = rng.below(SampleShare::ALL.millionths().into());
    drawn < share.millionths().into()
}

fn write_ended(log: &WorkerAccessLog, records: &mut Records, mut batch: Option<&mut Vec<u8>>) {
    let format = &log.log.config.format;
    // A date alone needs no exact clock.
    let now = if format.has_duration() {
        clock::read_clocks()
    } else {
        let wall = WallTime::from_nanos(clock::unix_seconds() * 1_000_000_000);
        ClockReading { monotonic: MonotonicTime::default(), wall }
    };
    let write = |record: &[u8]| match &mut batch {
        None => log.write(record),
        Some(batch) => {
            if batch.len() + record.len() > RECORD_BYTES_MAX {
                flush(log, batch);
            }
            batch.extend_from_slice(record);
        }
    };
    with_buffers(|Buffers { stamps, line }| {
        records.take_ended(format, stamps, now, line, write);
    });
}

/// Calls a function with the buffers of the calling thread.
fn with_buffers(function: impl FnOnce(&mut Buffers)) {
    let mut function = Some(function);
    let mut call = |buffers: &mut Buffers| function.take().map(|function| function(buffers));
    if BUFFERS.try_with(|buffers| call(&mut buffers.borrow_mut())).is_err() {
        // The thread ends.
        call(&mut Buffers { stamps: Stamps::new(), line: Vec::new() });
    }
}

fn flush(log: &WorkerAccessLog, batch: &mut Vec<u8>) {
    if !batch.is_empty() {
        log.write(batch);
        batch.clear();
    }
}

impl Drop for UnitLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Records of a client whose output waits. If they are dropped, the client has been disconnected.
pub(crate) struct UnsentRecords {
    log: Arc<WorkerAccessLog>,
    records: Records,
    /// How many bytes of output wait.
    unsent: u64,
}

impl Drop for UnsentRecords {
    fn drop(&mut self) {
        if !self.records.is_empty() {
            self.records.abort(self.unsent);
            write_ended(&self.log, &mut self.records, None);
        }
    }
}

/// The record of one unit of work among others in progress. It is written when it is ended, or
/// dropped, which means that the client has been disconnected.
pub struct UnitRecord {
    log: Arc<WorkerAccessLog>,
    records: Records,
}

impl UnitRecord {
    pub(crate) fn begin(
        log: &Arc<WorkerAccessLog>,
        unit: &Unit<'_>,
        started_at: MonotonicTime,
        seed: u64,
    ) -> Option<Self> {
        if !is_sampled(log, &mut Rng::new(seed), unit.response.status) {
            return None;
        }
        let mut records = Records::default();
        records.add(&log.log.config.format, &log.name, unit, started_at);
        Some(Self { log: Arc::clone(log), records })
    }

    /// Writes the record. The kernel has taken `body_bytes` of the body of the response.
    pub fn end(mut self, body_bytes: u64, end: UnitEnd) {
        self.records.count_body(body_bytes, 0);
        self.records.end_last(end);
    }
}

impl Drop for UnitRecord {
    fn drop(&mut self) {
        self.records.end_last(UnitEnd::Aborted);
        write_ended(&self.log, &mut self.records, None);
    }
}

impl fmt::Debug for UnitRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitRecord").field("log", &self.log).finish_non_exhaustive()
    }
}
