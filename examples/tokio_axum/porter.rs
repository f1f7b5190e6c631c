//! Takes clients from the listeners that all workers share, and hands them to axum.

use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::net::TcpStream as Socket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use ostler::listen::Listener;
use ostler::worker::{Stop, WorkerContext, WorkerError};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::yield_now;
use tokio::time::sleep;

/// Accepts clients, in the task that has the worker's context.
pub(crate) struct Porter(mpsc::Sender<Guest>);

/// What axum takes for its listener.
pub(crate) struct Arrivals(mpsc::Receiver<Guest>, Option<oneshot::Sender<()>>);

/// A client, with its place among the `worker_connections`.
pub(crate) struct Guest(TcpStream, #[expect(dead_code)] Option<OwnedSemaphorePermit>);

/// A porter, those whom it lets in, and what comes true when all of them have been taken over.
pub(crate) fn new() -> (Porter, Arrivals, impl Future<Output = ()> + Send + 'static) {
    let (sender, queue) = mpsc::channel(1);
    let (over, is_over) = oneshot::channel();
    (Porter(sender), Arrivals(queue, Some(over)), async { drop(is_over.await) })
}

impl Porter {
    /// Lets clients in until the worker is to leave, and those queues are empty that it must empty.
    pub(crate) async fn keep_the_door(
        self,
        ctx: &WorkerContext<'_>,
        news: &Notify,
    ) -> Result<(), WorkerError> {
        let places = Arc::new(Semaphore::new(ctx.settings().worker_connections));
        while !self.let_in(ctx, &places, news).await? {}
        Ok(())
    }

    /// Lets clients in until there are news. Returns whether nobody can come any more.
    async fn let_in(
        &self,
        ctx: &WorkerContext<'_>,
        places: &Arc<Semaphore>,
        news: &Notify,
    ) -> Result<bool, WorkerError> {
        let (life, linger) = (ctx.life(), ctx.place().limits.linger);
        let leaving = life.stopping() != Stop::None;
        let doors = ctx.listeners().iter().map(Arc::clone);
        let doors = doors.filter(|d| if leaving { ctx.must_empty(d) } else { ctx.attends(d) });
        let doors = doors.map(watch).collect::<io::Result<Vec<_>>>()?;
        for turn in 0.. {
            let place = tokio::select! {
                place = Arc::clone(places).acquire_owned(), if !leaving => Some(place?),
                () = news.notified(), if !leaving => return Ok(false),
                else => None, // who waits when the worker leaves is let in however many there are
            };
            // Asked first: who comes while the queues are looked at must be looked for once more.
            let expects = ctx.expects_until().is_some() || life.stopping_for() < linger;
            let mut in_turn =
                doors.iter().cycle().skip(turn % doors.len().max(1)).take(doors.len());
            match in_turn.find_map(|door| door.get_ref().accept().transpose()) {
                Some(Ok((stream, _))) => {
                    let stream = TcpStream::from_std(Socket::from(OwnedFd::from(stream)))?;
                    self.0.send(Guest(stream, place)).await?;
                    yield_now().await; // one at a time, so that the others get some of a burst
                    continue;
                }
                // It has ended listening: nobody will come there.
                Some(Err(error)) if error.kind() == ErrorKind::InvalidInput => (),
                Some(Err(error)) => {
                    ctx.warn_of_pause(&error);
                    sleep(ctx.end_of_pause().since(life.now())).await;
                    continue;
                }
                None => (),
            }
            if leaving && !expects {
                return Ok(true);
            }
            tokio::select! {
                result = somebody_at(&doors) => result?,
                () = news.notified() => return Ok(false),
                () = sleep(linger), if leaving => (),
            }
        }
        Ok(false)
    }
}

/// Has tokio watch a descriptor.
#[expect(unsafe_code)]
pub(crate) fn watch<F: AsFd + AsRawFd>(fd: F) -> io::Result<AsyncFd<F>> {
    // SAFETY: it is a listener, or the pipe of the worker's life: what is given keeps it open, and
    // has no other one to give.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Waits until somebody is at a door, or was: tokio tells it once.
async fn somebody_at(doors: &[AsyncFd<Arc<Listener>>]) -> io::Result<()> {
    poll_fn(|cx| {
        for door in doors {
            if let Poll::Ready(guard) = door.poll_read_ready(cx) {
                return Poll::Ready(guard.map(|mut guard| guard.clear_ready()));
            }
        }
        Poll::Pending
    })
    .await
}

impl axum::serve::Listener for Arrivals {
    type Io = Guest;
    type Addr = ();

    async fn accept(&mut self) -> (Guest, ()) {
        match self.0.recv().await {
            Some(guest) => (guest, ()),
            None => {
                self.1 = None;
                pending().await
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
