//! Property: the responses and the units of work do not depend on how the input is split.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::{Index, select};

use super::*;

/// Everything that a connection shows from outside.
#[derive(Debug, PartialEq, Eq)]
struct Transcript {
    output: String,
    units: Vec<String>,
    next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    HalfClosed,
}

/// Sends `input` in pieces that end at `cuts`, and then perhaps the end of the input.
fn play(input: &[u8], cuts: &[usize], end: End) -> Transcript {
    let limits = Limits {
        message: 60,
        depth: 4,
        max_pipelined: 3,
        max_pending_output: 100,
        ..Limits::default()
    };
    let rpc = rpc().with_limits(limits);
    let mut client = Client::new(&rpc);
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
    assert_eq!(client.recorder.units.len(), client.recorder.ended);
    let output = client.output.escape_ascii().to_string();
    Transcript { output, units: client.recorder.units, next: client.next }
}

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

fn messages() -> Vec<Vec<u8>> {
    vec![
        request(1, "add", (1, 2)),
        request(300, "add", (1, -70_000)),
        request(u32::MAX, "echo", (vec!["a", "b"],)),
        request(2, "echo", ("x".repeat(40),)),
        request(2, "fail", ("no",)),
        request(3, "panic", [0; 0]),
        request(4, "missing", ((1.5, true, None::<u8>),)),
        request(5, "large", (150,)),
        request(6, "none", 7),
        notification("add", (1, 2)),
        notification("panic", [0; 0]),
        b"\xdc\0\x04\xcc\0\xcd\0\x09\xd9\x04echo\xdd\0\0\0\x01\xc7\x02\x01ab".to_vec(),
        b"\x94\0\x07\xa4echo\x91\x82\xa1a\xcb\0\0\0\0\0\0\0\0\xd6\x01abcd\xc4\x01x".to_vec(),
    ]
}

fn last_messages() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        b"\xc1".to_vec(),
        b"\x94\x01\x01\xc0\xc0".to_vec(),
        b"\x94\0\x01\xa4echo\x91\x91\x91\x91\xc0".to_vec(),
        request(1, "echo", ("x".repeat(60),)),
        b"\xdb\0\0\x01\0".to_vec(),
        b"\xdf\xff\xff\xff\xff".to_vec(),
        request(1, "add", (1, 2))[..6].to_vec(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ]
}

fn inputs() -> impl Strategy<Value = Bytes> {
    let messages = vec(select(messages()), 0..12);
    let byte =
        select(&b"\0\x01\x02\x91\x94\x81\xa3\xc0\xc1\xc4\xc7\xca\xcf\xd4\xd9\xdc\xde\xff"[..]);
    let mutation = prop_oneof![
        (any::<Index>(), byte).prop_map(|(index, byte)| Mutation::Insert(index, byte)),
        any::<Index>().prop_map(Mutation::Remove),
    ];
    let mutations = vec(mutation, 0..3);
    (messages, select(last_messages()), mutations).prop_map(|(messages, last, mutations)| {
        let mut input = messages.concat();
        input.extend_from_slice(&last);
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
    }

    #[test]
    fn arbitrary_bytes_never_panic(input in vec(any::<u8>(), 0..200), cut in any::<Index>()) {
        let whole = play(&input, &[], End::HalfClosed);
        assert_eq!(play(&input, &[cut.index(input.len() + 1)], End::HalfClosed), whole);
        assert!(matches!(whole.next, Next::Close | Next::LingeringClose) || input.is_empty());
    }
}
