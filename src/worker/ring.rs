//! The ring of io_uring(7), for classes that have the kernel move the bytes of a
//! [`CompletionClient`](super::CompletionClient).

use crate::app::ConfigError;
use crate::os::credentials::Credentials;
use crate::os::uring;
pub use crate::os::uring::{Completion, FailedSend, Input, Received, Ring};

/// Checks in the master that workers with these credentials can open a [`Ring`], for
/// [`WorkerClass::check_credentials`]. It opens a small one and closes it again.
///
/// # Errors
/// What is missing.
///
/// [`WorkerClass::check_credentials`]: super::WorkerClass::check_credentials
pub fn check_ring(credentials: &Credentials) -> Result<(), ConfigError> {
    uring::probe(credentials).map_err(|missing| {
        ConfigError::new(format!(
            "io_uring cannot be used here: {missing}; choose the class \"mio\""
        ))
    })
}
