//! What is served by a class that runs a program: nothing of ours.

use crate::app::{App, BootError, Service, WorkerInfo};
use crate::worker::NoService;

/// The app of a class that has none.
pub(crate) struct NoApp;

impl App for NoApp {
    fn name(&self) -> &str {
        "none"
    }

    fn boot(&self, _: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(NoService))
    }
}
