//! The error of a worker class.

use std::error::Error;
use std::fmt;

use crate::app::BootError;

/// Why a class cannot continue. The worker then exits with code 1 and is replaced.
pub type WorkerError = Box<dyn Error + Send + Sync>;

/// An error of a class that is one of its app: the worker has failed to boot, as if
/// [`App::boot`](crate::app::App::boot) had failed. For a class that boots its app itself.
#[derive(Debug)]
pub struct BootFailure(pub BootError);

impl fmt::Display for BootFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for BootFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}
