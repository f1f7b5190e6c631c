//! Results on the standard output; how far an operation has come, on the standard error: a bar on a
//! terminal, lines elsewhere.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use super::failure::Failure;
use super::operation::Operation;
use super::text::duration;

const BAR_WIDTH: usize = 22;
/// Longer lines would wrap on the narrowest usual terminal, and could not be overwritten.
const LINE_WIDTH: usize = 79;

/// Writes to the standard output.
///
/// # Errors
/// It cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    written.map_err(|error| Failure::of_output(&error))
}

/// Shows the progress of an operation.
pub(crate) struct Display {
    is_terminal: bool,
    begin: Instant,
    /// What was shown last.
    last: String,
}

impl Display {
    pub(crate) fn new() -> Self {
        let is_dumb = env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let is_terminal = io::stderr().is_terminal() && !is_dumb;
        Self { is_terminal, begin: Instant::now(), last: String::new() }
    }

    pub(crate) fn show(&mut self, operation: &Operation) {
        let text = operation.describe();
        let line = if self.is_terminal {
            let elapsed = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            let line =
                format!("{} {text}, {}", operation.progress.bar(BAR_WIDTH), duration(elapsed));
            // `\x1b[K` clears the rest of the line.
            format!("\r{}\x1b[K", line.chars().take(LINE_WIDTH).collect::<String>())
        } else {
            format!("{text}\n")
        };
        if self.last != line {
            // Progress is a courtesy: the wait goes on without it.
            let _ = io::stderr().write_all(line.as_bytes());
            self.last = line;
        }
    }

    /// Clears the bar.
    pub(crate) fn clear(&self) {
        if self.is_terminal && !self.last.is_empty() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
