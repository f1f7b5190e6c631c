//! Property: the responses, and the requests that the handler gets, do not depend on how the input is
//! split.

use std::{fmt, mem};

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::{Index, select};

use super::*;

/// Everything that a connection shows from outside.
#[derive(Debug, PartialEq, Eq)]
struct Transcript {
    output: String,
    seen: Vec<String>,
    units: Vec<String>,
    next: Next,
}

/// Sends `input` in pieces that end at `cuts`, and then perhaps the end of the input.
fn play(input: &[u8], cuts: &[usize], end: End) -> Transcript {
    let limits = Limits {
        max_head_bytes: 200,
        max_header_fields: 6,
        max_body_bytes: 40,
        ..Limits::default()
    };
    let service = Http::new(Probe::default(), limits);
    let mut client = Client::new(&service);
    let mut start = 0;
    for &cut in cuts.iter().chain([&input.len()]) {
        if cut > start {
            client.send(&input[start..cut]);
            start = cut;
        }
    }
    if end == End::HalfClosed {
        client.finish();
    }
    // Whether `100 Continue` is sent depends on whether some of the body has arrived.
    let output = client.output.escape_ascii().to_string();
    let output = output.replace(r"HTTP/1.1 100 Continue\r\n\r\n", "");
    let seen = mem::take(&mut *service.handler.seen.lock().unwrap());
    Transcript { output, seen, units: client.recorder.units, next: client.next }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    HalfClosed,
}

const GOOD: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HEAD /a?b HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n",
    "\r\n\r\nGET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nGET / HTT",
    "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0A\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\nA: b\r\nC:\r\n\r\n",
    "PUT / HTTP/1.0\r\nContent-Length: 3\r\nConnection: Keep-Alive\r\n\r\nabc",
    "GET /chunked?n=100 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /counted?n=70000 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /large?n=70000 HTTP/1.1\r\nHost: x\r\n\r\n",
    "HEAD /large?n=70000 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /204 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /bad HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: x\r\n\r\n",
];

const LAST: &[&str] = &[
    "GET / HTTP/1.0\r\n\r\n",
    "GET /close HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "GET /short?n=5 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /broken HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /chunked?n=70000 HTTP/1.0\r\n\r\n",
    "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/2.0\r\nA: b\n\r\n",
    "GET /\r\n",
    "\r\n\r\n\r\n",
    "\r\nHEAD / HTTP/1.1\r\nA\n",
    "GET / HTTP/1.1\r\nHost: x\r\nA: b\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 41\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n29\r\n",
    "HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\n",
    "GET / HTTP/1.1\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\nA:\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nExpect: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n",
    "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc",
    "GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
     aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// A change to a byte string: inserts a byte that is part of the grammar, or removes one.
#[derive(Clone, Debug)]
enum Mutation {
    Insert(Index, u8),
    Remove(Index),
}

/// The input of a client, with a readable `Debug` output.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

fn inputs() -> impl Strategy<Value = Bytes> {
    let requests = vec(prop_oneof![9 => select(GOOD), 1 => select(LAST)], 0..6);
    let last = prop_oneof![1 => select(LAST), 1 => Just("")];
    let byte = select(&b"\r\n\0 \t:;,0a/\x80"[..]);
    let mutation = prop_oneof![
        (any::<Index>(), byte).prop_map(|(index, byte)| Mutation::Insert(index, byte)),
        any::<Index>().prop_map(Mutation::Remove),
    ];
    let mutations = prop_oneof![3 => Just(Vec::new()), 2 => vec(mutation, 1..3)];
    (requests, last, mutations).prop_map(|(requests, last, mutations)| {
        let mut input = requests.concat().into_bytes();
        input.extend_from_slice(last.as_bytes());
        for mutation in mutations {
            match mutation {
                Mutation::Insert(index, byte) => input.insert(index.index(input.len() + 1), byte),
                Mutation::Remove(index) if !input.is_empty() => {
                    input.remove(index.index(input.len()));
                }
                Mutation::Remove(_) => (),
            }
        }
        Bytes(input)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn responses_do_not_depend_on_input_splits(
        Bytes(input) in inputs(),
        cuts in vec(any::<Index>(), 0..8),
        end in select(&[End::Open, End::HalfClosed][..]),
    ) {
        let whole = play(&input, &[], end);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
        cuts.sort_unstable();
        assert_eq!(play(&input, &cuts, end), whole, "cut at {cuts:?}");
        let everywhere: Vec<_> = (0..input.len()).collect();
        assert_eq!(play(&input, &everywhere, end), whole, "byte by byte");
        assert_eq!(whole.seen.len(), whole.units.len());
        check_responses(&whole);
    }
}

/// Parses the output as a client does: each request that the handler got has one response, an error may
/// follow, and no byte is left over.
fn check_responses(transcript: &Transcript) {
    let mut rest = transcript.output.as_str();
    for (index, seen) in transcript.seen.iter().enumerate() {
        let (head, after) = rest.split_once(r"\r\n\r\n").unwrap_or_else(|| panic!("{rest:?}"));
        assert!(head.starts_with("HTTP/1.1 "), "{head:?}");
        let field = |name| head.split(r"\r\n").find_map(|line| line.strip_prefix(name));
        if seen.starts_with("HEAD ") || head.contains(" 204 ") {
            rest = after;
        } else if field("Transfer-Encoding: ").is_some() {
            // No body in these tests contains the last chunk's bytes.
            rest = after.split_once(r"0\r\n\r\n").map_or("", |(_, after)| after);
        } else if let Some(length) = field("Content-Length: ") {
            // `Content-Length` counts unescaped bytes. No body in these tests contains an escape,
            // except the text of the probe, which has escaped it itself.
            let length: usize = length.parse().unwrap();
            rest = unescaped_tail(after, length);
        } else {
            rest = "";
        }
        let is_last = index + 1 == transcript.seen.len();
        assert!(is_last || !rest.is_empty(), "{index} of {transcript:?}");
    }
    if transcript.next == Next::LingeringClose {
        assert!(rest.starts_with("HTTP/1.1 4") || rest.starts_with("HTTP/1.1 5"), "{rest:?}");
        assert_eq!(rest.matches("HTTP/1.1 ").count(), 1 + rest.matches("and HTTP/1.1 are").count());
    } else {
        assert_eq!(rest, "");
    }
}

/// Returns the rest of an escaped text after `length` unescaped bytes.
fn unescaped_tail(mut text: &str, length: usize) -> &str {
    for _ in 0..length {
        text = match text.as_bytes() {
            [] => return "", // truncated
            [b'\\', b'x', ..] => &text[4..],
            [b'\\', ..] => &text[2..],
            _ => &text[1..],
        };
    }
    text
}
