//! The built-in apps. Each is written as a user of this crate would write it.

mod demo;
mod echo;
mod nothing;
mod rpc;
mod tick;

pub use demo::Demo;
pub use echo::Echo;
pub(crate) use nothing::Nothing;
pub use rpc::Rpc;
pub use tick::Tick;
