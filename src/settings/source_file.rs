//! Reads the text of a settings file. It must never know its meaning.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::error::{SettingsError, Source};

/// Maximum size of a file.
const FILE_BYTES_LIMIT: u64 = 1 << 20;

/// Reads the text of a regular file.
pub(super) fn read_text(path: &Path) -> Result<String, SettingsError> {
    let unreadable = |error: io::Error| SettingsError::Unreadable {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    String::from_utf8(read_bytes(path).map_err(unreadable)?).map_err(|error| {
        let (bytes, valid) = (error.as_bytes(), error.utf8_error().valid_up_to());
        let line = 1 + bytes[..valid].iter().filter(|byte| **byte == b'\n').count();
        let is_utf16 = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
        let reason = if is_utf16 { "is UTF-16: save it as UTF-8" } else { "is not UTF-8" };
        let source = Source::File { path: path.to_owned(), line };
        SettingsError::Malformed { source, reason: reason.into() }
    })
}

/// Reads a regular file. Rejects other files before it opens them, because a pipe would block.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let reject = |reason: &str| Err(io::Error::other(reason.to_owned()));
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return reject("it is a directory");
    }
    if !metadata.is_file() {
        return reject("it is not a regular file");
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_LIMIT {
        return reject("it is larger than 1 MiB");
    }
    Ok(bytes)
}
