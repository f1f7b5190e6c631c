//! Why a command fails, for people.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::http::HttpError;
use super::text::printable;

/// A sentence for the user. It is safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure(String);

impl Failure {
    /// Makes a failure of a message that may have unsafe characters; lines are kept.
    pub(crate) fn new(message: impl AsRef<str>) -> Self {
        let lines: Vec<String> = message.as_ref().lines().map(printable).collect();
        Self(lines.join("\n"))
    }

    /// Makes a failure of the request to a control socket.
    pub(crate) fn of_request(error: &HttpError, socket: &Path) -> Self {
        let path = socket.display();
        let HttpError::Connect(cause) = error else {
            return Self::new(format!("{path}: {error}"));
        };
        Self::new(match cause.kind() {
            ErrorKind::NotFound => format!(
                "there is no control socket {path}: start the master with --control-socket {path}, or \
                 set control_socket in its settings"
            ),
            ErrorKind::ConnectionRefused => {
                format!("no master listens at {path}: it has exited, or this is another socket")
            }
            ErrorKind::PermissionDenied => format!(
                "no permission to use {path}: run this as the user of the master, or as root"
            ),
            _ => format!("failed to connect to {path}: {error}"),
        })
    }

    /// Makes a failure to write to the standard output. A reader that has closed needs no message.
    pub(crate) fn of_output(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self(String::new()),
            _ => Self::new(format!("failed to write: {error}")),
        }
    }

    /// Returns the message; empty if there is nothing to say.
    pub(crate) fn message(&self) -> &str {
        &self.0
    }
}
