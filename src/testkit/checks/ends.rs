//! Drains, and quick ends.

use std::time::{Duration, Instant};

use crate::os::testing;
use crate::os::signal::Signal;
use crate::testkit::feed::Task;
use crate::testkit::scene::{Scene, Verdict, ending, since};
use crate::testkit::{DEADLINE, Kit};

/// Far from `graceful_timeout`, which is 30 seconds, and generous on a busy machine.
const SOON: Duration = Duration::from_secs(12);

pub(super) fn drain(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &[])?;
    scene.wait_workers(2)?;
    let slow = scene.begin(Task::Slow(Duration::from_millis(1200)))?;
    scene.tell(Signal::Term)?;
    scene.finish(slow, "work that was begun before a TERM is done")?;
    scene.expect_clean_end(SOON)?;
    expect_good_ends(&scene, "asked")
}

/// Every worker that has ended was asked to, and left with 0.
fn expect_good_ends(scene: &Scene<'_>, reason: &str) -> Verdict {
    for exited in scene.records().iter().filter(|record| record.message() == "worker exited") {
        if exited.text("reason") != Some(reason) || exited.number("code") != Some(0) {
            let expected = "a worker that is asked to leave ends with 0";
            return Err(scene.breach(expected, ending(exited)));
        }
    }
    Ok(())
}

pub(super) fn queue(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &["--workers", "1", "--threads", "1"])?;
    let slow = scene.begin(Task::Slow(Duration::from_millis(800)))?;
    let queued = (0..8).map(|_| scene.begin(Task::Quick)).collect::<Result<Vec<_>, _>>()?;
    scene.tell(Signal::Term)?;
    scene.finish(slow, "work that was begun before a TERM is done")?;
    for errand in queued {
        scene.finish(errand, "work that waits in a queue before a TERM is done")?;
    }
    scene.expect_clean_end(SOON)
}

pub(super) fn idle_clients(kit: &Kit) -> Verdict {
    let flags = ["--keep-alive", "120s", "--header-timeout", "120s"];
    let mut scene = Scene::start(kit, &flags)?;
    let silent = scene.idler()?;
    let mut regular = scene.regular();
    if let Some(regular) = &mut regular {
        regular().map_err(|error| scene.breach("a client who stays is served", error))?;
    }
    let begun = Instant::now();
    scene.tell(Signal::Term)?;
    scene.expect_clean_end(SOON).map_err(|mut breach| {
        let idle = "with idle clients connected, the program ends soon after a TERM";
        breach.expected = format!("{idle} ({})", breach.expected);
        breach.seen = format!("{} ({})", breach.seen, since(begun));
        breach
    })?;
    drop((silent, regular));
    Ok(())
}

pub(super) fn drain_limit(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &["--timeout", "0", "--graceful-timeout", "1s"])?;
    let hanging = scene.begin(Task::Hang)?;
    scene.tell(Signal::Term)?;
    scene.expect_clean_end(SOON)?;
    drop(hanging);
    Ok(())
}

pub(super) fn leave_alone(kit: &Kit) -> Verdict {
    let scene = Scene::start(kit, &[])?;
    let workers = scene.wait_workers(2)?;
    let slow = scene.begin(Task::Slow(Duration::from_millis(700)))?;
    // Whoever has the work is among them.
    for worker in &workers {
        testing::send_signal(worker.pid, Signal::Term);
    }
    scene.finish(slow, "work that was begun before its worker got a TERM is done")?;
    for worker in workers {
        let exited = scene.wait_exited(worker.pid)?;
        if exited.number("code") != Some(0) {
            return Err(scene.breach("a worker that gets a TERM ends with 0", ending(&exited)));
        }
        scene.wait_replaced(worker)?;
    }
    scene.work(3)
}

pub(super) fn quick_end(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &["--abort-grace", "20s"])?;
    scene.wait_workers(2)?;
    let slow = scene.begin(Task::Slow(Duration::from_secs(3600)))?;
    drop(scene.idler()?);
    scene.tell(Signal::Int)?;
    let idle = |record: &crate::testkit::heard::Record| {
        record.message() == "worker exited" && record.number("code") == Some(0)
    };
    // The one with the work may be stuck in it; the other one has no excuse.
    scene.wait_for(0, "an idle worker leaves with 0 at once", idle)?;
    drop(slow);
    drop(scene);
    let mut scene = Scene::start(kit, &["--abort-grace", "1s"])?;
    let slow = scene.begin(Task::Slow(Duration::from_secs(3600)))?;
    scene.tell(Signal::Int)?;
    scene.expect_clean_end(DEADLINE.min(SOON))?;
    drop(slow);
    Ok(())
}
