//! HTTP/2 under the class `tokio`: drains, limits, floods and stalled streams.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::client::Client;
use crate::example::example;
use crate::support::Server;
use crate::tokio_class::start;

/// An HTTP/2 client that speaks in frames.
struct Http2(Client);

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

impl Http2 {
    fn connect(server: &Server) -> Self {
        let mut client = server.connect();
        client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let mut client = Self(client);
        client.send(SETTINGS, 0, 0, &[]).unwrap();
        client
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.0.try_send(frame(kind, flags, stream, payload))
    }

    /// Reads the next frame, and acknowledges what must be.
    fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.try_read_exactly(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.try_read_exactly(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if [SETTINGS, PING].contains(&frame.kind) && frame.flags & ACK == 0 {
            let echo = if frame.kind == PING { &frame.payload[..] } else { &[] };
            let _ = self.send(frame.kind, ACK, 0, echo);
        }
        Ok(frame)
    }

    /// Reads frames until the server ends the connection. Returns the code of its GOAWAY.
    fn goaway_code(&mut self) -> Option<u32> {
        let mut code = None;
        while let Ok(frame) = self.next() {
            if frame.kind == GOAWAY {
                code = frame.payload[4..8].try_into().ok().map(u32::from_be_bytes);
            }
        }
        code
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Encodes the head of a GET: indexed method and scheme, and a literal path and authority.
fn get_head(path: &str) -> Vec<u8> {
    let mut head = vec![0x82, 0x86, 0x04, path.len() as u8];
    head.extend(path.as_bytes());
    head.extend([0x01, 1, b'x']);
    head
}

/// Returns the frames of requests. The first one's stream is 1, the next one's 3.
fn requests(paths: &[&str]) -> Vec<u8> {
    let frames = paths.iter().zip((1..).step_by(2));
    let frames = frames
        .map(|(path, stream)| frame(HEADERS, END_STREAM | END_HEADERS, stream, &get_head(path)));
    frames.flatten().collect()
}

/// Sends [`requests`] in one piece.
fn send_together(client: &mut Http2, paths: &[&str]) {
    client.0.try_send(requests(paths)).unwrap();
}

/// Returns the body of each response, in the order of the streams, once there are `count` whole ones.
fn bodies(client: &mut Http2, count: usize) -> Vec<(u32, String)> {
    let (mut bodies, mut ended) = (BTreeMap::<u32, String>::new(), 0);
    while ended < count {
        let frame = client.next().expect("the next response");
        assert!(![GOAWAY, RST_STREAM].contains(&frame.kind), "{frame:?}");
        if frame.kind == DATA {
            bodies
                .entry(frame.stream)
                .or_default()
                .push_str(&String::from_utf8_lossy(&frame.payload));
        }
        let is_response = [HEADERS, DATA].contains(&frame.kind);
        ended += usize::from(is_response && frame.flags & END_STREAM != 0);
    }
    bodies.into_iter().collect()
}

#[test]
fn http2_requests_that_arrive_together_are_all_answered() {
    for threads in ["1", "2"] {
        // The app has some answers at once, and awaits others: each kind among the first and the last.
        let Some(server) = start(&["--threads", threads]) else { return };
        let mut client = Http2::connect(&server);
        let paths = ["/", "/sleep?ms=200", "/panic", "/text?n=3"].repeat(40);
        send_together(&mut client, &paths);
        let bodies = bodies(&mut client, paths.len());
        let texts = ["Hello, world!\n", "slept 200 ms\n", "Internal Server Error\n", "xxx"];
        let texts = texts.iter().cycle().map(|text| text.to_string());
        let expected = (1..).step_by(2).zip(texts).take(paths.len());
        assert_eq!(bodies, expected.collect::<Vec<_>>(), "{threads} threads");
        server.finish();
    }
}

#[test]
fn http2_connect_is_refused() {
    let Some(server) = start(&["--threads", "1"]) else { return };
    let mut client = Http2::connect(&server);
    let head = [&[0x02, 7][..], b"CONNECT", &[0x01, 4], b"x:80"].concat();
    client.send(HEADERS, END_HEADERS, 1, &head).unwrap();
    assert_eq!(bodies(&mut client, 1), [(1, "Not Implemented\n".to_owned())]);
    drop(client);
    server.finish();
}

#[test]
fn http2_request_that_hangs_holds_up_none_that_arrived_with_it() {
    for (count, hanging) in [(2, 0), (2, 1), (4, 1), (4, 3), (20, 9), (20, 19), (100, 49)] {
        let flags = ["--threads", "2", "--timeout", "60s", "--graceful-timeout", "0s"];
        let Some(server) = start(&flags) else { return };
        let mut client = Http2::connect(&server);
        let mut paths = vec!["/text?n=3"; count];
        paths[hanging] = "/hang";
        send_together(&mut client, &paths);
        let others = bodies(&mut client, count - 1);
        assert_eq!(others.len(), count - 1);
        assert!(others.iter().all(|(_, body)| body == "xxx"), "{hanging}: {others:?}");
        server.finish();
    }
}

#[test]
fn http2_requests_that_arrive_together_block_in_place_at_once() {
    let Some(server) = start(&["--threads", "2"]) else { return };
    for others in [0, 4, 20] {
        let mut client = Http2::connect(&server);
        let mut paths = vec!["/"; others];
        paths.extend(["/meet"; 4]);
        send_together(&mut client, &paths);
        let bodies = bodies(&mut client, paths.len());
        assert!(bodies[others..].iter().all(|(_, body)| body == "met\n"), "{bodies:?}");
    }
    server.finish();
}

#[test]
fn http2_drain_answers_and_says_goaway() {
    let Some(mut server) = start(&[]) else { return };
    let mut client = Http2::connect(&server);
    for (stream, path) in [(1, "/pid"), (3, "/sleep?ms=700")] {
        client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head(path)).unwrap();
    }
    while client.next().unwrap().kind != DATA {} // the first answer
    server.signal(Signal::SIGTERM);
    let (mut body, mut goaways) = (Vec::new(), 0);
    while let Ok(frame) = client.next() {
        match frame.kind {
            DATA if frame.stream == 3 => body.extend(frame.payload),
            GOAWAY => {
                goaways += 1;
                assert_eq!(frame.payload[4..8], [0; 4], "no error: {frame:?}");
            }
            _ => (),
        }
    }
    assert_eq!(String::from_utf8_lossy(&body), "slept 700 ms\n");
    assert!(goaways > 0);
    server.expect_clean_exit();
}

#[test]
fn http2_request_body_is_limited() {
    let Some(server) = start(&["--limit-request-body", "1K"]) else { return };
    let mut client = Http2::connect(&server);
    let mut head = get_head("/echo");
    head[0] = 0x83; // POST
    client.send(HEADERS, END_HEADERS, 1, &head).unwrap();
    client.send(DATA, END_STREAM, 1, &[b'x'; 2000]).unwrap();
    loop {
        let frame = client.next().unwrap();
        if frame.kind == HEADERS {
            // `:status` as a literal of the static table's name 8, three digits.
            let has_digits = frame.payload.windows(3).any(|digits| digits == b"413");
            assert!(has_digits || frame.payload[0] == 0x48, "{frame:?}");
            break;
        }
    }
    server.finish();
}

/// Floods a worker over one connection until the server ends it, or all is sent. The worker goes on.
fn expect_flood_costs_its_connection(flood: impl Fn(&mut Http2) -> io::Result<()>) -> Option<u32> {
    let server = start(&["--threads", "1"])?;
    let worker = server.wait_workers(1)[0];
    let mut client = Http2::connect(&server);
    let _ = flood(&mut client);
    let code = client.goaway_code();
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert_eq!(server.answering_pid(), worker.pid);
    server.finish();
    code
}

#[test]
fn http2_rapid_reset_costs_its_connection() {
    let Some(_) = example("tokio_demo") else { return };
    let code = expect_flood_costs_its_connection(|client| {
        for stream in (1..40_000).step_by(2) {
            client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head("/await"))?;
            client.send(RST_STREAM, 0, stream, &[0, 0, 0, 8])?;
        }
        Ok(())
    });
    assert_eq!(code, Some(11), "ENHANCE_YOUR_CALM");
}

#[test]
fn http2_continuation_flood_costs_its_connection() {
    let Some(_) = example("tokio_demo") else { return };
    let code = expect_flood_costs_its_connection(|client| {
        client.send(HEADERS, END_STREAM, 1, &get_head("/"))?;
        // A field without indexing, whose name is one byte and whose value 100 bytes long.
        let mut field = vec![0x00, 1, b'a', 100];
        field.extend([b'b'; 100]);
        let fields = field.repeat(100);
        for _ in 0..2000 {
            client.send(CONTINUATION, 0, 1, &fields)?;
        }
        Ok(())
    });
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
}

#[test]
fn http2_streams_beyond_the_limit_are_refused() {
    let Some(server) = start(&[]) else { return };
    let mut client = Http2::connect(&server);
    for stream in (1..600).step_by(2) {
        client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head("/await")).unwrap();
    }
    let refused = loop {
        let frame = client.next().unwrap();
        if frame.kind == RST_STREAM {
            break frame;
        }
    };
    assert_eq!(refused.payload, [0, 0, 0, 7], "REFUSED_STREAM: {refused:?}");
    assert!(refused.stream > 400, "{refused:?}");
    drop(client);
    server.finish();
}

