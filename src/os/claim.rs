//! A file by which a process keeps others from doing the same: created or opened, and locked.
//!
//! Other users cannot open it, so they cannot lock it either.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::credentials;
use super::file::{self, Lock};

/// What has become of a claim.
#[derive(Debug)]
pub(crate) enum Claim {
    /// The path leads to this file, and this process has its lock.
    Taken(File),
    /// The path no longer leads to the file that was locked: try again.
    Gone,
    /// Another process holds the lock, with its pid if that is visible.
    Held(File, Option<i32>),
    /// The file belongs to another user.
    Foreign,
    /// The path leads to something that is not a regular file with one name.
    NotAFile,
}

/// Claims a path. The file of another user is replaced if this process is root. A link is not followed.
///
/// # Errors
/// From open(2), unlink(2) and fcntl(2).
pub(crate) fn claim(path: &Path) -> io::Result<Claim> {
    // The open would fail if the file does not permit it, or, in a sticky directory, if it is another
    // user's.
    if let Ok(found) = fs::symlink_metadata(path)
        && found.is_file()
        && found.uid() != credentials::effective_uid()
    {
        if credentials::effective_uid() != 0 {
            return Ok(Claim::Foreign);
        }
        fs::remove_file(path)?; // root's own lock is on a file of root
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(file::NOFOLLOW).open(path)?;
    let ours = file.metadata()?;
    if !ours.is_file() || ours.nlink() > 1 {
        return Ok(Claim::NotAFile);
    }
    if ours.uid() != credentials::effective_uid() {
        return Ok(Claim::Foreign); // created meanwhile
    }
    if let Lock::HeldBy(owner) = file::lock(&file)? {
        return Ok(Claim::Held(file, owner));
    }
    let is_current = fs::symlink_metadata(path)
        .is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino()));
    Ok(if is_current { Claim::Taken(file) } else { Claim::Gone })
}
