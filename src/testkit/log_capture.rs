//! What a program says on stderr, as it comes in: records, and lines that should not be there.
//! The black-box tests of the house use this file too, with a `Pid` of their own.

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
    /// When it was read here.
    pub(crate) seen: Instant,
    fields: Value,
}

impl Record {
    /// The message, made of fixed words.
    pub(crate) fn message(&self) -> &str {
        self.text("msg").unwrap_or_default()
    }

    /// A fact that is text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.as_str()
    }

    /// A fact that is a number.
    pub(crate) fn number(&self, key: &str) -> Option<i64> {
        let value = self.fields.get(key)?;
        value.as_i64().or_else(|| value.as_str()?.parse().ok())
    }

    /// The process that the record is about.
    pub(crate) fn pid(&self) -> Option<Pid> {
        Some(Pid::from_raw(i32::try_from(self.number("pid")?).ok()?))
    }

    /// Whether the record says this about that process.
    pub(crate) fn is(&self, message: &str, pid: Pid) -> bool {
        self.message() == message && self.pid() == Some(pid)
    }
}

/// A worker that has said that it is ready, and has not left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) slot: i64,
}

/// What a server has said on stderr so far.
#[derive(Default)]
pub(crate) struct LogCapture {
    pub(crate) records: Vec<Record>,
    pub(crate) lines: Vec<String>,
    /// Lines that are not records.
    pub(crate) unparsed: Vec<String>,
    /// Nobody is left who could say more.
    pub(crate) closed: bool,
}

impl LogCapture {
    /// The workers that are ready, in the order of their slots.
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

/// State that a thread of ours changes and tests wait for.
#[derive(Default)]
pub(crate) struct Watched<T> {
    state: Mutex<T>,
    changed: Condvar,
}

impl<T> Watched<T> {
    /// The state, which must not be changed: nobody would be told.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes the state, and wakes who waits for it.
    pub(crate) fn change(&self, how: impl FnOnce(&mut T)) {
        how(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until `look` finds something, for so long.
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

/// Listens in a thread of its own.
pub(crate) fn capture(stderr: ChildStderr, log: Arc<Watched<LogCapture>>) {
    thread::spawn(move || {
        for line in BufReader::new(stderr).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            log.change(|heard| {
                match serde_json::from_str(&line) {
                    Ok(fields @ Value::Object(_)) => {
                        heard.records.push(Record { seen: Instant::now(), fields });
                    }
                    _ => heard.unparsed.push(line.clone()),
                }
                heard.lines.push(line);
            });
        }
        log.change(|heard| heard.closed = true);
    });
}
