//! What must hold at every step.

use super::*;

impl Simulation {
    pub(super) fn check_exit_report(&self, process: &Process, report: &ExitReport) {
        assert_eq!((report.slot, report.generation), (process.slot, process.generation));
        assert_eq!(report.uptime, self.now.duration_since(process.since));
        if self.supervisor.phase != Phase::Serving || process.slot >= self.supervisor.target() {
            assert_eq!(report.restart_in, None);
        }
        let others = self.processes.values().any(|p| p.slot == process.slot && p.is_active());
        assert!(report.restart_in.is_none() || !others, "the slot is served");
        assert!(process.request != Request::DrainHung || report.reason == ExitReason::Hung);
        assert!(report.restart_in.is_none_or(|delay| delay <= BACKOFF_MAX));
    }

    /// Checks that an action is allowed at the time at which it is returned.
    pub(super) fn check_before(&self, action: Action) {
        match action {
            Action::Spawn { id, slot, max_units } => {
                self.check_spawn(id, slot);
                self.check_max_units(max_units);
            }
            Action::Drain(id, reason) => self.check_drain(id, reason),
            Action::QuickStop(id) => {
                assert!(self.processes[&id].request < Request::QuickStop);
                assert_eq!(self.supervisor.stopping(), Some(ShutdownMode::Quick));
            }
            Action::DrainHung(id, hang) => {
                let process = &self.processes[&id];
                assert_eq!(process.request, Request::Nothing);
                assert!(self.hangs(process) && self.has_work_in_time(process));
                let oldest = process.busy().map(|busy| self.now.duration_since(busy.oldest));
                assert_eq!(Some(hang), oldest.map(Hang::RequestTimeout));
            }
            Action::Abort(id, hang) => self.check_abort(&self.processes[&id], hang),
            Action::Kill(id, _) => {
                let process = &self.processes[&id];
                assert!(process.request < Request::Kill);
                let has_failed = self.supervisor.phase == Phase::Failed;
                assert!(!has_failed || !self.ever_ready);
                let ordered = has_failed || self.supervisor.stopping() == Some(ShutdownMode::Kill);
                assert!(ordered || process.kill_from <= self.now, "too early: {process:?}");
            }
            Action::KillHung(..) => panic!("no process here is unresponsive"),
        }
    }

    /// Checks a commit: the new generation serves everywhere, and an old worker still serves.
    pub(super) fn check_commit(&mut self) {
        self.previous.take().expect("a reload is in progress");
        let generation = self.supervisor.generation();
        let is_new = |p: &Process| p.generation == generation && p.is_active();
        assert!(self.all_slots_have(is_new), "too early");
        let is_old = |p: &Process| p.generation < generation && p.serves();
        let any_old = self.processes.values().any(is_old);
        assert!(!self.is_undisturbed_reload || any_old, "too late");
    }

    /// Checks that a roll-back restores what held before the reload.
    pub(super) fn check_roll_back(&mut self) {
        let previous = self.previous.take().expect("a reload is in progress");
        assert_eq!(previous.generation, self.supervisor.generation());
        assert_eq!(previous.target, self.supervisor.target());
        (self.policy, self.range) = (previous.policy, previous.range);
    }

    fn check_spawn(&self, id: WorkerId, slot: usize) {
        assert!(!self.processes.contains_key(&id));
        assert!(self.supervisor.phase == Phase::Serving && !self.supervisor.is_suspended);
        assert!(slot < self.supervisor.target());
        let boots = |p: &Process| !p.is_ready && p.request == Request::Nothing;
        assert!(!self.processes.values().any(|p| p.slot == slot && boots(p)), "twice: {slot}");
        if self.supervisor.is_reloading() && !self.canary_ready {
            let is_canary = |p: &Process| p.generation == self.supervisor.generation() && boots(p);
            assert!(!self.processes.values().any(is_canary), "a second canary");
        }
    }

    fn check_max_units(&self, max_units: u64) {
        let Policy { max_requests, max_requests_jitter: jitter, .. } = self.policy;
        let most = if max_requests == 0 { 0 } else { max_requests + jitter };
        assert!((max_requests..=most).contains(&max_units), "{max_units} units");
    }

    fn check_drain(&self, id: WorkerId, reason: ExitReason) {
        let process = &self.processes[&id];
        assert_eq!(process.request, Request::Nothing);
        let awaits_canary = self.supervisor.is_reloading() && !self.canary_ready;
        match reason {
            ExitReason::Requested => {
                assert!(self.supervisor.stopping().is_some() || self.supervisor.is_suspended)
            }
            ExitReason::ScaledDown => {
                assert!(process.slot >= self.supervisor.target() && !awaits_canary);
                assert!(!self.is_last_serving(process), "nobody serves without {process:?}");
            }
            ExitReason::Reload
                if process.generation > self.supervisor.generation() && !process.is_ready =>
            {
                assert!(!self.supervisor.is_reloading());
            }
            ExitReason::Reload | ExitReason::Recycled => {
                let generation = self.supervisor.generation();
                let is_outdated = process.generation != generation;
                assert_eq!(is_outdated, reason == ExitReason::Reload);
                let replaces = |other: WorkerId, p: &Process| {
                    let is_better = id < other || (is_outdated && p.generation == generation);
                    p.slot == process.slot && p.is_active() && is_better
                };
                let is_replaced = self.processes.iter().any(|(other, p)| replaces(*other, p));
                if is_replaced {
                    assert!(!self.is_last_serving(process), "nobody serves without {process:?}");
                } else {
                    assert!(self.may_be_missing(process), "too early: {process:?}");
                }
            }
            ExitReason::Hung
            | ExitReason::Crashed
            | ExitReason::OomKilled
            | ExitReason::BootFailed => {
                panic!("{reason:?}")
            }
        }
    }

