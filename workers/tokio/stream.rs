//! The stream of a client.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ostler::time::MonotonicTime;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use super::frames::FrameCounter;
use super::state::{ClosedStream, ConnectionState};
use super::tracking;

/// The first bytes of HTTP/2.
const HTTP2_START: &[u8] = b"PRI ";

/// Pieces of output of up to this many bytes in all are copied together: the kernel takes one piece in less
/// time than several.
const GATHERED_MAX: usize = 512;

/// The stream of a client, over TCP or a unix socket. The worker counts the client until it is dropped.
pub struct ClientStream {
    /// `None` only while it is dropped. A unix socket too: the calls are the same.
    stream: Option<TcpStream>,
    state: Arc<ConnectionState>,
    /// Bytes that were received, and that the reader gets first.
    prefix: Vec<u8>,
    /// Whether the protocol is unknown.
    sniffs: bool,
    /// Counts the frames of HTTP/2.
    frames: Option<FrameCounter>,
    /// Whether the socket had input when it was looked at last, which was not read since.
    has_unread_input: bool,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, state: Arc<ConnectionState>) -> Self {
        Self {
            stream: Some(stream),
            state,
            prefix: Vec::new(),
            sniffs: false,
            frames: None,
            has_unread_input: false,
        }
    }

    /// Creates a stream whose first read fails if the client speaks HTTP/2. The state then says so.
    pub(super) fn for_http1(stream: TcpStream, state: Arc<ConnectionState>) -> Self {
        let mut this = Self::new(stream, state);
        this.sniffs = true;
        this
    }

    /// Creates a stream of HTTP/1.1 after some requests.
    pub(super) fn resume_http1(released: ClosedStream, state: Arc<ConnectionState>) -> Self {
        if !released.unread.is_empty() {
            state.on_received(released.unread.len()); // a part of the next head
        }
        let mut this = Self::new(released.stream, state);
        this.prefix = released.unread;
        this
    }

    /// Creates a stream of HTTP/2, of which some bytes were received already.
    pub(super) fn for_http2(closed: ClosedStream, state: Arc<ConnectionState>) -> Self {
        let mut frames = FrameCounter::new(state.worker().lifecycle().now_coarse());
        frames.is_flood(&closed.unread, 0, MonotonicTime::default()); // too few for a flood
        let mut this = Self::new(closed.stream, state);
        (this.prefix, this.frames) = (closed.unread, Some(frames));
        this
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        ready!(self.stream()?.poll_read(cx, buf))?;
        self.has_unread_input = false;
        let length = buf.filled().len() - start;
        self.state.on_received(length);
        tracking::count_received(self.state.worker(), length);
        if let Some(frames) = &mut self.frames {
            let now = self.state.worker().lifecycle().now_coarse();
            if frames.is_flood(&buf.filled()[start..], self.state.sent_bytes(), now) {
                self.state.set_flooding();
                return Poll::Ready(Err(io::Error::other("too many control frames")));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads the first bytes, which tell the protocol.
    fn poll_first_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        loop {
            ready!(self.poll_receive(cx, buf))?;
            let received = &buf.filled()[start..];
            let is_end = received.is_empty();
            if self.prefix.is_empty() && (is_end || !may_be_http2(received)) {
                self.sniffs = false;
                return Poll::Ready(Ok(()));
            }
            self.prefix.extend_from_slice(received);
            buf.set_filled(start);
            if self.prefix.starts_with(HTTP2_START) {
                self.state.set_http2();
                return Poll::Ready(Err(io::Error::other("the client speaks HTTP/2")));
            }
            if is_end || !may_be_http2(&self.prefix) {
                self.sniffs = false;
                self.read_prefix(buf);
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn read_prefix(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..length]);
        self.prefix.drain(..length);
    }

    /// Fails if the client has ended its output while its request awaits. hyper would look for that before
    /// it polls the answer, and allocate a buffer for it with each request.
    fn check_client_is_there(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.state.is_awaiting() || self.has_unread_input {
            return Ok(());
        }
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let stream = self.stream()?;
        // The app may have used up the budget of the task.
        let peek = unconstrained(poll_fn(|cx| stream.poll_peek(cx, &mut buffer)));
        match pin!(peek).poll(cx) {
            Poll::Ready(Ok(0)) => {
                self.state.on_received(0);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client has gone"))
            }
            Poll::Ready(Ok(_)) => {
                self.has_unread_input = true; // its end is behind that
                Ok(())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(()),
        }
    }

    fn on_written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(length)) => {
                self.state.on_written(Some(*length));
                tracking::count_sent(self.state.worker(), *length);
            }
            Poll::Ready(Err(_)) => (),
            Poll::Pending => self.state.on_written(None),
        }
        written
    }
}

/// Copies several slices into one buffer. Returns `None` if they do not fit, or are not several.
fn gather<'a>(slices: &[IoSlice<'_>], buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    if slices.len() < 2 {
        return None;
    }
    let mut length = 0;
    for slice in slices {
        buffer.get_mut(length..length + slice.len())?.copy_from_slice(slice);
        length += slice.len();
    }
    Some(&buffer[..length])
}

/// Returns whether the first bytes of a client may be those of HTTP/2.
fn may_be_http2(bytes: &[u8]) -> bool {
    let length = bytes.len().min(HTTP2_START.len());
    bytes[..length] == HTTP2_START[..length]
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.sniffs {
            return this.poll_first_read(cx, buf);
        }
        if !this.prefix.is_empty() {
            this.read_prefix(buf);
            return Poll::Ready(Ok(()));
        }
        this.poll_receive(cx, buf)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(cx, bytes);
        self.on_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut gathered = [0; GATHERED_MAX];
        let written = match gather(slices, &mut gathered) {
            Some(bytes) => self.stream()?.poll_write(cx, bytes),
            None => self.stream()?.poll_write_vectored(cx, slices),
        };
        self.on_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// hyper calls this once all of its output was written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream()?.poll_flush(cx))?;
        self.state.late_records().on_flush();
        Poll::Ready(self.check_client_is_there(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sniffs && self.state.is_http2() {
            return Poll::Ready(Ok(())); // HTTP/1.1 ends, and HTTP/2 begins
        }
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.state.late_records().on_close();
            let unread = std::mem::take(&mut self.prefix);
            self.state.put_closed_stream(ClosedStream { stream, unread });
        }
    }
}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientStream").field(&self.stream).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_slices_are_gathered_if_they_fit() {
        let mut buffer = [b'?'; 8];
        let mut gathered = |slices: &[&[u8]]| {
            let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            gather(&slices, &mut buffer).map(<[u8]>::to_vec)
        };
        assert_eq!((gathered(&[]), gathered(&[b"head"])), (None, None));
        assert_eq!(gathered(&[b"head", b"", b"body"]), Some(b"headbody".to_vec()));
        assert_eq!(gathered(&[b"head", b"body", b"."]), None);
        assert_eq!(gathered(&[b"much more", b""]), None);
    }
}
