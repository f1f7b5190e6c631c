use super::*;

#[test]
fn bare_line_feeds_are_found_everywhere() {
    let head = format!("GET / HTTP/1.1\r\n{}\r\n", "Some-Field: some value\r\n".repeat(9));
    assert!(!has_bare_line_feed(head.as_bytes()));
    assert!(!has_bare_line_feed(b""));
    for (at, _) in head.match_indices('\r') {
        let mut bytes = head.clone().into_bytes();
        bytes.remove(at);
        assert!(has_bare_line_feed(&bytes), "at {at}");
    }
    assert!(has_bare_line_feed(b"\n"));
}

#[test]
fn decimal_accepts_digits_only() {
    assert_eq!(decimal(b"0"), Some(0));
    assert_eq!(decimal(b"007"), Some(7));
    assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
    for bad in ["", "+1", "-1", "1 ", "0x1", "1,1", "18446744073709551616"] {
        assert_eq!(decimal(bad.as_bytes()), None, "{bad:?}");
    }
}
