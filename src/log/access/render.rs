//! Renders the parts of a record, as text or as members of a JSON object.

use std::net::SocketAddr;

use super::escape::{push_json, push_text};
use super::format::{Early, Late};
use super::stamp::Stamps;
use crate::app::{Unit, UnitEnd, valid_traceparent};
use crate::time::WallTime;

/// The longest text of an atom, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// The longest user name, and the longest method and protocol in a request line, in bytes.
const USER_BYTES_MAX: usize = 256;
const WORD_BYTES_MAX: usize = 128;

/// The longest texts of members of a JSON object, in bytes. All together fit a record.
const JSON_BYTES_MAX: usize = 512;
const JSON_SHORT_BYTES_MAX: usize = 128;

/// The worker that a record names.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkerName {
    pub(crate) pool: String,
    pub(crate) slot: usize,
    pub(crate) pid: u32,
}

/// What is known when a response has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) at: WallTime,
    pub(super) micros: u64,
    pub(super) bytes: u64,
    pub(super) end: UnitEnd,
}

/// Appends what is known when the response begins.
pub(super) fn push_early(out: &mut Vec<u8>, early: &Early, unit: &Unit<'_>, worker: &WorkerName) {
    let request = &unit.request;
    match early {
        Early::Dash => out.push(b'-'),
        Early::Client => push_client(out, unit.client),
        Early::User => match user(unit) {
            Some(user) if !user.is_empty() => push_text(out, &user, USER_BYTES_MAX),
            Some(_) | None => out.push(b'-'),
        },
        Early::RequestLine => push_line(out, unit),
        Early::Status => push_number(out, unit.response.status.into()),
        Early::Method => push_or_dash(out, request.method),
        Early::Path => push_or_dash(out, request.path),
        Early::Query => push_text(out, request.query.unwrap_or_default(), TEXT_BYTES_MAX),
        Early::Protocol => push_or_dash(out, request.protocol),
        Early::Pid => {
            out.push(b'<');
            push_number(out, worker.pid.into());
            out.push(b'>');
        }
        Early::PidNumber => push_number(out, worker.pid.into()),
        Early::Pool => push_or_dash(out, worker.pool.as_bytes()),
        Early::Slot => push_number(out, worker.slot as u64),
        Early::Id => push_or_dash(out, unit.id.as_ref().map_or("", |id| id.as_str()).as_bytes()),
        Early::Traceparent => push_or_dash(out, traceparent(unit).as_bytes()),
        Early::Kind => out.extend_from_slice(unit.kind.name().as_bytes()),
        Early::Referer => push_field(out, unit, "referer"),
        Early::UserAgent => push_field(out, unit, "user-agent"),
        Early::RequestField(name) => push_field(out, unit, name),
        Early::ResponseField(name) => {
            push_or_dash(out, response_field(unit.response.head, name).unwrap_or_default());
        }
        Early::JsonMembers => push_json_members(out, unit, worker),
    }
}

/// Appends what is known when the response has ended.
pub(super) fn push_late(out: &mut Vec<u8>, late: Late, ended: &Ended, stamps: &mut Stamps) {
    let Ended { at, micros, bytes, end } = *ended;
    let second = at.as_nanos() / 1_000_000_000;
    match late {
        Late::Time => {
            out.push(b'[');
            out.extend_from_slice(stamps.clf(second));
            out.push(b']');
        }
        Late::BytesOrDash if bytes == 0 => out.push(b'-'),
        Late::Bytes | Late::BytesOrDash => push_number(out, bytes),
        Late::Micros => push_number(out, micros),
        Late::Millis => push_number(out, micros / 1000),
        Late::Seconds => push_number(out, micros / 1_000_000),
        Late::SecondsDecimal => {
            push_number(out, micros / 1_000_000);
            out.push(b'.');
            push_digits::<6>(out, micros % 1_000_000);
        }
        Late::End => out.extend_from_slice(end_name(end)),
        Late::JsonTime => {
            out.extend_from_slice(stamps.iso(second));
            out.push(b'.');
            push_digits::<3>(out, at.as_nanos() / 1_000_000 % 1000);
            out.push(b'Z');
        }
        Late::JsonMembers => {
            out.extend_from_slice(b",\"bytes\":");
            push_number(out, bytes);
            out.extend_from_slice(b",\"duration_us\":");
            push_number(out, micros);
            out.extend_from_slice(b",\"end\":\"");
            out.extend_from_slice(end_name(end));
            out.push(b'"');
        }
    }
}

