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
            10 => self.change_drain_mode(),
            3..=9 => {
                if let Some(id) = self.any_process() {
                    self.inject_fault(id);
                }
            }
            _ => (),
        }
    }

    fn scale_randomly(&mut self) {
        let wanted = self.random.below(7) as usize;
        let target = self.within_bounds(wanted);
        if let Some(previous) = self.previous {
            let lowest = self.lowest_target_after(previous.generation, previous.target);
            self.previous = Some(Previous { target: target.max(lowest), ..previous });
        }
        assert_eq!(self.supervisor.scale_to(target), target);
        self.note_disturbance();
    }

    /// Returns the nearest target that a command can set, as the pool does.
    fn within_bounds(&self, target: usize) -> usize {
        let (generation, present) = (self.supervisor.generation(), self.supervisor.target());
        let (min, max) = self.range;
        let min = self.lowest_target_after(generation, present).clamp(min, max);
        assert_eq!(self.supervisor.target_bounds(self.range.0..=max), min..=max);
        target.clamp(min, max)
    }

    /// Scales as the pool does after a roll-back: a command may have moved the target within another range.
    pub(super) fn scale_into_range(&mut self) {
        let target = self.supervisor.target();
        let restored = self.within_bounds(target);
        self.has_disturbance |= target < restored;
        assert_eq!(self.supervisor.scale_to(restored), restored);
    }

    /// Returns the worker that a slot keeps in a pool of `generation`, if it is ready.
    fn kept_process(&self, slot: usize, generation: u32) -> Option<&Process> {
        let ready = self.processes.iter().filter(|(_, it)| it.slot == slot && it.is_active());
        ready.max_by_key(|(id, it)| (it.generation == generation, **id)).map(|(_, it)| it)
    }

    /// Returns the lowest target of a pool that has returned to `generation` and `target`.
    fn lowest_target_after(&self, generation: u32, target: usize) -> usize {
        let has_held =
            |slot: &usize| self.processes.values().any(|it| it.slot == *slot && it.is_held());
        let yields =
            |slot: usize| self.kept_process(slot, generation).is_some_and(Process::is_held);
        let Some(last_held) = (0..target).rfind(has_held) else { return 1 };
        let first = (0..target).find(|slot| !yields(*slot));
        first.map_or(last_held, |first| first.max(last_held)) + 1
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
        let range = self.range;
        self.previous = Some(Previous { policy: self.policy, generation, target, range });
        self.policy = self.any_policy();
        let unchanged = self.random.below(2) == 0;
        if !unchanged {
            self.range = self.random.pick(&[(1, WORKERS_MAX), (1, 2), (2, 4), (3, 6), (2, 2)]);
        }
        let new_target = if unchanged { target } else { 1 + self.random.below(6) as usize };
        let new_target = new_target.clamp(self.range.0, self.range.1);
        let is_committed = |it: &Process| it.serves() && it.generation == generation;
        self.is_undisturbed_reload = !self.has_disturbance
            && self.missing() == 0
            && self.given_up.is_empty()
            && self.processes.values().any(is_committed);
        self.has_disturbance |= new_target != target;
        let next_generation = self.supervisor.reload(self.policy, new_target);
        assert!(generation < next_generation);
        self.canary_ready = false;
        self.failing_generation =
            if self.random.below(3) == 0 { Some(next_generation) } else { None };
    }

    /// Begins or ends the drain mode of a slot's newest worker, as an operator does.
    fn change_drain_mode(&mut self) {
        let slot = self.random.below(7) as usize;
        let is_newest =
            |(_, process): &(&WorkerId, &Process)| process.slot == slot && process.is_active();
        let newest = self.processes.iter().filter(is_newest).map(|(id, _)| *id).max();
        let was_held = newest.is_some_and(|id| self.processes[&id].is_held());
        let is_on = self.random.below(3) > 0;
        let present = (self.supervisor.generation(), self.supervisor.target());
        let roll_back = self.previous.map(|previous| (previous.generation, previous.target));
        let other_serves =
            [Some(present), roll_back].into_iter().flatten().all(|(number, target)| {
                let serves = |it: &Process| it.serves() && it.generation <= number;
                let mut others = (0..target).filter(|other| *other != slot);
                others.any(|other| self.kept_process(other, number).is_some_and(serves))
            });
        let (result, expected) = if is_on {
            let expected = match newest {
                None => Err(DrainModeError::NotReady),
                Some(id) if was_held => Ok((id, false)),
                Some(_) if !other_serves => Err(DrainModeError::LastServing),
                Some(id) => Ok((id, true)),
            };
            (self.supervisor.begin_drain_mode(slot), expected)
        } else {
            let expected = newest.map(|id| (id, was_held)).ok_or(DrainModeError::NotReady);
            (self.supervisor.end_drain_mode(slot), expected)
        };
        assert_eq!(result, expected);
        let Ok((id, _)) = result else { return };
        self.drain_modes += u64::from(is_on && !was_held);
        self.processes.get_mut(&id).expect("it is ready").is_in_drain_mode = is_on;
        if is_on && self.random.below(2) == 0 {
            self.supervisor.on_drained(id);
            assert_eq!(self.supervisor.drain_progress(id), DrainProgress::Drained);
        }
    }

    pub(super) fn end_drain_modes(&mut self) {
        let held: Vec<_> = self
            .processes
            .iter()
            .filter(|(_, it)| it.is_held())
            .map(|(id, it)| (*id, it.slot))
            .collect();
        for (id, slot) in held.into_iter().rev() {
            assert_eq!(self.supervisor.end_drain_mode(slot), Ok((id, true)));
            self.processes.get_mut(&id).expect("it is ready").is_in_drain_mode = false;
        }
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
            2 if process.is_active() => {
                process.silent_since.get_or_insert(now);
            }
            3..=5 if process.is_active() && process.silent_since.is_none() => {
                let unit = &mut process.units[thread];
                *unit = if unit.is_none() { Some(now) } else { None };
            }
            3..=5 if process.request == Request::DrainHung => process.units[thread] = None,
            6 if process.is_active() => self.supervisor.on_replacement_requested(id),
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
