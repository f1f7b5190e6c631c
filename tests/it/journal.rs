//! A group of masters of which one leads, as a journal shows it: the program of each master appends its name
//! to one file. A name that comes back after another's shows two at once, or a hand-over.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::launch::Launch;
use crate::log_capture::Record;
use crate::support::{DEADLINE, Server};

pub(crate) const TTL: Duration = Duration::from_secs(2);

/// So long that a machine that stands still does not end the term.
pub(crate) const LONG_TTL: Duration = Duration::from_secs(20);

/// The journal of a group.
pub(crate) struct Journal {
    path: PathBuf,
    dir: TempDir,
}

impl Journal {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        fs::write(&path, "").unwrap();
        Self { path, dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A master whose program appends the time since the boot, `name` and its process. It has no store yet.
    pub(crate) fn launch(&self, name: &str, ttl: Duration) -> Launch {
        let script = format!(
            "while :; do read up idle < /proc/uptime; echo $up {name} $$ >> {}; sleep 0.02; done",
            self.path.display()
        );
        let flags = ["-k", "exec", "--ready-after", "10ms", "--graceful-timeout", "30s"];
        Launch::new(&flags)
            .unbound()
            .arg("--bind")
            .arg("none")
            .arg("--leader-ttl")
            .arg(format!("{}ms", ttl.as_millis()))
            .program(&["sh", "-c", &script])
    }

    /// Returns the times and names in the journal.
    pub(crate) fn entries(&self) -> Vec<(f64, String)> {
        self.lines().into_iter().map(|(up, name, _)| (up, name)).collect()
    }

    /// Returns the times, names and processes in the journal.
    fn lines(&self) -> Vec<(f64, String, String)> {
        let text = fs::read_to_string(&self.path).unwrap();
        let parse = |line: &str| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?.parse().ok()?, words.next()?, words.next()?))
        };
        text.lines().filter_map(parse).collect()
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

    /// No process writes again after one of another master has, however often the leader has changed.
    #[track_caller]
    pub(crate) fn expect_exclusive(&self) {
        let lines = self.lines();
        let runs = lines.chunk_by(|one, two| one.1 == two.1);
        let runs: Vec<BTreeSet<_>> = runs.map(|run| run.iter().map(|it| &it.2).collect()).collect();
        for (number, run) in runs.iter().enumerate() {
            let again = runs[number + 1..].iter().find(|later| !later.is_disjoint(run));
            assert!(again.is_none(), "two at once: {:?}, {run:?}", self.names());
        }
        eprintln!("leaders: {:?}, gaps in s: {:.2?}", self.names(), self.gaps());
    }
}

pub(crate) fn is(message: &str) -> impl Fn(&Record) -> bool {
    move |record| record.message() == message
}

/// Waits until a master that does not lead says who does.
#[track_caller]
pub(crate) fn expect_learns_of_leader(server: &Server, mark: usize) {
    let knows = |record: &Record| {
        is("standby")(record) && record.text("holder").is_some_and(|it| it != "-")
    };
    server.wait_for_new_record(mark, "it learns of the leader", knows);
}

/// The child of a master that is no worker.
pub(crate) fn lease_process(server: &Server) -> Pid {
    find_lease_process(server).unwrap()
}

pub(crate) fn find_lease_process(server: &Server) -> Option<Pid> {
    let path = format!("/proc/{0}/task/{0}/children", server.pid);
    let children = fs::read_to_string(path).unwrap();
    let workers: Vec<i32> = server.workers().iter().map(|it| it.pid.as_raw()).collect();
    let mut pids = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
    pids.find(|pid| !workers.contains(pid)).map(Pid::from_raw)
}