    /// Returns whether no other worker serves, or none of the committed generation. A worker that boots does
    /// not serve.
    fn is_last_serving(&self, process: &Process) -> bool {
        let committed = self.committed_generation();
        let serving = || self.processes.values().filter(|p| p.serves());
        let of_committed = serving().filter(|p| p.generation == committed).count();
        process.serves()
            && (serving().count() == 1 || (process.generation == committed && of_committed == 1))
    }

    fn committed_generation(&self) -> u32 {
        let present = self.supervisor.generation();
        self.previous.map_or(present, |previous| previous.generation)
    }

    /// Returns whether `max_unavailable` allows the worker to drain before its replacement is ready.
    fn may_be_missing(&self, process: &Process) -> bool {
        let is_last = self.supervisor.is_reloading() && self.is_last_serving(process);
        let awaits_canary = self.supervisor.is_reloading() && !self.canary_ready;
        let any_held = self.processes.values().any(Process::is_held);
        let serving = self.processes.values().filter(|p| p.serves()).count();
        let is_last_beside_held = process.serves() && any_held && serving == 1;
        let is_allowed = process.is_held() || self.missing() < self.policy.max_unavailable;
        self.policy.max_unavailable > 0
            && !is_last
            && !is_last_beside_held
            && !awaits_canary
            && is_allowed
    }

    /// Returns how many slots lack a worker: one in drain mode is not there to serve, and is no loss.
    pub(super) fn missing(&self) -> usize {
        let has_worker =
            |slot: usize| self.processes.values().any(|p| p.slot == slot && p.is_active());
        let slots = (0..self.supervisor.target()).filter(|slot| !self.given_up.contains(slot));
        slots.filter(|slot| !has_worker(*slot)).count()
    }

    fn check_abort(&self, process: &Process, hang: Hang) {
        let is_draining_hung = process.request == Request::DrainHung;
        assert!(is_draining_hung || process.request == Request::Nothing);
        match hang {
            Hang::BootTimeout(age) => {
                assert!(!process.is_ready);
                assert_eq!(age, self.now.duration_since(process.since));
                assert!(!process.policy.boot_timeout.is_zero());
                let deadline = process
                    .since
                    .max(process.timeout_floor)
                    .saturating_add(process.policy.boot_timeout);
                assert!(deadline <= self.now);
                return;
            }
            Hang::NoHeartbeat(age) => {
                assert_eq!(age, self.now.duration_since(process.beat(self.now)))
            }
            Hang::RequestTimeout(age) => {
                let oldest = process.busy().map(|busy| busy.oldest);
                assert_eq!(Some(age), oldest.map(|oldest| self.now.duration_since(oldest)));
            }
        }
        assert!(self.hangs(process), "it does not hang: {process:?}");
        let may_finish = self.has_work_in_time(process);
        assert!(!may_finish || (is_draining_hung && process.abort_from <= self.now), "too early");
    }

    fn is_overdue(&self, process: &Process, since: MonotonicTime) -> bool {
        let limit = process.policy.timeout;
        !limit.is_zero() && since.max(process.timeout_floor).saturating_add(limit) <= self.now
    }

    /// Returns whether its oldest unit of work, or else its silence, exceeds `timeout`.
    pub(super) fn hangs(&self, process: &Process) -> bool {
        let since = process.busy().map_or(process.beat(self.now), |busy| busy.oldest);
        process.is_ready && self.is_overdue(process, since)
    }

    /// Returns whether its newest unit of work is within `timeout`.
    fn has_work_in_time(&self, process: &Process) -> bool {
        process.busy().is_some_and(|busy| !self.is_overdue(process, busy.newest))
    }

