//! Where records go: stderr, or a file that can be reopened.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::os::credentials;
use crate::os::log_output::{self, LogOutput};

/// The longest record, in bytes: what a pipe writes atomically (pipe(7), `PIPE_BUF`).
pub(super) const RECORD_BYTES_MAX: usize = 4096;

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The standard error stream.
    Stderr,
    /// The standard output stream.
    Stdout,
    /// The end of this file, which is created if it is missing.
    File(PathBuf),
}

/// The owner of a log file, where it differs from the process's own user and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOwner {
    /// The user.
    pub user: Option<u32>,
    /// The group.
    pub group: Option<u32>,
}

/// Why a log cannot be opened.
#[derive(Debug)]
pub struct LogError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl LogError {
    pub(super) fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self { what, path: path.to_path_buf(), source }
    }
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to open {} {}", self.what, self.path.display())
    }
}

impl std::error::Error for LogError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The target of all loggers of a log. Its file can be replaced while they write.
#[derive(Debug)]
pub(super) struct LogTargetFile {
    target: Target,
    owner: FileOwner,
    file: Mutex<LogOutput>,
    /// How many records this process has dropped.
    dropped: AtomicU64,
}

impl LogTargetFile {
    pub(super) fn open(target: &Target, owner: FileOwner) -> Result<Self, LogError> {
        let target = match target {
            // A worker may have another working directory when it reopens the file.
            Target::File(path) => {
                Target::File(std::path::absolute(path).unwrap_or_else(|_| path.clone()))
            }
            Target::Stderr | Target::Stdout => target.clone(),
        };
        let output = match &target {
            Target::File(path) => open_file(path, owner)?,
            Target::Stderr => LogOutput::stderr(),
            Target::Stdout => LogOutput::stdout(),
        };
        Ok(Self { target, owner, file: Mutex::new(output), dropped: AtomicU64::new(0) })
    }

    pub(super) fn reopen(&self) -> Result<(), LogError> {
        let Target::File(path) = &self.target else { return Ok(()) };
        let output = open_file(path, self.owner)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = output;
        Ok(())
    }

    /// Writes a record, or several at once, without waiting. Drops and counts them if that is not
    /// possible. Returns whether they were written.
    pub(super) fn write_record(&self, record: &[u8]) -> bool {
        let written = self.file.lock().unwrap_or_else(PoisonError::into_inner).write(record);
        let is_whole = matches!(written, Ok(length) if length == record.len());
        if !is_whole {
            self.dropped.fetch_add(count_records(record) as u64, Ordering::Relaxed);
        }
        is_whole
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn raw_fd(&self) -> Option<RawFd> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).raw_fd()
    }
}

/// Counts the records of a text, each of which is a line.
pub(super) fn count_records(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count()
}

fn open_file(path: &Path, owner: FileOwner) -> Result<LogOutput, LogError> {
    let file = if owner != FileOwner::default() && credentials::is_root() {
        log_output::open_for(path, owner.user, owner.group)
    } else {
        log_output::open_own(path)
    };
    file.map(LogOutput::file).map_err(|source| LogError::new("log file", path, source))
}

/// Writes the time at which a record is written.
pub(super) fn timestamp(out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{}", humantime::format_rfc3339_millis(SystemTime::now()))
}

/// Writes records to the target: each `write` is one record.
pub(super) struct RecordWriter(Arc<LogTargetFile>);

impl RecordWriter {
    pub(super) fn new(target_file: &Arc<LogTargetFile>) -> Self {
        Self(Arc::clone(target_file))
    }
}

impl Write for RecordWriter {
    /// Writes the record, or drops it if the write would block or fails. Cuts it to the length that
    /// a pipe writes atomically.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        self.0.write_record(&bounded(record));
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Cuts a record that is too long, between two characters. It still ends in a line feed.
fn bounded(record: &[u8]) -> Cow<'_, [u8]> {
    const MARK: &[u8] = b"...\n";
    if record.len() <= RECORD_BYTES_MAX {
        return Cow::Borrowed(record);
    }
    let is_start = |at: &usize| record[*at] & 0xc0 != 0x80;
    let cut = (0..=RECORD_BYTES_MAX - MARK.len()).rev().find(is_start).unwrap_or(0);
    Cow::Owned([&record[..cut], MARK].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_record_ends_in_line_feed() {
        let short = [&[b'x'; RECORD_BYTES_MAX - 1][..], b"\n"].concat();
        assert_eq!(&*bounded(&short), &short);
        for start in 0..4 {
            let long = format!("{}{}\n", "x".repeat(start), "€".repeat(RECORD_BYTES_MAX));
            let cut = bounded(long.as_bytes()).into_owned();
            assert!((RECORD_BYTES_MAX - 2..=RECORD_BYTES_MAX).contains(&cut.len()));
            assert!(String::from_utf8(cut).unwrap().ends_with("€...\n"));
        }
    }
}
