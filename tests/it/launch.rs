//! How a server is started: flags, environment, and what it inherits.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio, id};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;

use crate::example::example;
use crate::log_capture::{Watched, capture};
use crate::os::{ChildSetup, Signals, prepare};
use crate::proc::wait_until;
use crate::support::{Exit, Outcome, Server};

/// A user, and a group, without privileges: `nobody`, or none that is known.
const UNPRIVILEGED: u32 = 65_534;

/// Returns whether this machine permits the class `uring`; prints why not.
pub fn uring_runs() -> bool {
    let outcome = Launch::new(&["-k", "uring", "--check-config"]).run();
    if outcome.exit != Exit::Code(0) {
        eprintln!("skipped: {}", outcome.stderr);
    }
    outcome.exit == Exit::Code(0)
}

/// A server that is not started yet, with a working directory of its own.
pub struct Launch {
    command: Command,
    args: Vec<String>,
    words: Vec<String>,
    inheritance: ChildSetup,
    port: u16,
    bind: bool,
    json: bool,
    stderr: Option<Stdio>,
    /// Descriptors that are open until the server has started.
    passed: Vec<OwnedFd>,
    dir: TempDir,
}

impl Launch {
    /// Prepares a server with these flags, and with a free port of 127.0.0.1 unless told otherwise. The
    /// class `tokio` serves the demo of its own program.
    pub fn new(flags: &[&str]) -> Self {
        match example("tokio_demo").filter(|_| flags.contains(&"tokio")) {
            Some(program) => Self::by(&[program.to_str().unwrap()], flags),
            None => Self::by(&[env!("CARGO_BIN_EXE_ostler")], flags),
        }
    }

    /// Prepares a server that `words` start: a program, and arguments that come before all others.
    pub fn by(words: &[&str], flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(dir.path());
        let args = flags.iter().map(|flag| (*flag).to_owned()).collect();
        for (name, _) in std::env::vars() {
            if ["OSTLER_", "DEMO_", "LISTEN_", "NOTIFY_"].iter().any(|mark| name.starts_with(mark))
            {
                command.env_remove(name);
            }
        }
        let inheritance = ChildSetup::default();
        Self {
            command,
            args,
            words: Vec::new(),
            inheritance,
            port: free_port(),
            bind: true,
            json: true,
            stderr: None,
            passed: Vec::new(),
            dir,
        }
    }

    /// Lets `words`, a program and its arguments, execute the server.
    pub fn by_way_of(mut self, words: &[String]) -> Self {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(self.command.get_program()).args(self.command.get_args());
        command.current_dir(self.dir.path());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<str>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Sets the program that workers run, word by word.
    pub fn program(mut self, words: &[&str]) -> Self {
        self.words = ["--"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.command.env(name, value.as_ref());
        self
    }

    /// Adds no `--bind`: flags, settings or the default decide.
    pub fn unbound(mut self) -> Self {
        self.bind = false;
        self
    }

    /// Adds no `--log-format`, so that this harness does not parse the log.
    pub fn plain(mut self) -> Self {
        self.json = false;
        self
    }

    /// Sends the log to this target instead of this harness.
    pub fn stderr_to(mut self, target: impl Into<Stdio>) -> Self {
        self.stderr = Some(target.into());
        self
    }

    /// Lets the server inherit a descriptor of the test.
    pub fn keep(mut self, fd: i32) -> Self {
        self.inheritance.fds.push(fd);
        self
    }

    /// Hands a descriptor over to the server.
    pub fn pass(mut self, fd: OwnedFd) -> Self {
        self = self.keep(fd.as_raw_fd());
        self.passed.push(fd);
        self
    }

    /// Lets the server inherit this process's core limit. Without this call, its limit is 0.
    pub fn with_cores(mut self) -> Self {
        self.inheritance.cores = true;
        self
    }

    /// Starts the server without privileges: if the test runs as root, as another user.
    pub fn unprivileged(mut self) -> Self {
        if Uid::effective().is_root() {
            chown(self.dir(), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
            self.command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        self
    }

    /// Sets the signal state in which the server starts.
    pub fn signals(mut self, signals: Signals) -> Self {
        self.inheritance.signals = signals;
        self
    }

    /// Makes a system call fail with ENOSYS in the server.
    pub fn without_call(mut self, call: libc::c_long) -> Self {
        self.inheritance.missing_call = Some(call);
        self
    }

    /// Makes the server's kernel look like one without SO_PASSRIGHTS (before Linux 6.16).
    pub fn without_passrights(mut self) -> Self {
        self.inheritance.lacks_passrights = true;
        self
    }

    /// Returns the port that the server will have.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the server's working directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns a path in the server's working directory.
    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).into_os_string().into_string().unwrap()
    }

    /// Starts the server, and waits for the first workers.
    #[track_caller]
    pub fn start(self) -> Server {
        let server = self.spawn();
        server.wait_for("ready", |record| record.message() == "all workers ready");
        server
    }

    /// Starts the server, and waits for nothing.
    #[track_caller]
    pub fn spawn(mut self) -> Server {
        if self.bind {
            self.command.arg("--bind").arg(format!("127.0.0.1:{}", self.port));
        }
        if self.json {
            self.command.arg("--log-format").arg("json");
        }
        // The app comes after all flags.
        self.command.args(&self.args).args(&self.words);
        prepare(&mut self.command, self.inheritance.clone());
        let stdout = tempfile::tempfile().unwrap();
        self.command.stdin(Stdio::null()).stdout(stdout.try_clone().unwrap());
        let stderr = self.stderr.take().unwrap_or_else(Stdio::piped);
        let mut child = self.command.stderr(stderr).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let log = Arc::default();
        let end = Arc::default();
        if let Some(stderr) = child.stderr.take() {
            capture(stderr, Arc::clone(&log));
        }
        reap(child, pid, Arc::clone(&end));
        Server { pid, port: self.port, log, end, stdout, dir: self.dir }
    }

    /// Runs a server that is expected to exit.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.spawn().into_outcome(|| ()).0
    }
}

/// Returns a free address outside the kernel's ephemeral range. No two tests get the same.
pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Returns a free port outside the kernel's ephemeral range. No two tests get the same.
pub fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Concurrent runs of the suite begin at different ports.
    let begin = (id().wrapping_mul(977) % u32::from(COUNT)) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(step) % COUNT;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
            unlisten(listener);
            return port;
        }
    }
}

/// Frees a listener's address at once, even if a child that another thread forks at this moment
/// holds a copy of it until exec.
pub fn unlisten(listener: TcpListener) {
    // After shutdown(2) no copy of the socket listens.
    shutdown(listener.as_raw_fd(), Shutdown::Both).unwrap();
}

/// Waits until an address can be bound. It refuses clients before that, while workers drain.
#[track_caller]
pub fn wait_free(address: SocketAddr) {
    wait_until("the address is free", || TcpListener::bind(address).map(unlisten).is_ok());
}

/// Waits for the master in a thread, and reaps it only under the lock.
fn reap(mut child: Child, pid: Pid, end: Arc<Watched<Option<Exit>>>) {
    thread::spawn(move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(pid), flags).is_err_and(|errno| errno == Errno::EINTR) {}
        end.change(|end| *end = child.wait().ok().map(Exit::from));
    });
}
