//! What a booted app does: it serves clients.

use std::future::Future;
use std::pin::Pin;

use ostler::app::{BootError, ClientInfo};
use tokio::net::TcpStream;

use super::worker::ClientGuard;

/// The boot of an app in one worker.
pub(super) type Booting = Pin<Box<dyn Future<Output = Result<Box<dyn Serve>, BootError>>>>;

/// Serves clients, each in a task of its own.
pub(super) trait Serve {
    /// Spawns the task of a client.
    fn serve(&self, client: NewClient);
}

/// A client that has just been accepted.
pub(super) struct NewClient {
    pub(super) stream: TcpStream,
    pub(super) info: ClientInfo,
    pub(super) guard: ClientGuard,
}
