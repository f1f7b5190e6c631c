//! The access log: one record a unit of work, and one write(2) a record unless records are buffered.
//!
//! A record is made in two steps. What is known when the response begins is rendered at once, while the
//! request is in memory; the duration, the number of bytes and the date are added when the response has
//! been passed to the kernel, and the record is written then.

mod escape;
mod format;
mod records;
mod render;
mod stamp;
#[cfg(test)]
mod tests;
mod worker;

use std::os::fd::RawFd;

use super::target::{FileOwner, LogError, LogTargetFile, Target};
use crate::os::fd_table;

pub use format::AccessFormat;
pub(crate) use render::WorkerName;
pub use worker::UnitRecord;
pub(crate) use worker::{ClientOutput, UnitLog, UnsentRecords, WorkerAccessLog};

/// The settings of an access log.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AccessLogConfig {
    /// Where records go.
    pub(crate) target: Target,
    /// The format of records.
    pub(crate) format: AccessFormat,
    /// The share of units that are logged.
    pub(crate) sample: SampleShare,
    /// Whether a thread that can may write several records together.
    pub(crate) is_buffered: bool,
}

/// The share of units of work that are logged, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SampleShare(u32);

impl SampleShare {
    /// Every unit of work.
    pub const ALL: Self = Self(1_000_000);

    /// Returns a share of at most 1,000,000 millionths.
    pub fn from_millionths(millionths: u32) -> Option<Self> {
        (millionths <= Self::ALL.0).then_some(Self(millionths))
    }

    /// Returns the share in millionths.
    pub fn millionths(self) -> u32 {
        self.0
    }
}

/// An open access log.
#[derive(Debug)]
pub(crate) struct AccessLog {
    config: AccessLogConfig,
    target_file: LogTargetFile,
}

impl AccessLog {
    /// Opens the log. Its file is given to `owner`, who can then reopen it.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or its owner cannot be changed.
    pub(crate) fn open(config: AccessLogConfig, owner: FileOwner) -> Result<Self, LogError> {
        let target_file = LogTargetFile::open(&config.target, owner)?;
        Ok(Self { config, target_file })
    }

    /// Opens the file again, after it has been moved away. Does nothing for standard output.
    ///
    /// # Errors
    /// The file cannot be opened; records still go to the old one.
    pub(crate) fn reopen(&self) -> Result<(), LogError> {
        self.target_file.reopen()
    }

    /// Returns the descriptor's number, unless it is that of standard output.
    pub(crate) fn raw_fd(&self) -> Option<RawFd> {
        self.target_file.raw_fd()
    }

    /// Makes the log of a child its own: without that, the child could change how the parent writes.
    pub(crate) fn detach_in_child(&self) {
        if let Some(output) = self.raw_fd() {
            // Without /proc they share the open file description.
            let _ = fd_table::reopen(output);
        }
    }
}
