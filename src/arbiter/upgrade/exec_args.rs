//! How this program is executed again.

use std::env;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{self, PathBuf};

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
    /// Returns the path of the program that is executed, whether or not it is there; `None` if it is not
    /// found in PATH. Call it in the directory in which this program was started.
    pub(in crate::arbiter) fn program(&self) -> Option<PathBuf> {
        let name = OsStr::from_bytes(self.args.first()?.to_bytes());
        let path = match name.as_bytes().contains(&b'/') {
            true => PathBuf::from(name),
            false => process::find_program(name, env::var_os("PATH").as_deref(), None).ok()?,
        };
        path::absolute(self.link.as_ref().map_or(path.clone(), |link| link.join(&path))).ok()
    }

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
