//! Tasks beside the requests.

use std::future::Future;

use super::tracking::{Label, Tracked, UnitGuard};
use super::worker::Worker;

impl Worker {
    /// Spawns a task on the runtime. A draining worker waits for it, for `graceful_timeout` at most: let
    /// it end when [`shutdown`](Self::shutdown) is requested. A poll that blocks its thread for longer
    /// than `timeout` is a hang, which the log names by `label`.
    pub fn spawn<F>(&self, label: &str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = self.add_task();
        let unit = UnitGuard::new(Label::new(&[label]), *self);
        tokio::spawn(async move {
            let _guard = guard; // dropped also if the task panics
            Tracked::new(task, unit).await;
        });
    }
}
