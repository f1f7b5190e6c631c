//! The rules: which actions follow from the facts at a given time.

use super::slot::{Slot, State, Worker};
use super::types::{
    Action, Busy, Desired, ExitClass, ExitReason, Hang, ReloadPhase, ShutdownMode, WorkerId,
};
use super::{Phase, Standby, Supervisor};
use crate::time::MonotonicTime;

impl Supervisor {
    /// Returns the actions for a stopping pool, for hung workers and for workers that have exceeded a
    /// drain or abort deadline. Call before [`reconcile`](Self::reconcile).
    pub(crate) fn enforce_limits(&mut self, now: MonotonicTime) -> Vec<Action> {
        let mut actions = Vec::new();
        self.apply_shutdown(now, &mut actions);
        self.enforce_timeouts(now, &mut actions);
        actions
    }

    /// Returns the actions that bring the pool to its target and generation. `overall_phase` is the
    /// smallest [`reload_phase`](Self::reload_phase) at `now` of all pools that reload together.
    pub(crate) fn reconcile(
        &mut self,
        now: MonotonicTime,
        overall_phase: Option<ReloadPhase>,
    ) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase != Phase::Serving {
            return actions;
        }
        self.end_rolling_reload(overall_phase);
        if self.is_suspended() {
            self.drain_where(ExitReason::Requested, 0, |_| true, now, &mut actions);
            return actions;
        }
        let last_serving = self.last_serving();
        self.drain_surplus(last_serving, now, &mut actions);
        self.drain_replaced(last_serving, now, &mut actions);
        self.drain_before_replacement(last_serving, now, &mut actions);
        self.fill_vacancies(now, &mut actions);
        self.start_replacements(now, &mut actions);
        actions
    }

    fn apply_shutdown(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let is_over = self.standby == Some(Standby::Kill);
        let mode = match self.phase {
            Phase::Serving | Phase::Stopping(_) if is_over => ShutdownMode::Kill,
            Phase::Serving => return,
            Phase::Stopping(mode) => mode,
            Phase::Failed => ShutdownMode::Kill,
        };
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            let id = worker.id;
            let quick_kill_at = now.saturating_add(worker.policy.abort_timeout);
            let reason = worker.exit_reason(ExitClass::Requested);
            match (mode, worker.state) {
                (ShutdownMode::Graceful, State::Booting | State::Ready) => {
                    worker.begin_drain(ExitReason::Requested, now);
                    actions.push(Action::Drain(id, ExitReason::Requested));
                }
                (ShutdownMode::Quick, State::Booting | State::Ready) => {
                    worker.state = State::Stopping {
                        reason: ExitReason::Requested,
                        kill_at: quick_kill_at,
                        mode,
                    };
                    actions.push(Action::QuickStop(id));
                }
                (
                    ShutdownMode::Quick,
                    State::Stopping { reason, kill_at, mode: ShutdownMode::Graceful },
                ) => {
                    let kill_at = kill_at.min(quick_kill_at);
                    worker.state = State::Stopping { reason, kill_at, mode };
                    actions.push(Action::QuickStop(id));
                }
                (ShutdownMode::Quick, State::DrainingHung { kill_at }) => {
                    let kill_at = kill_at.min(quick_kill_at);
                    worker.state = State::Stopping { reason, kill_at, mode };
                    actions.push(Action::QuickStop(id));
                }
                (ShutdownMode::Kill, State::Booting | State::Ready) => {
                    worker.state = State::Killed { reason: ExitReason::Requested };
                    actions.push(Action::Kill(id, ExitReason::Requested));
                }
                (
                    ShutdownMode::Kill,
                    State::Stopping { .. } | State::DrainingHung { .. } | State::Aborting { .. },
                ) => {
                    worker.state = State::Killed { reason };
                    actions.push(Action::Kill(id, reason));
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

    /// Aborts or drains hung workers, and kills those that have exceeded a drain or abort deadline.
    fn enforce_timeouts(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let generation = self.desired.generation;
        let mut current_hangs = false;
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            let has_passed = |deadline: Option<MonotonicTime>| deadline.is_some_and(|at| at <= now);
            let abort_deadline = now.saturating_add(worker.policy.abort_timeout);
            match worker.state {
                State::Booting if has_passed(worker.boot_deadline()) => {
                    let hang = Hang::BootTimeout(now.duration_since(worker.started));
                    actions.push(abort_or_kill(
                        worker,
                        hang,
                        ExitReason::BootFailed,
                        abort_deadline,
                    ));
                    current_hangs |= worker.generation == generation;
                }
                State::Ready if has_passed(worker.hang_deadline()) => {
                    let hang = classify_hang(worker, now);
                    if !worker.is_unresponsive && has_work_in_time(worker, now) {
                        let kill_at = now.saturating_add(worker.policy.graceful_timeout);
                        worker.state = State::DrainingHung { kill_at };
                        worker.discounted_stalls = 0;
                        actions.push(Action::DrainHung(worker.id, hang));
                    } else {
                        actions.push(abort_or_kill(worker, hang, ExitReason::Hung, abort_deadline));
                    }
                    current_hangs |= worker.generation == generation;
                }
                State::DrainingHung { kill_at } if !has_passed(worker.hang_deadline()) => {
                    // The hung thread has recovered: this becomes an ordinary drain.
                    let reason = ExitReason::Hung;
                    let mode = ShutdownMode::Graceful;
                    worker.state = State::Stopping { reason, kill_at, mode };
                    if kill_at <= now {
                        actions.push(Action::Kill(worker.id, reason));
                        worker.state = State::Killed { reason };
                    }
                }
                State::DrainingHung { kill_at }
                    if kill_at <= now || !has_work_in_time(worker, now) =>
                {
                    let hang = classify_hang(worker, now);
                    actions.push(Action::Abort(worker.id, hang));
                    worker.state =
                        State::Aborting { reason: ExitReason::Hung, kill_at: abort_deadline };
                    worker.discounted_stalls = 0;
                }
                State::Stopping { reason, kill_at, .. } | State::Aborting { reason, kill_at }
                    if kill_at <= now =>
                {
                    actions.push(Action::Kill(worker.id, reason));
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
            rolling.failed |= current_hangs;
        }
    }

    /// Ends the reload if it is complete in all pools, or rolls it back if it has failed in one.
    fn end_rolling_reload(&mut self, overall_phase: Option<ReloadPhase>) {
        let (Some(rolling), Some(overall_phase)) = (&mut self.rolling, overall_phase) else {
            return;
        };
        rolling.overall_phase = overall_phase;
        match overall_phase {
            ReloadPhase::Failed => {
                self.desired = rolling.previous_desired;
                self.rolling = None;
                self.slots.iter_mut().for_each(Slot::reset_backoff);
            }
            ReloadPhase::Canary | ReloadPhase::Rolling => (),
            ReloadPhase::AllReady => self.rolling = None,
        }
    }

    /// Drains workers in slots beyond the target, and workers that boot for a rolled-back
    /// generation. Before every pool's canary is ready, no worker of the old generation drains.
    fn drain_surplus(
        &mut self,
        last_serving: Option<WorkerId>,
        now: MonotonicTime,
        actions: &mut Vec<Action>,
    ) {
        let Desired { target, generation, .. } = self.desired;
        let awaits_canary = self.awaits_any_canary();
        if self.newest_generation > generation {
            let boots_for_failed_reload =
                |worker: &Worker| worker.generation > generation && worker.state == State::Booting;
            self.drain_where(ExitReason::Reload, 0, boots_for_failed_reload, now, actions);
        }
        let reason = if target == 0 { ExitReason::Reload } else { ExitReason::ScaledDown };
        if !awaits_canary {
            self.drain_where(reason, target, |it| Some(it.id) != last_serving, now, actions);
        }
    }

    /// Drains the booting and ready workers, from a slot on, for which `is_affected` holds.
    fn drain_where(
        &mut self,
        reason: ExitReason,
        first_slot: usize,
        is_affected: impl Fn(&Worker) -> bool,
        now: MonotonicTime,
        actions: &mut Vec<Action>,
    ) {
        for slot in self.slots.iter_mut().skip(first_slot) {
            let is_active = |w: &&mut Worker| matches!(w.state, State::Booting | State::Ready);
            for worker in slot.workers.iter_mut().filter(is_active) {
                if is_affected(worker) {
                    worker.begin_drain(reason, now);
                    actions.push(Action::Drain(worker.id, reason));
                }
            }
        }
    }

    /// Starts a worker in each vacant slot. While only another pool's canary is awaited, which may
    /// take long, lost workers are replaced but the pool does not grow.
    fn fill_vacancies(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let outage_retry = self.outage_retry().filter(|(_, at)| *at <= now).map(|(slot, _)| slot);
        for slot in 0..self.fillable_count() {
            let is_due = self.slots[slot].not_before <= now || outage_retry == Some(slot);
            let is_open = self.slots[slot].is_vacant() && self.needs_worker(slot);
            if is_due && is_open && self.may_start_worker() {
                actions.push(self.start_worker(slot));
            }
        }
    }

    /// Returns how many slots may be filled if they are vacant.
    fn fillable_count(&self) -> usize {
        let target = self.desired.target;
        match self.rolling {
            Some(rolling) if self.awaits_other_canary() => {
                target.min(rolling.previous_desired.target)
            }
            _ => target,
        }
    }

    /// Returns which slot to try next, and when, while the pool has no worker that is ready or
    /// starting. `None` before a worker was ever ready: then `boot_retries` counts the attempts.
    pub(super) fn outage_retry(&self) -> Option<(usize, MonotonicTime)> {
        let has_worker =
            || self.slots.iter().any(|slot| slot.has_serving() || slot.is_being_filled());
        if !self.ever_ready || self.is_suspended() || has_worker() {
            return None;
        }
        let is_open = |slot: &usize| self.slots[*slot].is_vacant() && self.needs_worker(*slot);
        let slots = (0..self.fillable_count()).filter(is_open);
        let slot = slots.min_by_key(|slot| self.slots[*slot].not_before)?;
        Some((slot, self.slots[slot].not_before.min(self.restarts.outage_retry_at)))
    }

    /// Returns when a vacant slot is refilled.
    pub(super) fn restart_time(&self, slot: usize) -> MonotonicTime {
        match self.outage_retry() {
            Some((next, at)) if next == slot => at,
            Some(_) | None => self.slots[slot].not_before,
        }
    }

    /// New before old: drains a ready worker once a newer one, or one of the pool's generation, is
    /// ready in its slot.
    fn drain_replaced(
        &mut self,
        last_serving: Option<WorkerId>,
        now: MonotonicTime,
        actions: &mut Vec<Action>,
    ) {
        let generation = self.desired.generation;
        let awaits_canary = self.awaits_any_canary();
        for slot in self.slots.iter_mut().filter(|slot| slot.workers.len() > 1) {
            let Some(kept) = slot.kept_worker(generation).copied() else { continue };
            let is_held = awaits_canary && kept.generation == generation;
            for worker in &mut slot.workers {
                let is_replaced = worker.id < kept.id || worker.generation != generation;
                let stays = worker.id == kept.id || Some(worker.id) == last_serving;
                let is_held = is_held && worker.generation < generation;
                if worker.state != State::Ready || !is_replaced || stays || is_held {
                    continue;
                }
                let reason = worker.replacement_reason(generation);
                worker.begin_drain(reason, now);
                actions.push(Action::Drain(worker.id, reason));
            }
        }
    }

    /// Old before new, as far as `max_unavailable` allows: drains workers that are due for
    /// replacement before their replacement is started. Not before every pool's canary is ready, and
    /// during a reload not the last worker that serves. A worker in drain mode is not missing: an operator
    /// wants it so. But the last one that serves beside it is replaced by a surge.
    fn drain_before_replacement(
        &mut self,
        last_serving: Option<WorkerId>,
        now: MonotonicTime,
        actions: &mut Vec<Action>,
    ) {
        let Desired { policy, target, generation } = self.desired;
        if policy.max_unavailable == 0 || self.awaits_any_canary() {
            return;
        }
        let is_missing = |slot: &&Slot| !slot.has_serving() && !slot.is_in_drain_mode();
        let missing = self.slots.iter().take(target).filter(is_missing).count();
        let mut allowed = policy.max_unavailable.saturating_sub(missing);
        let is_reloading = self.rolling.is_some();
        let is_held = |slot: &usize| self.slots[*slot].is_in_drain_mode();
        let (held, others): (Vec<_>, Vec<_>) = (0..target).partition(is_held);
        for index in held.into_iter().chain(others) {
            let is_due = self.needs_replacement(index, now) && self.slots[index].not_before <= now;
            // Nothing is lost with a slot whose worker is in drain mode.
            let cost = usize::from(self.slots[index].has_serving());
            if allowed < cost || !is_due || self.slots[index].is_being_filled() {
                continue;
            }
            if cost > 0 && self.has_one_serving_beside_drained() {
                continue;
            }
            let is_ready = |worker: &&mut Worker| worker.state == State::Ready;
            let slot = &mut self.slots[index];
            if is_reloading && slot.workers.iter().any(|worker| Some(worker.id) == last_serving) {
                continue;
            }
            for worker in slot.workers.iter_mut().filter(is_ready) {
                let reason = worker.replacement_reason(generation);
                worker.begin_drain(reason, now);
                actions.push(Action::Drain(worker.id, reason));
            }
            allowed = allowed.saturating_sub(1); // from now on the slot is missing
        }
    }

    /// Returns in how many slots a worker of an old generation serves.
    fn count_old(&self) -> usize {
        let is_old =
            |worker: &Worker| worker.is_old(self.desired.generation) && worker.is_serving();
        self.slots.iter().filter(|slot| slot.workers.iter().any(is_old)).count()
    }

    /// Returns how many replacements may be starting: `max_surge`, but at least 1 for the first and
    /// the last replacement of a reload, which never leave a slot unserved, and for the last worker
    /// that serves beside others in drain mode.
    fn surge(&self) -> usize {
        if self.desired.policy.max_surge > 0 {
            return self.desired.policy.max_surge;
        }
        let is_first_or_last =
            self.awaits_own_canary() || (self.rolling.is_some() && self.count_old() == 1);
        usize::from(is_first_or_last || self.has_one_serving_beside_drained())
    }

    /// Starts replacements for outdated and recycled workers, as many at a time as the surge allows.
    fn start_replacements(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        if self.awaits_other_canary() {
            return;
        }
        let slots = 0..self.desired.target;
        let replaced = slots.filter(|slot| self.needs_replacement(*slot, now));
        let is_being_filled = |slot: &usize| self.slots[*slot].is_being_filled();
        let (filling, waiting): (Vec<usize>, Vec<usize>) = replaced.partition(is_being_filled);
        let allowed = self.surge().saturating_sub(filling.len());
        let due = waiting.into_iter().filter(|slot| self.slots[*slot].not_before <= now);
        for slot in due.take(allowed).collect::<Vec<_>>() {
            if self.may_start_worker() {
                actions.push(self.start_worker(slot));
            }
        }
    }

    /// Returns whether a ready worker in the slot must be replaced: it is outdated, or it is the
    /// newest of the pool's generation and due for recycling.
    pub(super) fn needs_replacement(&self, slot: usize, now: MonotonicTime) -> bool {
        let slot = &self.slots[slot];
        let generation = self.desired.generation;
        let replacement = slot.replacement(generation);
        slot.workers.iter().filter(|worker| worker.state == State::Ready).any(|worker| {
            let is_outdated = worker.generation != generation && replacement.is_none();
            let is_recycled = worker.replacement_requested
                || worker.recycle_deadline().is_some_and(|at| at <= now);
            is_outdated || (is_recycled && replacement == Some(worker.id))
        })
    }

    /// Returns whether a worker may be started: until the canary is ready, it is the only one.
    fn may_start_worker(&self) -> bool {
        let generation = self.desired.generation;
        let is_canary = |worker: &Worker| worker.generation == generation && worker.is_starting();
        !self.awaits_own_canary()
            || !(self.slots.iter().any(|slot| slot.spawning) || self.workers().any(is_canary))
    }

    fn start_worker(&mut self, slot: usize) -> Action {
        self.slots[slot].spawning = true;
        self.last_worker_id += 1;
        let id = WorkerId(self.last_worker_id);
        Action::Spawn { id, slot, max_units: self.next_max_units() }
    }

    /// Returns whether the slot is within the target of a serving pool, and not exhausted.
    pub(super) fn needs_worker(&self, slot: usize) -> bool {
        self.phase == Phase::Serving && slot < self.desired.target && !self.is_exhausted(slot)
    }
}

/// Aborts a hung worker, or kills it if no other signal reaches it.
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
    worker.discounted_stalls = 0;
    Action::Abort(worker.id, hang)
}

/// Returns whether a worker's newest unit of work is within `timeout`.
fn has_work_in_time(worker: &Worker, now: MonotonicTime) -> bool {
    let in_time = |since| worker.timeout_deadline(since).is_none_or(|at| now < at);
    worker.busy.is_some_and(|busy| in_time(busy.newest))
}

/// Returns which limit a worker that counts as hung has exceeded.
fn classify_hang(worker: &Worker, now: MonotonicTime) -> Hang {
    let deadline = |since| worker.timeout_deadline(since);
    let is_overdue = |busy: &Busy| deadline(busy.oldest).is_some_and(|at| at <= now);
    match worker.busy.filter(is_overdue) {
        Some(busy) => Hang::RequestTimeout(now.duration_since(busy.oldest)),
        None => Hang::NoHeartbeat(now.duration_since(worker.last_beat)),
    }
}