#[test]
fn http2_control_frame_floods_cost_their_connection() {
    let Some(_) = example("tokio_demo") else { return };
    let pings = frame(PING, 0, 0, &[0; 8]);
    let settings = frame(SETTINGS, 0, 0, &[]);
    let updates = frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes());
    for frames in [pings, settings, updates] {
        let flood = frames.repeat(100);
        let is_cut = Cell::new(false);
        expect_flood_costs_its_connection(|client| {
            for _ in 0..10_000 {
                client.0.try_send(&flood).inspect_err(|_| is_cut.set(true))?;
            }
            Ok(())
        });
        assert!(is_cut.get(), "all frames of {:?} were taken", &frames[..4]);
    }
}

#[test]
fn http2_empty_data_flood_costs_its_connection() {
    let Some(_) = example("tokio_demo") else { return };
    expect_flood_costs_its_connection(|client| {
        let mut head = get_head("/echo");
        head[0] = 0x83; // POST
        client.send(HEADERS, END_HEADERS, 1, &head)?;
        let flood = frame(DATA, 0, 1, &[]).repeat(100);
        (0..10_000).try_for_each(|_| client.0.try_send(&flood))
    });
}

#[test]
fn http2_header_bomb_costs_its_request() {
    let Some(server) = start(&["--threads", "1"]) else { return };
    let worker = server.wait_workers(1)[0];
    let mut client = Http2::connect(&server);
    // A field of 3 KB that enters the table of the connection, and 4,000 references to it.
    let mut head = get_head("/");
    head.extend([0x40, 1, b'a', 0x7f]);
    head.extend([0xb9, 0x16]); // 127 + 0x39 + 0x16 * 128 = 3,000 bytes
    head.extend([b'b'; 3000]);
    head.extend([0xbe; 4000]);
    client.send(HEADERS, END_STREAM | END_HEADERS, 1, &head).unwrap();
    let answer = loop {
        match client.next() {
            Ok(frame) if [HEADERS, RST_STREAM, GOAWAY].contains(&frame.kind) => break Some(frame),
            Ok(_) => (),
            Err(_) => break None,
        }
    };
    if let Some(frame) = answer.filter(|frame| frame.kind == HEADERS) {
        assert_ne!(frame.payload[0], 0x88, "status 200: {frame:?}");
    }
    assert_eq!(server.get("/").text(), "Hello, world!\n");
    assert_eq!(server.answering_pid(), worker.pid);
    server.finish();
}

