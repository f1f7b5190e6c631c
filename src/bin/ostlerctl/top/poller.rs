//! Asks the master in threads of its own, so that the screen never waits for it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::super::ask::get;
use super::super::change;
use super::super::http::Client;
use super::super::status::Status;
use super::state::Change;

/// How long the master may take to answer before the screen says so.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How soon a master that did not answer is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// What the threads report.
pub(super) enum Update {
    Status(Box<Status>),
    /// There is no answer; for how many seconds so far.
    Trouble(String, u64),
    /// How a change has ended.
    Outcome(String),
}

/// Asks the master, and carries out changes.
pub(super) struct Poller {
    client: Client,
    sender: Sender<Update>,
}

impl Poller {
    /// Starts to ask for the status at this interval. The thread ends with the program, or once the
    /// receiver is dropped.
    pub(super) fn start(client: &Client, interval: Duration) -> (Self, Receiver<Update>) {
        let (sender, receiver) = channel();
        let client = Client { timeout: ANSWER_TIMEOUT, ..client.clone() };
        let poller = Self { client: client.clone(), sender: sender.clone() };
        thread::spawn(move || {
            let mut answered_at = Instant::now();
            loop {
                let begin = Instant::now();
                let (update, wait) = match get(&client, "/v1/status") {
                    Ok(json) => {
                        answered_at = begin;
                        (Update::Status(Box::new(Status::parse(&json))), interval)
                    }
                    Err(failure) => {
                        let reason = failure.message().to_owned();
                        let seconds = answered_at.elapsed().as_secs();
                        (Update::Trouble(reason, seconds), interval.min(RETRY_INTERVAL))
                    }
                };
                if sender.send(update).is_err() {
                    return;
                }
                thread::sleep(wait.saturating_sub(begin.elapsed()));
            }
        });
        (poller, receiver)
    }

    /// Begins a change. Its outcome comes as an update.
    pub(super) fn begin(&self, wanted: &Change) {
        let target = match wanted {
            Change::Recycle { pool, slot } => {
                change::target("recycle", &[("pool", pool), ("slot", &slot.to_string())])
            }
            Change::Scale { pool, more } => {
                let workers = if *more { "+1" } else { "-1" };
                change::target("scale", &[("pool", pool), ("workers", workers)])
            }
        };
        let (client, sender, what) = (self.client.clone(), self.sender.clone(), wanted.describe());
        thread::spawn(move || {
            let text = match change::wait(&client, &target, None, &mut |_| ()) {
                Ok(operation) => operation.outcome().lines().collect::<Vec<_>>().join("; "),
                Err(failure) => format!("{what}: {}", failure.message()),
            };
            let _ = sender.send(Update::Outcome(text));
        });
    }
}
