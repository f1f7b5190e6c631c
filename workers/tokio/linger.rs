//! Closing a connection so that the client can read what was sent.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ostler::listen::close_may_cut_off;
use ostler::settings::Settings;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client that lingers may send less than [`STEP_BYTES`].
const STEP_TIME: Duration = Duration::from_secs(2);
const STEP_BYTES: u64 = 8 << 10;

/// The limits of a lingering close.
#[derive(Clone, Copy, Debug)]
pub(super) struct LingerLimits {
    time: Duration,
    bytes: u64,
}

impl LingerLimits {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { time: settings.lingering_timeout, bytes: settings.lingering_bytes }
    }
}

/// After so many sent bytes, a client may have received less than was sent.
const LONG_OUTPUT: u64 = 64 << 10;

/// What may be lost when a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseRisk {
    /// The response, if input is unread.
    Short,
    /// The response, if input is unread, or the client has not acknowledged all of it.
    Long,
    /// The response: the client sends a body that was not read.
    Certain,
}

impl CloseRisk {
    pub(super) fn new(has_unread_body: bool, sent_bytes: u64) -> Self {
        if has_unread_body {
            Self::Certain
        } else if sent_bytes > LONG_OUTPUT {
            Self::Long
        } else {
            Self::Short
        }
    }
}

/// Closes a connection. If that could cut off the response, shuts down the output first, and discards
/// input within limits: otherwise the kernel would reset the connection.
pub(super) async fn close(mut stream: TcpStream, risk: CloseRisk, limits: LingerLimits) {
    let is_risky =
        risk == CloseRisk::Certain || close_may_cut_off(stream.as_fd(), risk == CloseRisk::Long);
    if !is_risky {
        return;
    }
    let _ = shutdown(&mut stream).await;
    let mut discarded = 0;
    let discard = async {
        while discarded < limits.bytes {
            let enough = (discarded + STEP_BYTES).min(limits.bytes);
            match timeout(STEP_TIME, discard_until(&mut stream, &mut discarded, enough)).await {
                Ok(true) => (),
                Ok(false) | Err(_) => return,
            }
        }
    };
    let _ = timeout(limits.time, discard).await;
}

/// Sends what fits into the socket's buffer, ends the output, and closes the connection.
pub(super) async fn close_with(stream: TcpStream, bytes: &[u8], limits: LingerLimits) {
    let _ = stream.try_write(bytes);
    close(stream, CloseRisk::Certain, limits).await;
}

async fn shutdown(stream: &mut TcpStream) -> io::Result<()> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await
}

/// Reads until so many bytes are discarded. Returns false at the end of the stream.
async fn discard_until(stream: &mut TcpStream, discarded: &mut u64, enough: u64) -> bool {
    std::future::poll_fn(|cx| {
        while *discarded < enough {
            match poll_discard(stream, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(false),
                Poll::Ready(Ok(length)) => *discarded += length as u64,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(true)
    })
    .await
}

fn poll_discard(stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut bytes = [0; 4096];
    let mut buf = ReadBuf::new(&mut bytes);
    Pin::new(stream).poll_read(cx, &mut buf).map_ok(|()| buf.filled().len())
}
