//! The program and the worker class under test.

use std::fmt;
use std::path::{Path, PathBuf};

use super::http::Http;
use super::workload::Workload;

/// How the program under test is started, and how work reaches it.
pub(super) struct TestTarget {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    pub(super) class: String,
    pub(super) workload: Box<dyn Workload>,
}

impl TestTarget {
    /// Creates a target with the class `sync` and work over HTTP.
    pub(super) fn new(program: PathBuf) -> Self {
        Self {
            program: absolute(&program),
            arguments: Vec::new(),
            variables: Vec::new(),
            class: "sync".into(),
            workload: Box::new(Http::new()),
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
