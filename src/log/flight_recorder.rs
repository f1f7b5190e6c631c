//! The flight recorder: the master's last log records, in a file of fixed size that outlives the
//! master, however it ends.
//!
//! Records have one length and end in a line feed, so the file is text: `sort FILE` puts the ring
//! in order. It is written and not mapped: if a mapped file is truncated, SIGBUS kills its writer.
//! Bytes passed to write(2) survive a SIGKILL just as well.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use slog::{Drain, Never, OwnedKVList, Record};

use super::escape::escape;
use super::fields::FieldMap;
use crate::os::file;

/// The length of a record in bytes, with its line feed.
const RECORD_BYTES: usize = 256;
/// How many records the file holds before the oldest is overwritten: 1 MiB at most.
const RECORDS: u64 = 4096;
/// How many places are tried if another process takes each first.
const WRITE_ATTEMPTS_MAX: usize = 8;
/// The upper bound of a record's number: no ring ever reaches it.
const NUMBER_MAX: u64 = 1 << 62;
/// How many digits the number at the beginning of a record has.
const DIGITS: usize = 20;

/// A ring of records. Only the process that has opened it writes to it.
#[derive(Debug)]
pub(super) struct FlightRecorder {
    file: File,
    writer: u32,
    next: AtomicU64,
}

/// What opening a flight recorder has led to.
#[derive(Debug)]
pub(super) enum Opened {
    /// The ring that was there, or the first one.
    Ring(FlightRecorder),
    /// A new ring. What was there has this path now, unless that was taken.
    NewRing(FlightRecorder, PathBuf),
    /// None: what is there cannot be replaced.
    NotReplaced(io::Error),
}

impl FlightRecorder {
    /// Opens the ring at a path, to continue after its last record. Anything else at the path is
    /// replaced by a new ring, and renamed if the new path is free.
    ///
    /// # Errors
    /// The file cannot be opened or created.
    pub(super) fn open(path: &Path) -> io::Result<Opened> {
        if let Some(recorder) = Self::open_ring(path)? {
            return Ok(Opened::Ring(recorder));
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".old");
        let aside = PathBuf::from(aside);
        Ok(match Self::replace(path, &aside) {
            Ok(recorder) => Opened::NewRing(recorder, aside),
            Err(error) => Opened::NotReplaced(error),
        })
    }

    fn replace(path: &Path, aside: &Path) -> io::Result<Self> {
        if file::rename_noreplace(path, aside).is_err() {
            match fs::symlink_metadata(path)?.is_dir() {
                true => fs::remove_dir(path)?,
                false => fs::remove_file(path)?,
            }
        }
        let error = || io::Error::other("another process replaces the file");
        Self::open_ring(path)?.ok_or_else(error)
    }

