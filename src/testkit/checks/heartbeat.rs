//! Beats, and their absence.

use std::time::{Duration, Instant};

use crate::os::testing;
use crate::testkit::log_capture::Record;
use crate::testkit::proc::{stat, voluntary_switches};
use crate::testkit::server::{CheckResult, TestServer, describe_exit, since, under_load};
use crate::testkit::{ContractTest, Task};

/// So long a silence is a hang in these checks.
const TIMEOUT: [&str; 4] = ["--timeout", "1s", "--abort-timeout", "500ms"];
/// More than twice as long.
const OBSERVATION_TIME: Duration = Duration::from_millis(2500);

pub(super) fn idle(test: &ContractTest) -> CheckResult {
    let server = TestServer::start(test, &TIMEOUT)?;
    server.wait_workers(2)?;
    expect_no_disturbance(&server, OBSERVATION_TIME)
}

pub(super) fn busy(test: &ContractTest) -> CheckResult {
    let mut server = TestServer::start(test, &TIMEOUT)?;
    server.wait_workers(2)?;
    under_load(&mut server, |scene| expect_no_disturbance(scene, OBSERVATION_TIME))
}

/// Nobody is found hung, and nobody leaves, for so long.
fn expect_no_disturbance(server: &TestServer<'_>, time: Duration) -> CheckResult {
    let is_disturbance = |record: &Record| {
        ["worker hung", "worker exited", "worker killed"].contains(&record.message())
    };
    match server.sees_record(time, is_disturbance) {
        None => Ok(()),
        Some(record) => {
            let seen = format!("the log says {:?}", record.message());
            Err(server.violation("a healthy worker is left alone", seen))
        }
    }
}

/// A worker that has nothing to do sleeps, and is seldom awake. It is looked at, rather than at the
/// time that it uses: on a busy machine a worker that never sleeps gets little.
pub(super) fn quiet(test: &ContractTest) -> CheckResult {
    const SAMPLES: u32 = 35;
    const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
    const WAKES_MAX: u64 = 100;
    let server = TestServer::start(test, &[])?;
    let workers = server.wait_workers(2)?;
    server.work(2)?;
    let mut seen = String::new();
    for _ in 0..3 {
        let wakes = || workers.iter().map(|worker| voluntary_switches(worker.pid)).sum::<u64>();
        let ticks = || workers.iter().filter_map(|w| stat(w.pid)).map(|s| s.ticks).sum::<u64>();
        let (before, ran, mut asleep) = (wakes(), ticks(), 0);
        for _ in 0..SAMPLES {
            expect_no_disturbance(&server, SAMPLE_INTERVAL)?;
            let is_asleep = |pid| stat(pid).is_some_and(|stat| stat.state == 'S');
            asleep += u32::from(workers.iter().all(|worker| is_asleep(worker.pid)));
        }
        let woke = wakes().saturating_sub(before);
        if asleep > SAMPLES / 2 && woke <= WAKES_MAX {
            return Ok(());
        }
        seen = format!(
            "in {:?} they sleep at {asleep} of {SAMPLES} looks, wake {woke} times, and run for {} \
             hundredths of a second",
            SAMPLE_INTERVAL * SAMPLES,
            ticks().saturating_sub(ran)
        );
    }
    Err(server.violation("workers with nothing to do sleep", seen))
}

pub(super) fn hang(test: &ContractTest) -> CheckResult {
    let server = TestServer::start(test, &TIMEOUT)?;
    let workers = server.wait_workers(2)?;
    let begun = Instant::now();
    let hanging = server.begin(Task::Hang)?;
    let expected = "a worker that hangs in its work is found hung within a few seconds";
    let hung = server.wait_for(0, expected, |record| record.message() == "worker hung")?;
    let Some(victim) = workers.iter().find(|worker| Some(worker.pid) == hung.pid()) else {
        return Err(server.violation(expected, "somebody else is"));
    };
    // The kernel's ticks may be as coarse as ten milliseconds.
    if hung.seen - begun < Duration::from_millis(980) {
        return Err(server.violation("a hang is not found before `timeout`", since(begun)));
    }
    expect_exit_by_hang(&server, &server.wait_exited(victim.pid)?)?;
    server.wait_replaced(*victim)?;
    drop(hanging);
    server.work(3)
}

pub(super) fn stopped(test: &ContractTest) -> CheckResult {
    let server = TestServer::start(test, &TIMEOUT)?;
    let victim = server.wait_workers(2)?[0];
    testing::send_sigstop(victim.pid);
    let expected = "a worker that is stopped (SIGSTOP) is found hung";
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
    Err(server.violation("a hung worker ends by SIGABRT or SIGKILL", describe_exit(exited)))
}
