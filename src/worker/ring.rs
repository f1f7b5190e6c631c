//! The ring of io_uring(7), for classes that have the kernel move the bytes of a
//! [`CompletionClient`](super::CompletionClient).

use crate::app::ConfigError;
use crate::os::uring;
pub use crate::os::uring::{Completion, FailedSend, Input, Received, Ring};
use crate::settings::Settings;

/// Checks in the master that workers can open a [`Ring`], for [`WorkerClass::check`]. It opens a small
/// one and closes it again.
///
/// # Errors
/// What is missing.
///
/// [`WorkerClass::check`]: super::WorkerClass::check
pub fn check_ring(settings: &Settings) -> Result<(), ConfigError> {
    uring::probe(settings.user.is_some()).map_err(|missing| {
        ConfigError::new(format!(
            "io_uring cannot be used here: {missing}; choose the class \"mio\""
        ))
    })
}
