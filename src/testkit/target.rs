//! The program and the worker class under test.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::http::Http;
use super::proc::session_members;
use super::workload::Workload;
use crate::os::process::Pid;
use crate::os::testing;

/// How the program under test is started, and how work reaches it.
#[derive(Clone)]
pub(super) struct TestTarget {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    pub(super) class: String,
    pub(super) workload: Arc<dyn Workload>,
    running: Arc<Mutex<Vec<Pid>>>,
}

impl TestTarget {
    /// Creates a target with the class `sync` and work over HTTP.
    pub(super) fn new(program: PathBuf) -> Self {
        Self {
            program: absolute(&program),
            arguments: Vec::new(),
            variables: Vec::new(),
            class: "sync".into(),
            workload: Arc::new(Http::new()),
            running: Arc::default(),
        }
    }

    /// Records that a program runs, until [`on_exited`](Self::on_exited).
    pub(super) fn on_started(&self, pid: Pid) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
    }

    pub(super) fn on_exited(&self, pid: Pid) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != pid);
    }

    /// Kills all running programs with their sessions, so that checks which wait for them fail.
    pub(super) fn kill_running(&self) {
        for pid in self.running.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            session_members(*pid).iter().for_each(|member| testing::send_sigkill(member.pid));
        }
    }
}

/// Makes a path absolute, because the program is started in a directory of its own.
fn absolute(program: &Path) -> PathBuf {
    std::path::absolute(program).unwrap_or_else(|_| program.to_owned())
}

impl fmt::Debug for TestTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, class, .. } = self;
        f.debug_struct("TestTarget")
            .field("program", program)
            .field("class", class)
            .finish_non_exhaustive()
    }
}
