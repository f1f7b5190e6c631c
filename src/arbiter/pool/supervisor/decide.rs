//! The rules: what is to be done, given the facts and the moment.

use super::slot::{Slot, State, Worker};
use super::types::{Action, ExitClass, ExitReason, Hang, ReloadPhase, ShutdownMode, WorkerId};
use super::{Phase, Supervisor};
use crate::time::MonotonicTime;

impl Supervisor {
    /// Who is to be ended at `now`, because the whole stops, because of what it does, or because it
    /// has not obeyed. To be asked before [`proceed`](Self::proceed).
    pub(crate) fn enforce_limits(&mut self, now: MonotonicTime) -> Vec<Action> {
        let mut actions = Vec::new();
        self.apply_shutdown(now, &mut actions);
        self.enforce_timeouts(now, &mut actions);
        actions
    }

    /// Who is to come and go at `now`. `all` is how far all pools have come that reload together,
    /// each asked at this moment for its own [`progress`](Self::progress).
    pub(crate) fn reconcile(
        &mut self,
        now: MonotonicTime,
        overall_phase: Option<ReloadPhase>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase != Phase::Serving {
            return actions;
        }
        self.finish_reload(overall_phase, &mut actions);
        if self.is_suspended {
            self.drain_where(ExitReason::Requested, |_, _| true, now, &mut actions);
            return actions;
        }
        self.drain_surplus(now, &mut actions);
        self.drain_replaced(now, &mut actions);
        self.drain_before_replacement(now, &mut actions);
        self.fill_vacancies(now, &mut actions);
        self.start_replacements(now, &mut actions);
        actions
    }

