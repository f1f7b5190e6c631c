//! What workers, their clients and their replacements leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::os::testing;
use crate::os::signal::Signal;
use crate::testkit::feed::Task;
use crate::testkit::proc::{children, comes_true};
use crate::testkit::scene::{Scene, Verdict};
use crate::testkit::{DEADLINE, Kit, Pid};

pub(super) fn killed(kit: &Kit) -> Verdict {
    let scene = Scene::start(kit, &[])?;
    for victim in scene.wait_workers(2)? {
        testing::send_sigkill(victim.pid);
        scene.wait_exited(victim.pid)?;
        scene.work(2)?;
        scene.wait_replaced(victim)?;
        scene.work(2)?;
    }
    Ok(())
}

pub(super) fn descriptors(kit: &Kit) -> Verdict {
    const UNITS: usize = 60;
    let scene = Scene::start(kit, &["--workers", "1"])?;
    let worker = scene.wait_workers(1)?[0];
    // Whatever is made once has been made after a few.
    scene.work(5)?;
    let mut before = count(worker.pid);
    comes_true(DEADLINE / 20, || {
        before = before.min(count(worker.pid));
        false
    });
    for _ in 0..UNITS / 3 {
        scene.work(2)?;
        drop(scene.idler()?);
        drop(scene.begin(Task::Quick)?); // and does not wait for it
    }
    if comes_true(DEADLINE, || count(worker.pid) <= before) {
        return Ok(());
    }
    let after = count(worker.pid);
    let expected = format!("a worker has no more descriptors after {UNITS} units of work");
    Err(scene.breach(expected, format!("it had {before}, and has {after}")))
}

fn count(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The files without a name that a process has open, such as a heartbeat.
fn nameless(pid: Pid) -> BTreeSet<(u64, u64)> {
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let files = folder.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
    let files = files.filter(|file| file.is_file() && file.nlink() == 0);
    files.map(|file| (file.dev(), file.ino())).collect()
}

pub(super) fn replacements(kit: &Kit) -> Verdict {
    const ROUNDS: usize = 10;
    let mut scene = Scene::start(kit, &[])?;
    let mut workers = scene.wait_workers(2)?;
    let mut before = (0, 0);
    for round in 0..ROUNDS {
        let victim = workers[round % 2];
        testing::send_sigkill(victim.pid);
        workers[round % 2] = scene.wait_replaced(victim)?;
        if round == 1 {
            // Whatever is made once has been made after one of each.
            before = (count(scene.pid), count(workers[1].pid));
        }
    }
    let (master, worker) = (scene.pid, workers[1].pid);
    if !comes_true(DEADLINE, || count(master) <= before.0 && count(worker) <= before.1) {
        let now = (count(master), count(worker));
        let expected = format!("after {ROUNDS} replacements there are no more descriptors");
        let seen = format!("master and worker had {before:?}, and have {now:?}");
        return Err(scene.breach(expected, seen));
    }
    let shared: Vec<_> =
        nameless(workers[0].pid).intersection(&nameless(worker)).copied().collect();
    if !shared.is_empty() {
        let seen = format!("they share (device, inode) {shared:?}");
        return Err(scene.breach("two workers share no nameless file, such as a heartbeat", seen));
    }
    if !comes_true(DEADLINE, || children(master).len() == 2) {
        let seen = format!("{:?}", children(master));
        return Err(scene.breach("the master has two children, and no zombie", seen));
    }
    scene.tell(Signal::Term)?;
    scene.expect_clean_end(DEADLINE)
}