    /// Checks what must hold after all actions are applied.
    pub(super) fn check_after(&mut self, actions: &[Action], failed_forks: usize) {
        let next = self.supervisor.next_deadline(self.now);
        let spins = next.is_some_and(|at| at <= self.now);
        assert!(!spins, "{next:?} has passed, after {actions:?}");
        if failed_forks == 0 && self.steps.is_multiple_of(4) {
            assert_eq!(self.supervisor.actions_due(self.now), [], "again, after {actions:?}");
        }
        let active = self.processes.values().filter(|p| p.request == Request::Nothing);
        let missed = active.clone().find(|process| self.hangs(process));
        assert!(missed.is_none(), "{missed:?}, after {actions:?}");
        let mut draining_hung = self.processes.values().filter(|p| p.request == Request::DrainHung);
        let useless = draining_hung.find(|p| !self.has_work_in_time(p) || p.abort_from <= self.now);
        assert!(useless.is_none(), "{useless:?}, after {actions:?}");
        let least_request = match self.supervisor.stopping() {
            None => Request::Nothing,
            Some(ShutdownMode::Graceful) => Request::Drain,
            Some(ShutdownMode::Quick) => Request::QuickStop,
            Some(ShutdownMode::Kill) => Request::Kill,
        };
        let missed_stop = self.processes.values().find(|process| process.request < least_request);
        assert!(missed_stop.is_none(), "{missed_stop:?}, after {actions:?}");
        let missing = self.missing();
        self.has_disturbance &= missing > 0;
        // Workers that drained under an earlier policy are not restored.
        let earlier = if missing == 0 { 0 } else { self.unavailable };
        self.unavailable = earlier.max(self.policy.max_unavailable);
        let may_be_short = self.has_disturbance || self.supervisor.stopping().is_some();
        assert!(may_be_short || missing <= self.unavailable, "too few, after {actions:?}");
        let served = active.filter(|process| process.serves()).count();
        assert_eq!(self.supervisor.ready_count(), served);
        for (id, process) in &self.processes {
            let is_off = self.supervisor.drain_progress(*id) == DrainProgress::Off;
            assert_eq!(process.is_held(), !is_off, "{process:?}");
        }
        assert_eq!(self.supervisor.is_reloading(), self.previous.is_some());
        self.check_surge();
        self.check_surplus();
        self.check_outage();
    }

    /// Checks that a worker beyond the target is kept only if none within it can take its place.
    fn check_surplus(&self) {
        let awaits_canary = self.supervisor.is_reloading() && !self.canary_ready;
        let is_serving = self.supervisor.phase == Phase::Serving && !self.supervisor.is_suspended;
        if awaits_canary || !is_serving {
            return;
        }
        let target = self.supervisor.target();
        let active = || self.processes.values().filter(|p| p.request == Request::Nothing);
        let surplus: Vec<_> = active().filter(|p| target <= p.slot).collect();
        assert!(surplus.len() <= 1, "{surplus:?}");
        let Some(kept) = surplus.first() else { return };
        // A worker of the reload in progress yields to every other, also to one of an earlier failed one.
        let claim = |p: &Process| match p.generation {
            generation if generation == self.committed_generation() => 2,
            generation if generation == self.supervisor.generation() => 0,
            _ => 1,
        };
        let is_equal = |p: &Process| p.serves() && claim(p) >= claim(kept);
        let other = active().find(|p| p.slot < target && is_equal(p));
        assert!(kept.serves() && other.is_none(), "{kept:?}, {other:?}");
    }

    /// Checks that the slots of a pool that has served never all wait for longer than a second.
    fn check_outage(&self) {
        let is_active = |p: &Process| p.request == Request::Nothing && !p.is_held();
        let is_serving = self.supervisor.phase == Phase::Serving && !self.supervisor.is_suspended;
        if is_serving && self.ever_ready && !self.processes.values().any(is_active) {
            let next = self.supervisor.next_deadline(self.now);
            let latest = self.now.saturating_add(SECOND);
            assert!(next.is_some_and(|at| at <= latest), "all slots wait until {next:?}");
        }
    }

    /// Checks that replacements beyond one worker a slot are no more than `max_surge`, and one more
    /// for a canary, the last old worker, or the last one that serves beside workers in drain mode.
    fn check_surge(&mut self) {
        let active = self.processes.values().filter(|p| p.request == Request::Nothing);
        let slots: BTreeSet<usize> = active.clone().map(|process| process.slot).collect();
        let replacements = active.count() - slots.len();
        // Workers started under an earlier policy are not withdrawn.
        let earlier = if replacements == 0 { 0 } else { self.surge };
        let any_held = self.processes.values().any(Process::is_held);
        let extra =
            usize::from(self.supervisor.is_reloading() || (any_held && self.policy.max_surge == 0));
        let most = earlier.max(self.policy.max_surge) + extra;
        assert!(replacements <= most, "{replacements} replacements");
        self.surge = earlier.max(self.policy.max_surge).max(replacements);
    }

    pub(super) fn all_slots_have(&self, quality: impl Fn(&Process) -> bool) -> bool {
        let mut missing = (0..self.supervisor.target()).filter(|slot| {
            !self.processes.values().any(|process| process.slot == *slot && quality(process))
        });
        missing.next().is_none()
    }

    /// Returns whether every slot has one ready worker that need not be replaced, and no other process is
    /// left.
    pub(super) fn has_converged(&self) -> bool {
        let is_due = |slot| self.supervisor.needs_replacement(slot, self.now);
        !self.supervisor.is_reloading()
            && self.processes.len() == self.supervisor.target()
            && self.all_slots_have(Process::is_active)
            && self.processes.values().any(Process::serves)
            && !(0..self.supervisor.target()).any(is_due)
    }
}
