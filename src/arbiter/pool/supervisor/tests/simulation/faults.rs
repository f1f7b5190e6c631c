//! The faults of the simulation.

use super::*;
use crate::arbiter::pool::supervisor::slot::STALLS_MAX;

impl Simulation {
    pub(super) fn stall(&mut self, before: MonotonicTime, deadline: Option<MonotonicTime>) {
        self.now = self.now.saturating_add(self.random.within(2 * MINUTE));
        if deadline.is_some_and(|deadline| self.now.duration_since(deadline) > SECOND) {
            self.supervisor.discount_stall(before, self.now);
            let lost = self.now.duration_since(before);
            for (id, process) in &mut self.processes {
                let worker = self.supervisor.worker(*id).expect("each process is a worker");
                if worker.timeout_extended_at != self.now {
                    assert_eq!(worker.discounted_stalls, STALLS_MAX);
                    continue;
                }
                process.timeout_floor = self.now;
                process.kill_from = process.kill_from.saturating_add(lost);
                process.abort_from = process.abort_from.saturating_add(lost);
            }
        }
    }

    fn any_process(&mut self) -> Option<WorkerId> {
        let count = self.processes.len() as u64;
        let index = if count == 0 { return None } else { self.random.below(count) as usize };
        self.processes.keys().nth(index).copied()
    }

    /// Injects a random fault, now and then.
    pub(super) fn inject_faults(&mut self) {
        match self.random.below(40) {
            0 => self.scale_randomly(),
            1 => self.reload(),
            2 => self.suspend_or_resume(),
            3..=9 => {
                if let Some(id) = self.any_process() {
                    self.inject_fault(id);
                }
            }
            _ => (),
        }
    }

    fn scale_randomly(&mut self) {
        let target = self.random.below(7) as usize;
        assert_eq!(self.supervisor.scale_to(target), target.max(1));
        if let Some(previous) = &mut self.previous {
            previous.target = target.max(1);
        }
        self.note_disturbance();
    }

    fn suspend_or_resume(&mut self) {
        let was_suspended = self.supervisor.is_suspended;
        if was_suspended || self.random.below(4) > 0 {
            assert_eq!(self.supervisor.resume(), was_suspended);
        } else {
            self.supervisor.suspend();
            self.note_disturbance();
        }
    }

    fn reload(&mut self) {
        if self.supervisor.is_reloading() || self.supervisor.phase != Phase::Serving {
            return;
        }
        self.supervisor.resume();
        let (generation, target) = (self.supervisor.generation(), self.supervisor.target());
        self.previous = Some(Previous { policy: self.policy, generation, target });
        self.policy = self.any_policy();
        let unchanged = self.random.below(2) == 0;
        let new_target = if unchanged { target } else { 1 + self.random.below(6) as usize };
        self.is_undisturbed_reload = !self.has_disturbance && self.missing() == 0;
        self.has_disturbance |= new_target != target;
        let next_generation = self.supervisor.reload(self.policy, new_target);
        assert!(generation < next_generation);
        self.canary_ready = false;
        self.failing_generation =
            if self.random.below(3) == 0 { Some(next_generation) } else { None };
    }

    fn inject_fault(&mut self, id: WorkerId) {
        let now = self.now;
        let later = now.saturating_add(self.random.within(SECOND));
        let fault = self.random.below(12);
        let thread = self.random.below(2) as usize;
        let process = self.processes.get_mut(&id).expect("a process of the pool");
        let drain_deadline = now.saturating_add(process.policy.graceful_timeout);
        match fault {
            0 => process.exit_no_later_than(now, ExitClass::Crashed),
            1 => process.exit_no_later_than(now, ExitClass::KilledExternally),
            2 if process.serves() => {
                process.silent_since.get_or_insert(now);
            }
            3..=5 if process.serves() && process.silent_since.is_none() => {
                let unit = &mut process.units[thread];
                *unit = if unit.is_none() { Some(now) } else { None };
            }
            3..=5 if process.request == Request::DrainHung => process.units[thread] = None,
            6 if process.serves() => self.supervisor.on_replacement_requested(id),
            7 if process.is_ready => {
                let was_serving = process.request == Request::Nothing;
                assert_eq!(self.supervisor.on_draining(id, now), was_serving);
                if was_serving {
                    process.request = Request::Drain;
                    process.kill_from = drain_deadline;
                    process.exit_no_later_than(later, ExitClass::Requested);
                    self.note_disturbance();
                }
            }
            8..=10 => process.is_large = !process.is_large,
            _ => (),
        }
    }
}
