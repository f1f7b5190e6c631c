//! `ostlerctl` changes a real master, and says whether it has come true.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::ctl::{Controlled, ostlerctl};
use crate::ctl_top::Screen;
use crate::launch::Launch;
use crate::proc::{is_gone, wait_until};
use crate::support::Exit;

on_every_class!(
    reload_and_recycle_are_waited_for,
    scale_is_waited_for,
    upgrade_ends_with_a_new_master_that_answers,
    stop_ends_after_the_master,
);

impl Controlled {
    fn status(&self) -> Value {
        serde_json::from_str(&self.ctl(&["status", "--json"]).success()).unwrap()
    }

    /// Returns the pids of the only pool's workers, by slot.
    fn pids(&self) -> Vec<u64> {
        let status = self.status();
        let workers = status["pools"][0]["workers"].as_array().unwrap();
        let mut workers: Vec<_> =
            workers.iter().map(|it| (it["slot"].as_u64(), it["pid"].as_u64().unwrap())).collect();
        workers.sort_unstable();
        workers.into_iter().map(|(_, pid)| pid).collect()
    }

    /// Runs a command that must succeed, and may show its progress.
    #[track_caller]
    fn change(&self, args: &[&str]) -> String {
        let outcome = self.ctl(args);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        outcome.stdout
    }
}

fn reload_and_recycle_are_waited_for(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let first = it.pids();
    let shown = it.change(&["reload"]);
    assert!(shown.starts_with("reload done in ") && shown.contains("generation: 2"), "{shown}");
    assert_eq!(it.status()["generation"], 2);
    let second = it.pids();
    assert!(second.len() == 2 && first.iter().all(|pid| !second.contains(pid)), "{second:?}");
    let shown = it.change(&["recycle", "default/1"]);
    let third = it.pids();
    let (old, new) = (second[1], third[1]);
    assert!(old != new && shown.contains(&format!("default/1: {old} -> {new}\n")), "{shown}");
    assert_eq!(third[0], second[0]);
    let shown = it.change(&["recycle"]);
    assert_eq!(shown.lines().count(), 3, "{shown}");
    it.ctl(&["recycle", "default/9"]).failure("9");
    it.ctl(&["recycle", "nowhere"]).failure("nowhere");
    it.server.finish();
}

fn scale_is_waited_for(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    for (args, from, to) in
        [(&["scale", "4"][..], 2, 4), (&["scale", "default", "+1"], 4, 5), (&["scale", "-2"], 5, 3)]
    {
        let shown = it.change(args);
        assert!(shown.contains(&format!("workers: {from} -> {to}\n")), "{shown}");
        let pool = &it.status()["pools"][0];
        assert_eq!((&pool["target"], &pool["ready"]), (&to.into(), &to.into()), "{pool}");
    }
    it.ctl(&["scale", "0"]).failure("ostlerctl: ");
    it.ctl(&["scale", "web", "2"]).failure("web");
    it.server.finish();
}

fn upgrade_ends_with_a_new_master_that_answers(class: &str) {
    let it = Controlled::start(&["-k", class, "-w", "2"]);
    let old = it.server.pid;
    let shown = it.change(&["upgrade"]);
    let status = it.status();
    let new = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    assert!(shown.contains(&format!("master: {old} -> {new}\n")), "{shown}");
    assert_ne!(new, old.as_raw());
    assert_eq!(it.server.wait_exit(), Exit::Code(0));
    assert_eq!(it.server.get("/").text(), "Hello, world!\n");
    it.change(&["stop"]);
    wait_until("the master has exited", || is_gone(Pid::from_raw(new)));
    it.server.wait_no_survivors();
}

fn stop_ends_after_the_master(class: &str) {
    let mut it = Controlled::start(&["-k", class, "-w", "2"]);
    let mut busy = it.server.begin("/sleep?ms=700");
    let shown = it.change(&["stop"]);
    assert!(shown.starts_with("stop done in "), "{shown}");
    assert!(!it.socket.exists());
    assert_eq!(busy.answer().status(), 200);
    it.server.expect_clean_exit();
}

