//! Tables of accepted and rejected requests. Nothing follows a rejection.

use super::*;

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")
}

/// Expects this status for `input`, sent at once and byte by byte. After a rejected request, the handler
/// must never get a smuggled second one.
#[track_caller]
fn check(input: &str, expected: u16) {
    check_with(
        Limits {
            max_head_bytes: 300,
            max_header_fields: 10,
            max_body_bytes: 20,
            ..Limits::default()
        },
        input,
        expected,
    );
}

#[track_caller]
fn check_with(limits: Limits, input: &str, expected: u16) {
    for size in [input.len(), 1] {
        let service = Http::new(Probe::default(), limits);
        let mut client = Client::new(&service);
        for piece in input.as_bytes().chunks(size) {
            client.send(piece);
        }
        let (status, head, _) = client.response();
        assert_eq!(status, expected, "{input:?} in pieces of {size}");
        if status != 200 {
            assert_eq!(client.next, Next::LingeringClose, "{input:?}");
            assert!(head.contains("\r\nConnection: close"), "{input:?}");
            client.send("GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(
                (client.finish(), client.time_out()),
                (Next::LingeringClose, Next::LingeringClose)
            );
            assert_eq!(
                (client.drain(), client.read().as_str()),
                (Next::LingeringClose, ""),
                "{input:?}"
            );
            assert!(service.handler.seen.lock().unwrap().is_empty(), "{input:?}");
        }
    }
}

#[test]
fn valid_heads_are_accepted() {
    for fields in [
        "",
        "A:b\r\n",
        "A:   b  \r\n",
        "A:\r\n",
        "A: \t\r\n",
        "!#$%&'*+-.^_`|~9: x\r\n",
        "A: \u{e9}\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 000\r\n",
        "Expect: 100-continue\r\n",
        "Expect:\r\n",
        "Expect: , 100-continue,\r\n",
        "Expect: 100-continue, 100-continue\r\n",
        "Connection: ,, a ,\r\n",
        "Transfer-Encoding: CHUNKED\r\n\r\n0\r\n",
        "Transfer-Encoding: , chunked,\t,\r\n\r\n0\r\n",
        "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: ,\r\n\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5;a=b ; c\r\nhello\r\n0;d\r\n",
    ] {
        check(&get(fields), 200);
    }
    for input in [
        "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nExpect: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhOST:\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://y/z HTTP/1.1\r\nHost: x\r\n\r\n",
        "M-SEARCH / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "get / HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT y:80 HTTP/1.1\r\nHost: y:80\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.9\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        check(input, 200);
    }
}

#[test]
fn malformed_request_lines_are_rejected() {
    for line in [
        "",
        " ",
        "GET",
        "GET /",
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "GET / a HTTP/1.1",
        "G(T / HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "GET / HTTP/1",
        "GET / HTTP/1.",
        "GET / HTTP/11.1",
        "GET / HTTP/1.11",
        "GET / http/1.1",
        "GET / HTTPS/1.1",
        "GET / HTTP/a.1",
        "GET / HTTP 1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /\x7f HTTP/1.1",
        "GET /\ta HTTP/1.1",
        "GET /#a HTTP/1.1",
        "GET /<a> HTTP/1.1",
        "GET /?a=\"b\" HTTP/1.1",
        "GET /a|b HTTP/1.1",
        "GET http://:80/ HTTP/1.1",
        "GET http://[foo]/ HTTP/1.1",
        "GET  / HTTP/1.2",
        "GET /# HTTP/1.2",
        "GET / HTTP/1.2 ",
        "GET * HTTP/1.1",
        "GET a HTTP/1.1",
        "GET x:80 HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET ftp://x/ HTTP/1.1",
        "GET http://a@x/ HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT x HTTP/1.1",
        "OPTIONS *a HTTP/1.1",
        "\rGET / HTTP/1.1",
        "GET / HTTP/1.1\r",
        "GET /\r HTTP/1.1",
        "GET / \rHTTP/1.1",
    ] {
        check(
            &format!("{line}\r\nHost: x\r\n\r\n{}", if line.is_empty() { ":\r\n\r\n" } else { "" }),
            400,
        );
    }
    check("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    check("\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    check("GET /\r\n", 400);
    check("GET /\n", 400);
}

#[test]
fn other_versions_are_rejected() {
    for version in ["0.9", "0.1", "2.0", "2.1", "3.0", "9.9"] {
        check(&format!("GET / HTTP/{version}\r\nHost: x\r\n\r\n"), 505);
    }
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
}

#[test]
fn malformed_fields_are_rejected() {
    for fields in [
        "A : b\r\n",
        "A\t: b\r\n",
        " A: b\r\n",
        "\tA: b\r\n",
        "A: b\r\n c\r\n",
        "A: b\r\n\tc\r\n",
        "A\r\n",
        ": b\r\n",
        "A b: c\r\n",
        "A(: c\r\n",
        "\u{e9}: c\r\n",
        "A: b\0\r\n",
        "A: \x01\r\n",
        "A: \x7f\r\n",
        "A: b\rc\r\n",
        "A: b\r\r\n",
        "A: b\n",
        "A: b\nC: d\r\n",
        "A\0: b\r\n",
        "A: b\x0bc\r\n",
    ] {
        check(&get(fields), 400);
    }
    check("GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\n\r\n", 400);
    check("GET / HTTP/1.1\nHost: x\n\n", 400);
    check("GET / HTTP/1.1\r\nHost: x\r\n\n", 400);
}

#[test]
fn missing_or_malformed_host_is_rejected() {
    check("GET / HTTP/1.1\r\n\r\n", 400);
    check("GET http://x/ HTTP/1.1\r\n\r\n", 400);
    for host in [
        "a b",
        "a/b",
        "a@b",
        "a:b",
        "[::1",
        "[foo]",
        "[1.2.3.4]",
        ":80",
        "a,b",
        "http://x",
        "x\u{e9}",
        "a:80:80",
    ] {
        let expected = if host == "a,b" { 200 } else { 400 }; // a comma is a sub-delim
        check(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), expected);
        check(&format!("GET / HTTP/1.0\r\nHost: {host}\r\n\r\n"), expected);
    }
    check(&get("Host: x\r\n"), 400);
    check("GET / HTTP/1.0\r\nHost: x\r\nhost: x\r\n\r\n", 400);
}

