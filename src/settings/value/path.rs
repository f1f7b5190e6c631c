//! Paths as values: makes them absolute, and checks what must exist. It looks at the file system but
//! never changes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ValueParser;
use crate::log::Target as LogTarget;

/// A path.
pub(in crate::settings) struct PathValue(pub(in crate::settings) PathCheck);

/// What must exist when the settings are loaded.
pub(in crate::settings) enum PathCheck {
    /// Nothing.
    Nothing,
    /// The directory itself.
    Dir,
    /// The directory that contains the file.
    ParentDir,
}

impl ValueParser for PathValue {
    type Out = PathBuf;

    fn parse(&self, text: &str) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains('\0') {
            return Err("is not a path: give at least one byte, and no NUL".into());
        }
        Ok(text.into())
    }

    fn format(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }

    fn make_absolute(&self, value: &mut PathBuf, base_dir: &Path) {
        *value = base_dir.join(&*value);
    }

    fn check_path(&self, value: &PathBuf) -> Result<(), (PathBuf, String)> {
        let invalid = |reason: String| (value.clone(), reason);
        match self.0 {
            PathCheck::Nothing => Ok(()),
            PathCheck::Dir => check_dir(value).map_err(invalid),
            PathCheck::ParentDir if value.is_dir() => {
                Err(invalid("is a directory: give a file".into()))
            }
            // The parent of a bare file name is empty and means the current directory.
            PathCheck::ParentDir => {
                match value.parent().filter(|dir| !dir.as_os_str().is_empty()) {
                    None => Ok(()),
                    Some(dir) => check_dir(dir).map_err(|reason| {
                        invalid(format!("has no parent directory: {dir:?} {reason}"))
                    }),
                }
            }
        }
    }
}

fn check_dir(dir: &Path) -> Result<(), String> {
    match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err("is not a directory".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("does not exist".into()),
        Err(error) => Err(format!("cannot be used: {error}")),
    }
}

/// `-` for a standard stream, or a path.
pub(in crate::settings) struct LogTargetValue {
    /// What `-` means.
    pub(in crate::settings) dash: LogTarget,
}

const LOG_PATH: PathValue = PathValue(PathCheck::Nothing);

impl ValueParser for LogTargetValue {
    type Out = LogTarget;

    fn parse(&self, text: &str) -> Result<LogTarget, String> {
        match text {
            "-" => Ok(self.dash.clone()),
            _ => LOG_PATH.parse(text).map(LogTarget::File),
        }
    }

    fn format(&self, value: &LogTarget) -> String {
        match value {
            LogTarget::Stderr | LogTarget::Stdout => "-".into(),
            LogTarget::File(path) => LOG_PATH.format(path),
        }
    }

    fn make_absolute(&self, value: &mut LogTarget, base_dir: &Path) {
        if let LogTarget::File(path) = value {
            LOG_PATH.make_absolute(path, base_dir);
        }
    }
}
