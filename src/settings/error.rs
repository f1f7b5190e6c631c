//! Where a setting came from, and what can be wrong with one. Words only: nothing here reads, and
//! nothing here decides.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// Where a setting came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A YAML file.
    File {
        /// The file, as it was named.
        path: PathBuf,
        /// The line of the key, or of the item in a list; the first line is 1.
        line: usize,
    },
    /// A variable of the environment.
    Env {
        /// The variable.
        name: String,
    },
    /// The command line.
    Flag {
        /// The flag with its dashes; `APP` for the app and its options.
        flag: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env { name } => f.write_str(name),
            Self::Flag { flag } => f.write_str(flag),
        }
    }
}

/// Why settings cannot be used. Shown as one line that names the place, the key, the value and the
/// reason; there is no further cause below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// The file cannot be read at all.
    Unreadable {
        /// The file, as it was named.
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
    /// There is no such key.
    UnknownKey {
        /// Where it stands.
        source: Source,
        /// The key.
        key: String,
        /// The known key that was most likely meant.
        suggestion: Option<&'static str>,
    },
    /// A value that its key cannot take.
    InvalidValue {
        /// Where it stands.
        source: Source,
        /// The key.
        key: String,
        /// The value; `None` if there is none, or no single one.
        value: Option<String>,
        /// What is wrong, in words that follow the quoted value.
        reason: String,
    },
    /// Settings that are fine alone but cannot work together.
    Conflict {
        /// Where the first of them stands.
        source: Source,
        /// The first of them.
        key: &'static str,
        /// The reason.
        reason: String,
    },
    /// A path that cannot be used on this machine.
    InvalidPath {
        /// Where it stands.
        source: Source,
        /// The key.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// What is wrong, in words that follow the quoted path.
        reason: String,
    },
    /// What is wrong with the settings of one pool, when all are laid over each other.
    InPool {
        /// The pool.
        pool: String,
        /// What is wrong.
        error: Box<SettingsError>,
    },
}

impl SettingsError {
    /// The exit code that belongs to this error: 2 if the words of the command line are wrong, 1
    /// for anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InvalidValue { source: place, .. } | Self::Conflict { source: place, .. } => {
                match place {
                    Source::Flag { .. } => 2,
                    Source::Default | Source::File { .. } | Source::Env { .. } => 1,
                }
            }
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
            Self::Unreadable { path, reason: why } => {
                write!(f, "failed to read {}: {why}", path.display())
            }
            Self::Malformed { source: place, reason: why } => write!(f, "{place}: {why}"),
            Self::UnknownKey { source: place, key, suggestion: nearest } => {
                write!(f, "{place}: unknown key {}", quoted(key))?;
                match nearest {
                    Some(nearest) => write!(f, " (did you mean {nearest:?}?)"),
                    None => Ok(()),
                }
            }
            Self::InvalidValue { source: place, key, value, reason: why } => {
                write_location(f, place, key)?;
                match value {
                    Some(value) => write!(f, "{} {why}", quoted(value)),
                    None => f.write_str(why),
                }
            }
            Self::Conflict { source: place, key, reason: why } => {
                write_location(f, place, key)?;
                f.write_str(why)
            }
            Self::InvalidPath { source: place, key, path, reason: why } => {
                write_location(f, place, key)?;
                write!(f, "{path:?} {why}")
            }
            Self::InPool { pool, error } => write!(f, "{error}, in pool {pool:?}"),
        }
    }
}

impl Error for SettingsError {}

/// A variable and a flag name their key; a file and line do not.
fn write_location(f: &mut fmt::Formatter<'_>, source: &Source, key: &str) -> fmt::Result {
    match source {
        Source::Default => write!(f, "{key}: "),
        Source::File { .. } => write!(f, "{source}: {key}: "),
        Source::Env { .. } | Source::Flag { .. } => write!(f, "{source}: "),
    }
}

/// Longer values are cut: the reader needs to recognise the value, not to read it.
const QUOTED_CHARS_LIMIT: usize = 100;

/// The value in quotes, with control characters escaped.
pub(super) fn quoted(value: &str) -> String {
    match value.char_indices().nth(QUOTED_CHARS_LIMIT) {
        Some((cut, _)) => format!("{:?}…", &value[..cut]),
        None => format!("{value:?}"),
    }
}
