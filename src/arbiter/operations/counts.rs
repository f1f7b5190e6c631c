//! How many reloads and upgrades have ended, how, and how long they have taken. Pure.

use std::time::Duration;

const COMMANDS: [&str; 2] = ["reload", "upgrade"];
const RESULTS: [&str; 2] = ["done", "failed"];

/// The reloads and upgrades that have ended, by result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::arbiter) struct OperationCounts([[Ended; RESULTS.len()]; COMMANDS.len()]);

/// How many have ended so, and how long they have taken altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::arbiter) struct Ended {
    pub(in crate::arbiter) count: u64,
    pub(in crate::arbiter) time: Duration,
}

impl OperationCounts {
    /// Adds to the counts of a command and a result. Others are not counted.
    pub(in crate::arbiter) fn add(&mut self, command: &str, result: &str, ended: Ended) {
        let command = COMMANDS.iter().position(|it| *it == command);
        let result = RESULTS.iter().position(|it| *it == result);
        if let (Some(command), Some(result)) = (command, result) {
            let total = &mut self.0[command][result];
            total.count = total.count.saturating_add(ended.count);
            total.time = total.time.saturating_add(ended.time);
        }
    }

    /// Adds all counts of another master.
    pub(super) fn add_all(&mut self, other: &Self) {
        for (command, result, ended) in other.iter() {
            self.add(command, result, ended);
        }
    }

    /// Returns each command, each result, and its counts.
    pub(in crate::arbiter) fn iter(
        &self,
    ) -> impl Iterator<Item = (&'static str, &'static str, Ended)> {
        let commands = COMMANDS.iter().zip(&self.0);
        commands.flat_map(|(command, results)| {
            RESULTS.iter().zip(results).map(|(result, ended)| (*command, *result, *ended))
        })
    }
}
