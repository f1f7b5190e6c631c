//! The sources of settings, and the errors in them. It only formats messages: it reads and decides
//! nothing.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// The source of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// No source sets it.
    Default,
    /// A variable that a hosting platform sets for any server, in place of the default.
    PlatformEnv {
        /// The name of the variable.
        name: &'static str,
    },
    /// A YAML file.
    File {
        /// The path as given.
        path: PathBuf,
        /// The line of the key, or of the item in a list; the first line is 1.
        line: usize,
    },
    /// An environment variable.
    Env {
        /// The name of the variable.
        name: String,
    },
    /// The command line.
    Flag {
        /// The flag with its dashes; `APP` for the app and its options.
        flag: String,
    },
}

impl Source {
    /// Returns whether nobody has chosen the value for this program.
    pub(crate) fn is_default(&self) -> bool {
        matches!(self, Self::Default | Self::PlatformEnv { .. })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::PlatformEnv { name } => f.write_str(name),
            Self::Env { name } => f.write_str(name),
            Self::Flag { flag } => f.write_str(flag),
        }
    }
}

/// Why settings are rejected. The message is one line with the source, the key, the value and the
/// reason. The field `source` is a [`Source`]: [`Error::source`](std::error::Error::source) is always
/// `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// The file cannot be read.
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The file is not YAML, or not a map of settings.
    Malformed {
        /// The file and line.
        source: Source,
        /// The reason.
        reason: String,
    },
    /// The key does not exist.
    UnknownKey {
        /// The source of the key.
        source: Source,
        /// The key.
        key: String,
        /// The most similar known key.
        suggestion: Option<&'static str>,
    },
    /// The value is invalid for its key.
    InvalidValue {
        /// The source of the value.
        source: Source,
        /// The key.
        key: String,
        /// The value; `None` if there is no single one.
        value: Option<String>,
        /// The reason, in words that follow the quoted value.
        reason: String,
    },
    /// Two settings conflict.
    Conflict {
        /// The source of the first.
        source: Source,
        /// The key of the first.
        key: &'static str,
        /// The reason.
        reason: String,
    },
    /// The path cannot be used on this machine.
    InvalidPath {
        /// The source of the value.
        source: Source,
        /// The key.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// The reason, in words that follow the quoted path.
        reason: String,
    },
    /// The merged settings of one pool are invalid.
    InPool {
        /// The name of the pool.
        pool: String,
        /// The error.
        error: Box<SettingsError>,
    },
}

impl SettingsError {
    /// Returns the exit code for this error: 2 for an error in the command line, otherwise 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InvalidValue { source, .. } | Self::Conflict { source, .. } => match source {
                Source::Flag { .. } => 2,
                Source::Default
                | Source::PlatformEnv { .. }
                | Source::File { .. }
                | Source::Env { .. } => 1,
            },
            Self::InPool { error, .. } => error.exit_code(),
            Self::Unreadable { .. }
            | Self::Malformed { .. }
            | Self::UnknownKey { .. }
            | Self::InvalidPath { .. } => 1,
        }
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, reason } => {
                write!(f, "failed to read {}: {reason}", path.display())
            }
            Self::Malformed { source, reason } => write!(f, "{source}: {reason}"),
            Self::UnknownKey { source, key, suggestion } => {
                write!(f, "{source}: unknown key {}", quoted(key))?;
                match suggestion {
                    Some(known) => write!(f, " (did you mean {known:?}?)"),
                    None => Ok(()),
                }
            }
            Self::InvalidValue { source, key, value, reason } => {
                write_location(f, source, key)?;
                match value {
                    Some(value) => write!(f, "{} {reason}", quoted(value)),
                    None => f.write_str(reason),
                }
            }
            Self::Conflict { source, key, reason } => {
                write_location(f, source, key)?;
                f.write_str(reason)
            }
            Self::InvalidPath { source, key, path, reason } => {
                write_location(f, source, key)?;
                write!(f, "{path:?} {reason}")
            }
            Self::InPool { pool, error } => write!(f, "{error}, in pool {pool:?}"),
        }
    }
}

impl Error for SettingsError {}

/// Writes the source and, unless a variable or flag already names it, the key.
fn write_location(f: &mut fmt::Formatter<'_>, source: &Source, key: &str) -> fmt::Result {
    match source {
        Source::Default => write!(f, "{key}: "),
        Source::File { .. } => write!(f, "{source}: {key}: "),
        Source::PlatformEnv { .. } | Source::Env { .. } | Source::Flag { .. } => {
            write!(f, "{source}: ")
        }
    }
}

/// Longer values are truncated: the message must identify the value, not contain all of it.
const QUOTED_CHARS_LIMIT: usize = 100;

/// Quotes a value and escapes its control characters.
pub(super) fn quoted(value: &str) -> String {
    match value.char_indices().nth(QUOTED_CHARS_LIMIT) {
        Some((cut, _)) => format!("{:?}…", &value[..cut]),
        None => format!("{value:?}"),
    }
}
