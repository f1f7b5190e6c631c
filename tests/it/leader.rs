//! Primary and standby over a real etcd: never two at once, whatever is killed, frozen or away.
//!
//! The program of each master appends its name to one journal. A name that comes back after another's
//! shows two at once, or a hand-over.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::control::Controlled;
use crate::ctl;
use crate::etcd::Etcd;
use crate::launch::Launch;
use crate::log_capture::Record;
use crate::proc::wait_until;
use crate::support::{DEADLINE, Server};

pub(crate) const TTL: Duration = Duration::from_secs(2);

/// A group of masters with one journal.
pub(crate) struct Group {
    pub(crate) etcd: Etcd,
    journal: PathBuf,
    dir: TempDir,
}

impl Group {
    fn start() -> Option<Self> {
        Self::of(1)
    }

    /// Starts an etcd of so many members.
    pub(crate) fn of(members: usize) -> Option<Self> {
        let etcd = Etcd::start(members)?;
        let dir = tempfile::tempdir().unwrap();
        let journal = dir.path().join("journal");
        fs::write(&journal, "").unwrap();
        Some(Self { etcd, journal, dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn master(&self, name: &str) -> Server {
        self.launch(name, &self.etcd.urls()).start()
    }

    /// A master whose program appends the time since the boot and `name` to the journal.
    pub(crate) fn launch(&self, name: &str, urls: &[String]) -> Launch {
        self.launch_with_ttl(name, urls, TTL)
    }

    fn launch_with_ttl(&self, name: &str, urls: &[String], ttl: Duration) -> Launch {
        let script = format!(
            "while :; do read up idle < /proc/uptime; echo $up {name} >> {}; sleep 0.02; done",
            self.journal.display()
        );
        let flags = ["-k", "exec", "--ready-after", "10ms", "--graceful-timeout", "30s"];
        let launch = Launch::new(&flags).unbound().arg("--bind").arg("none");
        let with_url = |launch: Launch, url: &String| launch.arg("--leader-etcd").arg(url);
        urls.iter()
            .fold(launch, with_url)
            .arg("--leader-key")
            .arg("ostler-test")
            .arg("--leader-ttl")
            .arg(format!("{}ms", ttl.as_millis()))
            .program(&["sh", "-c", &script])
    }

    /// Returns the times and names in the journal.
    pub(crate) fn entries(&self) -> Vec<(f64, String)> {
        let text = fs::read_to_string(&self.journal).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.filter_map(|(up, name)| Some((up.parse().ok()?, name.to_owned()))).collect()
    }

    /// Waits until the last entry is by `name`.
    #[track_caller]
    pub(crate) fn wait_runs(&self, name: &str) {
        let began = Instant::now();
        while self.entries().last().is_none_or(|(_, last)| last != name) {
            assert!(began.elapsed() < DEADLINE, "{name} never runs: {:?}", self.names());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Returns the names in the journal, each run of entries once.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.entries().into_iter().map(|(_, name)| name).collect();
        names.dedup();
        names
    }

    /// Returns the times between the last entry of one name and the first of the next.
    fn gaps(&self) -> Vec<f64> {
        let entries = self.entries();
        let changes = entries.windows(2).filter(|pair| pair[0].1 != pair[1].1);
        changes.map(|pair| pair[1].0 - pair[0].0).collect()
    }

    #[track_caller]
    pub(crate) fn expect_names(&self, names: &[&str]) {
        assert_eq!(self.names(), names);
        eprintln!("gaps between leaders in s: {:.2?}", self.gaps());
    }
}

pub(crate) fn is(message: &str) -> impl Fn(&Record) -> bool {
    move |record| record.message() == message
}

/// The child of a master that is no worker.
fn lease_process(server: &Server) -> Pid {
    find_lease_process(server).unwrap()
}

fn find_lease_process(server: &Server) -> Option<Pid> {
    let path = format!("/proc/{0}/task/{0}/children", server.pid);
    let children = fs::read_to_string(path).unwrap();
    let workers: Vec<i32> = server.workers().iter().map(|it| it.pid.as_raw()).collect();
    let mut pids = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
    pids.find(|pid| !workers.contains(pid)).map(Pid::from_raw)
}

#[test]
fn standby_takes_over_at_once_after_a_stop() {
    let Some(group) = Group::start() else { return };
    let mut first = group.master("a");
    group.wait_runs("a");
    let second = group.master("b");
    second.wait_for("it is a standby", is("standby"));
    first.signal(Signal::SIGTERM);
    first.expect_clean_exit();
    let stopped = Instant::now();
    group.wait_runs("b");
    assert!(stopped.elapsed() < TTL, "the lease was given back");
    second.wait_for("it leads", is("leading"));
    group.expect_names(&["a", "b"]);
}

#[test]
fn standby_takes_over_from_a_killed_master() {
    let Some(group) = Group::start() else { return };
    let first = group.master("a");
    group.wait_runs("a");
    let _second = group.master("b");
    first.signal(Signal::SIGKILL);
    group.wait_runs("b");
    std::thread::sleep(TTL);
    group.expect_names(&["a", "b"]);
}

#[test]
fn workers_of_a_frozen_master_end_before_another_leads() {
    let Some(group) = Group::start() else { return };
    let first = group.master("a");
    group.wait_runs("a");
    let second = group.master("b");
    let mark = first.mark();
    first.signal(Signal::SIGSTOP);
    group.wait_runs("b");
    first.signal(Signal::SIGCONT);
    first.wait_for_new_record(mark, "it is a standby", is("standby"));
    std::thread::sleep(TTL);
    group.expect_names(&["a", "b"]);
    drop(second);
    group.wait_runs("a");
}

#[test]
fn workers_of_a_master_frozen_with_its_child_end_before_another_leads() {
    let Some(group) = Group::start() else { return };
    let first = group.master("a");
    group.wait_runs("a");
    let _second = group.master("b");
    let child = lease_process(&first);
    first.signal(Signal::SIGSTOP);
    kill(child, Signal::SIGSTOP).unwrap();
    group.wait_runs("b");
    first.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(300));
    kill(child, Signal::SIGCONT).unwrap();
    std::thread::sleep(TTL);
    group.expect_names(&["a", "b"]);
}

#[test]
fn master_without_a_store_stops_and_leads_again() {
    let Some(mut group) = Group::start() else { return };
    let first = group.master("a");
    group.wait_runs("a");
    let mark = first.mark();
    group.etcd.stop(0);
    first.wait_for_new_record(mark, "the store is away", is("lease store not available"));
    first.wait_for_new_record(mark, "it does not lead", is("standby"));
    let entries = group.entries().len();
    std::thread::sleep(TTL);
    assert_eq!(group.entries().len(), entries, "nothing runs");
    let mark = first.mark();
    group.etcd.restart(0);
    first.wait_for_new_record(mark, "it leads again", is("leading"));
    wait_until("it runs again", || group.entries().len() > entries);
}

#[test]
fn leader_leads_on_while_its_lease_process_is_killed() {
    let Some(group) = Group::start() else { return };
    // So long that a machine that stands still does not end the term.
    let ttl = Duration::from_secs(20);
    let launch = |name| group.launch_with_ttl(name, &group.etcd.urls(), ttl);
    let first = Controlled::of(launch("a"));
    group.wait_runs("a");
    let second = launch("b").start();
    second.wait_for("it is a standby", is("standby"));
    let server = &first.server;
    let worker = server.workers()[0].pid;
    for _ in 0..5 {
        let (mark, killed) = (server.mark(), lease_process(server));
        kill(killed, Signal::SIGKILL).unwrap();
        server.wait_for_new_record(mark, "its end", is("lease process exited"));
        wait_until("there is another", || {
            find_lease_process(server).is_some_and(|it| it != killed)
        });
    }
    let left = || first.status()["leader"]["ends_in_ms"].as_u64().unwrap();
    let mut before = left();
    wait_until("it renews the lease", || {
        let now = left();
        std::mem::replace(&mut before, now) < now
    });
    assert_eq!(server.workers()[0].pid, worker);
    assert_eq!(first.status()["leader"]["transitions"], 1);
    group.expect_names(&["a"]);
    assert!(!second.records().iter().any(is("leading")));
}

/// Hands over `count` times, by turns in each way.
fn hand_over(count: usize) {
    let Some(group) = Group::start() else { return };
    let mut names = vec!["m0".to_owned()];
    let mut leader = group.master("m0");
    group.wait_runs("m0");
    for number in 1..=count {
        let name = format!("m{number}");
        let next = group.master(&name);
        next.wait_for("it is a standby", is("standby"));
        leader.signal([Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSTOP][number % 3]);
        group.wait_runs(&name);
        names.push(name);
        leader = next; // the old one is killed
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    group.expect_names(&names);
}

#[test]
fn six_hand_overs() {
    hand_over(6);
}

#[test]
#[ignore = "slow"]
fn hundred_hand_overs() {
    hand_over(100);
}

#[test]
fn upgrade_of_a_member_is_rejected() {
    let Some(group) = Group::start() else { return };
    let first = group.master("a");
    group.wait_runs("a");
    first.signal(Signal::SIGUSR2);
    let record = first.wait_for("it is rejected", is("upgrade rejected"));
    let reason = "leader_etcd is set, and the new master could not lead: restart instead";
    assert_eq!(record.text("error"), Some(reason));
    group.expect_names(&["a"]);
}

#[test]
fn status_says_which_master_leads_and_for_how_long() {
    let Some(group) = Group::start() else { return };
    let first = Controlled::of(group.launch("a", &group.etcd.urls()));
    group.wait_runs("a");
    let shown = first.status()["leader"].clone();
    let left = shown["ends_in_ms"].as_u64().unwrap();
    assert!(left > 0 && u128::from(left) <= TTL.as_millis(), "{shown}");
    assert_eq!((&shown["leading"], &shown["key"]), (&true.into(), &"ostler-test".into()));
    let name = shown["holder"].as_str().unwrap();
    assert!(name.ends_with(&format!("/{}", first.server.pid)), "{shown}");
    assert!(first.metrics().contains("\nostler_leader 1\n"));

    let second = Controlled::of(group.launch("b", &group.etcd.urls()));
    second.server.wait_for("it is a standby", is("standby"));
    let socket = second.socket().to_str().unwrap();
    wait_until("it knows the leader", || second.status()["leader"]["holder"] == name);
    let shown = ctl::run(&["--socket", socket, "status"]).success();
    assert!(shown.contains(&format!("\nstandby of ostler-test, led by {name}\n")), "{shown}");
    assert!(shown.contains("0 of 1 workers ready, class exec, app none, standby\n"), "{shown}");
    assert_eq!(second.pool()["listeners"], serde_json::json!([]));
    let answer = second.ask_metrics("/readyz", &[]);
    assert_eq!(answer.status(), 503);
    assert!(second.metrics().contains("\nostler_leader 0\n"));
}
