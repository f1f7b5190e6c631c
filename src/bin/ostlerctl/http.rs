//! A small HTTP/1.0 client over a unix socket. It blocks, but not without end, and trusts no server:
//! heads, bodies and times have limits.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

const HEAD_BYTES_MAX: usize = 16 << 10;
const BODY_BYTES_MAX: usize = 64 << 20;
/// How long connecting may take. The kernel makes a client wait while a stopped master's queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a read looks for an interrupt.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(100);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum HttpError {
    Connect(io::Error),
    /// The connection failed later.
    Broken(io::Error),
    /// The server closed before the beginning of an answer, as it does with users that it does not allow.
    Refused,
    /// The server closed before the end of its answer.
    Closed,
    Timeout(Duration),
    TooLarge,
    /// The bytes are no HTTP response.
    Malformed(&'static str),
    /// Another user listens at the socket than the master's.
    Foreign {
        user: Option<u32>,
        expected: u32,
    },
    /// The user pressed Ctrl-C.
    Interrupted,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) | Self::Broken(error) => error.fmt(f),
            Self::Refused => f.write_str(
                "the server closed the connection without an answer: a master answers root, its own \
                 user and control_users",
            ),
            Self::Closed => f.write_str("the server closed before the end of its answer"),
            Self::Timeout(limit) => write!(f, "no answer within {limit:?}"),
            Self::TooLarge => f.write_str("the answer is too large"),
            Self::Malformed(what) => write!(f, "the answer is not from an ostler master: {what}"),
            Self::Foreign { user: Some(user), expected } => {
                write!(f, "user {user} listens there, but the master is of user {expected}")
            }
            Self::Foreign { user: None, .. } => f.write_str("which user listens there is not known"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl Error for HttpError {}

/// Whether the user wants to stop waiting.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(pub(crate) Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a master is asked, and for how long a client waits for a complete answer.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) socket: PathBuf,
    /// The user that must listen there; `None` for any.
    pub(crate) owner: Option<u32>,
    pub(crate) timeout: Duration,
    pub(crate) interrupt: Interrupt,
}

/// The complete answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    body: Vec<u8>,
}

impl Answer {
    /// Returns the body.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub(crate) fn text(&self) -> Result<&str, HttpError> {
        std::str::from_utf8(&self.body).map_err(|_| HttpError::Malformed("it is not UTF-8"))
    }

    /// Returns the body, which is a JSON object.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn json(&self) -> Result<Value, HttpError> {
        serde_json::from_slice(&self.body)
            .ok()
            .filter(Value::is_object)
            .ok_or(HttpError::Malformed("it is not a JSON object"))
    }

    /// Returns the sentence in which the server refuses a request.
    pub(crate) fn refusal(&self) -> String {
        let json = self.json().ok();
        let sentence = json.as_ref().and_then(|json| json["error"].as_str());
        let text = || self.text().ok().map(str::trim).filter(|text| !text.is_empty());
        match sentence.or_else(text) {
            Some(sentence) => sentence.to_owned(),
            None => format!("HTTP status {}", self.status),
        }
    }
}

impl Client {
    /// Sends a GET and returns the answer.
    ///
    /// # Errors
    /// There is no valid answer in time.
    pub(crate) fn get(&self, target: &str) -> Result<Answer, HttpError> {
        self.open("GET", target, "application/json")?.into_answer(self.timeout)
    }

    /// Sends a request, and reads the head of the response.
    ///
    /// # Errors
    /// There is no valid head in time.
    pub(crate) fn open(
        &self,
        method: &str,
        target: &str,
        accept: &str,
    ) -> Result<ResponseStream, HttpError> {
        let deadline = Instant::now() + self.timeout;
        let stream = connect(&self.socket, CONNECT_TIMEOUT.min(self.timeout))?;
        if let Some(expected) = self.owner {
            // The kernel tells which user has called listen(2).
            let user = ostler::listen::peer_user(stream.as_fd());
            if user != Some(expected) {
                return Err(HttpError::Foreign { user, expected });
            }
        }
        let mut stream = ResponseStream {
            stream,
            interrupt: self.interrupt.clone(),
            status: 0,
            content_type: String::new(),
            length: None,
            received: Vec::new(),
        };
        // An empty body has a length: a POST without one could be refused.
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        let request = format!(
            "{method} {target} HTTP/1.0\r\nHost: ostler\r\nAccept: {accept}\r\n{length}\r\n"
        );
        stream.stream.set_write_timeout(Some(self.timeout)).map_err(HttpError::Broken)?;
        // A server that refuses may close before it has read all: its answer counts.
        let _ = stream.stream.write_all(request.as_bytes());
        stream.read_head(deadline, self.timeout).map(|()| stream)
    }
}

/// Connects in a thread, since the kernel may let a client wait.
fn connect(path: &Path, timeout: Duration) -> Result<UnixStream, HttpError> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    thread::spawn(move || {
        // The receiver may have given up.
        let _ = sender.send(UnixStream::connect(path));
    });
    match receiver.recv_timeout(timeout) {
        Ok(connected) => connected.map_err(HttpError::Connect),
        Err(_) => Err(HttpError::Timeout(timeout)),
    }
}

