//! Reads by short-lived children what may block in /proc. A process that executes a program or changes
//! its memory holds locks that these files need, for as long as its file system does not answer.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde_json::{Value, json};

use super::sample_json;
use crate::arbiter::pool::supervisor::WorkerId;
use crate::os::cgroup::Cgroups;
use crate::os::helper_process::HelperProcess;
use crate::os::process::Pid;
use crate::os::procfs;
use crate::time::MonotonicTime;

/// How long a child may read one worker.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(3);

/// An answer that is older is discarded.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(3);

/// What is asked of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    /// A sample of the process that makes no progress: see [`sample_json`].
    Sample,
    /// Its memory as PSS, in bytes.
    Memory,
}

/// A question about a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inquiry {
    pub(super) id: WorkerId,
    pub(super) subject: Subject,
    pub(super) pid: Pid,
    /// The thread to sample; 0 for the main thread.
    pub(super) thread: u64,
    /// Whether the worker only supervises a program.
    pub(super) has_program: bool,
}

/// The questions of a pool, and the children that answer them: one at work, and those that wait in the
/// kernel, at most one a worker.
#[derive(Default)]
pub(super) struct Inspector {
    pending: Vec<Inquiry>,
    active: Option<Inspection>,
    /// Killed children that have not exited, each with the worker that it reads.
    blocked: Vec<(WorkerId, HelperProcess)>,
    answers: HashMap<(WorkerId, Subject), (Value, MonotonicTime)>,
}

/// A child at work.
struct Inspection {
    helper: HelperProcess,
    /// What it has not answered, in its order.
    remaining: VecDeque<Inquiry>,
    /// How many bytes of its output have been read.
    consumed: usize,
    deadline: MonotonicTime,
}

impl Inspector {
    /// Returns the answer to a question; `null` if there is none to be had. Returns `None` while a
    /// child works on it: [`advance`](Self::advance) says when to ask again.
    pub(super) fn ask(&mut self, inquiry: Inquiry) -> Option<Value> {
        let key = (inquiry.id, inquiry.subject);
        if let Some((answer, _)) = self.answers.remove(&key) {
            return Some(answer);
        }
        if self.blocked.iter().any(|(id, _)| *id == inquiry.id) {
            return Some(Value::Null);
        }
        let active = self.active.iter().flat_map(|active| &active.remaining);
        if !self.pending.iter().chain(active).any(|known| (known.id, known.subject) == key) {
            self.pending.push(inquiry);
        }
        None
    }

    /// Takes the answers that have come, and gives up a child that waits too long. Returns the workers
    /// with new samples.
    pub(super) fn advance(&mut self, now: MonotonicTime) -> Vec<WorkerId> {
        self.blocked.retain_mut(|(_, helper)| !helper.read());
        self.answers.retain(|_, (_, at)| now.duration_since(*at) < ANSWER_AGE_MAX);
        let Some(mut active) = self.active.take() else { return Vec::new() };
        let has_ended = active.helper.read();
        let mut answered = active.take_answers();
        if !answered.is_empty() {
            active.deadline = now.saturating_add(INSPECTION_TIMEOUT);
        }
        if has_ended {
            answered.extend(active.remaining.drain(..).map(|inquiry| (inquiry, Value::Null)));
        } else if now < active.deadline {
            self.active = Some(active);
        } else {
            active.helper.kill();
            if let Some(blocking) = active.remaining.pop_front() {
                answered.push((blocking, Value::Null));
                self.blocked.push((blocking.id, active.helper));
            }
            self.pending.splice(..0, active.remaining);
        }
        let sampled = answered.iter().filter(|(inquiry, _)| inquiry.subject == Subject::Sample);
        let ids = sampled.map(|(inquiry, _)| inquiry.id).collect();
        for (inquiry, answer) in answered {
            self.answers.insert((inquiry.id, inquiry.subject), (answer, now));
        }
        ids
    }

    /// Starts a child for what has been asked, unless one is at work. Without the means for one, the
    /// answers are `null`; returns the workers concerned.
    pub(super) fn start_pending(&mut self, cgroups: &Cgroups, now: MonotonicTime) -> Vec<WorkerId> {
        if self.active.is_some() || self.pending.is_empty() {
            return Vec::new();
        }
        let inquiries = std::mem::take(&mut self.pending);
        let helper = HelperProcess::start(|output| {
            for inquiry in &inquiries {
                // A write fails only if the master has exited.
                let _ = writeln!(output, "{}", inspect(inquiry, cgroups));
            }
        });
        match helper {
            Ok(helper) => {
                let deadline = now.saturating_add(INSPECTION_TIMEOUT);
                let remaining = inquiries.into();
                self.active = Some(Inspection { helper, remaining, consumed: 0, deadline });
                Vec::new()
            }
            Err(_) => {
                let answers = inquiries.iter().map(|it| ((it.id, it.subject), (Value::Null, now)));
                self.answers.extend(answers);
                inquiries.iter().map(|inquiry| inquiry.id).collect()
            }
        }
    }

    /// Forgets a worker that has exited.
    pub(super) fn forget(&mut self, id: WorkerId) {
        self.pending.retain(|inquiry| inquiry.id != id);
        self.answers.retain(|(answered, _), _| *answered != id);
    }

    /// Returns the descriptor that is readable when an answer has come.
    pub(super) fn wakeup_fd(&self) -> Option<BorrowedFd<'_>> {
        self.active.as_ref().map(|active| active.helper.fd())
    }

    /// Returns when a child is given up.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.active.as_ref().map(|active| active.deadline)
    }
}

impl Inspection {
    /// Returns the answers that have come since the last call. Each is one line.
    fn take_answers(&mut self) -> Vec<(Inquiry, Value)> {
        let mut answered = Vec::new();
        let mut unread = self.helper.answer().get(self.consumed..).unwrap_or_default();
        while let Some(length) = unread.iter().position(|byte| *byte == b'\n') {
            let Some(inquiry) = self.remaining.pop_front() else { break };
            answered.push((inquiry, serde_json::from_slice(&unread[..length]).unwrap_or_default()));
            unread = &unread[length + 1..];
            self.consumed += length + 1;
        }
        answered
    }
}

/// Reads what is asked, in the child.
fn inspect(inquiry: &Inquiry, cgroups: &Cgroups) -> Value {
    let Inquiry { subject, pid, thread, has_program, .. } = *inquiry;
    match subject {
        Subject::Memory => json!(procfs::proportional_memory(pid, has_program)),
        Subject::Sample => {
            let target = if has_program { procfs::process_to_diagnose(pid, cgroups) } else { pid };
            sample_json::encode(&procfs::sample(target, thread, cgroups))
        }
    }
}
