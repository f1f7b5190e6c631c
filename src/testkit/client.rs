//! An HTTP/1.1 client over a plain socket. The black-box tests of the crate use this file too, and
//! extend it by misbehaviour.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(super) stream: TcpStream,
    /// Received bytes that are not parsed yet.
    pub(super) input: Vec<u8>,
}

/// The head of a response.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    fields: Vec<(String, String)>,
}

/// A response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Client {
    /// Connects over TCP.
    pub(crate) fn tcp(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_nodelay(true)?;
        Self::new(stream)
    }

    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Sends bytes; fails if the server has closed the connection.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a GET request that keeps the connection open.
    pub(crate) fn try_ask(&mut self, path: &str) -> io::Result<()> {
        self.try_send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// Sends a GET request with `Connection: close`.
    pub(crate) fn try_ask_last(&mut self, path: &str) -> io::Result<()> {
        self.try_send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"))
    }

    /// Reads the next response with its body.
    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let head = self.try_head()?;
        let mut body = Vec::new();
        self.try_body(&head, |piece| body.extend_from_slice(piece))?;
        Ok(Answer { head, body })
    }

    /// Reads the next head.
    pub(crate) fn try_head(&mut self) -> io::Result<Head> {
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

    /// Reads the body that belongs to a head, and passes the pieces to `sink` as they arrive.
    pub(crate) fn try_body(&mut self, head: &Head, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
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

    /// Reads more input; the end of the input is an error.
    pub(super) fn fill(&mut self) -> io::Result<()> {
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

    /// Returns the value of a field, by its name in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(field, _)| field == name)?;
        Some(&field.1)
    }

    /// Returns whether the server announces that it closes the connection.
    pub(crate) fn closes(&self) -> bool {
        self.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

impl Answer {
    /// Returns the status code.
    pub(crate) fn status(&self) -> u16 {
        self.head.status
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
