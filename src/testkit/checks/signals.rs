//! Signals that belong to the runtime.

use std::time::Duration;

use crate::os::signal::Signal;
use crate::os::testing;
use crate::testkit::inspect::SignalSets;
use crate::testkit::log_capture::Record;
use crate::testkit::server::{CheckResult, TestServer};
use crate::testkit::target::TestTarget;

/// How long a worker has to react to SIGTERM.
const REACTION_TIME: Duration = Duration::from_secs(10);

/// The signals that the runtime catches in a worker while its class runs.
const CAUGHT: [Signal; 6] =
    [Signal::Term, Signal::Int, Signal::Quit, Signal::Usr1, Signal::Urg, Signal::ParentDeath];

pub(super) fn signals(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &[])?;
    let workers = server.wait_workers(2)?;
    let worker = workers[0].pid;
    testing::send_signal(worker, Signal::Term);
    let reacts = |record: &Record| {
        record.is("worker draining", worker) || record.is("worker exited", worker)
    };
    let reacted = server.sees_record(REACTION_TIME, reacts).is_some();
    // The other worker, since this one may have exited.
    let sets = SignalSets::of(if reacted { workers[1].pid } else { worker });
    let faults: Vec<_> =
        CAUGHT.iter().filter_map(|signal| describe_fault(&sets, *signal)).collect();
    if !faults.is_empty() {
        return Err(server.violation("a worker handles its signals", faults.join("; ")));
    }
    if !reacted {
        let seen = "SIGTERM is caught (SigCgt), but the runtime is not told: the class has installed \
                    a handler of its own";
        return Err(server.violation("a worker that gets SIGTERM drains", seen));
    }
    Ok(())
}

fn describe_fault(sets: &SignalSets, signal: Signal) -> Option<String> {
    let number = testing::signal_number(signal);
    let fault = if sets.is_blocked(number) {
        "is blocked in all threads (SigBlk)"
    } else if sets.is_ignored(number) {
        "is ignored (SigIgn)"
    } else if !sets.is_caught(number) {
        "has no handler (SigCgt)"
    } else {
        return None;
    };
    Some(format!("SIG{} {fault}", signal.name()))
}
