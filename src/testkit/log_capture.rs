//! Captures the log that a program writes to stderr. The black-box tests of the crate use this file
//! too, with a `Pid` of their own.

use std::io::{BufRead, BufReader};
use std::process::ChildStderr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Pid;

/// One record of the log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// When this process read it.
    pub(crate) seen: Instant,
    fields: Value,
}

impl Record {
    /// Returns the message, which is a fixed text.
    pub(crate) fn message(&self) -> &str {
        self.text("msg").unwrap_or_default()
    }

    /// Returns the text of a field.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.as_str()
    }

    /// Returns the number of a field.
    pub(crate) fn number(&self, key: &str) -> Option<i64> {
        let value = self.fields.get(key)?;
        value.as_i64().or_else(|| value.as_str()?.parse().ok())
    }

    /// Returns the process that the record is about.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Some(Pid::from_raw(i32::try_from(self.number("pid")?).ok()?))
    }

    /// Returns whether the record has this message and is about this process.
    pub(crate) fn is(&self, message: &str, pid: Pid) -> bool {
        self.message() == message && self.pid() == Some(pid)
    }
}

/// A worker that is ready and has not exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) slot: i64,
}

/// The captured log of a server.
#[derive(Default)]
pub(crate) struct LogCapture {
    pub(crate) records: Vec<Record>,
    pub(crate) lines: Vec<String>,
    /// Lines that are not records.
    pub(crate) unparsed: Vec<String>,
    /// Whether every process has closed its stderr.
    pub(crate) closed: bool,
}

impl LogCapture {
    /// Returns the workers that are ready, in the order of their slots.
    pub(crate) fn workers(&self) -> Vec<Worker> {
        let mut workers = Vec::new();
        for record in &self.records {
            let Some(pid) = record.pid() else { continue };
            match record.message() {
                "worker ready" => {
                    workers.push(Worker { pid, slot: record.number("slot").unwrap_or(-1) });
                }
                "worker exited" => workers.retain(|worker: &Worker| worker.pid != pid),
                _ => (),
            }
        }
        workers.sort_by_key(|worker| worker.slot);
        workers
    }
}

/// State that one thread changes and others wait for.
#[derive(Default)]
pub(crate) struct Watched<T> {
    state: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    /// Locks the state for reading. Do not change it here: no waiter would be notified.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the state, and notifies all waiters.
    pub(crate) fn change(&self, apply: impl FnOnce(&mut T)) {
        apply(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `look` returns something, at most for `timeout`.
    pub(crate) fn wait<R>(
        &self,
        timeout: Duration,
        mut look: impl FnMut(&T) -> Option<R>,
    ) -> Option<R> {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = end.checked_duration_since(Instant::now())?;
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

/// Captures `stderr` in a thread of its own.
pub(crate) fn capture(stderr: ChildStderr, capture: Arc<Watched<LogCapture>>) {
    thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            capture.change(|log| {
                match serde_json::from_str(&line) {
                    Ok(fields @ Value::Object(_)) => {
                        log.records.push(Record { seen: Instant::now(), fields });
                    }
                    _ => log.unparsed.push(line.clone()),
                }
                log.lines.push(line);
            });
        }
        capture.change(|log| log.closed = true);
    });
}