/// A response of which the body is still to be read.
pub(crate) struct ResponseStream {
    stream: UnixStream,
    interrupt: Interrupt,
    pub(crate) status: u16,
    content_type: String,
    /// How many bytes of the body are still to come; `None` if the end of the connection ends it.
    length: Option<usize>,
    /// The bytes that came with the head.
    received: Vec<u8>,
}

impl ResponseStream {
    pub(crate) fn is_event_stream(&self) -> bool {
        self.content_type.starts_with("text/event-stream")
    }

    /// Reads all of the body.
    ///
    /// # Errors
    /// It is too large, incomplete or late.
    pub(crate) fn into_answer(mut self, timeout: Duration) -> Result<Answer, HttpError> {
        let deadline = Instant::now() + timeout;
        let mut body = Vec::new();
        loop {
            match self.next_bytes(Some(deadline)) {
                Ok(Some(bytes)) => body.extend_from_slice(&bytes),
                Ok(None) => return Ok(Answer { status: self.status, body }),
                Err(HttpError::Timeout(_)) => return Err(HttpError::Timeout(timeout)),
                Err(error) => return Err(error),
            }
            if body.len() > BODY_BYTES_MAX {
                return Err(HttpError::TooLarge);
            }
        }
    }

    /// Returns the next bytes of the body; `None` at its end. Without a deadline it waits until the
    /// interrupt.
    ///
    /// # Errors
    /// There are none in time, or the body ends too early.
    pub(crate) fn next_bytes(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Vec<u8>>, HttpError> {
        if self.length == Some(0) {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.received);
        if bytes.is_empty() {
            bytes = self.receive(deadline)?;
        }
        match &mut self.length {
            None if bytes.is_empty() => return Ok(None),
            None => (),
            Some(_) if bytes.is_empty() => return Err(HttpError::Closed),
            Some(left) => {
                bytes.truncate(*left);
                *left -= bytes.len();
            }
        }
        Ok(Some(bytes))
    }

    fn read_head(&mut self, deadline: Instant, timeout: Duration) -> Result<(), HttpError> {
        let mut head = Vec::new();
        loop {
            let bytes = self.receive(Some(deadline)).map_err(|error| match error {
                HttpError::Timeout(_) => HttpError::Timeout(timeout),
                error => error,
            })?;
            if bytes.is_empty() {
                return Err(if head.is_empty() {
                    HttpError::Refused
                } else {
                    HttpError::Malformed("its head has no end")
                });
            }
            head.extend_from_slice(&bytes);
            if let Some(head_length) = self.parse_head(&head)? {
                self.received = head.split_off(head_length);
                return Ok(());
            }
            if head.len() > HEAD_BYTES_MAX {
                return Err(HttpError::Malformed("its head is too large"));
            }
        }
    }

    /// Parses a head, and returns its length; `None` if it has no end yet.
    fn parse_head(&mut self, bytes: &[u8]) -> Result<Option<usize>, HttpError> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let parsed = head.parse(bytes).map_err(|_| HttpError::Malformed("it is not HTTP"))?;
        let httparse::Status::Complete(head_length) = parsed else { return Ok(None) };
        let field = |name: &str| {
            let mut found = head.headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
            found.next().map(|it| String::from_utf8_lossy(it.value).trim().to_ascii_lowercase())
        };
        if field("Transfer-Encoding").is_some() {
            return Err(HttpError::Malformed("HTTP/1.0 has no transfer encoding"));
        }
        self.status = head.code.unwrap_or(0);
        self.content_type = field("Content-Type").unwrap_or_default();
        self.length = match field("Content-Length").map(|text| text.parse::<usize>()) {
            None => None,
            Some(Ok(length)) if length <= BODY_BYTES_MAX => Some(length),
            Some(Ok(_)) => return Err(HttpError::TooLarge),
            Some(Err(_)) => return Err(HttpError::Malformed("its length is no number")),
        };
        Ok(Some(head_length))
    }

    /// Receives some bytes; none at the end of the connection.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Vec<u8>, HttpError> {
        let mut buffer = [0; 16 << 10];
        loop {
            if self.interrupt.is_set() {
                return Err(HttpError::Interrupted);
            }
            let left = deadline
                .map_or(INTERRUPT_INTERVAL, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(HttpError::Timeout(Duration::ZERO));
            }
            let wait = left.min(INTERRUPT_INTERVAL);
            self.stream.set_read_timeout(Some(wait)).map_err(HttpError::Broken)?;
            match self.stream.read(&mut buffer) {
                Ok(count) => return Ok(buffer[..count].to_vec()),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => (),
                    // The server has closed with bytes unread.
                    ErrorKind::ConnectionReset => return Ok(Vec::new()),
                    _ => return Err(HttpError::Broken(error)),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;