/// Lets the server send so many more bytes over the connection, and in the stream.
fn open_windows(client: &mut Http2, stream: u32, connection: u32, bytes: u32) {
    client.send(WINDOW_UPDATE, 0, 0, &connection.to_be_bytes()).unwrap();
    if bytes > 0 {
        client.send(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).unwrap();
    }
}

#[test]
fn http2_requests_that_use_up_the_budget_leave_the_deadlines() {
    let flags = ["--threads", "1", "--write-timeout", "1s"];
    let Some(server) = start(&flags) else { return };
    let mut client = Http2(server.connect());
    // In one piece: the first poll of the connection finds them.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(requests(&["/text?n=200000", "/messages?n=200"]));
    client.0.try_send(bytes).unwrap();
    let end = loop {
        if let Err(error) = client.next() {
            break error.kind();
        }
    };
    let is_closed = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset].contains(&end);
    assert!(is_closed, "the stalled stream does not end the connection: {end}");
    server.finish();
}

#[test]
fn http2_stalled_stream_ends_while_others_go_on() {
    // A body in many pieces, and one whose app has passed all of it.
    for path in ["/bytes?n=9000000", "/text?n=200000"] {
        let Some(server) = start(&["--write-timeout", "1s"]) else { return };
        let begun = Instant::now();
        let mut client = Http2::connect(&server);
        open_windows(&mut client, 1, 1 << 30, 0);
        for (stream, path) in [(1, path), (3, "/sleep?ms=2500")] {
            client.send(HEADERS, END_STREAM | END_HEADERS, stream, &get_head(path)).unwrap();
        }
        let (mut other, mut told) = (Vec::new(), None);
        while let Ok(frame) = client.next() {
            match frame.kind {
                DATA if frame.stream == 3 => other.extend(frame.payload),
                GOAWAY => _ = told.get_or_insert_with(|| begun.elapsed()),
                _ => (),
            }
        }
        assert_eq!(String::from_utf8_lossy(&other), "slept 2500 ms\n", "{path}");
        let told = told.expect("GOAWAY");
        assert!(told >= Duration::from_millis(900), "{path}: {told:?}");
        assert!(told < Duration::from_millis(2400), "{path}: {told:?}");
        server.finish();
    }
}

