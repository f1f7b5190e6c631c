//! Bytes in, bytes out: no socket, no clock, no worker. A session drives the client as it does in
//! each worker class.

use std::time::Duration;

use ostler::app::WorkReporter;
use ostler::session::{Session, Wants};
use ostler::time::MonotonicTime;

use super::*;

/// Counts the marked units.
#[derive(Default)]
struct Recorder(usize);

impl WorkReporter for Recorder {
    fn begin_work(&mut self, label: &[u8]) {
        assert_eq!(label, b"shout");
    }
    fn end_work(&mut self) {
        self.0 += 1;
    }
    fn http_date(&mut self) -> [u8; 29] {
        [b' '; 29]
    }
}

/// Returns what a client reads after it has sent these pieces, how many units were marked, and what
/// the session wants in the end.
fn converse(allow_keepalive: bool, pieces: &[&[u8]]) -> (String, usize, Wants) {
    let (now, mut spare, mut tracker) = (MonotonicTime::default(), Vec::new(), Recorder::default());
    let hall = ShoutService(Limits::default());
    let client = hall.accept(&ClientInfo { address: None, allow_keepalive });
    let mut session = Session::new(client, Duration::ZERO, now);
    let mut read = Vec::new();
    for piece in pieces {
        if session.wants() != Wants::Read {
            break;
        }
        session.on_received(piece, &mut spare, &mut tracker, now);
        while session.wants() == Wants::Write {
            read.extend_from_slice(session.unsent());
            session.on_sent(session.unsent().len(), &mut spare, &mut tracker, now);
        }
    }
    (String::from_utf8(read).unwrap(), tracker.0, session.wants())
}

/// Yields all ways to split the bytes: bit n of the number says whether there is a split before
/// byte n + 1.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    (0_u32..1 << (bytes.len() - 1)).map(|cuts| {
        let (mut pieces, mut begin) = (Vec::new(), 0);
        for end in 1..=bytes.len() {
            if end == bytes.len() || cuts >> (end - 1) & 1 == 1 {
                pieces.push(&bytes[begin..end]);
                begin = end;
            }
        }
        pieces
    })
}

#[test]
fn answers_do_not_depend_on_segmentation() {
    for pieces in cuts(b"one\n\ntwo\nthr") {
        let expected = ("ONE\n\nTWO\n".to_owned(), 3, Wants::Read);
        assert_eq!(converse(true, &pieces), expected, "{pieces:?}");
        let expected = ("ONE\n".to_owned(), 1, Wants::Closed);
        assert_eq!(converse(false, &pieces), expected, "{pieces:?}");
    }
}

#[test]
fn overlong_line_is_rejected() {
    let longest = [b'x'; LINE_BYTES_MAX];
    let (read, units, wants) = converse(true, &[&longest, b"\n"]);
    assert_eq!((read.len(), units, wants), (LINE_BYTES_MAX + 1, 1, Wants::Read));
    for rest in [b"x".as_slice(), b"x\n"] {
        let expected = ("TOO LONG\n".to_owned(), 0, Wants::Linger);
        assert_eq!(converse(true, &[&longest, rest]), expected);
        assert_eq!(converse(true, &[&[&longest, rest].concat()]), expected);
    }
}

#[test]
fn end_of_stream_closes_connection() {
    let expected = ("ONE\n".to_owned(), 1, Wants::Closed);
    assert_eq!(converse(true, &[b"one\ntw", b""]), expected);
}
