//! The flight recorder: the last things that the master said, in a file of fixed size that outlives
//! the master, however it ends.
//!
//! Records have one length and end in a line feed, so the file is text: `sort FILE` puts the ring in
//! order. It is written and not mapped: whoever cuts a mapped file short kills its writer by SIGBUS,
//! and what a write(2) has handed to the kernel survives a SIGKILL just as well.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use slog::{Drain, Never, OwnedKVList, Record};

use super::Object;
use crate::os::file;

/// The length of a record in bytes, with its line feed.
const RECORD_BYTES: usize = 256;
/// How many records there are before the oldest is written over: the file has 1 MiB at most.
const RECORDS: u64 = 4096;
/// How often a place is looked for that nobody else has taken.
const WRITE_ATTEMPTS_MAX: usize = 8;
/// No ring has ever come so far.
const NUMBER_MAX: u64 = 1 << 62;
/// The digits of the number with which a record begins.
const DIGITS: usize = 20;

/// A ring of records. Only the process that has opened it writes.
#[derive(Debug)]
pub(super) struct FlightRecorder {
    file: File,
    writer: u32,
    next: AtomicU64,
}

impl FlightRecorder {
    /// Opens the ring at a path, and goes on after the last record of whoever wrote there before.
    ///
    /// # Errors
    /// It cannot be opened, is a symbolic link, or holds something else.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let file = options.custom_flags(file::NOFOLLOW).open(path)?;
        let other = || io::Error::other("not a flight recorder file; choose another path");
        if !file.metadata()?.is_file() {
            return Err(other());
        }
        let mut next = 1;
        let mut record = [0; RECORD_BYTES];
        for index in 0..RECORDS {
            match file.read_exact_at(&mut record, index * RECORD_BYTES as u64) {
                Ok(()) => match parse_number(&record) {
                    Some(number) => next = next.max(number + 1),
                    // A record that was never written, in a ring that another has begun.
                    None if record == [0; RECORD_BYTES] => (),
                    None => return Err(other()),
                },
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        if next == 1 && file.metadata()?.len() > 0 {
            return Err(other());
        }
        Ok(Self { file, writer: process::id(), next: AtomicU64::new(next) })
    }

    /// The descriptor's number.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Writes a record over the oldest one. A full disk costs the record and nothing else.
    fn write(&self, text: &str) {
        if process::id() != self.writer {
            return;
        }
        let mut record = [0; RECORD_BYTES];
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let offset = ((number - 1) % RECORDS) * RECORD_BYTES as u64;
            // During an upgrade another master writes here, too: its records are passed over.
            let present = self.file.read_exact_at(&mut record, offset).ok();
            let present = present.and_then(|()| parse_number(&record));
            if let Some(present) = present.filter(|present| *present >= number) {
                self.next.fetch_max(present + 1, Ordering::Relaxed);
                continue;
            }
            let _ = self.file.write_all_at(&encode_record(number, text), offset);
            return;
        }
    }
}

/// The number of a record; `None` if it is none.
fn parse_number(record: &[u8; RECORD_BYTES]) -> Option<u64> {
    let digits = std::str::from_utf8(&record[..DIGITS]).ok()?;
    let number: u64 = digits.parse().ok().filter(|number| (1..NUMBER_MAX).contains(number))?;
    (record[DIGITS] == b' ' && record[RECORD_BYTES - 1] == b'\n').then_some(number)
}

/// A record, cut or filled up to its length.
fn encode_record(number: u64, text: &str) -> [u8; RECORD_BYTES] {
    let text = format!("{number:0DIGITS$} {text}");
    let mut record = [b' '; RECORD_BYTES];
    let room = RECORD_BYTES - 1;
    let cut = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    record[..cut].copy_from_slice(&text.as_bytes()[..cut]);
    record[RECORD_BYTES - 1] = b'\n';
    record
}

impl Drain for FlightRecorder {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        let mut text = format!("{now} {} {}", record.level().as_short_str(), record.msg());
        for (key, value) in Object::fields_of(record, values) {
            text.push_str(&format!(" {key}={value}"));
        }
        self.write(&text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(path: &Path) -> Vec<u64> {
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() % RECORD_BYTES, 0);
        let records = bytes.chunks(RECORD_BYTES).map(|record| record.try_into().unwrap());
        let mut numbers: Vec<u64> = records.filter_map(parse_number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn full_ring_overwrites_oldest_across_writers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        let recorder = FlightRecorder::open(&path).unwrap();
        (0..RECORDS + 10).for_each(|n| recorder.write(&format!("event {n}")));
        assert_eq!(numbers(&path), (11..=RECORDS + 10).collect::<Vec<_>>());
        let other = FlightRecorder::open(&path).unwrap();
        other.write("one");
        recorder.write("two");
        other.write("three");
        assert_eq!(numbers(&path).last(), Some(&(RECORDS + 13)));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), RECORDS * RECORD_BYTES as u64);
    }

    #[test]
    fn long_record_is_cut_between_characters() {
        let record = encode_record(1, &"é".repeat(300));
        assert!(std::str::from_utf8(&record).unwrap().ends_with("é\n") || record[254] == b' ');
        assert_eq!(parse_number(&record), Some(1));
    }

    #[test]
    fn open_of_a_foreign_file_fails() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        std::fs::write(&path, "precious\n").unwrap();
        assert!(FlightRecorder::open(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious\n");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert!(FlightRecorder::open(&link).is_err());
        assert!(FlightRecorder::open(folder.path()).is_err());
    }
}