fn push_json_members(out: &mut Vec<u8>, unit: &Unit<'_>, worker: &WorkerName) {
    let request = &unit.request;
    let mut text = |key: &str, value: &[u8]| {
        if !value.is_empty() {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\":");
            let is_long = matches!(key, "path" | "query" | "request" | "referer" | "user_agent");
            push_json(out, value, if is_long { JSON_BYTES_MAX } else { JSON_SHORT_BYTES_MAX });
        }
    };
    let field = |name: &str| (request.field)(name).unwrap_or_default();
    text("kind", unit.kind.name().as_bytes());
    text("id", unit.id.as_ref().map_or("", |id| id.as_str()).as_bytes());
    text("traceparent", traceparent(unit).as_bytes());
    text("method", request.method);
    text("path", request.path);
    text("query", request.query.unwrap_or_default());
    text("protocol", request.protocol);
    if request.method.is_empty() {
        text("request", request.line.unwrap_or_default());
    }
    text("host", field("host"));
    text("referer", field("referer"));
    text("user_agent", field("user-agent"));
    text("pool", worker.pool.as_bytes());
    if let Some(client) = unit.client {
        out.extend_from_slice(b",\"client\":\"");
        push_client(out, Some(client));
        out.extend_from_slice(b"\",\"port\":");
        push_number(out, client.port().into());
    }
    out.extend_from_slice(b",\"slot\":");
    push_number(out, worker.slot as u64);
    out.extend_from_slice(b",\"pid\":");
    push_number(out, worker.pid.into());
    out.extend_from_slice(b",\"status\":");
    push_number(out, unit.response.status.into());
}

fn end_name(end: UnitEnd) -> &'static [u8] {
    match end {
        UnitEnd::Complete => b"complete",
        UnitEnd::Aborted => b"aborted",
        UnitEnd::Failed => b"failed",
    }
}

/// Appends the request line.
fn push_line(out: &mut Vec<u8>, unit: &Unit<'_>) {
    let request = &unit.request;
    if let Some(line) = request.line {
        return push_or_dash(out, line);
    }
    push_text(out, request.method, WORD_BYTES_MAX);
    out.push(b' ');
    let limit = out.len() + TEXT_BYTES_MAX;
    push_text(out, request.path, limit.saturating_sub(out.len()));
    if let Some(query) = request.query {
        out.push(b'?');
        push_text(out, query, limit.saturating_sub(out.len()));
    }
    out.push(b' ');
    push_text(out, request.protocol, WORD_BYTES_MAX);
}

/// Appends an address. One of IPv4 in the form of IPv6 is that of IPv4.
fn push_client(out: &mut Vec<u8>, client: Option<SocketAddr>) {
    match client.map(|client| client.ip().to_canonical()) {
        None => out.push(b'-'),
        Some(std::net::IpAddr::V4(address)) => {
            let (mut text, mut length) = ([b'.'; 16], 0);
            for octet in address.octets() {
                for (unit, is_shown) in [(100, octet > 99), (10, octet > 9), (1, true)] {
                    if is_shown {
                        text[length] = b'0' + octet / unit % 10;
                        length += 1;
                    }
                }
                length += 1; // the dot
            }
            out.extend_from_slice(&text[..length - 1]);
        }
        Some(address) => out.extend_from_slice(address.to_string().as_bytes()),
    }
}

fn push_or_dash(out: &mut Vec<u8>, text: &[u8]) {
    match text {
        [] => out.push(b'-'),
        text => push_text(out, text, TEXT_BYTES_MAX),
    }
}

fn push_field(out: &mut Vec<u8>, unit: &Unit<'_>, name: &str) {
    push_or_dash(out, (unit.request.field)(name).unwrap_or_default());
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a number with leading zeros.
fn push_digits<const COUNT: usize>(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [b'0'; COUNT];
    for digit in digits.iter_mut().rev() {
        *digit += (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits);
}

fn traceparent<'a>(unit: &Unit<'a>) -> &'a str {
    (unit.request.field)("traceparent").and_then(valid_traceparent).unwrap_or_default()
}

/// Returns the value of the first field of a name in the head of a response.
fn response_field<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').skip(1).find_map(|line| {
        let (field, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        field.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

/// Returns the user name of a `Basic` authorization (RFC 7617).
fn user(unit: &Unit<'_>) -> Option<Vec<u8>> {
    let value = (unit.request.field)("authorization")?;
    let (scheme, credentials) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut user = Vec::new();
    for group in credentials.trim_ascii().chunks(4) {
        let (mut bits, mut count) = (0_u32, 0);
        for byte in group.iter().take_while(|byte| **byte != b'=') {
            bits = bits << 6 | u32::from(base64_value(*byte)?);
            count += 1;
        }
        bits <<= 6 * (4 - count);
        let bytes = bits.to_be_bytes();
        for byte in bytes.into_iter().skip(1).take((count * 3 / 4) as usize) {
            if byte == b':' {
                return Some(user);
            }
            user.push(byte);
        }
    }
    None
}

fn base64_value(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}
