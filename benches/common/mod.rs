//! A server in a process of its own, for benches that need one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

/// A running server. Dropping it ends it and its workers.
pub(crate) struct Server {
    child: Child,
    /// Where it listens, as `HOST:PORT`.
    pub(crate) address: String,
}

impl Server {
    /// Starts a program on a port that the kernel chooses, and waits until it is ready. If this
    /// process is killed, the kernel ends the server too.
    pub(crate) fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--", program]).args(args);
        command.args(["--bind", "127.0.0.1:0", "--log-format", "json"]);
        let mut child =
            command.stderr(Stdio::piped()).spawn().expect("setpriv, of util-linux, is installed");
        let stderr = child.stderr.take().expect("it is piped");
        let mut log = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut address = None;
        for line in log.by_ref() {
            let mut after = line.split(r#""address":""#).skip(1);
            if let Some(rest) = after.next() {
                address = rest.split('"').next().map(str::to_owned);
            } else if line.contains(r#":"all workers ready""#) {
                break;
            }
        }
        // The pipe must be drained, or it fills up.
        thread::spawn(move || log.for_each(drop));
        Self { child, address: address.expect("the server says where it listens") }
    }

    /// Returns the master's process id.
    #[allow(dead_code)] // not every bench calls it
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // TERM, so that the workers exit too. The child is not reaped yet, so the number is its
        // own.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
