//! What the access log is told of a call.

use std::net::SocketAddr;

use super::message::Message;
use crate::app::{Unit, UnitKind, UnitRequest, UnitResponse};

/// Returns the record of a call whose answer has `answer_bytes` bytes. The protocol has no statuses: it
/// is 200, or 500 for an error.
pub(super) fn unit_of<'a>(
    message: &Message<'a>,
    client: Option<SocketAddr>,
    is_ok: bool,
    answer_bytes: usize,
) -> Unit<'a> {
    let request = UnitRequest {
        method: if message.id.is_some() { b"CALL" } else { b"NOTIFY" },
        path: message.method,
        query: None,
        protocol: b"MessagePack-RPC",
        line: None,
        field: &|_| None,
    };
    let response = UnitResponse {
        status: if is_ok { 200 } else { 500 },
        head: b"",
        body_bytes: answer_bytes as u64,
        is_complete: true,
    };
    Unit { kind: UnitKind::Rpc, client, id: None, request, response }
}
