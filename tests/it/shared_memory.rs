//! What a hostile worker can do with the memory that it shares with the master: nothing to the master,
//! and nothing to another pool.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::pools::{PoolsConfig, get, pids};
use crate::proc::{becomes_true, wait_until};

on_every_class!(garbage_in_shared_memory_harms_no_other_pool);

/// A shared mapping of a process: its range, and whether the process may write it.
struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
}

/// The shared mappings that a process can reach, but for those of files. None once it has exited.
fn shared_mappings(pid: Pid) -> Vec<Mapping> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, access) = (fields.next().unwrap(), fields.next().unwrap());
        let name = fields.nth(3).unwrap_or_default();
        if access.ends_with('s') && (name == "/memfd:ostler" || name == "/dev/zero") {
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
            found.push(Mapping { start, end, writable: access.starts_with("rw") });
        }
    }
    found
}

/// Writes a word all over the mappings of a process, as code in it could. Returns how many accepted it.
fn fill(pid: Pid, mappings: &[Mapping], word: u64) -> usize {
    let memory = OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"));
    let filled = mappings.iter().filter(|mapping| {
        let size = usize::try_from(mapping.end - mapping.start).unwrap();
        let words = word.to_ne_bytes().repeat(size / 8);
        memory.as_ref().is_ok_and(|memory| memory.write_all_at(&words, mapping.start).is_ok())
    });
    filled.count()
}

/// Fills the shared memory of a worker with a word, and kills it. Returns whether it lived until then.
fn attack(worker: Pid, word: u64) -> bool {
    let (writable, readable): (Vec<_>, Vec<_>) =
        shared_mappings(worker).into_iter().partition(|mapping| mapping.writable);
    let filled = (fill(worker, &readable, word), fill(worker, &writable, word));
    if shared_mappings(worker).is_empty() || kill(worker, Signal::SIGKILL).is_err() {
        return false; // the master has replaced it for what was written before
    }
    assert_eq!(writable.len(), 1, "the scoreboard of its pool, and no other");
    assert_eq!(readable.len(), 3, "the words of its pool's two sockets, and its drain modes");
    assert_eq!(filled, (0, 1), "what the master publishes is read-only");
    true
}

fn garbage_in_shared_memory_harms_no_other_pool(class: &str) {
    let (launch, mut config) = PoolsConfig::launch();
    let addresses = [crate::launch::free_address(), crate::launch::free_address()];
    config.top("worker_class", class).top("reuse_port", "yes").top("workers", 2);
    config.top("timeout", "2s").top("graceful_timeout", "3s");
    // A worker of the same pool that boots at that moment may never seem ready.
    config.top("boot_timeout", "3s");
    config.bind("web", addresses[0]).bind("api", addresses[1]);
    config.write();
    let server = launch.start();
    if OpenOptions::new().write(true).open(format!("/proc/{}/mem", server.pid)).is_err() {
        eprintln!("skipped: the memory of a child cannot be written");
        return;
    }
    let others = pids(&server, "api");
    for word in [7 << 32 | 1, u64::MAX, 1, 1 << 63, 0x0101_0101_0101_0101] {
        wait_until("a worker is attacked", || {
            pids(&server, "web").into_iter().next().is_some_and(|worker| attack(worker, word))
        });
        assert_eq!(get(addresses[1], "/").text(), "Hello, world!\n");
        let answers = || {
            let client = crate::client::Client::tcp(addresses[0]);
            client.is_ok_and(|mut client| client.try_get_last("/").is_ok())
        };
        assert!(becomes_true(Duration::from_secs(20), answers), "the pool itself recovers");
        wait_until("two workers are ready", || pids(&server, "web").len() == 2);
    }
    assert_eq!(pids(&server, "api"), others, "the other pool lost no worker");
    config.reload(&server);
    assert_eq!(get(addresses[1], "/").text(), "Hello, world!\n");
    server.finish();
}
