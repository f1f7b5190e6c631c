//! The workload for classes that serve HTTP.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::client::{Answer, Client};
use super::workload::{Done, PendingWork, RepeatClient, ServerInfo, Task, Workload};

/// How long `begin` waits after it has sent a slow request. By then a worker has nearly always
/// accepted it; if not, it is in an accept queue that the drain must empty, so it is answered too.
const ACCEPT_WAIT: Duration = Duration::from_millis(250);

/// After an idle time of this length, the server may have closed the connection: the client retries. A
/// machine that does not run the client between its connect and its request makes a new one idle too.
const IDLE_RACE_MIN: Duration = Duration::from_millis(50);

/// GET requests to three paths of the program, with the expected status 200. If the body of the quick
/// response is a number, it is the ID of the process that answered.
#[derive(Clone, Debug)]
pub struct Http {
    quick: String,
    slow: String,
    hang: String,
}

impl Default for Http {
    fn default() -> Self {
        Self { quick: "/pid".into(), slow: "/sleep?ms={ms}".into(), hang: "/hang".into() }
    }
}

impl Http {
    /// Uses the paths of the built-in app `demo`: `/pid`, `/sleep?ms={ms}`, `/hang`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a path that is answered at once.
    #[must_use]
    pub fn quick(mut self, path: impl Into<String>) -> Self {
        self.quick = path.into();
        self
    }

    /// Sets a path that is answered after a delay. `{ms}` is replaced by the delay in milliseconds.
    #[must_use]
    pub fn slow(mut self, path: impl Into<String>) -> Self {
        self.slow = path.into();
        self
    }

    /// Sets a path whose handler blocks its thread forever.
    #[must_use]
    pub fn hang(mut self, path: impl Into<String>) -> Self {
        self.hang = path.into();
        self
    }

    fn path(&self, task: Task) -> String {
        match task {
            Task::Quick => self.quick.clone(),
            Task::Slow(time) => self.slow.replace("{ms}", &time.as_millis().to_string()),
            Task::Hang => self.hang.clone(),
        }
    }
}

impl Workload for Http {
    fn arguments(&self, _: &Path) -> Vec<String> {
        vec!["--bind".into(), "127.0.0.1:0".into()]
    }

    fn begin(&self, server: &ServerInfo, task: Task) -> Result<Box<dyn PendingWork>, String> {
        let path = self.path(task);
        let request = Request::send(server.clone(), path)?;
        if task != Task::Quick {
            thread::sleep(ACCEPT_WAIT);
        }
        Ok(Box::new(request))
    }

    fn describe(&self, task: Task) -> String {
        let path = self.path(task);
        match task {
            Task::Quick => format!("GET {path}; expected: status 200 at once"),
            Task::Slow(time) => {
                format!("GET {path}; expected: status 200 after {} ms", time.as_millis())
            }
            Task::Hang => format!("GET {path}; expected: a blocked thread and no response"),
        }
    }

    fn advice(&self, task: Task) -> String {
        let method = match task {
            Task::Quick => "quick",
            Task::Slow(_) => "slow",
            Task::Hang => "hang",
        };
        format!(
            "set a path of the program that does so with `Http::{method}`, or serve the app `demo`, \
             which has the default paths: `ContractTest::argument(\"demo\")`;\nif the path works \
             with another class, this class fails to do the work"
        )
    }

    fn idle_client(&self, server: &ServerInfo) -> Result<Option<Box<dyn Any + Send>>, String> {
        let connected = address(server).and_then(Client::tcp);
        let client = connected.map_err(|error| format!("failed to connect: {error}"))?;
        Ok(Some(Box::new(client)))
    }

    fn repeat_client(&self, server: &ServerInfo) -> Option<RepeatClient> {
        let server = server.clone();
        let path = self.quick.clone();
        let mut kept: Option<(Client, Instant)> = None;
        Some(Box::new(move || {
            loop {
                let (mut client, last) = match kept.take() {
                    Some(kept) => kept,
                    None => {
                        let now = Instant::now();
                        (address(&server).and_then(Client::tcp).map_err(|e| e.to_string())?, now)
                    }
                };
                let asked = Instant::now();
                let sent = client.try_ask(&path);
                let idle = last.elapsed();
                match sent.and_then(|()| client.try_answer()) {
                    Ok(answer) => {
                        if !answer.head.closes() {
                            // The response may have arrived long before it was read.
                            kept = Some((client, asked));
                        }
                        return check_answer(&path, &answer);
                    }
                    Err(_) if idle > IDLE_RACE_MIN => (),
                    Err(error) => return Err(format!("a repeated GET {path} failed: {error}")),
                }
            }
        }))
    }
}

struct Request {
    server: ServerInfo,
    path: String,
    client: Client,
    /// Whether the connection may have been closed before the request was sent.
    is_late: bool,
}

impl Request {
    fn send(server: ServerInfo, path: String) -> Result<Self, String> {
        loop {
            let begun = Instant::now();
            let sent = address(&server).and_then(Client::tcp).and_then(|mut client| {
                client.try_ask_last(&path)?;
                Ok(client)
            });
            let is_late = begun.elapsed() > IDLE_RACE_MIN;
            match sent {
                Ok(client) => return Ok(Self { server, path, client, is_late }),
                Err(error) if is_late && is_closed(&error) => (),
                Err(error) => return Err(format!("failed to send GET {path}: {error}")),
            }
        }
    }
}

impl PendingWork for Request {
    fn wait(mut self: Box<Self>, timeout: Duration) -> Result<Done, String> {
        loop {
            let limited = self.client.stream.set_read_timeout(Some(timeout));
            match limited.and_then(|()| self.client.try_answer()) {
                Ok(answer) => return check_answer(&self.path, &answer),
                Err(error) if self.is_late && is_closed(&error) => {
                    *self = Self::send(self.server, self.path)?;
                }
                Err(error) => return Err(format!("no response to GET {}: {error}", self.path)),
            }
        }
    }
}

/// Returns whether an error means that the server has closed the connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn address(server: &ServerInfo) -> io::Result<SocketAddr> {
    server.address().ok_or_else(|| io::Error::other("the program logged no listening address"))
}

fn check_answer(path: &str, answer: &Answer) -> Result<Done, String> {
    let text = String::from_utf8_lossy(&answer.body);
    if answer.status() != 200 {
        let line: String = text.lines().next().unwrap_or_default().chars().take(80).collect();
        return Err(format!("GET {path} returned {} {line:?}", answer.status()));
    }
    Ok(Done { worker: text.trim().parse().ok() })
}
