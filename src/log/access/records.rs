//! Records that are not written yet: what is known of them early, as text with gaps.

use super::format::{AccessFormat, Piece};
use super::render::{Ended, WorkerName, push_early, push_late};
use super::stamp::Stamps;
use crate::app::{Unit, UnitEnd};
use crate::log::target::RECORD_BYTES_MAX;
use crate::time::{ClockReading, MonotonicTime};

/// The end of a record that was cut.
const CUT: &[u8] = b"...\n";

/// Units of work that were logged and not written, in their order. Only the last may go on.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// The early parts of all records.
    text: Vec<u8>,
    /// Where late parts belong, as indices of `text`.
    gaps: Vec<usize>,
    entries: Vec<Entry>,
}

/// One record.
#[derive(Debug)]
struct Entry {
    /// The end of its part of `text`.
    text_end: usize,
    /// The end of its part of `gaps`.
    gaps_end: usize,
    started: MonotonicTime,
    /// The bytes of its body.
    bytes: u64,
    /// The bytes of its output: head, body, and what frames the body.
    output: u64,
    /// The bytes of output after it, up to the next record: of units that are not logged.
    output_after: u64,
    /// How it has ended; `None` if it goes on.
    end: Option<UnitEnd>,
}

impl Records {
    /// Returns whether there are none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a unit of work.
    pub(super) fn add(
        &mut self,
        format: &AccessFormat,
        worker: &WorkerName,
        unit: &Unit<'_>,
        started: MonotonicTime,
    ) {
        self.end_last(UnitEnd::Failed); // an unfinished record before it
        for piece in format.pieces() {
            match piece {
                Piece::Literal(text) => self.text.extend_from_slice(text),
                Piece::Early(early) => push_early(&mut self.text, early, unit, worker),
                Piece::Late(_) => self.gaps.push(self.text.len()),
            }
        }
        self.entries.push(Entry {
            text_end: self.text.len(),
            gaps_end: self.gaps.len(),
            started,
            bytes: unit.response.body_bytes,
            output: output_of(unit),
            output_after: 0,
            end: unit.response.is_complete.then_some(UnitEnd::Complete),
        });
    }

    /// Passes over a unit of work that is not to be logged.
    pub(super) fn skip(&mut self, unit: &Unit<'_>) {
        self.end_last(UnitEnd::Failed); // an unfinished record before it
        if let Some(last) = self.entries.last_mut() {
            last.output_after = last.output_after.saturating_add(output_of(unit));
        }
    }

    /// Counts bytes of the last unit's body, and how much was appended to the output for them.
    pub(crate) fn count_body(&mut self, bytes: u64, appended: u64) {
        let Some(last) = self.entries.last_mut() else { return };
        if last.end.is_none() {
            last.bytes = last.bytes.saturating_add(bytes);
            last.output = last.output.saturating_add(appended);
        } else {
            last.output_after = last.output_after.saturating_add(appended);
        }
    }

    /// Ends the last unit, if it goes on.
    pub(crate) fn end_last(&mut self, end: UnitEnd) {
        if let Some(Entry { end: its @ None, .. }) = self.entries.last_mut() {
            *its = Some(end);
        }
    }

    /// Ends all units whose last `lost` bytes of output were not passed to the kernel.
    pub(crate) fn abort(&mut self, mut lost: u64) {
        self.end_last(UnitEnd::Aborted);
        for entry in self.entries.iter_mut().rev() {
            lost = lost.saturating_sub(entry.output_after);
            if lost == 0 {
                break;
            }
            entry.end = Some(UnitEnd::Aborted);
            entry.bytes = entry.bytes.saturating_sub(lost);
            lost = lost.saturating_sub(entry.output);
        }
    }

    /// Passes each whole record to `write`, in `line`, and removes it.
    pub(super) fn take_ended(
        &mut self,
        format: &AccessFormat,
        stamps: &mut Stamps,
        now: ClockReading,
        line: &mut Vec<u8>,
        mut write: impl FnMut(&[u8]),
    ) {
        let (mut text_at, mut gaps_at, mut count) = (0, 0, 0);
        for entry in &self.entries {
            let Some(end) = entry.end else { break };
            let micros = now.monotonic.duration_since(entry.started).as_micros();
            let micros = u64::try_from(micros).unwrap_or(u64::MAX);
            let ended = Ended { at: now.wall, micros, bytes: entry.bytes, end };
            line.clear();
            for (gap, late) in self.gaps[gaps_at..entry.gaps_end].iter().zip(format.lates()) {
                line.extend_from_slice(&self.text[text_at..*gap]);
                push_late(line, *late, &ended, stamps);
                text_at = *gap;
            }
            line.extend_from_slice(&self.text[text_at..entry.text_end]);
            (text_at, gaps_at) = (entry.text_end, entry.gaps_end);
            if line.len() < RECORD_BYTES_MAX {
                line.push(b'\n');
            } else {
                line.truncate(RECORD_BYTES_MAX - CUT.len());
                line.extend_from_slice(CUT);
            }
            write(line);
            count += 1;
        }
        if count == self.entries.len() {
            self.text.clear();
            self.gaps.clear();
            self.entries.clear();
        } else {
            self.keep_last(text_at, gaps_at, count);
        }
    }

    /// Removes the first `count` records, up to these indices.
    #[cold]
    fn keep_last(&mut self, text_at: usize, gaps_at: usize, count: usize) {
        self.text.drain(..text_at);
        self.gaps.drain(..gaps_at);
        self.entries.drain(..count);
        self.gaps.iter_mut().for_each(|gap| *gap -= text_at);
        for entry in &mut self.entries {
            entry.text_end -= text_at;
            entry.gaps_end -= gaps_at;
        }
    }
}

/// Returns how many bytes of output a unit of work has so far.
fn output_of(unit: &Unit<'_>) -> u64 {
    (unit.response.head.len() as u64).saturating_add(unit.response.body_bytes)
}
