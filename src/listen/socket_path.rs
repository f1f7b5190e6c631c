//! The ownership of a unix socket's path.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::ListenError;
use crate::address::Address;
use crate::os::claim::{self, Claim};
use crate::os::file::FileId;
use crate::os::socket;

/// A path that this program owns while it leads to this file.
#[derive(Debug)]
pub(super) struct SocketPath {
    path: PathBuf,
    file: FileId,
}

impl SocketPath {
    /// Claims the file to which the path leads now.
    ///
    /// # Errors
    /// From lstat(2).
    pub(super) fn claim_current(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), file: file_id(path)? })
    }

    /// Claims a file to which the path led earlier, such as under an earlier master.
    pub(super) fn from_recorded(path: PathBuf, file: FileId) -> Self {
        Self { path, file }
    }

    pub(super) fn file_id(&self) -> FileId {
        self.file
    }

    /// Whether the path was removed, or leads to another file.
    pub(super) fn was_replaced(&self) -> bool {
        !file_id(&self.path).is_ok_and(|current| current == self.file)
    }

    /// Removes the path, if this program still owns it.
    pub(super) fn remove(&self) {
        if !self.was_replaced() {
            // ENOENT: another process has removed it already.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The suffix of the file that is locked while a path is bound.
const LOCK_SUFFIX: &str = ".ostler-lock";

/// Keeps other masters from binding a path: without it, one could take the path for stale that another
/// has just bound, and at which it does not listen yet. The path itself is bound, not a temporary name
/// that is renamed, since the kernel shows the name that was bound.
pub(super) struct BindingLock {
    path: PathBuf,
    _file: File,
}

impl BindingLock {
    /// # Errors
    /// Another process binds the path, or the lock cannot be taken.
    pub(super) fn take(path: &Path, address: &Address) -> Result<Self, ListenError> {
        let refused = |source| ListenError::Bind { address: address.clone(), source };
        let mut lock = path.as_os_str().to_owned();
        lock.push(LOCK_SUFFIX);
        let lock = PathBuf::from(lock);
        loop {
            let reason = match claim::claim(&lock).map_err(refused)? {
                Claim::Taken(file) => return Ok(Self { path: lock, _file: file }),
                Claim::Gone => continue,
                Claim::Held(..) => return Err(ListenError::InUse(path.to_path_buf())),
                Claim::Foreign => "belongs to another user",
                Claim::NotAFile => "is not a regular file",
            };
            return Err(refused(io::Error::other(format!("{} {reason}", lock.display()))));
        }
    }
}

impl Drop for BindingLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // the lock is still held
    }
}

/// Removes a unix socket's path if no process listens there.
pub(super) fn remove_stale_socket(path: &Path, address: &Address) -> Result<(), ListenError> {
    let refused = |source| ListenError::Bind { address: address.clone(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_path_buf()));
    }
    if socket::is_accepting(&socket::SocketAddress::Path(path.to_path_buf(), 0)).map_err(refused)? {
        return Err(ListenError::InUse(path.to_path_buf()));
    }
    let stale = SocketPath::from_recorded(path.to_path_buf(), id_of(&metadata));
    if !stale.was_replaced() {
        fs::remove_file(path).map_err(refused)?;
    }
    Ok(())
}

fn file_id(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|metadata| id_of(&metadata))
}

fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}
