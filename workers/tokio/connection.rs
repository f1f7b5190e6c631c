//! Drives one connection: the protocol, its deadline, and the worker's drain.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use hyper::body::Incoming;
use hyper::rt::{Read, Write};
use hyper::server::conn::{http1, http2};
use hyper::service::HttpService;

use super::alarm::Alarm;
use super::deadline::{OutputProgress, Phase, PhaseLimits, PhaseTimer};
use super::output::WRITE_STEP;
use super::state::ConnectionState;
use super::tracking::Hold;

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By its protocol, or idle.
    Closed,
    /// The head of a request was late.
    HeadTimeout,
    /// The client takes no output.
    Aborted,
}

/// A connection of hyper.
pub(super) trait HyperConnection: Future<Output = hyper::Result<()>> {
    /// Whether an idle one is told to close, so that requests in transit are answered.
    const IS_TOLD: bool;

    /// Answers the requests in progress, and ends.
    fn begin_shutdown(self: Pin<&mut Self>);
}

impl<I, S> HyperConnection for http1::UpgradeableConnection<I, S>
where
    Self: Future<Output = hyper::Result<()>>,
    S: HttpService<Incoming>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: Read + Write + Unpin,
    S::ResBody: 'static,
    <S::ResBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const IS_TOLD: bool = false;

    fn begin_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, E> HyperConnection for http2::Connection<I, S, E>
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

/// Drives a connection to its end.
pub(super) async fn drive<C: HyperConnection>(
    connection: C,
    state: &ConnectionState,
    limits: PhaseLimits,
) -> End {
    let worker = state.worker();
    let lifecycle = worker.lifecycle();
    let mut connection = pin!(connection);
    let mut noticed = pin!(worker.noticed());
    // How many notices there had been when the next one was waited for.
    let mut notices = None;
    let mut timer = PhaseTimer::new(limits, lifecycle.now());
    let mut alarm = pin!(Alarm::default());
    // When to look for stalled streams, and whether there are any.
    let mut stall_check = lifecycle.now().saturating_add(limits.write_timeout);
    let mut has_stalled = false;
    let mut progress = OutputProgress::new(lifecycle.now());
    poll_fn(|cx| {
        let _hold = Hold::begin(worker); // once for all of its requests and bytes
        loop {
            if connection.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Closed);
            }
            if worker.closes_connections() {
                timer.drain(lifecycle.now());
                if C::IS_TOLD && !timer.is_closing() {
                    timer.close(lifecycle.now());
                    connection.as_mut().begin_shutdown();
                    continue;
                }
            } else if notices != Some(worker.notices()) {
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
            if !alarm.as_mut().is_due(deadline, || lifecycle.now(), cx) {
                return Poll::Pending;
            }
            match timer.phase() {
                Phase::Head(_) => return Poll::Ready(End::HeadTimeout),
                Phase::Writing(_) | Phase::Busy => return Poll::Ready(End::Aborted),
                Phase::Connected | Phase::Idle(_) if C::IS_TOLD && !timer.is_closing() => {
                    timer.close(lifecycle.now());
                    connection.as_mut().begin_shutdown();
                }
                Phase::Connected | Phase::Idle(_) => return Poll::Ready(End::Closed),
            }
        }
    })
    .await
}
