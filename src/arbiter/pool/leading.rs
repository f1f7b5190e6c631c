//! What a led pool does while its master leads, and while it does not.

use slog::{error, info};

use super::Pool;
use super::supervisor::Standby;
use crate::leader::term::Duty;
use crate::listen::one_per_address;
use crate::log::error_chain;
use crate::time::MonotonicTime;

/// How soon an address that could not be bound is tried again.
const BIND_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

impl Pool<'_> {
    /// Does what the leadership demands, if the pool is led. `now` is when it is tried to listen.
    pub(in crate::arbiter) fn follow_leader(&mut self, duty: Duty, now: MonotonicTime) {
        let is_led = self.generation.spec.is_led;
        if !is_led && !self.generation.is_standby {
            return self.supervisor.set_standby(None);
        }
        // One that is not led listens again after a reload that would have had it led.
        match if is_led { duty } else { Duty::Serve } {
            Duty::Stand => {
                if !self.generation.is_standby {
                    self.generation.enter_standby();
                    self.shards.set_generation(&self.generation, &self.processes);
                }
                self.supervisor.set_standby(Some(Standby::Kill));
                self.bind_at = None;
            }
            Duty::Drain => {
                self.supervisor.set_standby(Some(Standby::Drain));
                self.bind_at = None;
            }
            Duty::Serve => self.begin_to_lead(now),
        }
    }

    fn begin_to_lead(&mut self, now: MonotonicTime) {
        if self.supervisor.stopping().is_some() || self.is_retired {
            self.bind_at = None;
            return;
        }
        if self.generation.is_standby {
            // Workers of an earlier term, or of a generation that was rolled back during a take-over, have
            // no addresses. The new ones need their rows.
            if self.supervisor.worker_count() > 0 {
                return self.supervisor.set_standby(Some(Standby::Kill));
            }
            if self.bind_at.is_some_and(|at| now < at) {
                return;
            }
            if let Err(error) = self.generation.leave_standby() {
                if self.bind_at.is_none() {
                    error!(self.log(), "failed to listen as leader"; "error" => error_chain(&error));
                }
                self.bind_at = Some(now + BIND_INTERVAL);
                return;
            }
            self.bind_at = None;
            self.processes.environment().program_fds.exclude(self.generation.listener_fds());
            self.shards.set_generation(&self.generation, &self.processes);
            let listeners = self.generation.listeners.iter().map(AsRef::as_ref);
            for listener in one_per_address(listeners) {
                info!(self.log(), "listening"; "address" => listener.name());
            }
        }
        self.supervisor.set_standby(None);
    }
}
