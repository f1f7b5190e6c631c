//! What happens to a pool on a bad day.

use super::*;

impl World {
    pub(super) fn oversleep(&mut self, before: MonotonicTime, deadline: Option<MonotonicTime>) {
        self.now = self.now.saturating_add(self.within(2 * MINUTE));
        if deadline.is_some_and(|deadline| self.now.duration_since(deadline) > SECOND) {
            self.amnesty = self.now;
            self.roster.discount_stall(before, self.now);
            let lost = self.now.duration_since(before);
            for process in self.processes.values_mut() {
                process.kill_from = process.kill_from.saturating_add(lost);
                process.abort_from = process.abort_from.saturating_add(lost);
            }
        }
    }

    fn any_process(&mut self) -> Option<WorkerId> {
        let count = self.processes.len() as u64;
        let index = if count == 0 { return None } else { self.below(count) as usize };
        self.processes.keys().nth(index).copied()
    }

    /// Something happens to somebody, now and then.
    pub(super) fn mischief(&mut self) {
        match self.below(40) {
            0 => self.resize(),
            1 => self.reload(),
            2 => self.let_go_or_resume(),
            3..=9 => {
                if let Some(id) = self.any_process() {
                    self.harm(id);
                }
            }
            _ => (),
        }
    }

    fn resize(&mut self) {
        let wish = self.below(7) as usize;
        assert_eq!(self.roster.scale_to(wish), wish.max(1));
        if let Some(previous) = &mut self.previous {
            previous.target = wish.max(1);
        }
        self.disturb();
    }

    fn let_go_or_resume(&mut self) {
        let was_gone = self.roster.is_suspended;
        if was_gone || self.below(4) > 0 {
            assert_eq!(self.roster.resume(), was_gone);
        } else {
            self.roster.suspend();
            self.disturb();
        }
    }

    fn reload(&mut self) {
        if self.roster.is_reloading() || self.roster.phase != Phase::Serving {
            return;
        }
        self.roster.resume();
        let (generation, target) = (self.roster.generation(), self.roster.target());
        self.previous = Some(Previous { policy: self.policy, generation, target });
        self.policy = self.any_policy();
        let unchanged = self.below(2) == 0;
        let wish = if unchanged { target } else { 1 + self.below(6) as usize };
        self.smooth = !self.disturbed && self.missing() == 0;
        self.disturbed |= wish != target;
        let successor = self.roster.reload(self.policy, wish);
        assert!(generation < successor);
        self.proven = false;
        self.bad = if self.below(3) == 0 { Some(successor) } else { None };
    }

    fn harm(&mut self, id: WorkerId) {
        let (now, later) = (self.now, self.now.saturating_add(self.within(SECOND)));
        let (what, thread) = (self.below(9), self.below(2) as usize);
        let process = self.processes.get_mut(&id).expect("it was picked from these");
        let drained = now.saturating_add(process.policy.graceful_timeout);
        match what {
            0 => process.end_by(now, ExitClass::Crashed),
            1 => process.end_by(now, ExitClass::KilledExternally),
            2 if process.serves() => {
                process.silent_since.get_or_insert(now);
            }
            3..=5 if process.serves() && process.silent_since.is_none() => {
                let unit = &mut process.units[thread];
                *unit = if unit.is_none() { Some(now) } else { None };
            }
            3..=5 if process.asked == Asked::Condemn => process.units[thread] = None,
            6 if process.serves() => self.roster.on_replacement_requested(id),
            7 if process.is_ready => {
                let is_news = process.asked == Asked::Nothing;
                assert_eq!(self.roster.on_draining(id, now), is_news);
                if is_news {
                    (process.asked, process.kill_from) = (Asked::Drain, drained);
                    process.end_by(later, ExitClass::Requested);
                    self.disturb();
                }
            }
            _ => (),
        }
    }
}
