//! The built-in apps. Each is written like an app of a user of this crate.

mod demo;
mod echo;
mod no_app;
#[cfg(feature = "rpc")]
mod rpc;
#[cfg(feature = "jobs")]
mod tick;

pub use demo::Demo;
pub use echo::Echo;
pub(crate) use no_app::NoApp;
#[cfg(feature = "rpc")]
pub use rpc::RpcDemo;
#[cfg(feature = "jobs")]
pub use tick::Tick;
