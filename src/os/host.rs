//! This machine.

/// Returns the machine's name; `None` if it has none in UTF-8.
pub(crate) fn name() -> Option<String> {
    nix::unistd::gethostname().ok()?.into_string().ok()
}
