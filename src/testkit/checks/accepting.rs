//! When workers begin and cease to take work, and how much.

use std::thread;
use std::time::{Duration, Instant};

use crate::os::signal::Signal;
use crate::os::testing;
use crate::testkit::deadline::DEADLINE;
use crate::testkit::inspect::connections;
use crate::testkit::proc::becomes_true;
use crate::testkit::server::{CheckResult, TestServer, describe_exit};
use crate::testkit::target::TestTarget;
use crate::testkit::workload::Task;

/// Compares the first unit of work with the quickest of three later ones. Only a delay that recurs at
/// each start counts: on a busy machine, any unit may be late.
pub(super) fn ready_in_time(target: &TestTarget) -> CheckResult {
    const STARTS: usize = 4;
    const LATER_UNITS: usize = 3;
    const DELAY_MAX: Duration = Duration::from_millis(300);
    let mut seen = Vec::new();
    for _ in 0..STARTS {
        let server = TestServer::start(target, &["--workers", "1"])?;
        let first = time_unit(&server)?;
        let mut later = Duration::MAX;
        for _ in 0..LATER_UNITS {
            later = later.min(time_unit(&server)?);
        }
        if first.saturating_sub(later) <= DELAY_MAX {
            return Ok(());
        }
        seen.push(format!("{} and {} ms", first.as_millis(), later.as_millis()));
        if seen.len() == STARTS {
            let seen = format!("they take {}", seen.join(", "));
            let expected = "after *worker ready*, the first unit takes as long as later ones";
            return Err(server.violation(expected, seen));
        }
    }
    Ok(())
}

fn time_unit(server: &TestServer<'_>) -> Result<Duration, crate::testkit::server::Violation> {
    let begun = Instant::now();
    server.work(1)?;
    Ok(begun.elapsed())
}

/// Sends bursts with pauses of various lengths to a worker that has no heartbeat to send: nothing but
/// the work wakes it.
pub(super) fn wake_ups(target: &TestTarget) -> CheckResult {
    const ROUNDS: u64 = 60;
    let server = TestServer::start(target, &["--workers", "1", "--timeout", "0"])?;
    for round in 0..ROUNDS {
        let burst = (0..1 + round % 3).map(|_| server.begin(Task::Quick));
        for work in burst.collect::<Result<Vec<_>, _>>()? {
            server.finish(work, "work completes, although no other event wakes the worker")?;
        }
        thread::sleep(Duration::from_millis(round % 20));
    }
    Ok(())
}

/// Connects three times as many idle clients as a worker may have, and counts those that it has.
pub(super) fn client_limit(target: &TestTarget) -> CheckResult {
    const LIMIT: usize = 8;
    const OBSERVATION_TIME: Duration = Duration::from_millis(600);
    let limit = LIMIT.to_string();
    let mut flags = vec!["--workers", "1", "--worker-connections", &limit];
    flags.extend(["--keep-alive", "120s", "--header-timeout", "120s"]);
    let server = TestServer::start(target, &flags)?;
    let Some(address) = server.info.address() else { return Ok(()) };
    let worker = server.wait_workers(1)?[0];
    let mut clients = Vec::new();
    for _ in 0..3 * LIMIT {
        let Some(client) = server.idle_client()? else { return Ok(()) };
        clients.push(client);
    }
    if !becomes_true(DEADLINE, || connections(worker.pid, address.port()) > 0) {
        return Err(server.violation("a worker accepts clients", "it has none"));
    }
    let mut most = 0;
    becomes_true(OBSERVATION_TIME, || {
        most = most.max(connections(worker.pid, address.port()));
        most > LIMIT
    });
    if most > LIMIT {
        let expected = format!("with `worker_connections` {LIMIT}, a worker has {LIMIT} clients");
        return Err(server.violation(expected, format!("it has {most}")));
    }
    drop(clients);
    server.work(3)
}

/// Sends work while one worker drains. Work that begins later is for its replacement.
pub(super) fn stops_accepting(target: &TestTarget) -> CheckResult {
    const GRACE: Duration = Duration::from_millis(100);
    const UNITS_MAX: usize = 1;
    let server = TestServer::start(target, &["--workers", "1"])?;
    let worker = server.wait_workers(1)?[0];
    let slow = server.begin(Task::Slow(Duration::from_millis(700)))?;
    testing::send_signal(worker.pid, Signal::Term);
    let expected = "a worker that gets SIGTERM drains";
    let draining =
        server.wait_for(0, expected, |record| record.is("worker draining", worker.pid))?;
    let mut late_units = 0;
    let end = Instant::now() + DEADLINE;
    while !server.has_exited(worker.pid) && Instant::now() < end {
        let begun = Instant::now();
        let burst = (0..4).map(|_| server.begin(Task::Quick)).collect::<Result<Vec<_>, _>>()?;
        for work in burst {
            let done = work.wait(DEADLINE);
            let done = done
                .map_err(|error| server.violation("work that begins meanwhile completes", error))?;
            let is_late = begun > draining.seen + GRACE;
            late_units +=
                usize::from(is_late && done.worker == u32::try_from(worker.pid.as_raw()).ok());
        }
    }
    server.finish(slow, "work that began before SIGTERM completes")?;
    let exited = server.wait_exited(worker.pid)?;
    if late_units > UNITS_MAX {
        let seen = format!(
            "it completes {late_units} units that began more than {} ms later ({})",
            GRACE.as_millis(),
            describe_exit(&exited)
        );
        let expected = "after *worker draining*, a worker leaves new work to its replacement";
        return Err(server.violation(expected, seen));
    }
    Ok(())
}
