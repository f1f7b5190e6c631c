//! `reload`: a change of files leads to a reload. A child watches them, since a path may lead to a file system
//! that does not answer. It ends with its answer once a change has settled. The next child starts from the
//! states in that answer when the reload is over, so that no change in between is lost.

mod settling;
mod watcher;

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use slog::{info, warn};

use crate::arbiter::state::MasterState;
use crate::arbiter::upgrade::ExecArgs;
use crate::os::clock;
use crate::os::helper_process::HelperProcess;
use crate::time::MonotonicTime;
use settling::Stamps;
use watcher::Watched;

/// How long after a failure the files are watched again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Watches the files of the settings in use.
#[derive(Default)]
pub(super) struct FileWatch {
    watcher: Option<Watcher>,
    /// The states of the files at the last change.
    stamps: Stamps,
    retry_at: Option<MonotonicTime>,
}

/// A change that has settled.
pub(in crate::arbiter) struct FileChange {
    /// What begins an operation.
    pub(in crate::arbiter) by: String,
    /// The program has changed. Settings that have changed too are read by the new master.
    pub(in crate::arbiter) is_program: bool,
}

/// The child.
struct Watcher {
    helper: HelperProcess,
    has_ended: bool,
    /// The generation whose files it watches.
    generation: u32,
}

impl FileWatch {
    /// Stops watching.
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// Reads what the child has said. It waits until [`take_change`](Self::take_change).
    pub(super) fn read(&mut self) {
        if let Some(watcher) = &mut self.watcher {
            watcher.has_ended = watcher.helper.read();
        }
    }

    /// Returns what has changed.
    pub(super) fn take_change(&mut self, state: &MasterState<'_>) -> Option<FileChange> {
        let watcher = self.watcher.take_if(|watcher| watcher.has_ended)?;
        let answer: Value = serde_json::from_slice(watcher.helper.answer()).unwrap_or_default();
        let Some(stamps) = answer["stamps"].as_object() else {
            let reason = answer["error"].as_str().unwrap_or("the process that watches has ended");
            self.fail(reason, state);
            return None;
        };
        let stamp = |(path, stamp): (&String, &Value)| Some((path.into(), stamp.as_u64()?));
        self.stamps = stamps.iter().filter_map(stamp).collect();
        let changed = answer["changed"].as_array().into_iter().flatten();
        let changed: Vec<&str> = changed.filter_map(Value::as_str).collect();
        let program = answer["program"].as_str();
        let is_program = program.is_some_and(|program| changed.contains(&program));
        let follows = if is_program { "upgrade" } else { "reload" };
        info!(state.log(), "files changed"; "files" => changed.join(", "), "follows" => follows);
        let first = program.filter(|_| is_program).or(changed.first().copied());
        Some(FileChange { by: format!("change of {}", first.unwrap_or("files")), is_program })
    }

    /// Starts a child, unless one watches the files of this generation.
    pub(super) fn keep_running(&mut self, state: &MasterState<'_>, exec_args: Option<&ExecArgs>) {
        let generation = state.pools.generation_number();
        let is_due = self.retry_at.is_none_or(|at| clock::now() >= at);
        match &self.watcher {
            None if is_due => (),
            // A reload by a signal: what it has read is not what the child compares with.
            Some(watcher) if watcher.generation != generation && !watcher.has_ended => {
                self.stamps.clear();
            }
            _ => return,
        }
        (self.watcher, self.retry_at) = (None, None);
        match self.start(state, exec_args) {
            Ok(helper) => {
                self.watcher = Some(Watcher { helper, has_ended: false, generation });
            }
            Err(error) => self.fail(&format!("failed to fork: {error}"), state),
        }
    }

    fn start(
        &self,
        state: &MasterState<'_>,
        exec_args: Option<&ExecArgs>,
    ) -> io::Result<HelperProcess> {
        let settings = &state.context.settings;
        let files = settings.watched_files();
        HelperProcess::start(|answer| {
            if let Some(title) = state.environment.title {
                title.set(&format!("ostler: file watcher [{}]", settings.proc_name));
            }
            let program = exec_args.and_then(ExecArgs::program);
            let watched = Watched { files: &files, program: program.as_deref() };
            let text = match watched.wait_changed(&self.stamps) {
                Ok((changed, stamps)) => answer_of(program.as_ref(), &changed, &stamps),
                Err(error) => json!({ "error": error.to_string() }),
            };
            // A write fails only if the master has exited.
            let _ = answer.write_all(text.to_string().as_bytes());
        })
    }

    fn fail(&mut self, reason: &str, state: &MasterState<'_>) {
        warn!(state.log(), "failed to watch files"; "error" => reason);
        self.retry_at = Some(clock::now().saturating_add(RETRY_DELAY));
    }

    /// Leaves a failed start until the next call of [`keep_running`](Self::keep_running).
    pub(super) fn retry_later(&mut self) {
        self.retry_at = None;
    }

    /// Returns the descriptor that is readable when a change has settled.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watcher.as_ref().filter(|it| !it.has_ended).map(|it| it.helper.fd())
    }

    /// Returns when a failed start is tried again.
    pub(super) fn next_deadline(&self) -> Option<MonotonicTime> {
        self.retry_at
    }
}

fn answer_of(program: Option<&PathBuf>, changed: &[PathBuf], stamps: &Stamps) -> Value {
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    let changed: Vec<String> = changed.iter().map(text).collect();
    let stamps: serde_json::Map<String, Value> =
        stamps.iter().map(|(path, stamp)| (text(path), json!(stamp))).collect();
    json!({ "program": program.map(text), "changed": changed, "stamps": stamps })
}