    fn apply_shutdown(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let stop = match self.phase {
            Phase::Serving => return,
            Phase::Stopping(stop) => stop,
            Phase::Failed => ShutdownMode::Kill,
        };
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            let (id, quick_kill_at) = (worker.id, now.saturating_add(worker.policy.abort_timeout));
            let reason = worker.exit_reason(ExitClass::Requested);
            match (stop, worker.state) {
                (ShutdownMode::Graceful, State::Booting | State::Ready) => {
                    worker.begin_drain(ExitReason::Requested, now);
                    actions.push(Action::Drain(id, ExitReason::Requested));
                }
                (ShutdownMode::Quick, State::Booting | State::Ready) => {
                    let reason = ExitReason::Requested;
                    worker.state = State::Stopping {
                        reason,
                        kill_at: quick_kill_at,
                        mode: ShutdownMode::Quick,
                    };
                    actions.push(Action::QuickStop(id));
                }
                (
                    ShutdownMode::Quick,
                    State::Stopping { reason, kill_at, mode: ShutdownMode::Graceful },
                ) => {
                    let kill_at = kill_at.min(quick_kill_at);
                    worker.state = State::Stopping { reason, kill_at, mode: ShutdownMode::Quick };
                    actions.push(Action::QuickStop(id));
                }
                (ShutdownMode::Quick, State::DrainingHung { kill_at }) => {
                    let kill_at = kill_at.min(quick_kill_at);
                    worker.state = State::Stopping { reason, kill_at, mode: ShutdownMode::Quick };
                    actions.push(Action::QuickStop(id));
                }
                (ShutdownMode::Kill, State::Booting | State::Ready) => {
                    worker.state = State::Killed { reason: ExitReason::Requested };
                    actions.push(Action::KillOverdue(id, ExitReason::Requested));
                }
                (
                    ShutdownMode::Kill,
                    State::Stopping { .. } | State::DrainingHung { .. } | State::Aborting { .. },
                ) => {
                    worker.state = State::Killed { reason };
                    actions.push(Action::KillOverdue(id, reason));
                }
                (
                    _,
                    State::Stopping { .. }
                    | State::DrainingHung { .. }
                    | State::Aborting { .. }
                    | State::Killed { .. },
                ) => (),
            }
        }
    }

    /// Aborts what hangs, kills what has not obeyed.
    fn enforce_timeouts(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let (timeout_floor, generation) = (self.timeout_floor, self.generation);
        let mut late = false;
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            let has_passed = |deadline: Option<MonotonicTime>| deadline.is_some_and(|at| at <= now);
            let abort_deadline = now.saturating_add(worker.policy.abort_timeout);
            match worker.state {
                State::Booting if has_passed(worker.boot_deadline(timeout_floor)) => {
                    let hang = Hang::BootTimeout(now.duration_since(worker.started));
                    actions.push(abort_or_kill(
                        worker,
                        hang,
                        ExitReason::BootFailed,
                        abort_deadline,
                    ));
                    late |= worker.generation == generation;
                }
                State::Ready if has_passed(worker.hang_deadline(timeout_floor)) => {
                    let hang = classify_hang(worker, timeout_floor, now);
                    if !worker.is_unresponsive && has_work_in_time(worker, timeout_floor, now) {
                        let kill_at = now.saturating_add(worker.policy.graceful_timeout);
                        worker.state = State::DrainingHung { kill_at };
                        actions.push(Action::DrainHung(worker.id, hang));
                    } else {
                        actions.push(abort_or_kill(worker, hang, ExitReason::Hung, abort_deadline));
                    }
                    late |= worker.generation == generation;
                }
                State::DrainingHung { kill_at }
                    if !has_passed(worker.hang_deadline(timeout_floor)) =>
                {
                    // The thread has come back: the worker drains like any other.
                    let (reason, mode) = (ExitReason::Hung, ShutdownMode::Graceful);
                    worker.state = State::Stopping { reason, kill_at, mode };
                    if kill_at <= now {
                        actions.push(Action::KillOverdue(worker.id, reason));
                        worker.state = State::Killed { reason };
                    }
                }
                State::DrainingHung { kill_at }
                    if kill_at <= now || !has_work_in_time(worker, timeout_floor, now) =>
                {
                    actions
                        .push(Action::Abort(worker.id, classify_hang(worker, timeout_floor, now)));
                    worker.state =
                        State::Aborting { reason: ExitReason::Hung, kill_at: abort_deadline };
                }
                State::Stopping { reason, kill_at, .. } | State::Aborting { reason, kill_at }
                    if kill_at <= now =>
                {
                    actions.push(Action::KillOverdue(worker.id, reason));
                    worker.state = State::Killed { reason };
                }
                State::Booting
                | State::Ready
                | State::Stopping { .. }
                | State::DrainingHung { .. }
                | State::Aborting { .. }
                | State::Killed { .. } => (),
            }
        }
        if let Some(rolling) = &mut self.rolling {
            rolling.failed |= late;
        }
    }

    /// Ends a reload that is complete in all pools, or has failed in one.
    fn finish_reload(&mut self, overall_phase: Option<ReloadPhase>, actions: &mut Vec<Action>) {
        let (Some(rolling), Some(all)) = (&mut self.rolling, overall_phase) else { return };
        rolling.overall_phase = all;
        match all {
            ReloadPhase::Failed => {
                self.policy = rolling.previous_policy;
                self.target = rolling.previous_target;
                self.generation = rolling.previous_generation;
                self.rolling = None;
                self.slots.iter_mut().for_each(Slot::reset_backoff);
                actions.push(Action::RollBack);
            }
            ReloadPhase::Canary | ReloadPhase::Rolling => (),
            ReloadPhase::Complete => {
                self.rolling = None;
                actions.push(Action::Commit);
            }
        }
    }

    /// Lets those go who sit in a slot that is not wished for, or who boot for a generation that
    /// failed. While a reload is not proven everywhere, nobody of the old generation goes.
    fn drain_surplus(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let (target, generation) = (self.target, self.generation);
        let awaits_canary = self.awaits_any_canary();
        let boots_for_failed_reload =
            |_, worker: &Worker| worker.generation > generation && worker.state == State::Booting;
        self.drain_where(ExitReason::Reload, boots_for_failed_reload, now, actions);
        let reason = if target == 0 { ExitReason::Reload } else { ExitReason::ScaledDown };
        self.drain_where(reason, |slot, _| slot >= target && !awaits_canary, now, actions);
    }

    /// Asks those to drain of whom, and of whose slot, `who` holds.
    fn drain_where(
        &mut self,
        reason: ExitReason,
        is_affected: impl Fn(usize, &Worker) -> bool,
        now: MonotonicTime,
        actions: &mut Vec<Action>,
    ) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let chosen = |w: &&mut Worker| matches!(w.state, State::Booting | State::Ready);
            for worker in slot.workers.iter_mut().filter(chosen) {
                if is_affected(index, worker) {
                    worker.begin_drain(reason, now);
                    actions.push(Action::Drain(worker.id, reason));
                }
            }
        }
    }

    fn fill_vacancies(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        // Others may have to wait for long, so whoever is missing is replaced; nobody is added.
        let waits_for_others = self.awaits_any_canary() && !self.awaits_own_canary();
        let before =
            self.rolling.filter(|_| waits_for_others).map(|rolling| rolling.previous_target);
        for slot in 0..before.map_or(self.target, |before| before.min(self.target)) {
            let due = self.slots[slot].not_before <= now && self.slots[slot].is_vacant();
            if due && self.needs_worker(slot) && self.may_start_worker() {
                actions.push(self.start_worker(slot));
            }
        }
    }

    /// New before old: whoever serves is asked to go once a younger one, or one of the generation
    /// that is wished for, is ready in the slot. The last of an old generation stays until the
    /// new one is complete: it may be the only one to serve at an old address.
    fn drain_replaced(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let generation = self.generation;
        let mut old = self.count_old();
        let (rolling, awaits_canary) = (self.rolling.is_some(), self.awaits_any_canary());
        for slot in self.slots.iter_mut().filter(|slot| slot.workers.len() > 1) {
            let new = slot.replacement(generation);
            let Some(replacement) = new.or_else(|| slot.newest_ready()) else { continue };
            let held = awaits_canary && new.is_some();
            for worker in &mut slot.workers {
                let replaced = worker.id < replacement || worker.generation != generation;
                if worker.state != State::Ready || !replaced || worker.id == replacement {
                    continue;
                }
                if rolling && worker.generation < generation {
                    if held || old == 1 {
                        continue;
                    }
                    old -= 1;
                }
                let reason = worker.replacement_reason(generation);
                worker.begin_drain(reason, now);
                actions.push(Action::Drain(worker.id, reason));
            }
        }
    }

    /// Old before new, as far as workers may be missing: asks those to go who are due to be
    /// replaced and have no successor yet. Never before a reload is proven, and never the last of
    /// an old generation.
    fn drain_before_replacement(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let most = self.policy.max_unavailable;
        if most == 0 || self.awaits_any_canary() {
            return;
        }
        let missing = (0..self.target).filter(|slot| !self.slots[*slot].is_served()).count();
        let mut room = most.saturating_sub(missing);
        let (mut old, rolling) = (self.count_old(), self.rolling.is_some());
        for index in 0..self.target {
            let due = self.needs_replacement(index, now) && self.slots[index].not_before <= now;
            if room == 0 || !due || self.slots[index].is_being_filled() {
                continue;
            }
            let generation = self.generation;
            let serves = |worker: &&mut Worker| worker.state == State::Ready;
            let slot = &mut self.slots[index];
            let of_old = slot.workers.iter().filter(|w| w.is_old(generation)).count();
            if rolling && of_old > 0 && of_old == old {
                continue;
            }
            for worker in slot.workers.iter_mut().filter(serves) {
                let reason = worker.replacement_reason(generation);
                worker.begin_drain(reason, now);
                actions.push(Action::Drain(worker.id, reason));
            }
            old -= of_old;
            room -= 1;
        }
    }

    /// How many of an old generation serve.
    fn count_old(&self) -> usize {
        self.workers().filter(|worker| worker.is_old(self.generation)).count()
    }

    /// Whether a reload is under way of whose generation nobody has been ready.
    fn awaits_own_canary(&self) -> bool {
        self.rolling.is_some_and(|rolling| !rolling.canary_ready)
    }

    /// Whether a reload is under way of whose generation nobody has been ready in some pool.
    fn awaits_any_canary(&self) -> bool {
        self.rolling.is_some_and(|rolling| rolling.overall_phase < ReloadPhase::Rolling)
    }

    /// How many successors may be on the way. The first and the last of a reload always may: they
    /// are there before whom they replace, whatever may be missing.
    fn surge(&self) -> usize {
        let is_first_or_last =
            self.awaits_own_canary() || (self.rolling.is_some() && self.count_old() == 1);
        self.policy.max_surge.max(usize::from(is_first_or_last))
    }

    /// Hires a successor for whoever has served its time, a few at a time.
    fn start_replacements(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        if self.awaits_any_canary() && !self.awaits_own_canary() {
            return; // the canary is there, and that of another pool is not
        }
        let retiring: Vec<usize> =
            (0..self.target).filter(|slot| self.needs_replacement(*slot, now)).collect();
        let is_busy = |slot: &usize| self.slots[*slot].is_being_filled();
        let (busy, idle): (Vec<usize>, Vec<usize>) = retiring.into_iter().partition(is_busy);
        let room = self.surge().saturating_sub(busy.len());
        let due = idle.into_iter().filter(|slot| self.slots[*slot].not_before <= now);
        for slot in due.take(room).collect::<Vec<_>>() {
            if self.may_start_worker() {
                actions.push(self.start_worker(slot));
            }
        }
    }

    /// Whether whoever serves in a slot needs a successor.
    fn needs_replacement(&self, slot: usize, now: MonotonicTime) -> bool {
        let slot = &self.slots[slot];
        let replacement = slot.replacement(self.generation);
        slot.workers.iter().filter(|worker| worker.state == State::Ready).any(|worker| {
            let outdated = worker.generation != self.generation && replacement.is_none();
            let aged = worker.replacement_requested
                || worker.recycle_deadline().is_some_and(|at| at <= now);
            outdated || (aged && replacement == Some(worker.id))
        })
    }

    /// Whether another worker may be hired: while a reload is not proven, it has one canary.
    fn may_start_worker(&self) -> bool {
        let awaits_canary = self.awaits_own_canary();
        let is_canary =
            |worker: &Worker| worker.generation == self.generation && worker.is_starting();
        !awaits_canary
            || !(self.slots.iter().any(|slot| slot.spawning) || self.workers().any(is_canary))
    }

    fn start_worker(&mut self, slot: usize) -> Action {
        self.slots[slot].spawning = true;
        self.last_worker_id += 1;
        Action::Spawn { id: WorkerId(self.last_worker_id), slot }
    }

    pub(super) fn needs_worker(&self, slot: usize) -> bool {
        self.phase == Phase::Serving && slot < self.target && !self.is_exhausted(slot)
    }

    /// Whether a slot has used up its tries, which counts only while nothing was ever ready.
    fn is_exhausted(&self, slot: usize) -> bool {
        !self.ever_ready && self.slots[slot].boot_failures > self.policy.boot_retries
    }

    pub(super) fn fail_if_exhausted(&mut self) {
        let all_exhausted = self.target > 0 && (0..self.target).all(|slot| self.is_exhausted(slot));
        if self.phase == Phase::Serving && self.rolling.is_none() && all_exhausted {
            self.phase = Phase::Failed;
        }
    }
}

