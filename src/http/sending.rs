//! The rest of a body that is too large, or not yet known well enough, to be sent in one go. It
//! must never know what comes after it on the connection.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::body::{Body, Content, More, Source};
use super::response::Length;

/// Bytes of a body sent at a time, and of output after which the client has to read first.
pub(super) const PIECE: usize = 64 << 10;

/// Bodies up to this size, in bytes, are sent together with their head.
const SMALL: usize = 16 << 10;

/// What is left of one body.
pub(super) enum Sending {
    Static(&'static [u8]),
    Owned { bytes: Vec<u8>, sent: usize },
    Stream { source: Box<dyn Source>, frame: Frame },
}

/// How the end of a stream is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// So many bytes are left.
    Counted { left: u64 },
    /// Each piece is a chunk, and an empty one is the last.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// What pouring has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteProgress {
    /// There is more.
    Partial,
    /// The body has been sent.
    Complete,
    /// The body is not what was announced: only closing tells the client.
    Failed,
}

impl Sending {
    /// Appends a small body to `out`; of any other, nothing yet.
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
                let frame = match length {
                    Length::Known(left) => Frame::Counted { left },
                    Length::Chunked => Frame::Chunked,
                    Length::Unspecified => Frame::UntilClose,
                };
                Some(Self::Stream { source, frame })
            }
        }
    }

    /// Appends the next piece to `out`, so that it holds about [`PIECE`] bytes at most.
    pub(super) fn write_next(&mut self, out: &mut Vec<u8>) -> WriteProgress {
        let room = PIECE.saturating_sub(out.len()).max(SMALL);
        match self {
            Self::Static(rest) => {
                let (piece, after) = rest.split_at(room.min(rest.len()));
                out.extend_from_slice(piece);
                *rest = after;
                if rest.is_empty() { WriteProgress::Complete } else { WriteProgress::Partial }
            }
            Self::Owned { bytes, sent } => {
                let end = bytes.len().min(*sent + room);
                out.extend_from_slice(&bytes[*sent..end]);
                *sent = end;
                if end == bytes.len() { WriteProgress::Complete } else { WriteProgress::Partial }
            }
            Self::Stream { source, frame: Frame::Counted { left } } => {
                write_counted(source.as_mut(), left, room, out)
            }
            Self::Stream { source, frame: Frame::Chunked } => {
                write_chunk(source.as_mut(), room, out)
            }
            Self::Stream { source, frame: Frame::UntilClose } => {
                match fill(source.as_mut(), room, out) {
                    Some(More::Yes) => WriteProgress::Partial,
                    Some(More::No) => WriteProgress::Complete,
                    None => WriteProgress::Failed,
                }
            }
        }
    }
}

fn write_counted(
    source: &mut dyn Source,
    left: &mut u64,
    room: usize,
    out: &mut Vec<u8>,
) -> WriteProgress {
    if *left == 0 {
        return WriteProgress::Complete;
    }
    let start = out.len();
    let room = usize::try_from(*left).map_or(room, |left| left.min(room));
    let Some(more) = fill(source, room, out) else {
        return WriteProgress::Failed;
    };
    let piece = (out.len() - start) as u64;
    if piece > *left {
        out.truncate(start + room);
        return WriteProgress::Failed;
    }
    *left -= piece;
    match (*left, more) {
        (0, _) => WriteProgress::Complete,
        (_, More::Yes) => WriteProgress::Partial,
        (_, More::No) => WriteProgress::Failed,
    }
}

fn write_chunk(source: &mut dyn Source, room: usize, out: &mut Vec<u8>) -> WriteProgress {
    // The size is known only when the chunk is there: leave room for it, with leading zeros.
    const SIZE: &[u8] = b"00000000\r\n";
    let start = out.len();
    out.extend_from_slice(SIZE);
    let data = out.len();
    let more = fill(source, room, out);
    let (Some(more), Ok(size)) = (more, u32::try_from(out.len().saturating_sub(data))) else {
        out.truncate(start);
        return WriteProgress::Failed;
    };
    if size == 0 {
        out.truncate(start);
    } else {
        for (place, byte) in out[start..start + 8].iter_mut().enumerate() {
            let nibble = size >> (28 - 4 * place) & 0xf;
            *byte = b"0123456789abcdef"[nibble as usize];
        }
        out.extend_from_slice(b"\r\n");
    }
    match more {
        More::Yes => WriteProgress::Partial,
        More::No => {
            out.extend_from_slice(b"0\r\n\r\n");
            WriteProgress::Complete
        }
    }
}

/// Asks the source for a piece; none if it failed or panicked, and then nothing is appended.
fn fill(source: &mut dyn Source, room: usize, out: &mut Vec<u8>) -> Option<More> {
    let start = out.len();
    match catch_unwind(AssertUnwindSafe(|| source.fill(out, room))) {
        Ok(Ok(more)) if out.len() >= start => Some(more),
        _ => {
            out.truncate(start);
            None
        }
    }
}
