//! What the tests' client can do beyond plain requests: assert, and misbehave.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::path::Path;

use nix::sys::socket::{setsockopt, sockopt};

pub(crate) use crate::wire::{Answer, Client};

/// Returns whether connections to the address are refused.
pub fn is_refused(address: SocketAddr) -> bool {
    Client::tcp(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

impl Client {
    /// Connects to a path.
    pub fn unix(path: &Path) -> io::Result<Self> {
        Self::over_unix(UnixStream::connect(path)?)
    }

    /// Connects to a name in the abstract namespace.
    pub fn abstract_unix(name: &str) -> io::Result<Self> {
        Self::over_unix(UnixStream::connect_addr(&UnixAddr::from_abstract_name(name)?)?)
    }

    /// Wraps a unix stream in a `TcpStream`, which makes no call that a unix socket would reject.
    fn over_unix(stream: UnixStream) -> io::Result<Self> {
        Self::new(TcpStream::from(OwnedFd::from(stream)))
    }

    /// Returns the client's port.
    pub fn port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends a GET that leaves the connection open.
    #[track_caller]
    pub fn ask(&mut self, path: &str) {
        self.try_ask(path).unwrap();
    }

    /// Sends a GET, reads the answer, and leaves the connection open.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(path);
        self.answer()
    }

    /// Sends a GET that asks the server to close.
    pub fn try_get_last(&mut self, path: &str) -> io::Result<Answer> {
        self.try_ask_last(path)?;
        self.try_answer()
    }

    /// Waits for the first bytes of an answer.
    #[track_caller]
    pub fn read_some(&mut self) {
        self.fill().unwrap();
    }

    /// Shuts down the sending side. The client can still read.
    pub fn finish_sending(&self) {
        // Fails if the server has reset the connection already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends a GET and ends the output. Reads the answer, after which the server is to close.
    #[track_caller]
    pub fn get_and_finish_sending(mut self, path: &str) -> Answer {
        self.ask(path);
        self.finish_sending();
        let answer = self.answer();
        self.expect_end();
        answer
    }

    /// Closes the connection with a reset instead of a FIN.
    pub fn reset(self) {
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &now).unwrap();
    }

    /// Reads the next answer with its body.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// Reads this many bytes.
    #[track_caller]
    pub fn read_exactly(&mut self, bytes: &mut [u8]) {
        self.try_read_exactly(bytes).unwrap();
    }

    /// Reads this many bytes; fails if the server has closed the connection.
    pub fn try_read_exactly(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        while self.input.len() < bytes.len() {
            self.fill()?;
        }
        bytes.copy_from_slice(&self.input[..bytes.len()]);
        self.input.drain(..bytes.len());
        Ok(())
    }

    /// Waits for the server to close or reset the connection. Returns what it sent before.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(()) => (),
                Err(error) => match error.kind() {
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => break,
                    _ => panic!("the server does not close: {error}"),
                },
            }
        }
        std::mem::take(&mut self.input)
    }

    /// Waits for the server to close without another byte.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(rest.is_empty(), "more than expected: {:?}", String::from_utf8_lossy(&rest));
    }
}

impl Answer {
    /// Returns the body of a successful answer as text.
    #[track_caller]
    pub fn text(&self) -> String {
        assert_eq!(self.head.status, 200, "{:?}", String::from_utf8_lossy(&self.body));
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// Returns the body of a successful answer as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}
