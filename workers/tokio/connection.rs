//! Drives one connection: the protocol, its deadline, and the worker's drain.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;
use tokio::net::TcpStream;

use super::alarm::Alarm;
use super::deadline::{OutputProgress, Phase, PhaseLimits, PhaseTimer};
use super::output::WRITE_STEP;
use super::state::ConnectionState;
use super::tracking::Hold;

/// How often a connection looks whether the app has read a body whose response is complete.
const BODY_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a connection is no longer driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It has ended by its protocol; an [`IdleStream`] has input.
    Finished,
    /// It has been idle for so long that its memory is given back. The client stays.
    Released,
    /// It has been idle for too long.
    Idle,
    /// The head of a request was late.
    HeadTimeout,
    /// The client takes no output.
    Aborted,
}

/// What is driven: a connection of hyper, or the stream of an idle client.
pub(super) trait Driven: Future {
    /// Whether an idle one is told to close, so that requests in transit are answered.
    const IS_TOLD: bool = false;
    /// Whether an idle one is released.
    const IS_RELEASED: bool = false;

    /// Answers the requests in progress, and ends. Called only if it is told to close.
    fn begin_shutdown(self: Pin<&mut Self>) {}
}

/// An idle client between two requests, without the memory of a protocol. It is ready when it has input.
pub(super) struct IdleStream<'a>(pub(super) &'a TcpStream);

impl Future for IdleStream<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll_read_ready(cx).map(drop) // an error is for the protocol to find
    }
}

impl Driven for IdleStream<'_> {}

impl<I, S> Driven for http1::UpgradeableConnection<I, S>
where
    Self: Future<Output = hyper::Result<()>>,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: Read + Write + Unpin,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const IS_RELEASED: bool = true;
}

impl<I, S, E> Driven for http2::Connection<I, S, E>
where
    Self: Future<Output = hyper::Result<()>>,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: Read + Write + Unpin,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    const IS_TOLD: bool = true;

    fn begin_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection until it ends or is released.
pub(super) async fn drive<C: Driven>(
    mut connection: Pin<&mut C>,
    state: &ConnectionState,
    limits: PhaseLimits,
) -> End {
    let worker = state.worker();
    let lifecycle = worker.lifecycle();
    let mut noticed = pin!(worker.noticed());
    // How many notices there had been when the next one was waited for.
    let mut notices = None;
    let begun = lifecycle.now();
    let mut timer = PhaseTimer::new(limits, begun);
    let mut alarm = pin!(Alarm::default());
    // When to look for stalled streams, and whether there are any.
    let mut stall_check = begun.saturating_add(limits.write_timeout);
    let mut has_stalled = false;
    let mut progress = OutputProgress::new(begun);
    poll_fn(|cx| {
        let _hold = Hold::begin(worker); // once for all of its requests and bytes
        loop {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Finished);
            }
            if worker.closes_connections() {
                timer.drain(lifecycle.now());
                if C::IS_TOLD && !timer.is_closing() {
                    timer.close(lifecycle.now());
                    connection.as_mut().begin_shutdown();
                    continue;
                }
            } else if notices != Some(worker.notices()) {
                timer.end_drain();
                // Once for each notice: a task has the same waker each time.
                notices = Some(worker.notices());
                noticed.set(worker.noticed());
                if noticed.as_mut().poll(cx).is_ready() {
                    continue;
                }
            }
            let phase = state.phase();
            timer.set_phase(phase, || match phase {
                Phase::Idle(_) => state.idle_since(), // the clock need not be read
                _ => lifecycle.now(),
            });
            let Some(deadline) = timer.deadline() else {
                if phase == Phase::Body {
                    // Its end wakes nobody.
                    let look_at = lifecycle.now().saturating_add(BODY_LOOK_INTERVAL);
                    let _ = alarm.as_mut().is_due(look_at, || lifecycle.now(), cx);
                }
                if !C::IS_TOLD {
                    return Poll::Pending;
                }
                let is_due = alarm.as_mut().is_due(stall_check, || lifecycle.now(), cx);
                if !is_due && !has_stalled {
                    return Poll::Pending;
                }
                let now = lifecycle.now();
                let limit = limits.write_timeout;
                let is_moving = progress.is_moving(state.sent_bytes(), WRITE_STEP, limit, now);
                let (stalled, next) = state.outputs().stalled(now, limit, is_moving);
                (stall_check, has_stalled) = (next, stalled > 0);
                if has_stalled && stalled >= state.in_flight() {
                    return Poll::Ready(End::Aborted);
                }
                if has_stalled && !timer.is_closing() {
                    // The other streams go on, and the client opens no new ones.
                    timer.close(now);
                    connection.as_mut().begin_shutdown();
                } else if !is_due {
                    return Poll::Pending;
                }
                continue;
            };
            let may_release =
                C::IS_RELEASED && !state.has_open_body() && !worker.closes_connections();
            let release_at = timer.release_at().filter(|at| may_release && *at < deadline);
            if !alarm.as_mut().is_due(release_at.unwrap_or(deadline), || lifecycle.now(), cx) {
                return Poll::Pending;
            }
            if release_at.is_some() {
                return Poll::Ready(End::Released);
            }
            match timer.phase() {
                Phase::Head(_) => return Poll::Ready(End::HeadTimeout),
                Phase::Writing(_) | Phase::Busy | Phase::Body => return Poll::Ready(End::Aborted),
                Phase::Connected | Phase::Idle(_) if C::IS_TOLD && !timer.is_closing() => {
                    timer.close(lifecycle.now());
                    connection.as_mut().begin_shutdown();
                }
                Phase::Connected | Phase::Idle(_) => {
                    return Poll::Ready(End::Idle);
                }
            }
        }
    })
    .await
}
