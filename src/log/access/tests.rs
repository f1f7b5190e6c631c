//! Tests of records: what they look like, how long they are, and when they end.

use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::{Strategy, any, proptest};
use slog::{Discard, Logger, o};

use super::format::AccessFormat;
use super::records::Records;
use super::render::WorkerName;
use super::stamp::{FORMATTED, Stamps};
use super::{
    AccessLog, AccessLogConfig, ClientOutput, FileOwner, SampleShare, UnitLog, UnitRecord,
    WorkerAccessLog,
};
use crate::app::{RequestId, Unit, UnitEnd, UnitKind, UnitRequest, UnitResponse};
use crate::log::target::{RECORD_BYTES_MAX, Target};
use crate::time::{ClockReading, MonotonicTime, WallTime};

const NO_FIELD: &dyn Fn(&str) -> Option<&'static [u8]> = &|_| None;

fn worker() -> WorkerName {
    WorkerName { pool: "web".to_owned(), slot: 3, pid: 77 }
}

fn request<'a>(text: &'a [u8], field: &'a dyn Fn(&str) -> Option<&'a [u8]>) -> UnitRequest<'a> {
    UnitRequest { method: text, path: text, query: Some(text), protocol: text, line: None, field }
}

fn unit<'a>(request: UnitRequest<'a>, body_bytes: u64, is_complete: bool) -> Unit<'a> {
    let response = UnitResponse {
        status: 200,
        head: b"HTTP/1.1 200 OK\r\nX-B: c\r\n\r\n",
        body_bytes,
        is_complete,
    };
    let client = Some(SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1], 80)));
    Unit { kind: UnitKind::Http, client, id: RequestId::new(b"i-1"), request, response }
}

/// Returns the records that have ended, 1.5 ms after the clock's start.
fn take(records: &mut Records, format: &AccessFormat) -> Vec<String> {
    let now = ClockReading {
        monotonic: MonotonicTime::from_nanos(1_500_000),
        wall: WallTime::from_nanos(971_186_136_007_000_000),
    };
    let mut lines = Vec::new();
    let write = |line: &[u8]| lines.push(String::from_utf8(line.to_vec()).unwrap());
    records.take_ended(format, &mut Stamps::new(), now, &mut Vec::new(), write);
    lines
}

fn line(format: &str, unit: &Unit<'_>) -> String {
    let format = AccessFormat::parse(format).unwrap();
    let mut records = Records::default();
    records.add(&format, &worker(), unit, MonotonicTime::default());
    let lines = take(&mut records, &format);
    assert!(records.is_empty());
    lines.concat()
}

#[test]
fn record_has_early_and_late_parts_in_place() {
    let get = UnitRequest {
        method: b"GET",
        path: b"/p",
        query: Some(b"q"),
        protocol: b"HTTP/1.1",
        line: None,
        field: &|name| (name == "referer").then_some(b"r"),
    };
    assert_eq!(
        line("combined", &unit(get, 12, true)),
        "10.0.0.1 - - [10/Oct/2000:13:55:36 +0000] \"GET /p?q HTTP/1.1\" 200 12 \"r\" \"-\"\n"
    );
    assert_eq!(
        line("%(D)s%(M)s %(B)s|%(id)s %({x-b}o)s%(L)s", &unit(get, 0, true)),
        "15001 0|i-1 c0.001500\n"
    );
    assert_eq!(
        line("json", &unit(get, 12, true)),
        "{\"ts\":\"2000-10-10T13:55:36.007Z\",\"kind\":\"http\",\"id\":\"i-1\",\"method\":\"GET\",\
         \"path\":\"/p\",\"query\":\"q\",\"protocol\":\"HTTP/1.1\",\"referer\":\"r\",\"pool\":\"web\",\
         \"client\":\"10.0.0.1\",\"port\":80,\"slot\":3,\"pid\":77,\"status\":200,\"bytes\":12,\
         \"duration_us\":1500,\"end\":\"complete\"}\n"
    );
}

