//! Primary and standby over a real etcd: never two at once, whatever is killed, frozen or away.

use std::ops::Deref;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::control::Controlled;
use crate::ctl;
use crate::etcd::Etcd;
use crate::journal::{Journal, LONG_TTL, TTL, find_lease_process, is, lease_process};
use crate::launch::Launch;
use crate::proc::wait_until;
use crate::support::Server;

/// A group of masters over etcd.
pub(crate) struct Group {
    pub(crate) etcd: Etcd,
    journal: Journal,
}

impl Deref for Group {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl Group {
    fn start() -> Option<Self> {
        Self::of(1)
    }

    /// Starts an etcd of so many members.
    pub(crate) fn of(members: usize) -> Option<Self> {
        Etcd::start(members).map(Self::over)
    }

    /// Makes a group whose masters agree by this etcd.
    pub(crate) fn over(etcd: Etcd) -> Self {
        Self { etcd, journal: Journal::new() }
    }

    pub(crate) fn master(&self, name: &str) -> Server {
        self.launch(name, &self.etcd.urls()).start()
    }

    /// A master of the etcd at these URLs.
    pub(crate) fn launch(&self, name: &str, urls: &[String]) -> Launch {
        self.launch_with_ttl(name, urls, TTL)
    }

    pub(crate) fn launch_with_ttl(&self, name: &str, urls: &[String], ttl: Duration) -> Launch {
        let launch = self.journal.launch(name, ttl).arg("--leader-key").arg("ostler-test");
        urls.iter().fold(launch, |launch, url| launch.arg("--leader-etcd").arg(url))
    }
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
    let launch = |name| group.launch_with_ttl(name, &group.etcd.urls(), LONG_TTL);
    let first = Controlled::of(launch("a"));
    group.wait_runs("a");
    let second = launch("b").start();
    second.wait_for("it is a standby", is("standby"));
    let server = &first.server;
    let worker = server.wait_workers(1)[0].pid;
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
    let reason = "pools are led, and the new master could not lead: restart instead";
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
