//! The ownership of a unix socket's path.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::ListenError;
use crate::address::Address;
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