/// Ends a worker that hangs, by what it can still hear.
fn abort_or_kill(
    worker: &mut Worker,
    hang: Hang,
    reason: ExitReason,
    kill_at: MonotonicTime,
) -> Action {
    if worker.is_unresponsive {
        worker.state = State::Killed { reason };
        return Action::KillHung(worker.id, hang);
    }
    worker.state = State::Aborting { reason, kill_at };
    Action::Abort(worker.id, hang)
}

/// Whether a worker has work that has not taken too long.
fn has_work_in_time(worker: &Worker, timeout_floor: MonotonicTime, now: MonotonicTime) -> bool {
    let in_time =
        |since| worker.timeout_deadline(since, timeout_floor).is_none_or(|limit| now < limit);
    worker.busy.is_some_and(|busy| in_time(busy.newest))
}

fn classify_hang(worker: &Worker, timeout_floor: MonotonicTime, now: MonotonicTime) -> Hang {
    let overdue =
        |since| worker.timeout_deadline(since, timeout_floor).is_some_and(|limit| limit <= now);
    match worker.busy.filter(|busy| overdue(busy.oldest)) {
        Some(busy) => Hang::RequestTimeout(now.duration_since(busy.oldest)),
        None => Hang::NoHeartbeat(now.duration_since(worker.last_beat)),
    }
}
