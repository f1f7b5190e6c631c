//! The body of a request: hyper's, within the limits of the settings.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep};

use super::alarm::poll_timer;
use super::state::ConnectionState;

/// How many bytes of a body must arrive within `body_timeout`.
const STEP_BYTES: u64 = 4 << 10;

/// The body of a request. It ends with an error beyond `limit_request_body`, and if less than 4 KiB
/// arrive within `body_timeout`. The client then gets 413 or 408, whatever the app answers.
pub struct Body {
    /// `None` once it was taken out.
    incoming: Option<Incoming>,
    /// `None` if the request has no body, or hyper's was taken out. Boxed: most requests have none, and
    /// requests are moved often.
    reading: Option<Box<Reading>>,
}

/// How far a body has been read.
struct Reading {
    timeout: Duration,
    /// How many bytes may still come.
    bytes_left: u64,
    /// How many bytes have come since the timer was set.
    step_bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
    failure: Arc<AtomicU8>,
    /// Told whether the body is read to its end; `None` once it is.
    connection: Option<Arc<ConnectionState>>,
    /// Which body of the connection it is.
    number: u32,
}

/// Why a body is incomplete, for the response; `None` inside if the request has no body.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedFailure(Option<Arc<AtomicU8>>);

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

impl SharedFailure {
    /// Returns the reason why the class has ended the body.
    pub(super) fn get(&self) -> Option<BodyError> {
        match self.0.as_ref()?.load(Ordering::Relaxed) {
            TOO_LARGE => Some(BodyError::TooLarge),
            TOO_SLOW => Some(BodyError::TooSlow),
            _ => None,
        }
    }
}

/// Why a body is incomplete.
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyError {
    /// It is larger than `limit_request_body`.
    TooLarge,
    /// Less than 4 KiB have arrived within `body_timeout`.
    TooSlow,
    /// The connection, or what arrives over it, is broken.
    Broken(hyper::Error),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the body is larger than limit_request_body",
            Self::TooSlow => "less than 4 KiB of the body arrived within body_timeout",
            Self::Broken(_) => "the body is broken",
        })
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::TooLarge | Self::TooSlow => None,
            Self::Broken(error) => Some(error),
        }
    }
}

impl Body {
    /// Limits hyper's body of the request that `connection` has begun last. `None`: the request has no body.
    pub(super) fn new(incoming: Incoming, connection: Option<&Arc<ConnectionState>>) -> Self {
        let reading = connection.map(|connection| {
            // The app may keep the body for longer than its response takes.
            let number = connection.begin_body();
            let worker = connection.worker();
            let limits = &worker.info().limits;
            Box::new(Reading {
                timeout: limits.body_timeout,
                bytes_left: limits.max_body_bytes as u64,
                step_bytes: 0,
                timer: None,
                failure: Arc::default(),
                connection: Some(Arc::clone(connection)),
                number,
            })
        });
        Self { incoming: Some(incoming), reading }
    }

    pub(super) fn failure(&self) -> SharedFailure {
        SharedFailure(self.reading.as_ref().map(|reading| Arc::clone(&reading.failure)))
    }

    /// Returns hyper's body, without the limits.
    ///
    /// # Panics
    /// Never: only this call takes it.
    pub fn into_incoming(mut self) -> Incoming {
        if let Some(reading) = self.reading.take()
            && let Some(connection) = reading.connection
        {
            connection.lose_body(reading.number);
        }
        self.incoming.take().expect("it is taken once")
    }
}

impl Reading {
    fn fail(&self, code: u8, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.failure.store(code, Ordering::Relaxed);
        Poll::Ready(Some(Err(error)))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Body").field(&self.incoming).finish()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(reading) = &self.reading else { return };
        let Some(connection) = &reading.connection else { return };
        if !self.is_end_stream() {
            connection.set_unread_body(); // hyper takes what has arrived, or closes the connection
        }
        connection.end_body(reading.number); // the app need not ask for the end
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { incoming, reading } = self.get_mut();
        let Some(incoming) = incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(cx);
        let Some(reading) = reading else {
            return polled.map_err(BodyError::Broken); // ready at once: its end, or an error
        };
        let Poll::Ready(frame) = polled else {
            let limit = reading.timeout;
            let timer = reading.timer.get_or_insert_with(|| {
                reading.step_bytes = 0;
                Box::pin(sleep(limit))
            });
            ready!(poll_timer(timer, cx));
            return reading.fail(TOO_SLOW, BodyError::TooSlow);
        };
        let frame = match frame {
            None => {
                if let Some(connection) = reading.connection.take() {
                    connection.end_body(reading.number);
                }
                return Poll::Ready(None);
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Broken(error)))),
            Some(Ok(frame)) => frame,
        };
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        reading.step_bytes += length;
        if reading.step_bytes >= STEP_BYTES {
            reading.timer = None;
        }
        match reading.bytes_left.checked_sub(length) {
            None => reading.fail(TOO_LARGE, BodyError::TooLarge),
            Some(left) => {
                reading.bytes_left = left;
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.reading.is_none() || self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}