#[test]
#[ignore = "slow"]
fn http2_slow_link_with_many_bodies_gets_no_goaway() {
    let Some(server) = start(&["--write-timeout", "500ms"]) else { return };
    let begun = Instant::now();
    let mut client = Http2::connect(&server);
    for stream in (1..41).step_by(2) {
        let head = get_head("/bytes?n=9000000");
        client.send(HEADERS, END_STREAM | END_HEADERS, stream, &head).unwrap();
    }
    // 160 KB/s for 20 bodies: all that arrives is taken, and a body may wait for its turn for seconds.
    let mut received = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        let frame = client.next().expect("the next frame");
        assert_ne!(frame.kind, GOAWAY, "after {:?}", begun.elapsed());
        if frame.kind == DATA {
            let length = frame.payload.len() as u32;
            thread::sleep(Duration::from_micros(6 * u64::from(length)));
            open_windows(&mut client, frame.stream, length, length);
            received += length;
        }
    }
    assert!(received > 100_000, "{received}");
    server.finish();
}

#[test]
fn http2_slow_reader_gets_all_of_a_response() {
    let flags = ["--write-timeout", "5s", "--keep-alive", "200ms", "--header-timeout", "200ms"];
    let Some(server) = start(&flags) else { return };
    for path in ["/text?n=200000", "/trailers?n=200000"] {
        let mut client = Http2::connect(&server);
        client.send(HEADERS, END_STREAM | END_HEADERS, 1, &get_head(path)).unwrap();
        let (mut received, mut granted) = (0, 65_535);
        while received < 200_000 {
            let frame = client.next().expect("the rest of the response");
            received += if frame.kind == DATA { frame.payload.len() } else { 0 };
            if received == granted {
                // Longer in all than an idle connection may last.
                thread::sleep(Duration::from_millis(50));
                open_windows(&mut client, 1, 10_000, 10_000);
                granted += 10_000;
            }
        }
    }
    server.finish();
}
