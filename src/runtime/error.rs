//! Why a master did not start, or ended.

use std::fmt;
use std::io;

use crate::arbiter::PrepareError;
use crate::listen::ListenError;
use crate::log::{self, LogError};
use crate::pidfile::PidFileError;
use crate::settings::SettingsError;
use crate::worker::DuplicateClass;

/// Why the master did not start, or ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Two worker classes have the same name.
    DuplicateClass(DuplicateClass),
    /// A setting names what does not exist, or what the app or the class refuses.
    Setting {
        /// Where it was set.
        source_label: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Pools that cannot be in one master.
    PoolConflict(SettingsError),
    /// An address cannot be listened on.
    Listen(ListenError),
    /// The log cannot be opened.
    Log(LogError),
    /// The pid file cannot be had.
    #[allow(private_interfaces)]
    PidFile(PidFileError),
    /// The kernel refuses the little that a master needs.
    Os(io::Error),
    /// No worker was ever ready; with what the last one had to say.
    NeverReady(String),
}

impl RuntimeError {
    /// The exit code by which the program tells of it.
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
            Self::Setting { source_label: place, reason } => write!(f, "{place}: {reason}"),
            Self::PoolConflict(error) => error.fmt(f),
            Self::Listen(error) => f.write_str(&log::error_chain(error)),
            Self::Log(error) => f.write_str(&log::error_chain(error)),
            Self::PidFile(error) => f.write_str(&log::error_chain(error)),
            Self::Os(error) => write!(f, "system call failed: {error}"),
            Self::NeverReady(reason) if reason.is_empty() => {
                f.write_str("giving up: no worker became ready")
            }
            Self::NeverReady(reason) => write!(f, "giving up: no worker became ready: {reason}"),
        }
    }
}

impl std::error::Error for RuntimeError {}

impl From<PrepareError> for RuntimeError {
    fn from(error: PrepareError) -> Self {
        match error {
            PrepareError::Listen(error) => Self::Listen(error),
            PrepareError::Log(error) => Self::Log(error),
            PrepareError::Scoreboard(error) => Self::Os(error),
        }
    }
}
