//! What an app has created for one worker: a service or jobs.

use std::sync::{Mutex, PoisonError};

use crate::app::{App, BootError, Job, Service, WorkerInfo};

/// What an app has created for one worker.
pub(crate) enum BootedApp {
    /// A service for clients.
    Service(Box<dyn Service>),
    /// A job for each thread, until the class takes them.
    Jobs(Mutex<Vec<Box<dyn Job>>>),
}

impl BootedApp {
    /// Boots the app for a worker with this many threads.
    ///
    /// # Errors
    /// The app's own.
    pub(crate) fn boot(
        app: &dyn App,
        worker: &WorkerInfo,
        threads: usize,
    ) -> Result<Self, BootError> {
        if !app.is_job() {
            return app.boot(worker).map(Self::Service);
        }
        let jobs = (0..threads).map(|thread| app.job(worker, thread));
        Ok(Self::Jobs(Mutex::new(jobs.collect::<Result<_, _>>()?)))
    }

    /// Takes the jobs. Later calls return none.
    pub(super) fn take_jobs(&self) -> Vec<Box<dyn Job>> {
        match self {
            Self::Service(_) => Vec::new(),
            Self::Jobs(jobs) => {
                std::mem::take(&mut *jobs.lock().unwrap_or_else(PoisonError::into_inner))
            }
        }
    }
}
