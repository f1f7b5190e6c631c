//! The contract between the runtime and a worker class. It knows no class.

mod accept_policy;
mod acceptor;
mod access;
mod booted_app;
mod client;
mod context;
mod entry_owners;
mod epoll_acceptor;
mod error;
mod fn_class;
mod forced_drain;
mod jobs;
mod lifecycle;
mod lingering;
mod listener_watch;
mod no_service;
pub(crate) mod program;
mod registration;
mod registry;
#[cfg(feature = "uring")]
mod ring;
mod taken_entry;
mod timer_wheel;
mod tracker;

pub use crate::log::access::UnitRecord;
pub use acceptor::{Accept, Acceptor};
pub(crate) use access::WorkerAccess;
pub(crate) use booted_app::BootedApp;
pub use client::{Buffers, Client, CompletionClient, DriveStatus, ReadMode};
pub use context::WorkerContext;
pub use epoll_acceptor::EpollAcceptor;
pub use error::{BootFailure, WorkerError};
pub use fn_class::{ClientStream, FnClass, Incoming};
pub(crate) use forced_drain::ForcedDrain;
pub use jobs::ThreadJob;
pub(crate) use lifecycle::LifecycleParts;
pub use lifecycle::{Lifecycle, StopRequest};
pub(crate) use no_service::NoService;
pub(crate) use program::{NOTIFY_SOCKET_NAME, check_notify_path};
pub use program::{Output, Program, ProgramExit};
pub use registry::{DuplicateClass, Registry, UnknownClass};
#[cfg(feature = "uring")]
pub use ring::{Completion, FailedSend, Input, Received, Ring, check_ring};
pub use timer_wheel::TimerWheel;
pub use tracker::{PooledTracker, WorkGuard, WorkTracker};

use crate::app::ConfigError;
pub use crate::os::clock::thread_cpu_time;
pub use crate::os::credentials::Credentials;
pub use crate::os::memory::release_free_memory;
use crate::settings::Settings;

/// A way to serve: what a worker does between boot and exit.
///
/// The master creates the class, which does nothing there; each worker calls [`run`](Self::run). The
/// runtime enforces the contract around it: signals, the master's death, privileges, titles, the
/// limit of a drain, and exit codes. The class calls [`ready`], [`notify`] and [`poll_stop`]: see
/// [`Lifecycle`]. If it never calls [`poll_stop`], the runtime drains the worker by force: it takes
/// the listeners away, and the worker exits once its clients have gone. To implement none of this,
/// pass a function to [`FnClass`].
///
/// [`ready`]: Lifecycle::ready
/// [`notify`]: Lifecycle::notify
/// [`poll_stop`]: Lifecycle::poll_stop
///
/// ```
/// use ostler::worker::{WorkerClass, WorkerContext, WorkerError};
///
/// /// Serves one client after another.
/// struct OneByOne;
///
/// impl WorkerClass for OneByOne {
///     fn name(&self) -> &'static str {
///         "one_by_one"
///     }
///
///     fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError> {
///         let mut acceptor = ctx.acceptor();
///         ctx.lifecycle().ready();
///         while let Some(mut client) = acceptor.next_client()? {
///             client.serve(ctx);
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait WorkerClass {
    /// Returns the name by which `worker_class` chooses it.
    fn name(&self) -> &'static str;

    /// Checks the settings in the master: at start-up before any fork, and at each reload. The default
    /// accepts all.
    ///
    /// # Errors
    /// Why this class cannot work with these settings.
    fn check(&self, settings: &Settings) -> Result<(), ConfigError> {
        let _ = settings;
        Ok(())
    }

    /// Checks in the master, where [`check`](Self::check) does, what its workers need of the user and the
    /// groups that they run as. The default accepts all.
    ///
    /// # Errors
    /// Why this class cannot work with these credentials.
    fn check_credentials(&self, credentials: &Credentials) -> Result<(), ConfigError> {
        let _ = credentials;
        Ok(())
    }

    /// Returns whether its workers run the `command` of the settings instead of an app. Such a class may
    /// have no listeners. The default is false.
    fn runs_command(&self) -> bool {
        false
    }

    /// Returns whether its workers serve an app. Otherwise they boot none, and an explicit app is a
    /// configuration error. The default is true.
    fn needs_app(&self) -> bool {
        true
    }

    /// Returns whether it serves only apps that are made for it: those that name it as their
    /// [only class](crate::app::App::worker_class). Any other app is then a configuration error. The
    /// default is false.
    fn serves_own_apps_only(&self) -> bool {
        false
    }

    /// Returns how many threads of one worker serve clients or run jobs: each has a thread entry on the
    /// scoreboard. The default is 1.
    fn threads(&self, settings: &Settings) -> usize {
        let _ = settings;
        1
    }

    /// Returns whether this class runs jobs besides serving clients: it gets them from
    /// [`WorkerContext::take_jobs`]. If it does not, an app that is a job is a configuration error. The
    /// default is false.
    fn runs_jobs(&self) -> bool {
        false
    }

    /// Returns whether its workers accept clients from listening sockets. Otherwise the master binds
    /// nothing, and an explicit `bind` is a configuration error. The default is true.
    fn listens(&self) -> bool {
        true
    }

    /// Serves until [`Lifecycle::poll_stop`] requests a stop. It runs in the worker, after the fork, the
    /// privilege drop and the app's boot.
    ///
    /// # Errors
    /// Why the class cannot continue. An error of one client is none.
    fn run(&self, ctx: &WorkerContext<'_>) -> Result<(), WorkerError>;
}
