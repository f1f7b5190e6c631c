//! Heartbeats, and hang detection without them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::os::testing;
use crate::testkit::log_capture::Record;
use crate::testkit::proc::{stat, voluntary_switches};
use crate::testkit::server::{CheckResult, TestServer, describe_exit, since, under_load};
use crate::testkit::target::TestTarget;
use crate::testkit::workload::Task;

/// The flags of these checks: no heartbeat for 1 s is a hang.
const TIMEOUT: [&str; 4] = ["--timeout", "1s", "--abort-timeout", "500ms"];
/// How long a unit may take beside a hung one.
const TASK_TIME: Duration = Duration::from_secs(2);
/// More than twice the `timeout` of these checks.
const OBSERVATION_TIME: Duration = Duration::from_millis(2500);

pub(super) fn idle(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &TIMEOUT)?;
    server.wait_workers(2)?;
    expect_no_disturbance(&server, OBSERVATION_TIME)
}

pub(super) fn busy(target: &TestTarget) -> CheckResult {
    let mut server = TestServer::start(target, &TIMEOUT)?;
    server.wait_workers(2)?;
    under_load(&mut server, |server| expect_no_disturbance(server, OBSERVATION_TIME))
}

/// Expects that no worker hangs, exits or is killed for this time.
fn expect_no_disturbance(server: &TestServer<'_>, time: Duration) -> CheckResult {
    let is_disturbance = |record: &Record| {
        ["worker hung", "worker exited", "worker killed"].contains(&record.message())
    };
    match server.sees_record(time, is_disturbance) {
        None => Ok(()),
        Some(record) => {
            let seen = format!("the log says {:?}", record.message());
            Err(server.violation("a healthy worker keeps running", seen))
        }
    }
}

/// Checks that idle workers sleep, and seldom wake. Samples their state, not their CPU time: on a busy
/// machine, a worker that never sleeps gets little CPU time.
pub(super) fn quiet(target: &TestTarget) -> CheckResult {
    const SAMPLES: u32 = 35;
    const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
    const WAKES_MAX: u64 = 100;
    let server = TestServer::start(target, &[])?;
    let workers = server.wait_workers(2)?;
    server.work(2)?;
    let mut seen = String::new();
    for _ in 0..3 {
        let wakes = || workers.iter().map(|worker| voluntary_switches(worker.pid)).sum::<u64>();
        let ticks = || workers.iter().filter_map(|w| stat(w.pid)).map(|s| s.ticks).sum::<u64>();
        let wakes_before = wakes();
        let ticks_before = ticks();
        let mut asleep = 0;
        for _ in 0..SAMPLES {
            expect_no_disturbance(&server, SAMPLE_INTERVAL)?;
            let is_asleep = |pid| stat(pid).is_some_and(|stat| stat.state == 'S');
            asleep += u32::from(workers.iter().all(|worker| is_asleep(worker.pid)));
        }
        let woke = wakes().saturating_sub(wakes_before);
        if asleep > SAMPLES / 2 && woke <= WAKES_MAX {
            return Ok(());
        }
        seen = format!(
            "in {:?}, they sleep in {asleep} of {SAMPLES} samples, wake {woke} times, and use {} \
             clock ticks of CPU time",
            SAMPLE_INTERVAL * SAMPLES,
            ticks().saturating_sub(ticks_before)
        );
    }
    Err(server.violation("idle workers sleep", seen))
}

pub(super) fn hang(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &TIMEOUT)?;
    let workers = server.wait_workers(2)?;
    let begun = Instant::now();
    let hanging = server.begin(Task::Hang)?;
    let expected = "the worker that runs a hanging unit is detected within a few seconds";
    let hung = server.wait_for(0, expected, |record| record.message() == "worker hung")?;
    let Some(victim) = workers.iter().find(|worker| Some(worker.pid) == hung.pid()) else {
        return Err(server.violation(expected, "another process is"));
    };
    // The kernel's clock ticks may be as coarse as 10 ms.
    if hung.seen - begun < Duration::from_millis(980) {
        return Err(server.violation("a hang is not detected before `timeout`", since(begun)));
    }
    expect_exit_by_hang(&server, &server.wait_exited(victim.pid)?)?;
    server.wait_replaced(*victim)?;
    drop(hanging);
    server.work(3)
}

/// Hangs one unit while a single worker gets more work, which its other threads complete.
pub(super) fn hang_among_others(target: &TestTarget) -> CheckResult {
    let mut flags = vec!["--workers", "1"];
    flags.extend(TIMEOUT);
    let server = TestServer::start(target, &flags)?;
    let worker = server.wait_workers(1)?[0];
    let hanging = server.begin(Task::Hang)?;
    let found = AtomicBool::new(false);
    let detected = thread::scope(|scope| {
        scope.spawn(|| {
            while !found.load(Ordering::Relaxed) {
                // It fails if the worker has one thread.
                let _ = server.try_begin(Task::Quick).and_then(|work| work.wait(TASK_TIME));
                thread::sleep(Duration::from_millis(10));
            }
        });
        let expected = "a hanging unit is detected while its worker completes other units";
        let is_hang = |record: &Record| record.is("worker hung", worker.pid);
        let detected = server.wait_for(0, expected, is_hang);
        found.store(true, Ordering::Relaxed);
        detected
    });
    drop(hanging);
    detected.map(|_| ())
}

pub(super) fn stopped(target: &TestTarget) -> CheckResult {
    let server = TestServer::start(target, &TIMEOUT)?;
    let victim = server.wait_workers(2)?[0];
    testing::send_sigstop(victim.pid);
    let expected = "a worker stopped by SIGSTOP is detected as hung";
    server.wait_for(0, expected, |record| record.is("worker hung", victim.pid))?;
    expect_exit_by_hang(&server, &server.wait_exited(victim.pid)?)?;
    server.wait_replaced(victim)?;
    server.work(3)
}

fn expect_exit_by_hang(server: &TestServer<'_>, exited: &Record) -> CheckResult {
    let signal = exited.text("signal");
    if exited.text("reason") == Some("hung") && matches!(signal, Some("SIGABRT" | "SIGKILL")) {
        return Ok(());
    }
    Err(server
        .violation("a hung worker is terminated by SIGABRT or SIGKILL", describe_exit(exited)))
}
