//! How the kit brings work to a class: the part of a test that only its author can know.

use std::any::Any;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A running program, as far as a [`Workload`] must know it.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    pub(super) folder: PathBuf,
    pub(super) address: Option<SocketAddr>,
}

impl ServerInfo {
    /// A folder of this program's own, which was empty when it started, and which goes with it. The
    /// program runs in it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it listens: the first address in its log. None if it listens nowhere.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

/// What a unit of work is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Done at once.
    Quick,
    /// Done after this time, most of which may be spent asleep.
    Slow(Duration),
    /// Never done: it holds the thread that works on it for good.
    Hang,
}

/// What came of a unit of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The process that did it, if it tells.
    pub worker: Option<u32>,
}

/// A unit of work that has been begun.
pub trait PendingWork: Send {
    /// Waits until it is done.
    ///
    /// # Errors
    /// It is not done within `patience`, or not as it should be, in words for a person.
    fn wait(self: Box<Self>, timeout: Duration) -> Result<Done, String>;
}

/// A client who stays: each call is one more unit of work, over the same connection as long as there
/// is no reason to make another.
pub type RepeatClient = Box<dyn FnMut() -> Result<Done, String> + Send>;

/// How the kit brings work to a class. [`Http`](super::Http) is one, for classes that serve HTTP.
pub trait Workload: Send + Sync {
    /// Arguments for the program that will run in `folder`.
    fn arguments(&self, folder: &Path) -> Vec<String> {
        let _ = folder;
        Vec::new()
    }

    /// Variables for its environment.
    fn variables(&self, folder: &Path) -> Vec<(String, String)> {
        let _ = folder;
        Vec::new()
    }

    /// Begins a unit of work. It should be in the hands of a worker when this returns, or where the
    /// class must not lose it: what was begun has to be done although the program is told to stop.
    ///
    /// # Errors
    /// Why it cannot be begun, in words for a person.
    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String>;

    /// How `begin` asks for this work, and what should come of it: for the report, if it does not.
    fn describe(&self, task: Task) -> String {
        match task {
            Task::Quick => "a unit of work that is done at once".into(),
            Task::Slow(time) => {
                format!("a unit of work that is done after {} ms", time.as_millis())
            }
            Task::Hang => "a unit of work that is never done".into(),
        }
    }

    /// What a person can do if the program does not do this work as it should: for the report.
    fn advice(&self, task: Task) -> String {
        let _ = task;
        "see that the feed brings work that the program knows; if it does, the class does not do it"
            .into()
    }

    /// Somebody who is connected and asks for nothing, until dropped. None: there is no such thing.
    ///
    /// # Errors
    /// Why it cannot connect, in words for a person.
    fn idle_client(&self, server: &ServerInfo) -> Result<Option<Box<dyn Any + Send>>, String> {
        let _ = server;
        Ok(None)
    }

    /// A client who comes again and again. None: there is no such thing.
    fn repeat_client(&self, server: &ServerInfo) -> Option<RepeatClient> {
        let _ = server;
        None
    }
}
