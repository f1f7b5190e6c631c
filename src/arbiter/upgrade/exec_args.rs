//! How this program is executed again.

use std::env;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::os::process;

/// How this program was started, so that it can be executed again.
#[derive(Debug)]
pub(crate) struct ExecArgs {
    /// The command line; the first argument names the program.
    pub(crate) args: Vec<CString>,
    /// The directory in which it was started.
    pub(crate) dir: OwnedFd,
    /// The link by which it was found; it may lead to another release by now.
    pub(crate) link: Option<PathBuf>,
}

impl ExecArgs {
    /// Changes to the directory in which to execute the program: where the link leads, or else where it was
    /// started.
    ///
    /// # Errors
    /// From fchdir(2).
    pub(super) fn enter_dir(&self) -> io::Result<()> {
        match self.link.as_ref().map(env::set_current_dir) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => process::change_dir(self.dir.as_fd()),
        }
    }
}
