//! What workers do when their master is dead.

use std::time::Duration;

use crate::testkit::feed::Task;
use crate::testkit::scene::{Scene, Verdict};
use crate::testkit::{DEADLINE, Kit};

pub(super) fn idle(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &["--workers", "3"])?;
    scene.wait_workers(3)?;
    scene.work(3)?;
    scene.behead()?;
    scene.expect_nobody(Duration::from_secs(5))
}

pub(super) fn busy(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &[])?;
    scene.wait_workers(2)?;
    let slow = scene.begin(Task::Slow(Duration::from_millis(700)))?;
    scene.behead()?;
    scene.finish(slow, "work that was begun before the master died is done")?;
    scene.expect_nobody(Duration::from_secs(12))
}

pub(super) fn hung(kit: &Kit) -> Verdict {
    let mut scene = Scene::start(kit, &["--timeout", "0", "--graceful-timeout", "1s"])?;
    let hanging = scene.begin(Task::Hang)?;
    scene.behead()?;
    scene.expect_nobody(DEADLINE)?;
    drop(hanging);
    Ok(())
}
