//! The errors of starting a worker.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::os::resources::is_shortage;

/// Why a worker could not be started.
#[derive(Debug)]
pub(super) enum SpawnError {
    /// Without a directory: in memory.
    Heartbeat {
        dir: Option<PathBuf>,
        source: io::Error,
    },
    NotifyDir {
        dir: PathBuf,
        source: io::Error,
    },
    NoFreeRow,
    WakeupFd(io::Error),
    Fork(io::Error),
}

impl SpawnError {
    /// Returns whether a later attempt may succeed although nothing is repaired.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::NoFreeRow => true,
            Self::Heartbeat { source, .. }
            | Self::NotifyDir { source, .. }
            | Self::WakeupFd(source)
            | Self::Fork(source) => is_shortage(source),
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat { dir, source } => {
                let place = dir.as_deref().unwrap_or(Path::new("memory")).display();
                write!(f, "failed to create heartbeat file in {place}: {source}")
            }
            Self::NotifyDir { dir, source } => {
                let dir = dir.display();
                write!(f, "failed to create directory for NOTIFY_SOCKET in {dir}: {source}")
            }
            Self::NoFreeRow => write!(f, "too many workers still draining"),
            Self::WakeupFd(source) => write!(f, "failed to duplicate wakeup pipe: {source}"),
            Self::Fork(source) => write!(f, "failed to fork: {source}"),
        }
    }
}
