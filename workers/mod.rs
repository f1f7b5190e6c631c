//! The built-in worker classes. They use only the public contract, as a foreign crate would, and none
//! uses another.

mod exec;
mod mio;
mod sync;
mod threads;

pub use self::exec::ExecClass;
pub use self::mio::MioClass;
pub use self::sync::SyncClass;
pub use self::threads::ThreadsClass;

use ostler::worker::{DuplicateClass, Registry};

/// Registers the built-in classes.
///
/// # Errors
/// One of their names is taken.
pub fn install(registry: &mut Registry) -> Result<(), DuplicateClass> {
    registry.register(SyncClass)?;
    registry.register(ThreadsClass)?;
    registry.register(MioClass)?;
    registry.register(ExecClass)
}
