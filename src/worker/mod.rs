//! The contract between the runtime and a worker class. It must never know any class.

mod accept_policy;
mod acceptor;
mod client;
mod context;
mod epoll_acceptor;
mod fn_class;
mod forced_drain;
mod jobs;
mod lifecycle;
pub(crate) mod program;
mod registry;
mod timer_wheel;
mod tracker;

pub use acceptor::{Accept, Acceptor};
pub use client::{Buffers, Client, CompletionClient, DriveStatus, ReadMode};
pub(crate) use context::NoService;
pub use context::WorkerContext;
pub use epoll_acceptor::EpollAcceptor;
pub use fn_class::{ClientStream, FnClass, Incoming};
pub(crate) use forced_drain::ForcedDrain;
pub(crate) use jobs::BootedApp;
pub use jobs::ThreadJob;
pub(crate) use lifecycle::LifecycleParts;
pub use lifecycle::{Lifecycle, StopRequest};
pub use program::{Output, Program, ProgramExit};
pub use registry::{DuplicateClass, Registry, UnknownClass};
pub use timer_wheel::TimerWheel;
pub use tracker::{WorkGuard, WorkTracker};

use std::error::Error;

use crate::app::ConfigError;
use crate::settings::Settings;

/// Why a class could not go on. The worker then ends with exit code 1 and is replaced.
pub type WorkerError = Box<dyn Error + Send + Sync>;

/// A way to serve: what a worker does between boot and end.
///
/// A class is made in the master and stays inert; [`run`](Self::run) is called in each worker. The
/// runtime keeps the contract around it: signals, the death of the master, privileges, titles, the
/// limit of a drain, and exit codes are no concern of a class. What it should do is [`ready`],
/// [`notify`] and [`stop`]: see [`Lifecycle`]. One that never asks [`stop`] is ended all the same:
/// when the worker is to leave, its listeners are taken away, and once its clients are gone so is
/// it. One that knows of nothing at all is made by [`FnClass`].
///
/// [`ready`]: Lifecycle::ready
/// [`notify`]: Lifecycle::notify
/// [`stop`]: Lifecycle::stop
///
/// ```
/// use ostler::worker::{WorkerClass, WorkerContext, WorkerError};
///
/// /// Serves one client after another.
/// struct Patient;
///
/// impl WorkerClass for Patient {
///     fn name(&self) -> &'static str {
///         "patient"
///     }
///
///     fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
///         let mut acceptor = ctx.acceptor();
///         ctx.life().ready();
///         while let Some(mut client) = acceptor.next_client()? {
///             client.serve(ctx);
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait WorkerClass {
    /// The name by which settings choose it.
    fn name(&self) -> &'static str;

    /// Judges the settings in the master, before any fork, while a person is watching, and at each
    /// reload. Unless overridden, there are no objections.
    ///
    /// # Errors
    /// The reason for which this class cannot work under these settings.
    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        let _ = settings;
        Ok(())
    }

    /// Whether its workers run the `command` of the settings, in place of an app. Such a class may do
    /// without listeners. They do not unless overridden.
    fn runs_command(&self) -> bool {
        false
    }

    /// How many threads of one worker serve clients, or run jobs: each has a seat on the scoreboard.
    /// One, unless overridden.
    fn threads(&self, settings: &Settings) -> usize {
        let _ = settings;
        1
    }

    /// Whether this class runs jobs besides serving clients: it asks for them by
    /// [`WorkerContext::take_jobs`]. An app that is a job is refused under a class that does not. It
    /// does not unless overridden.
    fn runs_jobs(&self) -> bool {
        false
    }

    /// Whether its workers take clients from listening sockets. Otherwise the master binds nothing,
    /// and refuses a `bind` that somebody has chosen. They do unless overridden.
    fn listens(&self) -> bool {
        true
    }

    /// Serves until [`Lifecycle::stop`] says otherwise. Runs in the worker, after the fork, the
    /// privilege drop and the app's boot.
    ///
    /// # Errors
    /// What keeps it from going on. A fault of one client is not one.
    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError>;
}