#[test]
fn stop_now_ends_requests() {
    let mut it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let _busy = it.server.begin("/hang");
    it.change(&["stop", "--now"]);
    it.server.expect_clean_exit();
}

/// A reload that is rejected, one that is rolled back, and one that is only asked about.
#[test]
fn reload_that_fails_exits_with_one() {
    let launch = Launch::new(&["-k", "mio", "-w", "2"]);
    let (path, socket) = (launch.path("shop.yaml"), launch.path("control"));
    fs::write(&path, "timeout: 20s\n").unwrap();
    let server = launch.arg("--config").arg(&path).arg("--control-socket").arg(&socket).start();
    let it = Controlled { server, socket: socket.into() };
    fs::write(&path, "timeout: 25s\n").unwrap();
    let plan = it.change(&["reload", "--dry-run"]);
    assert!(plan.contains("timeout: 20s -> 25s\n"), "{plan}");
    let pids: Vec<String> = it.server.workers().iter().map(|it| it.pid.to_string()).collect();
    assert!(pids.iter().all(|pid| plan.contains(pid)), "{plan}");
    assert_eq!(it.status()["generation"], 1);
    fs::write(&path, "timeout: never\n").unwrap();
    it.ctl(&["reload"]).failure("shop.yaml");
    it.ctl(&["reload", "--dry-run"]).failure("shop.yaml");
    fs::write(&path, "env: {DEMO_FAIL_BOOT: 1}\n").unwrap();
    it.ctl(&["reload"]).failure("reload failed");
    let pool = &it.status()["pools"][0];
    assert_eq!((&pool["ready"], &pool["target"]), (&2.into(), &2.into()));
    let shown = it.ctl(&["operations"]).success();
    assert_eq!(shown.matches(" failed ").count(), 3, "{shown}");
    it.server.finish();
}

/// Ctrl-C while waiting leaves the operation alone, and its outcome can be asked for.
#[test]
fn interrupted_wait_leaves_the_operation() {
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let mut busy = it.server.begin("/sleep?ms=1500");
    let mut command = ostlerctl(&["recycle", "--socket", it.socket.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    stderr.read_line(&mut text).unwrap();
    assert!(text.starts_with("recycle"), "{text}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert!(text.contains("interrupted: operation 1 (recycle) goes on"), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(busy.answer().status(), 200);
    wait_until("the operation is done", || it.ctl(&["operations", "1"]).code == Some(0));
    it.ctl(&["operations", "77"]).failure("no such operation");
    it.server.finish();
}

#[test]
fn config_reopen_and_operations_are_shown() {
    let it = Controlled::start(&["-k", "mio", "-w", "2"]);
    let config = it.ctl(&["config"]).success();
    let has_row = |key: &str, value: &str, source: &str| {
        config.lines().any(|line| [key, value, source].iter().all(|word| line.contains(word)))
    };
    assert!(has_row("workers", "2", "--workers"), "{config}");
    assert!(has_row("timeout", "30s", "default"), "{config}");
    assert_eq!(it.ctl(&["operations"]).success(), "no operations yet\n");
    assert!(it.change(&["reopen"]).starts_with("reopen done in "));
    it.server.signal(Signal::SIGHUP);
    it.server.wait_for("the reload", |record| record.message() == "reload complete");
    let shown = it.ctl(&["operations"]).success();
    assert!(shown.contains("signal SIGHUP"), "{shown}");
    it.server.finish();
}

/// The view asks before a change, and shows how it has ended.
#[test]
fn top_recycles_and_scales_after_a_question() {
    let it = Controlled::start(&["-k", "mio", "-w", "1"]);
    let old = it.server.workers()[0];
    let mut screen = Screen::of(&it);
    screen.wait_shown(&old.pid.to_string());
    screen.press("r");
    screen.wait_shown("recycle default/0? y: yes");
    screen.press("y");
    let new = it.server.wait_replaced(old);
    screen.wait_shown(&new.pid.to_string());
    screen.wait_shown("recycle done in ");
    screen.press("+y");
    it.server.wait_workers(2);
    screen.wait_shown("default/1");
    screen.press("q");
    assert_eq!(screen.expect_restored().code(), Some(0));
    it.server.finish();
}
