//! Bare streams: the app has its own protocol.

use std::future::Future;
use std::sync::Arc;

use ostler::app::ClientInfo;

use super::linger::{self, LingerLimits};
use super::serve::{NewClient, Serve};
use super::state::ConnectionState;
use super::stream::ClientStream;
use super::tracking::{Label, Tracked, UnitGuard};
use super::worker::Worker;

/// Serves streams with a function.
pub(super) struct StreamServer<H> {
    handler: H,
    lingering: LingerLimits,
}

impl<H> StreamServer<H> {
    pub(super) fn new(handler: H, worker: &Worker) -> Self {
        Self { handler, lingering: LingerLimits::new(worker.settings()) }
    }
}

impl<H, C> Serve for StreamServer<H>
where
    H: Fn(ClientStream, ClientInfo) -> C,
    C: Future<Output = ()> + Send + 'static,
{
    fn serve(&self, client: NewClient) {
        let NewClient { stream, info, guard } = client;
        let label = match info.address {
            Some(address) => Label::new(&["client", &address.to_string()]),
            None => Label::new(&["client"]),
        };
        let unit = UnitGuard::new(label, guard.worker());
        let state = Arc::new(ConnectionState::new(guard, info));
        let stream = ClientStream::new(stream, Arc::clone(&state));
        // A panic costs this client its connection.
        let Ok(answer) = unit.run(|| (self.handler)(stream, info)) else { return };
        let lingering = self.lingering;
        tokio::spawn(async move {
            Tracked::new(answer, unit).await;
            if let Some(closed) = state.take_closed_stream() {
                linger::close(closed.stream, state.close_risk(), lingering).await;
            }
        });
    }
}
