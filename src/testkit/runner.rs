//! Runs rules in threads of their own, until a deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::checks;
use super::progress::Progress;
use super::report::{Finding, Outcome};
use super::rule::Rule;
use super::server::Violation;
use super::target::TestTarget;

/// Runs rules, a number of them at the same time.
pub(super) struct Runner {
    target: Arc<TestTarget>,
    skipped: Arc<BTreeMap<Rule, String>>,
    parallel: usize,
    end: Instant,
}

impl Runner {
    pub(super) fn new(
        target: &TestTarget,
        skipped: &BTreeMap<Rule, String>,
        parallel: usize,
        deadline: Duration,
    ) -> Self {
        Self {
            target: Arc::new(target.clone()),
            skipped: Arc::new(skipped.clone()),
            parallel,
            end: Instant::now() + deadline,
        }
    }

    /// Runs the rules and reports each finding. After the deadline, it kills their programs and leaves
    /// their threads, which may be stuck in the workload.
    pub(super) fn run(&self, rules: &[Rule], progress: &mut Progress) {
        let (sender, receiver) = mpsc::channel();
        let rules: Arc<[Rule]> = rules.into();
        let next = Arc::new(AtomicUsize::new(0));
        for _ in 0..self.parallel.min(rules.len()) {
            let (rules, next, sender) = (Arc::clone(&rules), Arc::clone(&next), sender.clone());
            let (target, skipped) = (Arc::clone(&self.target), Arc::clone(&self.skipped));
            thread::spawn(move || {
                while let Some(rule) = rules.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send(find(&target, *rule, &skipped)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut missing = rules.to_vec();
        while !missing.is_empty() {
            let left = self.end.saturating_duration_since(Instant::now());
            let Ok(finding) = receiver.recv_timeout(left) else { break };
            missing.retain(|rule| *rule != finding.rule);
            progress.add(finding);
        }
        if !missing.is_empty() {
            next.store(rules.len(), Ordering::Relaxed);
            self.target.kill_running();
            progress.add_out_of_time(&missing);
        }
    }

    /// Runs a function in a thread of its own. Returns none if it is not complete at the deadline, or
    /// panics.
    pub(super) fn within_deadline<R: Send + 'static>(
        &self,
        run: impl FnOnce(&TestTarget) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = mpsc::channel();
        let target = Arc::clone(&self.target);
        thread::spawn(move || send(&sender, run(&target)));
        receiver.recv_timeout(self.end.saturating_duration_since(Instant::now())).ok()
    }
}

/// Sends a result, unless its receiver has given up.
fn send<R>(sender: &Sender<R>, result: R) {
    let _ = sender.send(result);
}

fn find(target: &TestTarget, rule: Rule, skipped: &BTreeMap<Rule, String>) -> Finding {
    let begun = Instant::now();
    let outcome = match skipped.get(&rule) {
        Some(reason) => Outcome::Skipped(reason.clone()),
        None => match checks::check(rule, target) {
            Ok(()) => Outcome::Passed,
            Err(Violation { expected, seen }) => Outcome::Violated { expected, seen },
        },
    };
    Finding { rule, outcome, took: begun.elapsed() }
}
