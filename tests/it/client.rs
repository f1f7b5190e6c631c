//! A client of HTTP/1.1 over a bare socket, able to misbehave.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::path::Path;

use nix::sys::socket::{setsockopt, sockopt};

use crate::support::DEADLINE;

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// What has been received and not yet understood.
    input: Vec<u8>,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    fields: Vec<(String, String)>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Client {
    /// Connects over TCP.
    pub fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_nodelay(true)?;
        Self::new(stream)
    }

    /// Connects to a path.
    pub fn unix(path: &Path) -> io::Result<Self> {
        Self::over_unix(UnixStream::connect(path)?)
    }

    /// Connects to a name in the abstract namespace.
    pub fn abstract_unix(name: &str) -> io::Result<Self> {
        Self::over_unix(UnixStream::connect_addr(&UnixAddr::from_abstract_name(name)?)?)
    }

    /// `TcpStream` asks nothing of its descriptor that a unix socket could not do as well.
    fn over_unix(stream: UnixStream) -> io::Result<Self> {
        Self::new(TcpStream::from(OwnedFd::from(stream)))
    }

    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// The port at this end.
    pub fn port(&self) -> u16 {
        self.stream.local_addr().unwrap().port()
    }

    /// Sends bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).unwrap();
    }

    /// Sends bytes to a server that may no longer want them.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Begins a GET that leaves the connection open.
    #[track_caller]
    pub fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"));
    }

    /// GETs over this connection, and leaves it open.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(path);
        self.answer()
    }

    /// GETs and asks the server to close.
    pub fn try_get_last(&mut self, path: &str) -> io::Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        self.try_send(request)?;
        self.try_answer()
    }

    /// Says that no more will be sent. The client still reads.
    pub fn finish_sending(&self) {
        // A server that has reset the connection needs no telling.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection with a reset instead of an orderly close.
    pub fn reset(self) {
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &now).unwrap();
    }

    /// The next answer, body and all.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    /// The next answer, body and all, if it comes.
    pub fn try_answer(&mut self) -> io::Result<Answer> {
        let head = self.try_head()?;
        let mut body = Vec::new();
        self.try_body(&head, |piece| body.extend_from_slice(piece))?;
        Ok(Answer { head, body })
    }

    /// The next head, if it comes.
    pub fn try_head(&mut self) -> io::Result<Head> {
        let end = loop {
            if let Some(at) = find(&self.input, b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let text = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input.drain(..end + 4);
        Head::parse(&text).ok_or_else(|| Error::new(ErrorKind::InvalidData, text))
    }

    /// The body that belongs to a head, handed over in pieces as they come.
    pub fn try_body(&mut self, head: &Head, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        if head.status / 100 == 1 || head.status == 204 || head.status == 304 {
            return Ok(());
        }
        if head.get("transfer-encoding").is_some_and(|value| value == "chunked") {
            return self.chunked_body(sink);
        }
        if let Some(length) = head.get("content-length") {
            let length = length.parse().map_err(|_| Error::other("content-length"))?;
            return self.exactly(length, sink);
        }
        loop {
            sink(&self.input);
            self.input.clear();
            match self.fill() {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            }
        }
    }

    fn chunked_body(&mut self, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(Error::other)?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(());
            }
            self.exactly(size, &mut sink)?;
            self.line()?;
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = find(&self.input, b"\r\n") {
                let line = String::from_utf8_lossy(&self.input[..at]).into_owned();
                self.input.drain(..at + 2);
                return Ok(line);
            }
            self.fill()?;
        }
    }

    fn exactly(&mut self, mut length: usize, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
        while length > 0 {
            if self.input.is_empty() {
                self.fill()?;
            }
            let here = length.min(self.input.len());
            sink(&self.input[..here]);
            self.input.drain(..here);
            length -= here;
        }
        Ok(())
    }

    /// Waits for more input; the end of it is an error.
    fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(size) => {
                self.input.extend_from_slice(&piece[..size]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the server to close, orderly or not, and returns what it said before.
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

impl Head {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let first = lines.next()?.strip_prefix("HTTP/1.1 ")?;
        let status = first.get(..3)?.parse().ok()?;
        let fields = lines
            .map(|line| {
                let (name, value) = line.split_once(':')?;
                Some((name.to_ascii_lowercase(), value.trim().to_owned()))
            })
            .collect::<Option<_>>()?;
        Some(Self { status, fields })
    }

    /// The value of a field, by its name in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(field, _)| field == name)?;
        Some(&field.1)
    }

    /// Whether the server means to close.
    pub fn closes(&self) -> bool {
        self.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Answer {
    /// The status code.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The body of a successful answer, as text.
    #[track_caller]
    pub fn text(&self) -> String {
        assert_eq!(self.head.status, 200, "{:?}", String::from_utf8_lossy(&self.body));
        String::from_utf8(self.body.clone()).unwrap()
    }

    /// The body of a successful answer, as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
