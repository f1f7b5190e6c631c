//! A test client that feeds a connection as the runtime does, and tests of one connection. `arguments`
//! compares two deserializers, `scanning` has tables of invalid messages, `time` tests timeouts and
//! drains, `cuts` tests that the responses do not depend on how the input is split.

mod arguments;
mod cuts;
mod scanning;
mod time;

use std::fmt::{self, Debug};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::arguments::Params;
use super::*;
use crate::app::{ConnectionContext, Next, Options, ReadTimeout, WorkReporter};

/// Counts units of work, and stores their labels and extensions.
#[derive(Debug, Default, PartialEq, Eq)]
struct Recorder {
    units: Vec<String>,
    ended: usize,
    extended: Duration,
}

impl WorkReporter for Recorder {
    fn extend_deadline(&mut self, time: Duration) {
        self.extended += time;
    }

    fn begin_work(&mut self, label: &[u8]) {
        assert_eq!(self.ended, self.units.len(), "one unit at a time");
        self.units.push(label.escape_ascii().to_string());
    }

    fn end_work(&mut self) {
        self.ended += 1;
        assert_eq!(self.ended, self.units.len());
    }

    fn http_date(&mut self) -> [u8; 29] {
        [b' '; 29]
    }
}

fn worker_info() -> WorkerInfo {
    WorkerInfo {
        pool: "main".to_owned(),
        slot: 3,
        generation: 1,
        class: "mio",
        options: Options::new(),
        limits: app::Limits::default(),
    }
}

/// Methods with every kind of result.
fn methods() -> Methods {
    Methods::new()
        .method("add", |(a, b): (i64, i64)| Ok::<_, Error>(a + b))
        .method("none", |()| Ok::<_, Error>(()))
        .method("fail", |(why,): (String,)| Err::<(), _>(why))
        .method("code", |(code,): (u16,)| Err::<(), _>(Error::value(&(code, "broken"))))
        .method("nil", |()| Err::<(), _>(Error::value(&())))
        .method("panic", |()| -> Result<(), Error> { panic!("requested") })
        .method("large", |(size,): (usize,)| Ok::<_, Error>("x".repeat(size)))
        .method("unserializable", |()| Ok::<_, Error>(Unserializable))
        .method_with("slot", |call, ()| Ok::<_, Error>(call.worker().slot))
        .method_with("peer", |call, ()| Ok::<_, Error>(call.peer().is_some()))
        .raw_method("length", |call, writer| {
            let (text,): (&str,) = call.arguments()?;
            writer.value(&text.len())
        })
        .raw_method("echo", |call, writer| {
            writer.encoded(call.encoded_arguments()?.1);
            Ok(())
        })
        .raw_method("nothing", |_, _| Ok(()))
}

struct Unserializable;

impl Serialize for Unserializable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no form"))
    }
}

fn rpc() -> Rpc {
    Rpc::new(methods(), &worker_info())
}

fn request(id: u32, method: &str, params: impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(&(0, id, method, params)).unwrap()
}

fn notification(method: &str, params: impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(&(2, method, params)).unwrap()
}

/// A client of one connection. It reads all output at once, as a fast client does.
struct Client<'s> {
    connection: RpcConnection<'s>,
    recorder: Recorder,
    output: Vec<u8>,
    largest: usize,
    next: Next,
}

impl<'s> Client<'s> {
    fn new(rpc: &'s Rpc) -> Self {
        Self::of_class(rpc, false)
    }

    fn of_class(rpc: &'s Rpc, allow_keepalive: bool) -> Self {
        Self {
            connection: RpcConnection::new(rpc, &ClientInfo { address: None, allow_keepalive }),
            recorder: Recorder::default(),
            output: Vec::new(),
            largest: 0,
            next: Next::Read,
        }
    }

    /// Makes a call, and then calls `resume` as often as requested.
    fn call(
        &mut self,
        act: impl FnOnce(&mut RpcConnection<'s>, &mut ConnectionContext<'_>) -> Next,
    ) -> Next {
        self.call_once(act);
        while self.next == Next::Continue {
            self.call_once(|connection, ctx| connection.resume(ctx));
        }
        self.next
    }

    fn call_once(
        &mut self,
        act: impl FnOnce(&mut RpcConnection<'s>, &mut ConnectionContext<'_>) -> Next,
    ) {
        let mut out = Vec::new();
        self.next =
            act(&mut self.connection, &mut ConnectionContext::new(&mut out, &mut self.recorder));
        self.largest = self.largest.max(out.len());
        self.output.append(&mut out);
    }

    fn send(&mut self, input: impl AsRef<[u8]>) -> Next {
        self.call(|connection, ctx| connection.receive(input.as_ref(), ctx))
    }

    fn finish(&mut self) -> Next {
        self.send("")
    }

    fn drain(&mut self) -> Next {
        self.call(|connection, ctx| connection.drain(ctx))
    }

    fn time_out(&mut self) -> Next {
        self.call(|connection, ctx| connection.on_timeout(ctx))
    }

