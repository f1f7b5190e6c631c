//! The error of a worker class.

use std::error::Error;

/// Why a class cannot continue. The worker then exits with code 1 and is replaced.
pub type WorkerError = Box<dyn Error + Send + Sync>;
