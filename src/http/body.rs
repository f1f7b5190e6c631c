//! What an answer carries: nothing, bytes that are at hand, or a stream made while it is sent. It
//! must never know how the body is framed.

use std::fmt;
use std::io::{self, ErrorKind, Read};

/// The body of a [`Response`](super::Response). Made from text or bytes by `into()`, or from a
/// [`Source`] by [`Body::stream`].
#[derive(Debug, Default)]
pub struct Body(pub(super) Content);

/// What a body is made of.
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
}

/// Makes a body piece by piece, while it is being sent, so that a large answer to a slow reader
/// costs no more memory than a small one.
pub trait Source: Send {
    /// Appends the next piece to `out`, at most `room` bytes, and leaves what is already there
    /// alone. It is called again only when the earlier pieces have been sent. It may take its
    /// time, but every client of the worker that shares its thread waits meanwhile.
    ///
    /// # Errors
    /// Whatever keeps the body from going on. The head has been sent by then, so that the
    /// connection is closed, and the client sees that the answer was cut short. The same happens
    /// on a panic, and if the source ends before, or goes on after, the length it was given.
    fn fill(&mut self, out: &mut Vec<u8>, room: usize) -> io::Result<More>;
}

/// Whether a [`Source`] has more to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// There may be more.
    Yes,
    /// That was the last piece.
    No,
}

impl Body {
    /// A body made while it is sent. With a `length` in bytes, it is announced and kept to;
    /// without, the end is marked by the chunked coding, or for HTTP/1.0 by closing.
    pub fn stream(source: impl Source + 'static, length: Option<u64>) -> Self {
        Self(Content::Stream { source: Box::new(source), length })
    }

    /// A body read from `reader` while it is sent, such as a file's; `length` as in
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
        }
    }
}

struct FromReader<R>(R);

impl<R: Read + Send> Source for FromReader<R> {
    fn fill(&mut self, out: &mut Vec<u8>, room: usize) -> io::Result<More> {
        let start = out.len();
        out.resize(start + room, 0);
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
