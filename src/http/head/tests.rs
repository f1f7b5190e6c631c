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

#[test]
fn decimal_accepts_digits_only() {
    assert_eq!(decimal(b"0"), Some(0));
    assert_eq!(decimal(b"007"), Some(7));
    assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
    for bad in ["", "+1", "-1", "1 ", "0x1", "1,1", "18446744073709551616"] {
        assert_eq!(decimal(bad.as_bytes()), None, "{bad:?}");
    }
}
