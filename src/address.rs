//! The addresses on which a pool listens, as text. Pure: this file must not open, resolve or look
//! up anything.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to listen on. Parsed from `HOST:PORT`, `:PORT` (every IPv4 address), `[V6]:PORT`,
/// `unix:PATH`, `unix:@NAME` or `fd://N`, and shown in the same form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A TCP port.
    Tcp {
        /// A name in lower case, an IPv4 address, or an IPv6 address without its brackets, with `%` and its
        /// interface if it is link-local.
        host: String,
        /// The port; 0 lets the kernel choose one.
        port: u16,
    },
    /// A unix socket in the file system: 1 to 107 bytes, without NUL.
    Unix(PathBuf),
    /// A unix socket in the abstract namespace, without its leading NUL: 1 to 107 bytes.
    Abstract(Vec<u8>),
    /// A descriptor that this process was started with.
    Fd(i32),
}

/// The length of an interface's name (`IFNAMSIZ` less its NUL, netdevice(7)), in bytes.
const ZONE_BYTES_MAX: usize = 15;

/// The length of `sun_path` without its final or leading NUL, in bytes (unix(7)).
const UNIX_BYTES_MAX: usize = 107;

impl Address {
    /// The forms of an address, for an error message.
    pub(super) const FORMS: &'static str =
        "give HOST:PORT, :PORT, [V6]:PORT, unix:PATH, unix:@NAME or fd://N";
}

impl FromStr for Address {
    /// A message that can follow the quoted address.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            parse_unix(path)
        } else if let Some(number) = text.strip_prefix("fd://") {
            match number.parse() {
                Ok(fd) if all_digits(number) => Ok(Self::Fd(fd)),
                _ => Err("does not name a descriptor: give fd://N, such as fd://3".into()),
            }
        } else {
            parse_tcp(text)
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", String::from_utf8_lossy(name)),
            Self::Fd(fd) => write!(f, "fd://{fd}"),
        }
    }
}

fn parse_unix(path: &str) -> Result<Address, String> {
    let (name, is_abstract) = match path.strip_prefix('@') {
        Some(name) => (name, true),
        None => (path, false),
    };
    if name.is_empty() {
        return Err("lacks a path: give unix:PATH or unix:@NAME".into());
    }
    if name.contains('\0') {
        return Err("contains a NUL byte".into());
    }
    if is_abstract {
        check_length(name)?;
        return Ok(Address::Abstract(name.into()));
    }
    if path.starts_with("//") && !path.starts_with("///") {
        return Err("is ambiguous: give unix:PATH, or unix:///PATH if it is absolute".into());
    }
    let rest = path.trim_start_matches('/');
    let path = if rest.len() == path.len() { path.to_owned() } else { format!("/{rest}") };
    if rest.is_empty() || path.ends_with('/') {
        return Err("names a directory: give the path of a socket".into());
    }
    check_length(&path)?;
    Ok(Address::Unix(path.into()))
}

fn check_length(name: &str) -> Result<(), String> {
    if name.len() > UNIX_BYTES_MAX {
        let length = name.len();
        return Err(format!("is too long: {length} bytes, at most {UNIX_BYTES_MAX} are possible"));
    }
    Ok(())
}

fn parse_tcp(text: &str) -> Result<Address, String> {
    let not_an_address = || format!("is not an address: {}", Address::FORMS);
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(if is_host(text) {
            format!("lacks a port: give {text}:PORT, such as {text}:8000")
        } else {
            not_an_address()
        });
    };
    let host = if let Some(inner) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        parse_v6(inner).ok_or_else(|| format!("has no IPv6 address in its brackets ({inner})"))?
    } else if text.starts_with('[') {
        return Err("lacks a port: give [V6]:PORT, such as [::1]:8000".into());
    } else if text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') && host.contains(':') {
        return Err("is ambiguous: write an IPv6 address in brackets, as in [::1]:8000".into());
    } else if host.is_empty() {
        Ipv4Addr::UNSPECIFIED.to_string()
    } else if is_host(host) {
        host.to_ascii_lowercase()
    } else {
        return Err(not_an_address());
    };
    match port.parse() {
        Ok(number) if all_digits(port) => Ok(Address::Tcp { host, port: number }),
        _ => Err(format!("has no port from 0 to 65535 ({port:?})")),
    }
}

