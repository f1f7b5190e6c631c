//! What a request is given of its client, its worker and itself.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use ostler::app::{ClientInfo, RequestId};

use super::tracking;
use super::worker::{Shutdown, Worker};

/// The client, the worker and the id of a request. Each request has one as an extension: in axum,
/// `Extension<RequestContext>` extracts it.
#[derive(Clone)]
pub struct RequestContext {
    client: ClientInfo,
    worker: Worker,
    id: IdSource,
}

/// From what the id is made, if it is asked for.
#[derive(Clone)]
enum IdSource {
    /// A number that no other request of the worker has.
    Number(u64),
    /// What the client has sent, in the field that `request_id_header` names.
    Client(Arc<RequestId>),
}

impl RequestContext {
    pub(super) fn new(client: ClientInfo, worker: Worker, headers: &HeaderMap) -> Self {
        let name = worker.settings().request_id_header.as_deref();
        let value = name.and_then(|name| headers.get(name));
        let id = match value.and_then(|value| RequestId::new(value.as_bytes())) {
            Some(id) => IdSource::Client(Arc::new(id)),
            None => IdSource::Number(tracking::new_request_number(worker)),
        };
        Self { client, worker, id }
    }

    /// Returns the client: its address, if it has one.
    pub fn client(&self) -> &ClientInfo {
        &self.client
    }

    /// Returns the worker: its pool, slot, generation, options and log.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns the notice of a graceful stop, for what would otherwise keep a draining worker:
    /// WebSockets, server-sent events, long polls.
    pub fn shutdown(&self) -> Shutdown {
        self.worker.shutdown()
    }

    /// Returns the id of the request, which is also in the access log: 32 hexadecimal digits, different
    /// for each request of all workers. If `request_id_header` names a field and the request has it,
    /// its value is the id.
    pub fn id(&self) -> RequestId {
        match &self.id {
            IdSource::Number(number) => self.worker.lifecycle().request_id(*number),
            IdSource::Client(id) => **id,
        }
    }
}

impl fmt::Debug for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, worker, .. } = self;
        f.debug_struct("RequestContext")
            .field("client", client)
            .field("worker", worker)
            .field("id", &self.id())
            .finish()
    }
}