    /// Takes the next response: its ID, its error and its result.
    #[track_caller]
    fn response<E: DeserializeOwned, R: DeserializeOwned>(&mut self) -> (u32, E, R) {
        let mut input = self.output.as_slice();
        let mut decoder = rmp_serde::Deserializer::new(&mut input);
        let (kind, id, error, result): (u8, _, _, _) =
            Deserialize::deserialize(&mut decoder).unwrap();
        assert_eq!(kind, 1);
        let left = input.len();
        self.output.drain(..self.output.len() - left);
        (id, error, result)
    }

    /// Expects that the next response is this result.
    #[track_caller]
    fn expect<R: DeserializeOwned + PartialEq + Debug>(&mut self, id: u32, result: R) {
        assert_eq!(self.response::<(), R>(), (id, (), result));
    }

    /// Takes the text of the next response, which must be an error.
    #[track_caller]
    fn error(&mut self, id: u32) -> String {
        let (found, error, ()) = self.response();
        assert_eq!(found, id);
        error
    }
}

#[test]
fn consecutive_calls_are_answered() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    for (id, sum) in [(0, 3), (u32::MAX, -1), (7, i64::MAX)] {
        assert_eq!(client.send(request(id, "add", (sum - 1, 1))), Next::Read);
        client.expect(id, sum);
    }
    assert_eq!(client.send(request(1, "none", ())), Next::Read, "nil is not an array");
    assert!(client.error(1).starts_with("bad arguments: "));
    client.send(request(1, "none", [0; 0]));
    client.expect(1, ());
    client.send(request(1, "slot", [0; 0]));
    client.expect(1, 3);
    client.send(request(1, "peer", [0; 0]));
    client.expect(1, false);
    client.send(request(1, "length", ("four",)));
    client.expect(1, 4);
    assert_eq!(client.recorder.units[3..], ["none", "none", "slot", "peer", "length"]);
    assert_eq!(client.finish(), Next::Close);
    assert_eq!((client.output.len(), client.recorder.ended), (0, 8));
    assert_eq!(client.connection.footprint(), 0);
}

#[test]
fn failed_call_returns_error_and_connection_stays_open() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    let mut expect = |call: Vec<u8>, error: &str| {
        assert_eq!(client.send(call), Next::Read, "{error}");
        let found = client.error(9);
        assert!(found.contains(error), "{found:?} instead of {error:?}");
        client.send(request(1, "add", (1, 2)));
        client.expect(1, 3);
    };
    expect(request(9, "missing", (1,)), "unknown method \"missing\"");
    expect(request(9, &"x".repeat(999), (1,)), &format!("unknown method \"{}\"", "x".repeat(64)));
    expect(request(9, "", (1,)), "unknown method \"\"");
    expect(request(9, "add", ("1", 2)), "invalid type: string \"1\", expected i64");
    expect(request(9, "add", (1,)), "bad arguments: ");
    expect(request(9, "add", (1, 2, 3)), "bad arguments: ");
    expect(request(9, "add", 5), "bad arguments: not an array");
    expect(request(9, "none", (1,)), "bad arguments: ");
    expect(request(9, "fail", ("my reason",)), "my reason");
    expect(request(9, "nil", [0; 0]), "the method failed");
    expect(request(9, "panic", [0; 0]), "the method panicked");
    expect(request(9, "unserializable", [0; 0]), "failed to encode the result: no form");
    expect(
        request(9, "nothing", [0; 0]),
        "failed to encode the result: it is not exactly one value",
    );
    expect(request(9, "echo", (1, 2)), "failed to encode the result: it is not exactly one value");
    client.send(request(2, "code", (404,)));
    assert_eq!(client.response(), (2, (404, "broken".to_owned()), ()));
}

#[test]
fn notification_is_a_unit_of_work_without_response() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    for (method, params) in
        [("add", vec![1, 2]), ("panic", vec![]), ("missing", vec![]), ("add", vec![])]
    {
        assert_eq!(client.send(notification(method, params)), Next::Read);
    }
    assert!(client.output.is_empty());
    assert_eq!(client.recorder.units, ["add", "panic", "missing", "add"]);
    client.send([notification("add", (1, 2)), request(1, "add", (1, 2))].concat());
    client.expect(1, 3);
}

#[test]
fn echo_returns_the_encoding_of_any_value() {
    let rpc = rpc();
    // Numbers in unusual encodings, extensions, invalid UTF-8, maps of maps.
    let values: [&[u8]; 8] = [
        b"\xcf\0\0\0\0\0\0\0\x01",
        b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xc7\x03\x05abc",
        b"\xd8\x01abcdefghijklmnop",
        b"\xa2\xff\xfe",
        b"\xdf\0\0\0\x01\x81\xc2\xc3\xde\0\0",
        b"\xdd\0\0\0\x02\xc0\xdc\0\x01\xcb\0\0\0\0\0\0\0\0",
        b"\xc6\0\0\0\x02ab",
    ];
    for value in values {
        let mut client = Client::new(&rpc);
        client.send([b"\x94\0\x05\xa4echo\x91", value].concat());
        assert_eq!(client.output, [b"\x94\x01\x05\xc0", value].concat());
    }
}

