//! What the kernel knows of the workers and of the sockets: memory, CPU time, queues of unix listeners,
//! lost clients. A short-lived child reads it, since /proc may block, and only while a client asks: an
//! answer shows what was read at an earlier one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use crate::arbiter::snapshot::{ProcessUsage, Snapshot};
use crate::os::helper_process::HelperProcess;
use crate::os::network_stats::{self, ListenDrops, SocketDiagnosis};
use crate::os::process::Pid;
use crate::os::procfs;
use crate::time::MonotonicTime;

/// The time between two readings, at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a child may read without writing anything.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How old a reading is shown. A scraper that asks once a minute gets that of its last request.
const AGE_MAX: Duration = Duration::from_secs(120);
/// How many killed children may have not exited. While there are that many, none is started.
const BLOCKED_MAX: usize = 16;

/// What was read last, and the child that reads.
#[derive(Default)]
pub(super) struct UsageMonitor {
    active: Option<Reading>,
    /// Killed children that have not exited, each with the process whose files block.
    blocked: Vec<(i32, HelperProcess)>,
    known: Usage,
}

struct Reading {
    helper: HelperProcess,
    /// The processes that it reads, in its order.
    pids: Vec<i32>,
    started: MonotonicTime,
    /// When a part of the answer was last read: before, the child may have waited for that.
    progress_at: MonotonicTime,
    has_ended: bool,
}

#[derive(Default)]
struct Usage {
    processes: HashMap<i32, ProcessUsage>,
    /// By inode.
    queues: HashMap<u64, u32>,
    listen_drops: Option<ListenDrops>,
    /// When its reading began.
    since: Option<MonotonicTime>,
}

impl UsageMonitor {
    /// Adds to a snapshot what is known, and has a child read anew if that is old.
    pub(super) fn update(&mut self, snapshot: &mut Snapshot, now: MonotonicTime) {
        self.blocked.retain_mut(|(_, helper)| !helper.read());
        self.take_answer(now);
        self.show(snapshot, now);
        let is_old = self.known.since.is_none_or(|at| now.duration_since(at) >= INTERVAL);
        if is_old && self.active.is_none() && self.blocked.len() < BLOCKED_MAX {
            self.active = self.start(snapshot, now);
        }
    }

    fn show(&self, snapshot: &mut Snapshot, now: MonotonicTime) {
        if self.known.since.is_some_and(|at| now.duration_since(at) <= AGE_MAX) {
            self.known.add_to(snapshot);
        }
    }

    fn take_answer(&mut self, now: MonotonicTime) {
        self.read(now);
        let Some(mut reading) = self.active.take() else { return };
        let has_ended = reading.has_ended;
        if !has_ended && now.duration_since(reading.progress_at) < TIMEOUT {
            self.active = Some(reading);
            return;
        }
        self.known = Usage::parse(reading.helper.answer(), reading.started);
        if !has_ended {
            reading.helper.kill();
            let read = &self.known.processes;
            let blocking = reading.pids.iter().find(|pid| !read.contains_key(pid));
            self.blocked.push((blocking.copied().unwrap_or(0), reading.helper));
        }
    }

    /// Reads what the child has written by now: an answer about thousands of workers exceeds the pipe.
    pub(super) fn read(&mut self, now: MonotonicTime) {
        let Some(reading) = self.active.as_mut().filter(|it| !it.has_ended) else { return };
        let before = reading.helper.answer().len();
        reading.has_ended = reading.helper.read();
        if reading.helper.answer().len() > before {
            reading.progress_at = now;
        }
    }

    /// Starts a child. A lack of resources is left to the next call.
    fn start(&self, snapshot: &Snapshot, now: MonotonicTime) -> Option<Reading> {
        let workers = snapshot.pools.iter().flat_map(|pool| &pool.workers);
        let is_blocked = |pid: i32| self.blocked.iter().any(|(blocked, _)| *blocked == pid);
        let workers: Vec<_> = workers
            .filter(|worker| !is_blocked(worker.pid))
            .map(|worker| (worker.pid, worker.has_program))
            .collect();
        let listeners = snapshot.pools.iter().flat_map(|pool| &pool.listeners);
        let inodes: Vec<_> = listeners.filter_map(|listener| listener.unix_inode).collect();
        let helper = HelperProcess::start(|output| write_all(output, &workers, &inodes)).ok()?;
        let pids = workers.iter().map(|(pid, _)| *pid).collect();
        Some(Reading { helper, pids, started: now, progress_at: now, has_ended: false })
    }
}

