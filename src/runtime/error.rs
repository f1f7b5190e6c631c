//! The errors of a master that does not start, or fails later.

use std::fmt;
use std::io;

use crate::arbiter::PrepareError;
use crate::listen::ListenError;
use crate::log::{self, LogError};
use crate::pidfile::PidFileError;
use crate::settings::SettingsError;
use crate::worker::DuplicateClass;

/// Why the master did not start, or failed later.
#[derive(Debug)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Two worker classes have the same name.
    DuplicateClass(DuplicateClass),
    /// A setting names something unknown, or the app or the class rejects it.
    Setting {
        /// The source of the setting.
        source_label: String,
        /// The reason.
        reason: String,
    },
    /// Two pools conflict.
    PoolConflict(SettingsError),
    /// The master cannot listen on an address.
    Listen(ListenError),
    /// The log cannot be opened.
    Log(LogError),
    /// The pid file cannot be created or is locked.
    #[allow(private_interfaces)]
    PidFile(PidFileError),
    /// The directory in which a daemon was started cannot be opened.
    StartDir(io::Error),
    /// A system call that the master requires fails.
    Os(io::Error),
    /// No worker became ready. Contains the reason of the last failure.
    NeverReady(String),
}

impl RuntimeError {
    /// Returns the exit code of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NeverReady(_) => 3,
            Self::DuplicateClass(_) => 70,
            Self::PoolConflict(error) => error.exit_code(),
            _ => 1,
        }
    }
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateClass(error) => error.fmt(f),
            Self::Setting { source_label, reason } => write!(f, "{source_label}: {reason}"),
            Self::PoolConflict(error) => error.fmt(f),
            Self::Listen(error) => f.write_str(&log::error_chain(error)),
            Self::Log(error) => f.write_str(&log::error_chain(error)),
            Self::PidFile(error) => f.write_str(&log::error_chain(error)),
            Self::StartDir(error) => write!(
                f,
                "failed to open the working directory: {error}; start the daemon in a directory that exists"
            ),
            Self::Os(error) => write!(f, "system call failed: {error}"),
            Self::NeverReady(reason) if reason.is_empty() => {
                f.write_str("giving up: no worker became ready")
            }
            Self::NeverReady(reason) => write!(f, "giving up: no worker became ready: {reason}"),
        }
    }
}

impl std::error::Error for RuntimeError {}

impl From<ListenError> for RuntimeError {
    fn from(error: ListenError) -> Self {
        Self::Listen(error)
    }
}

impl From<PrepareError> for RuntimeError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Listen(error) => Self::Listen(error),
            PrepareError::Log(error) => Self::Log(error),
            PrepareError::Scoreboard(error) => Self::Os(error),
        }
    }
}
