//! The way to a statsd server. A child looks up its name, since that may wait for a name server.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use slog::{Logger, warn};

use crate::address::Address;
use crate::os::helper_process::HelperProcess;
use crate::os::lookups::Lookups;
use crate::time::MonotonicTime;

/// How long a look-up may take. A resolver tries each of three servers for 10 s.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked for the answer.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How soon a look-up that has failed is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// A statsd server, and a socket for it once its name is known.
pub(super) struct StatsdServer {
    host: String,
    port: u16,
    state: State,
    /// When there is something to do.
    due: Option<MonotonicTime>,
    /// Whether it was logged that the server cannot be found.
    has_warned: bool,
}

enum State {
    Unknown,
    /// A child looks the name up, until this time at most.
    LookingUp(HelperProcess, MonotonicTime),
    Found(UdpSocket),
}

impl StatsdServer {
    /// Returns a server whose name is looked up at the first call of [`find`](Self::find); `None` if the
    /// address is no TCP or UDP address.
    pub(super) fn new(address: &Address, now: MonotonicTime) -> Option<Self> {
        let Address::Tcp { host, port } = address else { return None };
        let (host, port) = (host.clone(), *port);
        Some(Self { host, port, state: State::Unknown, due: Some(now), has_warned: false })
    }

    /// Returns when [`find`](Self::find) has something to do.
    pub(super) fn due(&self) -> Option<MonotonicTime> {
        self.due
    }

    /// Returns the socket, if the server is known.
    pub(super) fn socket(&self) -> Option<&UdpSocket> {
        match &self.state {
            State::Found(socket) => Some(socket),
            State::Unknown | State::LookingUp(..) => None,
        }
    }

    /// Begins to look the name up, or takes the answer. Never waits.
    pub(super) fn find(&mut self, now: MonotonicTime, log: &Logger) {
        if self.due.is_some_and(|due| due <= now) {
            self.advance(now, log);
        }
    }

    /// Takes an answer that has come: there is no later opportunity.
    pub(super) fn find_now(&mut self, now: MonotonicTime, log: &Logger) {
        if matches!(self.state, State::LookingUp(..)) {
            self.advance(now, log);
        }
    }

    fn advance(&mut self, now: MonotonicTime, log: &Logger) {
        match &mut self.state {
            State::Unknown => self.begin(now, log),
            State::LookingUp(helper, give_up_at) => {
                if helper.read() {
                    let answer = String::from_utf8_lossy(helper.answer()).into_owned();
                    match answer.parse() {
                        Ok(server) => self.connect(server, now, log),
                        Err(_) => self.fail(&answer, now, log),
                    }
                } else if now >= *give_up_at {
                    self.fail("its name server does not answer", now, log);
                } else {
                    self.due = Some(now.saturating_add(POLL_INTERVAL));
                }
            }
            State::Found(_) => self.due = None,
        }
    }

    fn begin(&mut self, now: MonotonicTime, log: &Logger) {
        let (host, port) = (&self.host, self.port);
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.connect((address, port).into(), now, log);
        }
        match HelperProcess::start(|output| look_up(output, host, port)) {
            Ok(helper) => {
                self.state = State::LookingUp(helper, now.saturating_add(TIMEOUT));
                self.due = Some(now.saturating_add(POLL_INTERVAL));
            }
            Err(error) => self.fail(&error.to_string(), now, log),
        }
    }

    fn connect(&mut self, server: SocketAddr, now: MonotonicTime, log: &Logger) {
        match connected_socket(server) {
            Ok(socket) => (self.state, self.due) = (State::Found(socket), None),
            Err(error) => self.fail(&error.to_string(), now, log),
        }
    }

    fn fail(&mut self, reason: &str, now: MonotonicTime, log: &Logger) {
        if !std::mem::replace(&mut self.has_warned, true) {
            warn!(log, "statsd server not available yet"; "host" => &self.host, "error" => reason);
        }
        (self.state, self.due) = (State::Unknown, Some(now.saturating_add(RETRY_INTERVAL)));
    }
}

/// Writes the address, or the reason why there is none, in the child.
fn look_up(output: &mut File, host: &str, port: u16) {
    let answer = match Lookups::Live.host(host, port) {
        Ok(found) => found.first().map(SocketAddr::to_string).unwrap_or_default(),
        Err(error) => error.to_string(),
    };
    let _ = output.write_all(answer.as_bytes()); // fails only if the master has exited
}

fn connected_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
