//! The rules: what is to be done, given the facts and the moment.

use super::slot::{Slot, State, Worker};
use super::words::{Action, Ending, Hang, Progress, Reason, Stop, WorkerId};
use super::{Phase, Roster};
use crate::time::MonotonicTime;

impl Roster {
    /// Who is to be ended at `now`, because the whole stops, because of what it does, or because it
    /// has not obeyed. To be asked before [`proceed`](Self::proceed).
    pub(crate) fn judge(&mut self, now: MonotonicTime) -> Vec<Action> {
        let mut actions = Vec::new();
        self.stop_them(now, &mut actions);
        self.end_the_overdue(now, &mut actions);
        actions
    }

    /// Who is to come and go at `now`. `all` is how far all pools have come that reload together,
    /// each asked at this moment for its own [`progress`](Self::progress).
    pub(crate) fn proceed(&mut self, now: MonotonicTime, all: Option<Progress>) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase != Phase::Serving {
            return actions;
        }
        self.conclude_reload(all, &mut actions);
        if self.let_go {
            self.send_away(Reason::Asked, |_, _| true, now, &mut actions);
            return actions;
        }
        self.let_surplus_go(now, &mut actions);
        self.retire_the_replaced(now, &mut actions);
        self.retire_in_advance(now, &mut actions);
        self.fill_vacancies(now, &mut actions);
        self.hire_successors(now, &mut actions);
        actions
    }

    fn stop_them(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let stop = match self.phase {
            Phase::Serving => return,
            Phase::Stopping(stop) => stop,
            Phase::GivingUp => Stop::Kill,
        };
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            let (id, quick) = (worker.id, now.saturating_add(worker.policy.abort_grace));
            let reason = worker.reason(Ending::Obedient);
            match (stop, worker.state) {
                (Stop::Graceful, State::Booting | State::Ready) => {
                    worker.leave(Reason::Asked, now);
                    actions.push(Action::Drain(id, Reason::Asked));
                }
                (Stop::Quick, State::Booting | State::Ready) => {
                    let reason = Reason::Asked;
                    worker.state = State::Leaving { reason, kill_at: quick, how: Stop::Quick };
                    actions.push(Action::Quit(id));
                }
                (Stop::Quick, State::Leaving { reason, kill_at, how: Stop::Graceful }) => {
                    let kill_at = kill_at.min(quick);
                    worker.state = State::Leaving { reason, kill_at, how: Stop::Quick };
                    actions.push(Action::Quit(id));
                }
                (Stop::Quick, State::Condemned { kill_at }) => {
                    let kill_at = kill_at.min(quick);
                    worker.state = State::Leaving { reason, kill_at, how: Stop::Quick };
                    actions.push(Action::Quit(id));
                }
                (Stop::Kill, State::Booting | State::Ready) => {
                    worker.state = State::Killed { reason: Reason::Asked };
                    actions.push(Action::Kill(id, Reason::Asked));
                }
                (
                    Stop::Kill,
                    State::Leaving { .. } | State::Condemned { .. } | State::Aborted { .. },
                ) => {
                    worker.state = State::Killed { reason };
                    actions.push(Action::Kill(id, reason));
                }
                (
                    _,
                    State::Leaving { .. }
                    | State::Condemned { .. }
                    | State::Aborted { .. }
                    | State::Killed { .. },
                ) => (),
            }
        }
    }

    /// Aborts what hangs, kills what has not obeyed.
    fn end_the_overdue(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let (amnesty, generation) = (self.amnesty, self.generation);
        let mut late = false;
        for worker in self.slots.iter_mut().flat_map(|slot| &mut slot.workers) {
            let has_come = |deadline: Option<MonotonicTime>| deadline.is_some_and(|at| at <= now);
            let grace = now.saturating_add(worker.policy.abort_grace);
            match worker.state {
                State::Booting if has_come(worker.boot_deadline(amnesty)) => {
                    let hang = Hang::Boot(now.duration_since(worker.started));
                    actions.push(end(worker, hang, Reason::BootFailure, grace));
                    late |= worker.generation == generation;
                }
                State::Ready if has_come(worker.hang_deadline(amnesty)) => {
                    let hang = describe_hang(worker, amnesty, now);
                    if !worker.is_deaf && has_unharmed_work(worker, amnesty, now) {
                        let kill_at = now.saturating_add(worker.policy.graceful);
                        worker.state = State::Condemned { kill_at };
                        actions.push(Action::Condemn(worker.id, hang));
                    } else {
                        actions.push(end(worker, hang, Reason::Hung, grace));
                    }
                    late |= worker.generation == generation;
                }
                State::Condemned { kill_at } if !has_come(worker.hang_deadline(amnesty)) => {
                    // The thread has come back: the worker drains like any other.
                    let (reason, how) = (Reason::Hung, Stop::Graceful);
                    worker.state = State::Leaving { reason, kill_at, how };
                    if kill_at <= now {
                        actions.push(Action::Kill(worker.id, reason));
                        worker.state = State::Killed { reason };
                    }
                }
                State::Condemned { kill_at }
                    if kill_at <= now || !has_unharmed_work(worker, amnesty, now) =>
                {
                    actions.push(Action::Abort(worker.id, describe_hang(worker, amnesty, now)));
                    worker.state = State::Aborted { reason: Reason::Hung, kill_at: grace };
                }
                State::Leaving { reason, kill_at, .. } | State::Aborted { reason, kill_at }
                    if kill_at <= now =>
                {
                    actions.push(Action::Kill(worker.id, reason));
                    worker.state = State::Killed { reason };
                }
                State::Booting
                | State::Ready
                | State::Leaving { .. }
                | State::Condemned { .. }
                | State::Aborted { .. }
                | State::Killed { .. } => (),
            }
        }
        if let Some(rolling) = &mut self.rolling {
            rolling.failed |= late;
        }
    }

    /// Ends a reload that is complete in all pools, or has failed in one.
    fn conclude_reload(&mut self, all: Option<Progress>, actions: &mut Vec<Action>) {
        let (Some(rolling), Some(all)) = (&mut self.rolling, all) else { return };
        rolling.all = all;
        match all {
            Progress::Failed => {
                self.policy = rolling.policy;
                self.target = rolling.target;
                self.generation = rolling.generation;
                self.rolling = None;
                self.slots.iter_mut().for_each(Slot::forgive);
                actions.push(Action::RollBack);
            }
            Progress::TriedOut | Progress::Proven => (),
            Progress::Complete => {
                self.rolling = None;
                actions.push(Action::Commit);
            }
        }
    }

    /// Lets those go who sit in a slot that is not wished for, or who boot for a generation that
    /// failed. While a reload is not proven everywhere, nobody of the old generation goes.
    fn let_surplus_go(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let (target, generation) = (self.target, self.generation);
        let held = self.is_held();
        let boots_in_vain =
            |_, worker: &Worker| worker.generation > generation && worker.state == State::Booting;
        self.send_away(Reason::Reload, boots_in_vain, now, actions);
        let reason = if target == 0 { Reason::Reload } else { Reason::Scaled };
        self.send_away(reason, |slot, _| slot >= target && !held, now, actions);
    }

    /// Asks those to drain of whom, and of whose slot, `who` holds.
    fn send_away(
        &mut self,
        reason: Reason,
        who: impl Fn(usize, &Worker) -> bool,
        now: MonotonicTime,
        actions: &mut Vec<Action>,
    ) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let chosen = |w: &&mut Worker| matches!(w.state, State::Booting | State::Ready);
            for worker in slot.workers.iter_mut().filter(chosen) {
                if who(index, worker) {
                    worker.leave(reason, now);
                    actions.push(Action::Drain(worker.id, reason));
                }
            }
        }
    }

    fn fill_vacancies(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        // Others may have to wait for long, so whoever is missing is replaced; nobody is added.
        let waits_for_others = self.is_held() && !self.is_unproven();
        let before = self.rolling.filter(|_| waits_for_others).map(|rolling| rolling.target);
        for slot in 0..before.map_or(self.target, |before| before.min(self.target)) {
            let due = self.slots[slot].not_before <= now && self.slots[slot].is_vacant();
            if due && self.wants_holder(slot) && self.may_hire() {
                actions.push(self.hire(slot));
            }
        }
    }

    /// New before old: whoever serves is asked to go once a younger one, or one of the generation
    /// that is wished for, is ready in the slot. The last of an old generation stays until the
    /// new one is complete: it may be the only one to serve at an old address.
    fn retire_the_replaced(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let generation = self.generation;
        let mut old = self.count_old();
        let (rolling, held) = (self.rolling.is_some(), self.is_held());
        for slot in self.slots.iter_mut().filter(|slot| slot.workers.len() > 1) {
            let new = slot.heir(generation);
            let Some(heir) = new.or_else(|| slot.youngest()) else { continue };
            let held = held && new.is_some();
            for worker in &mut slot.workers {
                let replaced = worker.id < heir || worker.generation != generation;
                if worker.state != State::Ready || !replaced || worker.id == heir {
                    continue;
                }
                if rolling && worker.generation < generation {
                    if held || old == 1 {
                        continue;
                    }
                    old -= 1;
                }
                let reason = worker.why_replaced(generation);
                worker.leave(reason, now);
                actions.push(Action::Drain(worker.id, reason));
            }
        }
    }

    /// Old before new, as far as workers may be missing: asks those to go who are due to be
    /// replaced and have no successor yet. Never before a reload is proven, and never the last of
    /// an old generation.
    fn retire_in_advance(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        let most = self.policy.max_unavailable;
        if most == 0 || self.is_held() {
            return;
        }
        let missing = (0..self.target).filter(|slot| !self.slots[*slot].is_served()).count();
        let mut room = most.saturating_sub(missing);
        let (mut old, rolling) = (self.count_old(), self.rolling.is_some());
        for index in 0..self.target {
            let due = self.retires(index, now) && self.slots[index].not_before <= now;
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
                let reason = worker.why_replaced(generation);
                worker.leave(reason, now);
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
    fn is_unproven(&self) -> bool {
        self.rolling.is_some_and(|rolling| !rolling.proven)
    }

    /// Whether a reload is under way of whose generation nobody has been ready in some pool.
    fn is_held(&self) -> bool {
        self.rolling.is_some_and(|rolling| rolling.all < Progress::Proven)
    }

    /// How many successors may be on the way. The first and the last of a reload always may: they
    /// are there before whom they replace, whatever may be missing.
    fn surge(&self) -> usize {
        let is_first_or_last =
            self.is_unproven() || (self.rolling.is_some() && self.count_old() == 1);
        self.policy.max_surge.max(usize::from(is_first_or_last))
    }

    /// Hires a successor for whoever has served its time, a few at a time.
    fn hire_successors(&mut self, now: MonotonicTime, actions: &mut Vec<Action>) {
        if self.is_held() && !self.is_unproven() {
            return; // the canary is there, and that of another pool is not
        }
        let retiring: Vec<usize> =
            (0..self.target).filter(|slot| self.retires(*slot, now)).collect();
        let is_busy = |slot: &usize| self.slots[*slot].is_being_filled();
        let (busy, idle): (Vec<usize>, Vec<usize>) = retiring.into_iter().partition(is_busy);
        let room = self.surge().saturating_sub(busy.len());
        let due = idle.into_iter().filter(|slot| self.slots[*slot].not_before <= now);
        for slot in due.take(room).collect::<Vec<_>>() {
            if self.may_hire() {
                actions.push(self.hire(slot));
            }
        }
    }

    /// Whether whoever serves in a slot needs a successor.
    fn retires(&self, slot: usize, now: MonotonicTime) -> bool {
        let slot = &self.slots[slot];
        let heir = slot.heir(self.generation);
        slot.workers.iter().filter(|worker| worker.state == State::Ready).any(|worker| {
            let outdated = worker.generation != self.generation && heir.is_none();
            let aged = worker.spent || worker.retire_deadline().is_some_and(|at| at <= now);
            outdated || (aged && heir == Some(worker.id))
        })
    }

    /// Whether another worker may be hired: while a reload is not proven, it has one canary.
    fn may_hire(&self) -> bool {
        let unproven = self.is_unproven();
        let is_canary =
            |worker: &Worker| worker.generation == self.generation && worker.is_arriving();
        !unproven || !(self.slots.iter().any(|slot| slot.spawning) || self.workers().any(is_canary))
    }

    fn hire(&mut self, slot: usize) -> Action {
        self.slots[slot].spawning = true;
        self.hired += 1;
        Action::Spawn { id: WorkerId(self.hired), slot }
    }

    pub(super) fn wants_holder(&self, slot: usize) -> bool {
        self.phase == Phase::Serving && slot < self.target && !self.is_exhausted(slot)
    }

    /// Whether a slot has used up its tries, which counts only while nothing was ever ready.
    fn is_exhausted(&self, slot: usize) -> bool {
        !self.ever_ready && self.slots[slot].boot_failures > self.policy.boot_retries
    }

    pub(super) fn give_up_if_hopeless(&mut self) {
        let hopeless = self.target > 0 && (0..self.target).all(|slot| self.is_exhausted(slot));
        if self.phase == Phase::Serving && self.rolling.is_none() && hopeless {
            self.phase = Phase::GivingUp;
        }
    }
}

/// Ends a worker that hangs, by what it can still hear.
fn end(worker: &mut Worker, hang: Hang, reason: Reason, kill_at: MonotonicTime) -> Action {
    if worker.is_deaf {
        worker.state = State::Killed { reason };
        return Action::End(worker.id, hang);
    }
    worker.state = State::Aborted { reason, kill_at };
    Action::Abort(worker.id, hang)
}

/// Whether a worker has work that has not taken too long.
fn has_unharmed_work(worker: &Worker, amnesty: MonotonicTime, now: MonotonicTime) -> bool {
    let in_time = |since| worker.limit(since, amnesty).is_none_or(|limit| now < limit);
    worker.busy.is_some_and(|busy| in_time(busy.newest))
}

fn describe_hang(worker: &Worker, amnesty: MonotonicTime, now: MonotonicTime) -> Hang {
    let overdue = |since| worker.limit(since, amnesty).is_some_and(|limit| limit <= now);
    match worker.busy.filter(|busy| overdue(busy.oldest)) {
        Some(busy) => Hang::Overdue(now.duration_since(busy.oldest)),
        None => Hang::Silent(now.duration_since(worker.beat)),
    }
}
