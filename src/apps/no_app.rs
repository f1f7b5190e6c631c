//! The app of a class that needs none, such as `exec`.

use crate::app::{App, BootError, Service, WorkerInfo};
use crate::worker::NoService;

/// An empty app, for a class that needs none.
pub(crate) struct NoApp;

impl App for NoApp {
    fn name(&self) -> &str {
        "none"
    }

    fn boot(&self, _: &WorkerInfo) -> Result<Box<dyn Service>, BootError> {
        Ok(Box::new(NoService))
    }
}
