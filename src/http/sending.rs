//! The unsent rest of a body that is large, or produced while it is sent. Independent of the
//! connection.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::body::{Body, Content, KEEP_ALIVE_INTERVAL, LiveSource, More, Source};
use super::response::Length;

/// Maximum size of a piece of a body, and the amount of output after which the client must read first.
pub(super) const PIECE: usize = 64 << 10;

/// Maximum size in bytes of a body that is sent together with its head.
const SMALL: usize = 16 << 10;

/// How often in a row a source may produce nothing: without a limit, one that is at its end and does not
/// say so would occupy its thread for ever.
const EMPTY_MAX: u32 = 1000;

/// The space for the size of a chunk, which is known after the chunk is written; with leading zeros.
const CHUNK_SIZE: &[u8] = b"00000000\r\n";
/// The end of a chunk.
const CHUNK_END: &[u8] = b"\r\n";
/// The chunk that ends a body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The unsent rest of a body.
pub(super) enum Sending {
    Static(&'static [u8]),
    Owned { bytes: Vec<u8>, sent: usize },
    Stream { source: Box<dyn Source>, frame: Frame, empty: u32 },
    Live { source: Box<dyn LiveSource>, frame: Frame },
}

/// How the end of a stream is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// By `Content-Length`, of which `left` bytes are left.
    Counted { left: u64 },
    /// By the chunked coding: each piece is a chunk, and an empty chunk is the last.
    Chunked,
    /// By closing the connection.
    UntilClose,
}

/// The result of writing a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteProgress {
    /// There is more.
    Partial,
    /// There may be more later.
    Waiting,
    /// The body is complete.
    Complete,
    /// The body has failed or differs from its announced length: closing tells the client.
    Failed,
}

impl Sending {
    /// Appends a small body to `out`, and returns the rest of any other body.
    pub(super) fn begin(body: Body, length: Length, out: &mut Vec<u8>) -> Option<Self> {
        match body.0 {
            Content::Empty => None,
            Content::Static(bytes) if bytes.len() <= SMALL => {
                out.extend_from_slice(bytes);
                None
            }
            Content::Owned(bytes) if bytes.len() <= SMALL => {
                out.extend_from_slice(&bytes);
                None
            }
            Content::Static(bytes) => Some(Self::Static(bytes)),
            Content::Owned(bytes) => Some(Self::Owned { bytes, sent: 0 }),
            Content::Stream { source, .. } => {
                Some(Self::Stream { source, frame: Frame::from(length), empty: 0 })
            }
            Content::Live(source) => Some(Self::Live { source, frame: Frame::from(length) }),
            Content::Later(_) => None, // it is not sent before it is known
        }
    }

    /// Returns after how much silence to call [`keep_alive`](Self::keep_alive), if ever.
    pub(super) fn idle_limit(&self) -> Option<Duration> {
        matches!(self, Self::Live { .. }).then_some(KEEP_ALIVE_INTERVAL)
    }

    /// Tells the client of a live body that the connection is alive. Returns false for other bodies.
    pub(super) fn keep_alive(&mut self, out: &mut Vec<u8>) -> bool {
        let Self::Live { source, frame } = self else { return false };
        let mut text = KeepAlive(source.keep_alive());
        write_piece(&mut text, frame, PIECE, out);
        true
    }

    /// Appends the next piece to `out`, up to about [`PIECE`] bytes in `out`.
    pub(super) fn write_next(&mut self, out: &mut Vec<u8>) -> WriteProgress {
        let max_len = PIECE.saturating_sub(out.len()).max(SMALL);
        match self {
            Self::Static(rest) => {
                let (piece, after) = rest.split_at(max_len.min(rest.len()));
                out.extend_from_slice(piece);
                *rest = after;
                if rest.is_empty() { WriteProgress::Complete } else { WriteProgress::Partial }
            }
            Self::Owned { bytes, sent } => {
                let end = bytes.len().min(*sent + max_len);
                out.extend_from_slice(&bytes[*sent..end]);
                *sent = end;
                if end == bytes.len() { WriteProgress::Complete } else { WriteProgress::Partial }
            }
            Self::Stream { source, frame, empty } => {
                let before = out.len();
                let progress = write_piece(source.as_mut(), frame, max_len, out);
                *empty = if out.len() > before { 0 } else { *empty + 1 };
                match progress {
                    WriteProgress::Partial if *empty >= EMPTY_MAX => WriteProgress::Failed,
                    progress => progress,
                }
            }
            Self::Live { source, frame } => {
                let mut source = Present { source: source.as_mut(), is_silent: false };
                let progress = write_piece(&mut source, frame, max_len, out);
                match progress {
                    WriteProgress::Partial if source.is_silent => WriteProgress::Waiting,
                    progress => progress,
                }
            }
        }
    }

