//! Messages to the service manager by the protocol of sd_notify(3). Sending never blocks: without a
//! manager, or if it does not read, messages are lost.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::os::process::Pid;
use crate::os::socket;
use crate::time::MonotonicTime;

/// The variable with the name of the manager's socket.
pub(crate) const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// The variable with the pid of the process that the watchdog expects.
pub(crate) const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// The variables that a worker must not inherit: only the master sends to the manager.
pub(crate) const ENV_VARS: [&str; 3] = [NOTIFY_SOCKET, WATCHDOG_PID, "WATCHDOG_USEC"];

/// The connection to the service manager, if there is one.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// How often the watchdog must be pinged.
    watchdog_interval: Option<Duration>,
}

impl ServiceManager {
    /// Connects to the manager that the environment names. Returns a message for the log as well if
    /// that fails.
    pub(crate) fn from_env() -> (Self, Option<String>) {
        let Some(name) = env::var_os(NOTIFY_SOCKET).filter(|name| !name.is_empty()) else {
            return (Self::default(), None);
        };
        match connect(&name) {
            Ok(socket) => (
                Self { socket: Some(socket), watchdog_interval: watchdog_interval_from_env() },
                None,
            ),
            Err(error) => {
                let text =
                    format!("failed to connect to NOTIFY_SOCKET={}: {error}", name.display());
                (Self::default(), Some(text))
            }
        }
    }

    /// Returns whether there is a manager.
    pub(crate) fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Returns how often to call [`ping_watchdog`](Self::ping_watchdog): every half of
    /// WATCHDOG_USEC, but at most 100 times a second.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval
    }

    /// Reports that all pools are ready.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// Sets the status line.
    pub(crate) fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// Reports that a reload begins at `now`.
    pub(crate) fn reloading(&self, now: MonotonicTime) {
        let micros = now.as_nanos() / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading"));
    }

    /// Reports that the service is stopping, which may take this long.
    pub(crate) fn stopping(&self, at_most: Duration, status: &str) {
        let micros = at_most.as_micros();
        self.send(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS={status}"));
    }

    /// Extends the manager's timeout until the service is ready.
    pub(crate) fn extend_startup_timeout(&self, at_most: Duration) {
        let micros = at_most.as_micros();
        self.send(&format!("EXTEND_TIMEOUT_USEC={micros}\nSTATUS=starting"));
    }

    /// Reports to the watchdog that the master's loop runs.
    pub(crate) fn ping_watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// Reports the main process of the service.
    pub(crate) fn main_pid(&self, pid: Pid) {
        self.send(&format!("MAINPID={pid}"));
    }

    /// Stores a descriptor in the manager, which passes it to the next process under this name.
    pub(crate) fn store_fd(&self, name: &str, fd: BorrowedFd<'_>) {
        if let Some(socket) = &self.socket {
            let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
            let _ = socket::send_with_fd(socket.as_fd(), text.as_bytes(), fd);
        }
    }

    /// Removes the stored descriptors of this name from the manager.
    pub(crate) fn remove_stored_fd(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
    }

    /// Sends a message, or drops it if sending would block.
    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let mut line = String::with_capacity(text.len() + 1);
            let _ = writeln!(line, "{text}");
            let _ = socket.send(line.as_bytes());
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a path nor @name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// How often the watchdog is pinged at most, whatever WATCHDOG_USEC says.
const WATCHDOG_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Returns half of WATCHDOG_USEC, if the watchdog expects this process.
fn watchdog_interval_from_env() -> Option<Duration> {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let is_for_this = number(WATCHDOG_PID).is_none_or(|pid| pid == Pid::this().as_raw() as u64);
    let micros = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && is_for_this)?;
    Some(Duration::from_micros(micros / 2).max(WATCHDOG_INTERVAL_MIN))
}
