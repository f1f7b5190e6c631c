//! The built-in worker classes. They use only the public contract, as a foreign crate would, and none
//! uses another.

mod exec;
mod mio;
mod sync;
mod threads;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "uring")]
mod uring;

pub use self::exec::ExecClass;
pub use self::mio::MioClass;
pub use self::sync::SyncClass;
pub use self::threads::ThreadsClass;
#[cfg(feature = "tokio")]
pub use self::tokio::TokioClass;
#[cfg(feature = "uring")]
pub use self::uring::UringClass;

use ostler::worker::{DuplicateClass, Registry};

/// Registers the built-in classes.
///
/// # Errors
/// One of their names is taken.
pub fn install(registry: &mut Registry) -> Result<(), DuplicateClass> {
    registry.register(SyncClass)?;
    registry.register(ThreadsClass)?;
    registry.register(MioClass)?;
    #[cfg(feature = "tokio")]
    registry.register(TokioClass)?;
    #[cfg(feature = "uring")]
    registry.register(UringClass)?;
    registry.register(ExecClass)
}
