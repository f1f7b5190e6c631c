//! How long the checks wait.

use std::time::Duration;

/// The maximum wait for an expected event. The machine may be slow, and shared.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
