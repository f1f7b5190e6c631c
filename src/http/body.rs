//! The body of a response: empty, bytes, or a stream that is produced while it is sent. Independent
//! of its framing.

use std::any::Any;
use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::time::Duration;

/// The body of a [`Response`](super::Response). Create it from text or bytes with `into()`, or from a
/// [`Source`] with [`Body::stream`].
#[derive(Debug, Default)]
pub struct Body(pub(super) Content);

/// The content of a body.
#[derive(Default)]
pub(super) enum Content {
    #[default]
    Empty,
    Static(&'static [u8]),
    Owned(Vec<u8>),
    Stream {
        source: Box<dyn Source>,
        length: Option<u64>,
    },
    Live(Box<dyn LiveSource>),
    /// No body: the response is not known yet. `response` knows the type.
    Later(Box<dyn Any + Send>),
}

/// Produces a body in pieces while it is sent, so that a large response to a slow reader needs no more
/// memory than a small one.
pub trait Source: Send {
    /// Appends the next piece to `out`, at most `max_len` bytes. Do not change what `out` already holds.
    /// It is called again only after the earlier pieces have been sent. It may block, but then all
    /// other clients of the same thread wait.
    ///
    /// # Errors
    /// Why the body cannot continue. The head has been sent by then, so the connection closes and the
    /// client sees a truncated response. The same happens after a panic, if the source produces less or
    /// more than its declared length, and if it produces nothing 1,000 times in a row.
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> io::Result<More>;
}

/// Produces a body for as long as the client reads it, whenever there is something to say. Only for
/// sessions that are woken.
pub(crate) trait LiveSource: Send {
    /// Appends the next piece to `out`, at most about `max_len` bytes. Returns none, and appends nothing,
    /// if there is nothing at present. It must not wait.
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> Option<More>;

    /// Returns what is sent after [`KEEP_ALIVE_INTERVAL`] of silence. Clients ignore it.
    fn keep_alive(&self) -> &'static [u8];
}

/// After how much silence a live body tells its client that the connection is alive.
pub(super) const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Whether a [`Source`] may produce more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// There may be more pieces.
    Yes,
    /// This was the last piece.
    No,
}

impl Body {
    /// Creates a body that is produced while it is sent. A `length` in bytes is sent as
    /// `Content-Length` and enforced. Without it, the body uses the chunked coding; for HTTP/1.0,
    /// closing the connection marks its end.
    pub fn stream(source: impl Source + 'static, length: Option<u64>) -> Self {
        Self(Content::Stream { source: Box::new(source), length })
    }

    /// Creates a body that is produced whenever there is something to say. It uses the chunked coding.
    pub(crate) fn live(source: impl LiveSource + 'static) -> Self {
        Self(Content::Live(Box::new(source)))
    }

    /// Creates a body that is read from `reader`, such as a file, while it is sent. `length` is as in
    /// [`Body::stream`].
    pub fn reader(reader: impl Read + Send + 'static, length: Option<u64>) -> Self {
        Self::stream(FromReader(reader), length)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self(Content::Static(text.as_bytes()))
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Self(Content::Static(bytes))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self(Content::Owned(text.into_bytes()))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Content::Owned(bytes))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Static(bytes) => write!(f, "Static({} bytes)", bytes.len()),
            Self::Owned(bytes) => write!(f, "Owned({} bytes)", bytes.len()),
            Self::Stream { length, .. } => write!(f, "Stream({length:?})"),
            Self::Live(_) => f.write_str("Live"),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

struct FromReader<R>(R);

impl<R: Read + Send> Source for FromReader<R> {
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> io::Result<More> {
        let start = out.len();
        out.resize(start + max_len, 0);
        let read = loop {
            match self.0.read(&mut out[start..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                result => break result,
            }
        };
        out.truncate(start + read.as_ref().map_or(0, |&length| length));
        Ok(if read? == 0 { More::No } else { More::Yes })
    }
}
