//! Stopping the master: which signal stops how hard, when listeners close, and when connections that
//! still arrive are rejected.

use std::time::Duration;

use super::generation::PoolGeneration;
use super::pool::supervisor::ShutdownMode;
use super::service_manager::ServiceNotifier;
use crate::os::signal::Signal;
use crate::time::MonotonicTime;

/// How long after the stop new clients are still queued: a TCP handshake in progress may complete.
const REJECT_DELAY: Duration = Duration::from_secs(1);

/// The listeners' part in a stop.
#[derive(Default)]
pub(super) struct Shutdown {
    /// When new connections are rejected.
    reject_connections_at: Option<MonotonicTime>,
}

impl Shutdown {
    /// Stops listening at `now`: workers that drain empty the queues, and no other process accepts.
    /// The service manager keeps no socket that takes no connections.
    pub(super) fn stop_accepting<'g, 'a: 'g>(
        &mut self,
        generations: impl Iterator<Item = &'g PoolGeneration<'a>>,
        service_manager: &ServiceNotifier,
        now: MonotonicTime,
    ) {
        for generation in generations {
            generation.listeners.iter().for_each(|it| service_manager.remove_stored_fd(it));
            generation.stop_accepting(&[]);
        }
        self.reject_connections_at = Some(now.saturating_add(REJECT_DELAY));
    }

    /// Rejects new connections, where the queue is empty, once the handshakes that were in progress
    /// have had time to complete. The clients need not wait for a time-out then.
    pub(super) fn reject_new_connections<'g, 'a: 'g>(
        &mut self,
        generations: impl Iterator<Item = &'g PoolGeneration<'a>>,
        now: MonotonicTime,
    ) {
        if self.reject_connections_at.is_some_and(|at| at <= now) {
            let done = generations.fold(true, |done, it| done & it.reject_new_connections());
            self.reject_connections_at = (!done).then(|| now.saturating_add(REJECT_DELAY));
        }
    }

    /// Returns when new connections are rejected.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.reject_connections_at
    }
}

/// Returns how a signal stops the master: SIGTERM drains; SIGINT and SIGQUIT stop quickly, and kill
/// the second time. `None` if the master already stops as hard, or harder.
pub(super) fn requested_mode(
    signal: Signal,
    current: Option<ShutdownMode>,
) -> Option<ShutdownMode> {
    let mode = match signal {
        Signal::Term => ShutdownMode::Graceful,
        _ if current >= Some(ShutdownMode::Quick) => ShutdownMode::Kill,
        _ => ShutdownMode::Quick,
    };
    (current < Some(mode)).then_some(mode)
}

/// Returns the mode as the log has it.
pub(super) fn mode_name(mode: ShutdownMode) -> &'static str {
    match mode {
        ShutdownMode::Graceful => "graceful",
        ShutdownMode::Quick => "quick",
        ShutdownMode::Kill => "kill",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_mode_only_gets_harder() {
        let (graceful, quick, kill) =
            (ShutdownMode::Graceful, ShutdownMode::Quick, ShutdownMode::Kill);
        assert_eq!(requested_mode(Signal::Term, None), Some(graceful));
        assert_eq!(requested_mode(Signal::Int, None), Some(quick));
        assert_eq!(requested_mode(Signal::Quit, Some(graceful)), Some(quick));
        assert_eq!(requested_mode(Signal::Int, Some(quick)), Some(kill));
        for mode in [graceful, quick, kill] {
            assert_eq!(requested_mode(Signal::Term, Some(mode)), None);
        }
        assert_eq!(requested_mode(Signal::Quit, Some(kill)), None);
    }
}