    /// Returns how many bytes of the body are in the `appended` bytes of [`write_next`](Self::write_next),
    /// which returned `progress`: those that are no framing of chunks.
    pub(super) fn body_bytes(&self, appended: usize, progress: WriteProgress) -> u64 {
        let (Self::Stream { frame: Frame::Chunked, .. } | Self::Live { frame: Frame::Chunked, .. }) =
            self
        else {
            return appended as u64;
        };
        let end = if progress == WriteProgress::Complete { LAST_CHUNK.len() } else { 0 };
        let chunk = appended.saturating_sub(end);
        chunk.saturating_sub(CHUNK_SIZE.len() + CHUNK_END.len()) as u64
    }
}

impl From<Length> for Frame {
    fn from(length: Length) -> Self {
        match length {
            Length::Known(left) => Self::Counted { left },
            Length::Chunked => Self::Chunked,
            Length::Unspecified | Length::Unknown => Self::UntilClose,
        }
    }
}

/// What a live source has at present.
struct Present<'s> {
    source: &'s mut dyn LiveSource,
    is_silent: bool,
}

impl Source for Present<'_> {
    fn fill(&mut self, out: &mut Vec<u8>, max_len: usize) -> io::Result<More> {
        let more = self.source.fill(out, max_len);
        self.is_silent = more.is_none();
        Ok(more.unwrap_or(More::Yes))
    }
}

/// A text that is one piece of a body.
struct KeepAlive(&'static [u8]);

impl Source for KeepAlive {
    fn fill(&mut self, out: &mut Vec<u8>, _max_len: usize) -> io::Result<More> {
        out.extend_from_slice(self.0);
        Ok(More::Yes)
    }
}

fn write_piece(
    source: &mut dyn Source,
    frame: &mut Frame,
    max_len: usize,
    out: &mut Vec<u8>,
) -> WriteProgress {
    match frame {
        Frame::Counted { left } => write_counted(source, left, max_len, out),
        Frame::Chunked => write_chunk(source, max_len, out),
        Frame::UntilClose => match fill(source, max_len, out) {
            Some(More::Yes) => WriteProgress::Partial,
            Some(More::No) => WriteProgress::Complete,
            None => WriteProgress::Failed,
        },
    }
}

fn write_counted(
    source: &mut dyn Source,
    left: &mut u64,
    max_len: usize,
    out: &mut Vec<u8>,
) -> WriteProgress {
    if *left == 0 {
        return WriteProgress::Complete;
    }
    let start = out.len();
    let max_len = usize::try_from(*left).map_or(max_len, |left| left.min(max_len));
    let Some(more) = fill(source, max_len, out) else {
        return WriteProgress::Failed;
    };
    let piece = (out.len() - start) as u64;
    if piece > *left {
        out.truncate(start + max_len);
        return WriteProgress::Failed;
    }
    *left -= piece;
    match (*left, more) {
        (0, _) => WriteProgress::Complete,
        (_, More::Yes) => WriteProgress::Partial,
        (_, More::No) => WriteProgress::Failed,
    }
}

fn write_chunk(source: &mut dyn Source, max_len: usize, out: &mut Vec<u8>) -> WriteProgress {
    let start = out.len();
    out.extend_from_slice(CHUNK_SIZE);
    let data = out.len();
    let more = fill(source, max_len, out);
    let (Some(more), Ok(size)) = (more, u32::try_from(out.len().saturating_sub(data))) else {
        out.truncate(start);
        return WriteProgress::Failed;
    };
    if size == 0 {
        out.truncate(start);
    } else {
        for (index, byte) in out[start..start + 8].iter_mut().enumerate() {
            let nibble = size >> (28 - 4 * index) & 0xf;
            *byte = b"0123456789abcdef"[nibble as usize];
        }
        out.extend_from_slice(CHUNK_END);
    }
    match more {
        More::Yes => WriteProgress::Partial,
        More::No => {
            out.extend_from_slice(LAST_CHUNK);
            WriteProgress::Complete
        }
    }
}

/// Appends a piece of the source. Returns none and appends nothing if the source failed or panicked.
fn fill(source: &mut dyn Source, max_len: usize, out: &mut Vec<u8>) -> Option<More> {
    let start = out.len();
    match catch_unwind(AssertUnwindSafe(|| source.fill(out, max_len))) {
        Ok(Ok(more)) if out.len() >= start => Some(more),
        _ => {
            out.truncate(start);
            None
        }
    }
}
