//! The built-in apps. Each is written as a user of this crate would write it.

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
