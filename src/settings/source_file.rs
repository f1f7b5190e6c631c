//! Reads the bytes of a settings file. It must never know their meaning.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Maximum size of a file.
const FILE_BYTES_LIMIT: u64 = 1 << 20;

/// Reads a regular file. Rejects other files before it opens them, because a pipe would block.
pub(super) fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
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