/// Parses an IPv6 address, with the name or the number of its interface after `%` if it is link-local.
fn parse_v6(text: &str) -> Option<String> {
    let (address, zone) = text.split_once('%').map_or((text, None), |(it, zone)| (it, Some(zone)));
    let address: Ipv6Addr = address.parse().ok()?;
    let is_zone_byte = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    match zone {
        None => Some(address.to_string()),
        Some(zone) => {
            let is_zone =
                (1..=ZONE_BYTES_MAX).contains(&zone.len()) && zone.bytes().all(is_zone_byte);
            (is_zone && address.is_unicast_link_local()).then(|| format!("{address}%{zone}"))
        }
    }
}

/// Whether a text may be an IPv4 address or a host name. No resolver knows a name of only digits
/// and dots, which is most likely a misspelt address.
fn is_host(text: &str) -> bool {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

fn all_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.into(), port }
    }

    #[track_caller]
    fn assert_parses(text: &str, expected: Address, shown: &str) {
        assert_eq!(text.parse(), Ok(expected.clone()));
        assert_eq!(expected.to_string(), shown);
        assert_eq!(shown.parse(), Ok(expected));
    }

    #[track_caller]
    fn assert_refused(text: &str, reason: &str) {
        let error = text.parse::<Address>().expect_err(text);
        assert!(error.contains(reason), "{text}: {error}");
    }

    #[test]
    fn every_form_is_parsed_and_shown() {
        assert_parses("127.0.0.1:8000", tcp("127.0.0.1", 8000), "127.0.0.1:8000");
        assert_parses("LocalHost:80", tcp("localhost", 80), "localhost:80");
        assert_parses(":8000", tcp("0.0.0.0", 8000), "0.0.0.0:8000");
        assert_parses("[::1]:0", tcp("::1", 0), "[::1]:0");
        assert_parses("[0:0::1]:80", tcp("::1", 80), "[::1]:80");
        assert_parses("[FE80::1%eth0]:80", tcp("fe80::1%eth0", 80), "[fe80::1%eth0]:80");
        assert_parses("[fe80::1%2]:80", tcp("fe80::1%2", 80), "[fe80::1%2]:80");
        assert_parses("unix:a.sock", Address::Unix("a.sock".into()), "unix:a.sock");
        assert_parses("unix:/run/a b", Address::Unix("/run/a b".into()), "unix:/run/a b");
        assert_parses("unix:///run/a", Address::Unix("/run/a".into()), "unix:/run/a");
        assert_parses("unix:@x", Address::Abstract(b"x".to_vec()), "unix:@x");
        assert_parses("fd://3", Address::Fd(3), "fd://3");
        let longest = format!("unix:/{}", "x".repeat(106));
        assert!(longest.parse::<Address>().is_ok());
    }

    #[test]
    fn malformed_address_names_the_mistake() {
        assert_refused("", "is not an address");
        assert_refused("localhost", "give localhost:PORT");
        assert_refused("127.0.0.1", "lacks a port");
        assert_refused("8000", "is not an address");
        assert_refused("300.0.0.1:80", "is not an address");
        assert_refused("a b:80", "is not an address");
        assert_refused("http://x:80", "is not an address");
        assert_refused("localhost:", "no port");
        assert_refused("localhost:65536", "no port");
        assert_refused("localhost:+80", "no port");
        assert_refused("::1:8000", "brackets");
        assert_refused("::1", "brackets");
        assert_refused("[::1]", "lacks a port");
        assert_refused("[x]:80", "no IPv6");
        for text in
            ["[::1%lo]:80", "[fe80::1%]:80", "[fe80::1%a/b]:80", "[fe80::1%0123456789abcdef]:80"]
        {
            assert_refused(text, "no IPv6");
        }
        assert_refused("unix:", "lacks a path");
        assert_refused("unix:@", "lacks a path");
        assert_refused("unix://run/a", "ambiguous");
        assert_refused("unix:/run/", "directory");
        assert_refused("unix:///", "directory");
        assert_refused("unix:a\0b", "NUL");
        assert_refused(&format!("unix:/{}", "x".repeat(107)), "too long: 108");
        assert_refused(&format!("unix:@{}", "x".repeat(108)), "too long: 108");
        assert_refused("fd://", "descriptor");
        assert_refused("fd://-1", "descriptor");
        assert_refused("fd://+1", "descriptor");
        assert_refused("fd://99999999999", "descriptor");
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(
            form in "(unix:|unix:@|fd://|\\[|)[a-z0-9:./@\\]]{0,20}", noise in any::<String>()
        ) {
            for text in [form, noise] {
                if let Ok(address) = text.parse::<Address>() {
                    assert_eq!(address.to_string().parse(), Ok(address));
                }
            }
        }
    }
}
