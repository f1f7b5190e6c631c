//! Beats, and their absence.

use std::time::{Duration, Instant};

use crate::os::testing;
use crate::testkit::heard::Record;
use crate::testkit::proc::{stat, times_asleep};
use crate::testkit::scene::{Scene, Verdict, ending, since, under_load};
use crate::testkit::{Kit, Task};

/// So long a silence is a hang in these checks.
const TIMEOUT: [&str; 4] = ["--timeout", "1s", "--abort-grace", "500ms"];
/// More than twice as long.
const A_WHILE: Duration = Duration::from_millis(2500);

pub(super) fn idle(kit: &Kit) -> Verdict {
    let scene = Scene::start(kit, &TIMEOUT)?;
    scene.wait_workers(2)?;
    expect_peace(&scene, A_WHILE)
}

pub(super) fn busy(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &TIMEOUT)?;
    scene.wait_workers(2)?;
    under_load(&mut scene, |scene| expect_peace(scene, A_WHILE))
}

/// Nobody is found hung, and nobody leaves, for so long.
fn expect_peace(scene: &Scene<'_>, time: Duration) -> Verdict {
    let is_disturbance = |record: &Record| {
        ["worker hung", "worker exited", "worker is killed"].contains(&record.message())
    };
    match scene.hears(time, is_disturbance) {
        None => Ok(()),
        Some(record) => {
            let seen = format!("the log says {:?}", record.message());
            Err(scene.breach("a healthy worker is left alone", seen))
        }
    }
}

/// A worker that has nothing to do sleeps, and is seldom awake. It is looked at, rather than at the
/// time that it uses: on a busy machine a worker that never sleeps gets little.
pub(super) fn quiet(kit: &Kit) -> Verdict {
    const LOOKS: u32 = 35;
    const EVERY: Duration = Duration::from_millis(20);
    const WAKES_MAX: u64 = 100;
    let scene = Scene::start(kit, &[])?;
    let workers = scene.wait_workers(2)?;
    scene.work(2)?;
    let mut seen = String::new();
    for _ in 0..3 {
        let wakes = || workers.iter().map(|worker| times_asleep(worker.pid)).sum::<u64>();
        let ticks = || workers.iter().filter_map(|w| stat(w.pid)).map(|s| s.ticks).sum::<u64>();
        let (before, ran, mut asleep) = (wakes(), ticks(), 0);
        for _ in 0..LOOKS {
            expect_peace(&scene, EVERY)?;
            let is_asleep = |pid| stat(pid).is_some_and(|stat| stat.state == 'S');
            asleep += u32::from(workers.iter().all(|worker| is_asleep(worker.pid)));
        }
        let woke = wakes().saturating_sub(before);
        if asleep > LOOKS / 2 && woke <= WAKES_MAX {
            return Ok(());
        }
        seen = format!(
            "in {:?} they sleep at {asleep} of {LOOKS} looks, wake {woke} times, and run for {} \
             hundredths of a second",
            EVERY * LOOKS,
            ticks().saturating_sub(ran)
        );
    }
    Err(scene.breach("workers with nothing to do sleep", seen))
}

pub(super) fn hang(kit: &Kit) -> Verdict {
    let scene = Scene::start(kit, &TIMEOUT)?;
    let workers = scene.wait_workers(2)?;
    let begun = Instant::now();
    let hanging = scene.begin(Task::Hang)?;
    let expected = "a worker that hangs in its work is found hung within a few seconds";
    let hung = scene.wait_for(0, expected, |record| record.message() == "worker hung")?;
    let Some(victim) = workers.iter().find(|worker| Some(worker.pid) == hung.pid()) else {
        return Err(scene.breach(expected, "somebody else is"));
    };
    // The kernel's ticks may be as coarse as ten milliseconds.
    if hung.seen - begun < Duration::from_millis(980) {
        return Err(scene.breach("a hang is not found before `timeout`", since(begun)));
    }
    expect_end_by_hang(&scene, &scene.wait_exited(victim.pid)?)?;
    scene.wait_replaced(*victim)?;
    drop(hanging);
    scene.work(3)
}

pub(super) fn stopped(kit: &Kit) -> Verdict {
    let scene = Scene::start(kit, &TIMEOUT)?;
    let victim = scene.wait_workers(2)?[0];
    testing::send_sigstop(victim.pid);
    let expected = "a worker that is stopped (SIGSTOP) is found hung";
    scene.wait_for(0, expected, |record| record.says("worker hung", victim.pid))?;
    expect_end_by_hang(&scene, &scene.wait_exited(victim.pid)?)?;
    scene.wait_replaced(victim)?;
    scene.work(3)
}

fn expect_end_by_hang(scene: &Scene<'_>, exited: &Record) -> Verdict {
    let signal = exited.text("signal");
    if exited.text("reason") == Some("hung") && matches!(signal, Some("SIGABRT" | "SIGKILL")) {
        return Ok(());
    }
    Err(scene.breach("a hung worker ends by SIGABRT or SIGKILL", ending(exited)))
}
