//! The built-in apps. Each is written like an app of a user of this crate.

mod demo;
mod echo;
mod no_app;
mod rpc;
mod tick;

pub use demo::Demo;
pub use echo::Echo;
pub(crate) use no_app::NoApp;
pub use rpc::RpcDemo;
pub use tick::Tick;
