//! Checks and splits the target of a request (RFC 9112, section 3.2), and checks the host that it or
//! `Host` names (RFC 3986, section 3.2.2).

use std::net::Ipv6Addr;
use std::str;

use memchr::memchr;

use super::error::RequestError;

/// The bytes that a request target may hold (RFC 3986, appendix A). Brackets belong to IPv6 addresses,
/// but clients also send them in queries.
static TARGET_BYTES: [bool; 256] = alphanumerics_and(b"-._~!$&'()*+,;=:@/?%[]");

/// The `unreserved` and `sub-delims` characters of RFC 3986, of which a name consists.
static NAME_BYTES: [bool; 256] = alphanumerics_and(b"-._~!$&'()*+,;=");

/// Returns a table of the ASCII letters and digits, and of these symbols.
const fn alphanumerics_and(symbols: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut at = 0;
    while at < symbols.len() {
        table[symbols[at] as usize] = true;
        at += 1;
    }
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] |= byte.is_ascii_alphanumeric();
        byte += 1;
    }
    table
}

/// Returns the path and query of a target in any of its four forms (RFC 9112, section 3.2).
pub(super) fn split_target<'a>(
    method: &str,
    target: &'a str,
) -> Result<(&'a str, Option<&'a str>), RequestError> {
    const BAD: RequestError = RequestError::bad_request("the request target is malformed");
    if !target.bytes().all(|byte| TARGET_BYTES[usize::from(byte)]) {
        return Err(BAD);
    }
    if method == "CONNECT" {
        let port = target.rsplit_once(':').map_or("", |(_, port)| port);
        let good = has_host(target.as_bytes()) && port.parse::<u16>().is_ok_and(|port| port > 0);
        return if good { Ok((target, None)) } else { Err(BAD) };
    }
    if target.starts_with('/') {
        return Ok(split_query(target));
    }
    if target == "*" {
        return if method == "OPTIONS" { Ok((target, None)) } else { Err(BAD) };
    }
    let (scheme, rest) = target.split_once("://").ok_or(BAD)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(BAD);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if !has_host(authority.as_bytes()) {
        return Err(BAD);
    }
    Ok(match split_query(rest) {
        ("", query) => ("/", query),
        split => split,
    })
}

fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.bytes().position(|byte| byte == b'?') {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

/// Returns whether this is `uri-host [ ":" port ]` (RFC 9110, section 7.2) with a host, which a URI of
/// HTTP must have (section 4.2.1).
pub(super) fn has_host(text: &[u8]) -> bool {
    let names = text.iter().take_while(|&&byte| is_name(byte)).count();
    let (is_host_valid, port) = match &text[names..] {
        port @ ([] | [b':', ..]) => (names > 0, port),
        [b'[', rest @ ..] if names == 0 => {
            let end = memchr(b']', rest).unwrap_or(rest.len());
            (
                is_ip_literal(&rest[..end]) && end < rest.len(),
                rest.get(end + 1..).unwrap_or_default(),
            )
        }
        // A name with percent signs: `rest` begins with one, or is invalid.
        rest => {
            let end = memchr(b':', rest).unwrap_or(rest.len());
            (is_registered_name(&rest[..end]), &rest[end..])
        }
    };
    is_host_valid
        && match port {
            [] => true,
            [b':', digits @ ..] => digits.iter().all(u8::is_ascii_digit),
            _ => false,
        }
}

/// Returns whether this is what may stand between the brackets of an `IP-literal`: an IPv6 address, or
/// an address of a later version (RFC 3986, section 3.2.2).
fn is_ip_literal(text: &[u8]) -> bool {
    if let [b'v' | b'V', rest @ ..] = text {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        return match &rest[digits..] {
            [b'.', address @ ..] => {
                let is_valid = |&byte: &u8| byte == b':' || is_name(byte);
                digits > 0 && !address.is_empty() && address.iter().all(is_valid)
            }
            _ => false,
        };
    }
    str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Returns whether this is a `reg-name` of RFC 3986, section 3.2.2, which covers IPv4 addresses too.
fn is_registered_name(text: &[u8]) -> bool {
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return true,
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if is_name(*byte) => rest,
            _ => return false,
        };
    }
}

fn is_name(byte: u8) -> bool {
    NAME_BYTES[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_host_follows_the_grammar() {
        let good = [
            "x",
            "x:80",
            "x:",
            "1.2.3.4",
            "[::1]",
            "[::1]:80",
            "[::ffff:1.2.3.4]",
            "[1:2:3:4:5:6:7:8]",
            "[v1.a:b]",
            "[VF.x]:80",
            "a%20b",
            "a%20b:80",
            "%41:80",
            "a_b",
        ];
        for good in good {
            assert!(has_host(good.as_bytes()), "{good:?}");
        }
        let bad = [
            "",
            ":",
            ":80",
            "a b",
            "a/b",
            "a@b",
            "x:8x",
            "x:80:90",
            "[::1",
            "[]",
            "[::1]80",
            "::1",
            "a%2",
            "%41:8x",
            "[",
            "a[b]",
            "x[::1]",
            "a,b c",
            "é",
            "[foo]",
            "[1.2.3.4]",
            "[1:2]",
            "[::1::]",
            "[fe80::1%25eth0]",
            "[::g]",
            "[v.a]",
            "[v1]",
            "[v1.]",
            "[vg.a]",
            "[é]",
        ];
        for bad in bad {
            assert!(!has_host(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn split_target_accepts_the_four_forms() {
        let good = [
            ("GET", "/a?b?c", "/a", Some("b?c")),
            ("GET", "/-._~!$&'()*+,;=:@%20[]", "/-._~!$&'()*+,;=:@%20[]", None),
            ("GET", "/", "/", None),
            ("GET", "http://h", "/", None),
            ("GET", "HTTPS://h:1/p?q", "/p", Some("q")),
            ("GET", "http://h?q", "/", Some("q")),
            ("OPTIONS", "*", "*", None),
            ("CONNECT", "h:443", "h:443", None),
        ];
        for (method, target, path, query) in good {
            assert_eq!(split_target(method, target), Ok((path, query)), "{method} {target}");
        }
        let bad = [
            ("GET", "*"),
            ("GET", "a"),
            ("GET", "h:443"),
            ("GET", "ftp://h/"),
            ("GET", "http:///p"),
            ("GET", "http://u@h/"),
            ("GET", "/a#b"),
            ("GET", "http://:80/"),
            ("GET", "http://?q"),
            ("GET", "http://[foo]/"),
            ("GET", "/é"),
            ("GET", "/\""),
            ("GET", "/<"),
            ("GET", "/>"),
            ("GET", "/\\"),
            ("GET", "/^"),
            ("GET", "/`"),
            ("GET", "/{"),
            ("GET", "/?|"),
            ("GET", "/?}"),
            ("CONNECT", ":443"),
            ("CONNECT", "h:"),
            ("CONNECT", "h:0"),
            ("CONNECT", "/"),
            ("CONNECT", "h"),
            ("CONNECT", "h:99999"),
        ];
        for (method, target) in bad {
            assert!(split_target(method, target).is_err(), "{method} {target}");
        }
    }
}