#[test]
fn open_record_waits_and_is_aborted_by_lost_bytes() {
    let format = AccessFormat::parse("%(U)s %(B)s %(end)s").unwrap();
    let mut records = Records::default();
    let add = |records: &mut Records, path: &'static [u8], bytes, is_complete| {
        let request = UnitRequest { path, ..request(b"x", NO_FIELD) };
        let unit = unit(request, bytes, is_complete);
        records.add(&format, &worker(), &unit, MonotonicTime::default());
    };
    add(&mut records, b"/a", 5, true);
    add(&mut records, b"/b", 10, false);
    assert_eq!(take(&mut records, &format), ["/a 5 complete\n"]);
    assert_eq!(take(&mut records, &format), [""; 0]);
    records.count_body(90, 96);
    records.end_last(UnitEnd::Complete);
    records.count_body(7, 9); // of a unit that is not logged
    add(&mut records, b"/c", 20, true);
    add(&mut records, b"/d", 30, true);
    // These bytes were not sent: all of the last, and a part of the one before. A head has 27 bytes.
    records.abort(27 + 30 + 15);
    assert_eq!(
        take(&mut records, &format),
        ["/b 100 complete\n", "/c 5 aborted\n", "/d 0 aborted\n"]
    );
    add(&mut records, b"/a", 5, true);
    records.skip(&unit(request(b"x", NO_FIELD), 50, false));
    records.count_body(60, 66);
    add(&mut records, b"/b", 5, true);
    records.abort(27 + 5 + 27 + 50 + 66);
    assert_eq!(take(&mut records, &format), ["/a 5 complete\n", "/b 0 aborted\n"]);
    add(&mut records, b"/e", 1, false);
    add(&mut records, b"/f", 1, false);
    records.abort(0);
    assert_eq!(take(&mut records, &format), ["/e 1 failed\n", "/f 1 aborted\n"]);
}

#[test]
fn records_of_one_second_share_their_dates() {
    let format = AccessFormat::parse("combined").unwrap();
    let (target, sample) = (Target::File("/dev/null".into()), SampleShare::ALL);
    let config = AccessLogConfig { target, format, sample, is_buffered: false };
    let log = AccessLog::open(config, FileOwner::default()).unwrap();
    let logger = Logger::root(Discard, o!());
    let log = Arc::new(WorkerAccessLog::new(Arc::new(log), worker(), logger, || ()));
    let before = FORMATTED.get();
    for seed in 0..1000 {
        let unit = unit(request(b"x", NO_FIELD), 5, false);
        let record = UnitRecord::begin(&log, &unit, MonotonicTime::default(), seed).unwrap();
        record.end(5, UnitEnd::Complete);
        let mut log = UnitLog::new(Arc::clone(&log), seed);
        log.add(&unit, || None);
        log.end(UnitEnd::Complete);
        assert!(log.settle(ClientOutput::Sent).is_none());
    }
    let formatted = FORMATTED.get() - before;
    assert!(formatted < 100, "{formatted}");
}

proptest! {
    /// Whatever clients send, all of `combined` and `json` fits a record.
    #[test]
    fn records_are_bounded_and_whole(
        text in (any::<u8>(), 0_usize..9000).prop_map(|(byte, length)| vec![byte; length]),
        other in proptest::collection::vec(any::<u8>(), 0..3000),
    ) {
        for text in [&text, &other] {
            let field = |_: &str| Some(text.as_slice());
            let unit = unit(request(text, &field), u64::MAX, true);
            let combined = line("combined", &unit);
            assert!(combined.len() < RECORD_BYTES_MAX && combined.is_ascii());
            assert_eq!(combined.matches('"').count(), 6);
            assert_eq!(combined.matches(|c: char| c.is_ascii_control()).count(), 1);
            let json = line("json", &unit);
            assert!(json.len() < RECORD_BYTES_MAX, "{}", json.len());
            let record: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(&record["end"], "complete");
            let long = line(&"%({x}i)s".repeat(50), &unit);
            assert!(long.len() <= RECORD_BYTES_MAX && long.ends_with('\n'));
        }
    }
}
