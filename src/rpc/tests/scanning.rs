//! Invalid messages close their connection, and nothing is sent after that.

use super::*;

#[track_caller]
fn expect_rejection(rpc: &Rpc, input: &[u8]) {
    let mut client = Client::new(rpc);
    client.send(request(1, "add", (1, 2)));
    let shown = &input[..input.len().min(40)].escape_ascii().to_string();
    assert_eq!(client.send(input), Next::LingeringClose, "{shown}");
    client.expect(1, 3);
    assert_eq!(client.connection.footprint(), 0);
    assert_eq!(client.send(request(2, "add", (1, 2))), Next::LingeringClose, "{shown}");
    assert!(client.output.is_empty(), "{shown}");
    assert_eq!(client.recorder.units, ["add"]);
}

#[test]
fn malformed_message_is_rejected() {
    let rpc = rpc();
    let inputs: [&[u8]; 16] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xc1",
        b"\xc0",
        b"\x90",
        b"\x94\0\x01\xa3add\xc1",                   // an invalid marker
        b"\x94\x01\x01\xc0\xc0",                    // a response
        b"\x94\x02\xa3add\x90\xc0",                 // a notification of four parts
        b"\x93\0\xa3add\x90",                       // a request of three parts
        b"\x95\0\x01\xa3add\x90\xc0",               // a request of five parts
        b"\x94\x03\x01\xa3add\x90",                 // an unknown type
        b"\x94\xa1\0\x01\xa3add\x90",               // a type that is a string
        b"\x94\0\xff\xa3add\x90",                   // a negative ID
        b"\x94\0\xcf\0\0\0\x01\0\0\0\0\xa3add\x90", // an ID over 32 bits
        b"\x94\0\xa1\x01\xa3add\x90",               // an ID that is a string
        b"\x94\0\x01\x01\x90",                      // a method that is a number
        b"\x84\0\x01\xa3add\x90\x01\x02\x03\x04",   // a map
    ];
    for input in inputs {
        expect_rejection(&rpc, input);
    }
}

#[test]
fn too_long_message_is_rejected_before_it_arrives() {
    let limits = Limits { message: 1000, ..Limits::default() };
    let rpc = rpc().with_limits(limits);
    let inputs: [&[u8]; 8] = [
        b"\xdb\xff\xff\xff\xff",
        b"\xda\x04\0",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x94\0\x01\xa4echo\x91\xdc\x04\0",
        b"\x94\0\x01\xa4echo\x91\xde\x01\xff",
    ];
    for input in inputs {
        expect_rejection(&rpc, input);
    }
    // The largest allowed message, and one more byte.
    for (size, next) in [(1000 - 12, Next::Read), (1000 - 11, Next::LingeringClose)] {
        let mut client = Client::new(&rpc);
        let message = request(1, "echo", ("x".repeat(size),));
        assert_eq!(message.len(), size + 12);
        assert_eq!(client.send(&message), next);
    }
}

#[test]
fn too_deep_message_is_rejected() {
    let limits = Limits { depth: 5, ..Limits::default() };
    let rpc = rpc().with_limits(limits);
    let nested = |depth: usize| [b"\x94\0\x01\xa4echo\x91".to_vec(), vec![0x91; depth]].concat();
    expect_rejection(&rpc, &nested(4));
    expect_rejection(&rpc, &nested(100_000));
    let mut client = Client::new(&rpc);
    client.send([nested(3), vec![0xc0]].concat());
    assert_eq!(client.output, b"\x94\x01\x01\xc0\x91\x91\x91\xc0");
}

#[test]
fn partial_message_at_the_end_is_ignored() {
    let rpc = rpc();
    let message = request(1, "add", (1, 1000));
    for length in 0..message.len() {
        let mut client = Client::new(&rpc);
        if length > 0 {
            assert_eq!(client.send(&message[..length]), Next::Read);
        }
        assert_eq!(client.finish(), Next::Close);
        assert!(client.output.is_empty() && client.recorder.units.is_empty());
    }
}