    /// Opens or creates a ring. Returns `None` if the path leads to something else: a symbolic link,
    /// a file with several links, or contents that no flight recorder has written.
    fn open_ring(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() || found.nlink() > 1 => return Ok(None),
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let file = options.custom_flags(file::NOFOLLOW).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Ok(None);
        }
        let next = next_number(&file, metadata.len())?;
        Ok(next.map(|next| Self { file, writer: process::id(), next: AtomicU64::new(next) }))
    }

    /// Returns the descriptor's number.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Writes a record over the oldest one. If the disk is full, that record is lost.
    fn write(&self, text: &str) {
        if process::id() != self.writer {
            return;
        }
        let mut record = [0; RECORD_BYTES];
        for _ in 0..WRITE_ATTEMPTS_MAX {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let offset = ((number - 1) % RECORDS) * RECORD_BYTES as u64;
            // During an upgrade another master writes here too: skip its records.
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

/// Returns the number after that of the last record in a file; `None` if the file is no ring.
fn next_number(file: &File, length: u64) -> io::Result<Option<u64>> {
    let mut next = 1;
    let mut record = [0; RECORD_BYTES];
    for index in 0..RECORDS {
        match file.read_exact_at(&mut record, index * RECORD_BYTES as u64) {
            Ok(()) => match parse_number(&record) {
                Some(number) if (number - 1) % RECORDS == index => next = next.max(number + 1),
                // A record that was never written, in a ring that is not yet full.
                None if record == [0; RECORD_BYTES] => (),
                Some(_) | None => return Ok(None),
            },
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok((next > 1 || length == 0).then_some(next))
}

/// Returns the number of a record; `None` if these bytes are no record.
fn parse_number(record: &[u8; RECORD_BYTES]) -> Option<u64> {
    let digits = std::str::from_utf8(&record[..DIGITS]).ok()?;
    let number: u64 = digits.parse().ok().filter(|number| (1..NUMBER_MAX).contains(number))?;
    (record[DIGITS] == b' ' && record[RECORD_BYTES - 1] == b'\n').then_some(number)
}

/// Encodes a record, cut or padded to its fixed length.
fn encode_record(number: u64, text: &str) -> [u8; RECORD_BYTES] {
    let text = format!("{number:0DIGITS$} {text}");
    let mut record = [b' '; RECORD_BYTES];
    let text_max = RECORD_BYTES - 1;
    let cut =
        (0..=text_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
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
        for (key, value) in FieldMap::of_record(record, values) {
            text.push_str(&format!(" {key}={value}"));
        }
        self.write(&escape(&text));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_numbers(path: &Path) -> Vec<u64> {
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len() % RECORD_BYTES, 0);
        let records = bytes.chunks(RECORD_BYTES).map(|record| record.try_into().unwrap());
        let mut numbers: Vec<u64> = records.filter_map(parse_number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn open(path: &Path) -> FlightRecorder {
        match FlightRecorder::open(path).unwrap() {
            Opened::Ring(recorder) | Opened::NewRing(recorder, _) => recorder,
            Opened::NotReplaced(error) => panic!("{error}"),
        }
    }

    #[test]
    fn write_to_full_ring_overwrites_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let recorder = open(&path);
        (0..RECORDS + 10).for_each(|n| recorder.write(&format!("event {n}")));
        assert_eq!(record_numbers(&path), (11..=RECORDS + 10).collect::<Vec<_>>());
        let other = open(&path);
        other.write("one");
        recorder.write("two");
        other.write("three");
        assert_eq!(record_numbers(&path).last(), Some(&(RECORDS + 13)));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), RECORDS * RECORD_BYTES as u64);
    }

    #[test]
    fn encode_record_too_long_cuts_between_characters() {
        let record = encode_record(1, &"é".repeat(300));
        assert!(std::str::from_utf8(&record).unwrap().ends_with("é\n") || record[254] == b' ');
        assert_eq!(parse_number(&record), Some(1));
    }

    #[test]
    fn open_of_file_not_understood_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("events"), dir.path().join("events.old"));
        let record = |number| encode_record(number, "forged").to_vec();
        let far = encode_record(NUMBER_MAX - 1, "forged").to_vec();
        let contents =
            [b"precious\n".to_vec(), record(7), far, vec![0; RECORD_BYTES], vec![b'1'; 99]];
        for content in contents {
            fs::write(&path, content).unwrap();
            let Opened::NewRing(recorder, aside) = FlightRecorder::open(&path).unwrap() else {
                panic!("it is not replaced");
            };
            assert_eq!(aside, old);
            recorder.write("one");
            assert_eq!(record_numbers(&path), [1]);
        }
        assert_eq!(fs::read(&old).unwrap(), b"precious\n");
    }

    #[test]
    fn open_of_link_or_directory_replaces_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("events"), dir.path().join("target"));
        fs::write(&target, "precious\n").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        open(&path).write("one");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&target, &path).unwrap();
        open(&path).write("one");
        assert_eq!(record_numbers(&path), [1]);
        assert_eq!(fs::read(&target).unwrap(), b"precious\n");
        fs::remove_file(&path).unwrap();
        fs::remove_file(dir.path().join("events.old")).unwrap();
        fs::create_dir(&path).unwrap();
        open(&path).write("one");
        assert_eq!(record_numbers(&path), [1]);
        // What has the other path is kept, so a directory that is not empty stays.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        open(&path).write("one");
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("entry")).unwrap();
        assert!(matches!(FlightRecorder::open(&path).unwrap(), Opened::NotReplaced(_)));
        assert!(FlightRecorder::open(&dir.path().join("missing/events")).is_err());
    }
}