#[test]
fn ambiguous_lengths_and_codings_are_rejected() {
    for fields in [
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5a\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 99999999999999999999999999\r\n",
        "Content-Length: \u{663}\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, gzip, chunked\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: ,\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: gzip;a=\"b, chunked\"\r\n",
    ] {
        check(&get(fields), 400);
    }
    for fields in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: , gzip,, chunked,\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: a;b=c, chunked\r\n",
    ] {
        check(&get(fields), 501);
    }
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400);
    check(&get("Expect: 200-ok\r\n"), 417);
    check(&get("Expect: 100-continue, x\r\n"), 417);
    check(&get("Expect: 100-continue\r\nExpect: x\r\n"), 417);
    check(&get("Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n"), 400);
    check(&get("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloGET / HTTP/1.1\r\n"), 400);
}

#[test]
fn request_over_a_limit_is_rejected() {
    check(&get("Content-Length: 20\r\n\r\n012345678901234567").replace("67\r\n", "6789"), 200);
    check(&get("Content-Length: 21\r\n"), 413);
    check(&get("Content-Length: 18446744073709551615\r\n"), 413);
    check(&get("Transfer-Encoding: chunked\r\n\r\n15\r\n"), 413);
    let extension = "x".repeat(300);
    check(&get(&format!("Transfer-Encoding: chunked\r\n\r\n1;{extension}")), 413);
    check(&get(&"A: b\r\n".repeat(9)), 200);
    check(&get(&"A: b\r\n".repeat(10)), 431);
    let spare = 300 - get("A: \r\n").len();
    check(&get(&format!("A: {}\r\n", "a".repeat(spare))), 200);
    check(&get(&format!("A: {}\r\n", "a".repeat(spare + 1))), 431);
    check(&format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(300)), 414);
    let limits = Limits { max_header_fields: 500, ..Limits::default() };
    check_with(limits, &get(&"A: b\r\n".repeat(499)), 200);
    check_with(limits, &get(&"A: b\r\n".repeat(500)), 431);
    check_with(Limits { max_header_fields: 0, ..Limits::default() }, "GET / HTTP/1.0\r\n\r\n", 200);
    check_with(
        Limits { max_header_fields: 0, ..Limits::default() },
        "GET / HTTP/1.0\r\nA: b\r\n\r\n",
        431,
    );
}

#[test]
fn rejected_head_request_has_no_body() {
    let service = service();
    let mut client = Client::new(&service);
    client.send("HEAD / HTTP/1.1\r\n\r\n");
    let (status, head, body) = client.response();
    assert_eq!((status, body.as_str()), (400, ""));
    assert!(head.contains("Content-Length: "));
}

#[test]
fn handler_gets_whole_bodies() {
    let service = service();
    let mut client = Client::new(&service);
    client.send(
        "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\
         POST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nA: b\r\n\r\n\
         POST /3 HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n!\
         GET /4 HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    let seen = service.handler.seen.lock().unwrap();
    assert_eq!(*seen, ["POST /1 hello", "POST /2 hello", "POST /3 !", "GET /4 "]);
}
