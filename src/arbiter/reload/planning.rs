//! Plans a reload in a child, which looks up what may wait for a server or a file system: the settings
//! file, users, groups and hosts. The master then does the same with the recorded answers.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde_json::{Value, json};

use super::transaction::ConfigLoader;
use crate::arbiter::address_changes;
use crate::arbiter::state::MasterState;
use crate::duration::format_duration;
use crate::log::error_chain;
use crate::os::clock;
use crate::os::helper_process::HelperProcess;
use crate::os::lookups::Lookups;
use crate::time::MonotonicTime;

/// How long the look-ups of a reload may take. A resolver tries each of three servers for 10 s.
const PLAN_TIMEOUT: Duration = Duration::from_secs(30);

/// A plan that a child works on.
pub(super) struct Planning {
    helper: HelperProcess,
    deadline: MonotonicTime,
}

impl Planning {
    /// Starts the child.
    ///
    /// # Errors
    /// A shortage of descriptors, processes or memory.
    pub(super) fn start<'a>(
        load_config: &ConfigLoader<'a>,
        state: &MasterState<'a>,
    ) -> io::Result<Self> {
        Self::start_with(|answer| {
            // A write fails only if the master has exited.
            let _ = answer.write_all(plan(load_config, state).to_string().as_bytes());
        })
    }

    /// Starts a child that writes `answers` or an `error` as JSON.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub(super) fn start_with(plan: impl FnOnce(&mut File)) -> io::Result<Self> {
        // A daemon reads its settings relative to a directory that it has kept open.
        let helper = HelperProcess::start_with_dirs(plan)?;
        Ok(Self { helper, deadline: clock::now().saturating_add(PLAN_TIMEOUT) })
    }

    /// Returns the answers, or why the reload is rejected; `None` while the child works.
    pub(super) fn poll(&mut self, now: MonotonicTime) -> Option<Result<Value, String>> {
        if self.helper.read() {
            return Some(parse(self.helper.answer()));
        }
        (now >= self.deadline).then(|| {
            Err(format!(
                "reading the settings file and looking up users and hosts took longer than {}",
                format_duration(PLAN_TIMEOUT)
            ))
        })
    }

    /// Whether the child has exited. A killed child that waits for a file system exits late.
    pub(super) fn has_ended(&mut self) -> bool {
        self.helper.read()
    }

    /// Kills the child.
    pub(super) fn abandon(&mut self) {
        self.helper.kill();
    }

    /// Returns the descriptor that is readable when an answer has come.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.helper.fd()
    }

    /// Returns when the child is given up.
    pub(super) fn deadline(&self) -> MonotonicTime {
        self.deadline
    }
}

/// Plans the reload, in the child.
fn plan<'a>(load_config: &ConfigLoader<'a>, state: &MasterState<'a>) -> Value {
    let lookups = Lookups::recording();
    let planned = load_config(&lookups).and_then(|config| {
        address_changes::look_up_hosts(&config, state.pools.generations(), &lookups)
            .map_err(|error| error_chain(&error))
    });
    match planned {
        Ok(()) => json!({ "answers": lookups.record() }),
        Err(reason) => json!({ "error": reason }),
    }
}

fn parse(answer: &[u8]) -> Result<Value, String> {
    let mut answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    if let Some(reason) = answer["error"].as_str() {
        return Err(reason.to_owned());
    }
    match answer["answers"].take() {
        answers @ Value::Object(_) => Ok(answers),
        _ => Err("the process that reads the settings has ended early".to_owned()),
    }
}