/// Reads all of it, in the child. A write fails only if the master has exited.
fn write_all(output: &mut File, workers: &[(i32, bool)], inodes: &[u64]) {
    if let Some(ListenDrops { overflows, drops }) = network_stats::listen_drops() {
        let _ = writeln!(output, "n {overflows} {drops}");
    }
    if let Ok(diagnosis) = SocketDiagnosis::new() {
        for inode in inodes {
            if let Some(length) = diagnosis.unix_queue_length(*inode) {
                let _ = writeln!(output, "q {inode} {length}");
            }
        }
    }
    for (pid, has_program) in workers {
        let process = Pid::from_raw(*pid);
        let text = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |it| it.to_string());
        let cpu = procfs::cpu_time(process, *has_program);
        let cpu = text(cpu.and_then(|it| u64::try_from(it.as_millis()).ok()));
        let memory = text(procfs::proportional_memory(process, *has_program));
        let _ = writeln!(output, "p {pid} {memory} {cpu}");
    }
}

impl Usage {
    /// Parses the lines of a child. One that is cut off is ignored.
    fn parse(answer: &[u8], since: MonotonicTime) -> Self {
        let mut usage = Self { since: Some(since), ..Self::default() };
        let text = String::from_utf8_lossy(answer);
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let (kind, numbers) = line.split_at_checked(1).unwrap_or_default();
            let mut numbers = numbers.split_whitespace().map(|it| it.parse::<u64>().ok());
            let mut next = || numbers.next().flatten();
            match (kind, next()) {
                ("n", Some(overflows)) => {
                    usage.listen_drops = next().map(|drops| ListenDrops { overflows, drops });
                }
                ("q", Some(inode)) => {
                    let length = next().and_then(|it| u32::try_from(it).ok());
                    usage.queues.extend(length.map(|length| (inode, length)));
                }
                ("p", Some(pid)) => {
                    let (memory_bytes, cpu_millis) = (next(), next());
                    let process = ProcessUsage {
                        memory_bytes,
                        cpu_time: cpu_millis.map(Duration::from_millis),
                    };
                    usage.processes.extend(i32::try_from(pid).ok().map(|pid| (pid, process)));
                }
                _ => (),
            }
        }
        usage
    }

    fn add_to(&self, snapshot: &mut Snapshot) {
        snapshot.listen_drops = self.listen_drops.map(|it| (it.overflows, it.drops));
        for pool in &mut snapshot.pools {
            for worker in &mut pool.workers {
                worker.usage = self.processes.get(&worker.pid).copied().unwrap_or_default();
            }
            for listener in &mut pool.listeners {
                let length = listener.unix_inode.and_then(|inode| self.queues.get(&inode));
                listener.queue_length = listener.queue_length.or(length.copied());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::snapshot::{PoolSnapshot, WorkerSnapshot};

    fn one_worker() -> Snapshot {
        let worker = WorkerSnapshot { pid: 42, ..WorkerSnapshot::default() };
        let pool = PoolSnapshot { workers: vec![worker], ..PoolSnapshot::default() };
        Snapshot { pools: vec![pool], ..Snapshot::default() }
    }

    #[test]
    fn old_reading_is_not_shown() {
        let now = MonotonicTime::from_nanos(1_000_000_000_000);
        let shown_after = |age: Duration| {
            let read_at = MonotonicTime::from_nanos(1_000_000_000_000 - age.as_nanos() as u64);
            let known = Usage::parse(b"p 42 1000 20\n", read_at);
            let (monitor, mut snapshot) =
                (UsageMonitor { known, ..UsageMonitor::default() }, one_worker());
            monitor.show(&mut snapshot, now);
            snapshot.pools[0].workers[0].usage.memory_bytes
        };
        assert_eq!(shown_after(AGE_MAX), Some(1000));
        assert_eq!(shown_after(AGE_MAX + Duration::from_secs(1)), None);
    }

    #[test]
    fn lines_of_any_contents_are_read_as_far_as_possible() {
        let text = b"n 1 2\nq 7 3\nq 8\np 42 1000 20\np 43 - -\n\np x\nz 1\n\xff\np 44 5 6";
        let usage = Usage::parse(text, MonotonicTime::default());
        assert_eq!(usage.listen_drops, Some(ListenDrops { overflows: 1, drops: 2 }));
        assert_eq!(usage.queues, HashMap::from([(7, 3)]));
        assert_eq!(usage.processes.len(), 2, "the last line is cut off");
        let cpu_time = Some(Duration::from_millis(20));
        assert_eq!(usage.processes[&42], ProcessUsage { memory_bytes: Some(1000), cpu_time });
        assert_eq!(usage.processes[&43], ProcessUsage::default());
    }
}
