//! How work is sent to the program: the part of a test that depends on the program.

use std::any::Any;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a [`Workload`] knows about the running program.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    pub(super) dir: PathBuf,
    pub(super) address: Option<SocketAddr>,
}

impl ServerInfo {
    /// Returns the program's working directory. It is empty at the start, and removed at the end.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the first listening address in the program's log; none if it does not listen.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// A unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Completes at once.
    Quick,
    /// Completes after this time, most of which may be spent asleep.
    Slow(Duration),
    /// Never completes: it blocks its thread forever.
    Hang,
}

/// The result of a completed unit of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The ID of the process that did it, if known.
    pub worker: Option<u32>,
}

/// A unit of work in progress.
pub trait PendingWork: Send {
    /// Waits until it is complete.
    ///
    /// # Errors
    /// Describes a failure, or that it is not complete within `timeout`.
    fn wait(self: Box<Self>, timeout: Duration) -> Result<Done, String>;
}

/// A client that stays connected: each call is one more unit of work. It reuses its connection unless
/// the server closes it.
pub type RepeatClient = Box<dyn FnMut() -> Result<Done, String> + Send>;

/// Sends work to the program. [`Http`](super::Http) is the workload for classes that serve HTTP.
pub trait Workload: Send + Sync {
    /// Returns arguments for the program that will run in the directory `dir`.
    fn arguments(&self, dir: &Path) -> Vec<String> {
        let _ = dir;
        Vec::new()
    }

    /// Returns variables for the program's environment.
    fn variables(&self, dir: &Path) -> Vec<(String, String)> {
        let _ = dir;
        Vec::new()
    }

    /// Begins a unit of work. Return when a worker has taken it, or when it waits where the class must
    /// not lose it: it must complete even if the program is stopped afterwards.
    ///
    /// # Errors
    /// Describes why it cannot begin.
    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String>;

    /// Describes the request and the expected result, for the report of an [`Obstacle`](super::Obstacle).
    fn describe(&self, task: Task) -> String {
        match task {
            Task::Quick => "a unit of work that completes at once".into(),
            Task::Slow(time) => {
                format!("a unit of work that completes after {} ms", time.as_millis())
            }
            Task::Hang => "a unit of work that never completes".into(),
        }
    }

    /// Returns how to fix failing work, for the report of an [`Obstacle`](super::Obstacle).
    fn advice(&self, task: Task) -> String {
        let _ = task;
        "check that the workload sends work that the program supports; if it does, the class fails \
         to complete it"
            .into()
    }

    /// Connects a client that sends no request until it is dropped. Returns none if the workload has
    /// no clients.
    ///
    /// # Errors
    /// Describes why it cannot connect.
    fn idle_client(&self, server: &ServerInfo) -> Result<Option<Box<dyn Any + Send>>, String> {
        let _ = server;
        Ok(None)
    }

    /// Returns a client that stays connected; none if the workload has no clients.
    fn repeat_client(&self, server: &ServerInfo) -> Option<RepeatClient> {
        let _ = server;
        None
    }
}
