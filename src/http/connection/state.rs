//! What the connection of one client remembers.

use std::net::SocketAddr;

use crate::app::{BodyShare, ClientInfo, Limits, Next};
use crate::http::chunked::Decoder;
use crate::http::handler::Http;
use crate::http::head::{Head, Reusable, Version};
use crate::http::response::Response;
use crate::http::scan::Scanner;
use crate::http::sending::Sending;

/// The HTTP connection of one client. An idle connection owns no heap memory.
pub(in crate::http) struct HttpConnection<'s, H> {
    pub(super) service: &'s Http<H>,
    pub(super) client: Option<SocketAddr>,
    /// Input that is not processed yet: a part of a request, or pipelined requests.
    pub(super) buffer: Vec<u8>,
    pub(super) state: State,
    pub(super) reusable: Reusable,
    pub(super) input: Input,
    pub(super) read_state: ReadState,
    pub(super) phase: u32,
    /// How many steps of the body have arrived; `None` outside a body.
    pub(super) body_steps: Option<usize>,
    /// The memory of a partial body.
    pub(super) body_share: BodyShare<'s>,
}

/// How many bytes of a body must arrive within `body_timeout`, unless it ends.
const BODY_STEP: usize = 4 << 10;

impl<'s, H> HttpConnection<'s, H> {
    /// Creates the connection of a new client.
    pub(in crate::http) fn new(service: &'s Http<H>, client: &ClientInfo) -> Self {
        let allow_keepalive = client.allow_keepalive && !service.limits.keepalive.is_zero();
        Self {
            service,
            client: client.address,
            buffer: Vec::new(),
            state: State::Head(Scanner::default()),
            reusable: if allow_keepalive { Reusable::Yes } else { Reusable::No },
            input: Input::Open,
            read_state: ReadState::First,
            phase: 0,
            body_steps: None,
            body_share: service.bodies.share(),
        }
    }

    pub(super) fn limits(&self) -> &'s Limits {
        &self.service.limits
    }

    pub(super) fn close(&mut self, next: Next) {
        self.state = State::Closed(next);
        self.buffer = Vec::new();
    }

    pub(super) fn set_read_state(&mut self, state: ReadState) {
        // The first request is one phase, from the connect to the end of its head.
        if (self.read_state, state) != (ReadState::First, ReadState::Partial) {
            self.phase = self.phase.wrapping_add(1);
        }
        self.read_state = state;
        self.body_steps = None;
    }

    /// Begins another phase if the body begins, or another step of it has arrived.
    pub(super) fn mark_body_progress(&mut self) {
        let steps = Some(self.partial_bytes().len() / BODY_STEP);
        if self.body_steps != steps {
            self.body_steps = steps;
            self.phase = self.phase.wrapping_add(1);
        }
    }

    /// Returns the bytes of the partial request.
    pub(super) fn partial_bytes(&mut self) -> &mut Vec<u8> {
        match &mut self.state {
            State::Chunked(chunked) => &mut chunked.bytes,
            _ => &mut self.buffer,
        }
    }
}

/// What the connection expects in the input.
pub(in crate::http) enum State {
    /// A head.
    Head(Scanner),
    /// A body of known length. Head and body are buffered together.
    Sized { head: usize, whole: usize },
    /// A chunked body. Head and decoded body are stored apart from the input.
    Chunked(Box<ChunkedBody>),
    /// A later request, while a response is being sent.
    Responding(Sending, Reusable),
    /// A later request, while the response to an earlier one is not known.
    Deferred(Box<Deferred>),
    /// Nothing: the connection is about to close.
    Closed(Next),
}

/// A response that is not known yet.
pub(in crate::http) struct Deferred {
    pub(super) request: RequestTraits,
    /// Its body yields the response; its fields are added to those of the response.
    pub(super) response: Response,
}

/// What the response to a request depends on.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct RequestTraits {
    pub(super) is_head: bool,
    pub(super) version: Version,
    pub(super) reusable: Reusable,
}

impl From<&Head<'_>> for RequestTraits {
    fn from(head: &Head<'_>) -> Self {
        Self { is_head: head.method == "HEAD", version: head.version, reusable: head.reusable }
    }
}

/// A partial request with a chunked body.
pub(in crate::http) struct ChunkedBody {
    /// The head and the decoded body.
    pub(super) bytes: Vec<u8>,
    /// The length of the head.
    pub(super) head: usize,
    pub(super) decoder: Decoder,
}

/// Whether the client may send more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Input {
    Open,
    Ended,
}

/// What a reading connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ReadState {
    /// The first byte of the first request.
    First,
    /// The first byte of another request.
    KeepAlive,
    /// The first byte of another request, for `drain_idle_timeout`: the worker drains.
    DrainIdle,
    /// The rest of a request.
    Partial,
}

/// Why processing has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Pause {
    /// It needs more input.
    NeedsInput,
    /// The output has reached its limit.
    OutputFull,
    /// The response has no more to send at present.
    Waits,
}

/// The result of one step.
pub(in crate::http) enum Step {
    /// The number of processed bytes.
    Consumed(usize),
    /// The number of processed bytes; the rest is incomplete.
    NeedsInput(usize),
    /// The response has no more to send at present.
    Wait,
}