#[test]
fn numbers_may_have_any_encoding() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    let input = b"\xdd\0\0\0\x04\xd3\0\0\0\0\0\0\0\0\xcf\0\0\0\0\xff\xff\xff\xff\xdb\0\0\0\x03add\
        \xdc\0\x02\xd0\x01\xcd\0\x02";
    assert_eq!(client.send(input), Next::Read);
    client.expect(u32::MAX, 3);
}

#[test]
fn pipelined_calls_in_order_with_bounded_output() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    let input: Vec<u8> = (0..5000).flat_map(|id| request(id, "add", (id, 1))).collect();
    assert_eq!(client.send(&input), Next::Read);
    assert!(client.largest <= 64 * 14, "{}", client.largest);
    for id in 0..5000 {
        client.expect(id, id + 1);
    }
    let input: Vec<u8> = (0..64).flat_map(|id| request(id, "large", (30_000,))).collect();
    assert_eq!(client.send(&input), Next::Read);
    assert!(client.largest < 3 * 30_050, "{}", client.largest);
    for id in 0..64 {
        client.expect(id, "x".repeat(30_000));
    }
    assert_eq!(client.connection.footprint(), 0);
}

#[test]
fn large_message_needs_memory_of_about_its_size() {
    let rpc = rpc();
    let mut client = Client::new(&rpc);
    let message = request(1, "length", ("x".repeat(1_000_000),));
    for piece in message.chunks(10_000) {
        assert_eq!(client.send(piece), Next::Read);
        assert!(client.connection.footprint() < 2 * message.len());
    }
    client.expect(1, 1_000_000);
    assert_eq!(client.connection.footprint(), 0);
    // The next message does not keep its buffer.
    client.send(&message[..1000]);
    client.send([&message[1000..], b"\x94"].concat());
    client.expect(1, 1_000_000);
    assert!(client.connection.footprint() < 1000);
}

#[test]
fn arguments_reads_values_of_any_type() {
    #[derive(Debug, PartialEq)]
    struct Wrapped((u8, u8));

    impl<'de> Deserialize<'de> for Wrapped {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Deserialize::deserialize(deserializer).map(Self)
        }
    }

    let worker = worker_info();
    let mut recorder = Recorder::default();
    let mut out = Vec::new();
    let mut ctx = ConnectionContext::new(&mut out, &mut recorder);
    let (_, unit) = ctx.split();
    let call = |bytes| {
        let params = Params { bytes, flat: false };
        Call { params, peer: &None, worker: &worker, unit: &unit }
    };
    assert_eq!(call(b"\x92\x01\x02").arguments(), Ok((1, 2)));
    assert_eq!(call(b"\x92\x01\x02").arguments(), Ok(vec![1, 2]));
    assert_eq!(call(b"\x92\x01\x02").arguments(), Ok([1, 2]));
    assert_eq!(call(b"\x92\x01\x02").arguments(), Ok(Wrapped((1, 2))));
    assert_eq!(call(b"\x92\xa1a\xc0").arguments(), Ok(("a", None::<u8>)));
    assert_eq!(call(b"\x90").arguments(), Ok(()));
    assert_eq!(call(b"\x90").arguments(), Ok(Vec::<u8>::new()));
    assert!(call(b"\x91\x01").arguments::<()>().is_err());
    assert!(call(b"\x81\xa1a\x01").arguments::<(u8,)>().is_err());
}

#[test]
fn extend_deadline_reaches_the_reporter() {
    let hour = Duration::from_secs(3600);
    let methods = Methods::new().method_with("report", move |call, ()| {
        call.extend_deadline(hour);
        call.extend_deadline(hour);
        Ok::<_, Error>(())
    });
    let rpc = Rpc::new(methods, &worker_info());
    let mut client = Client::new(&rpc);
    client.send(request(1, "report", [0; 0]));
    client.expect(1, ());
    assert_eq!(client.recorder.extended, 2 * hour);
}

#[test]
fn app_boots_methods_with_its_limits() {
    let app = app("sums", |worker| {
        assert_eq!(worker.slot, 3);
        Ok(methods())
    });
    assert_eq!(app.name(), "sums");
    let mut worker = worker_info();
    worker.limits.max_body_bytes = 20;
    let service = app.boot(&worker).unwrap();
    let mut connection = service.accept(&ClientInfo { address: None, allow_keepalive: true });
    let (mut out, mut recorder) = (Vec::new(), Recorder::default());
    let mut ctx = ConnectionContext::new(&mut out, &mut recorder);
    assert_eq!(connection.receive(&request(1, "add", (1, 2)), &mut ctx), Next::Read);
    let long = request(1, "fail", ("x".repeat(20),));
    assert_eq!(connection.receive(&long, &mut ctx), Next::LingeringClose);
    assert_eq!(out, b"\x94\x01\x01\xc0\x03");
}
