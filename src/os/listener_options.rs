//! The options of a TCP listener (Linux). They are shared like the socket: any process that has
//! inherited it can change them, and most of them pass to the sockets of its clients.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::{IP_MINTTL, IP_TTL, IPPROTO_IP, IPPROTO_IPV6, IPV6_RTHDR, IPV6_UNICAST_HOPS};
use libc::{IPPROTO_TCP, TCP_CORK, TCP_MAXSEG, TCP_USER_TIMEOUT, TCP_WINDOW_CLAMP};
use libc::{
    SO_BINDTOIFINDEX, SO_BUF_LOCK, SO_DONTROUTE, SO_LINGER, SO_LOCK_FILTER, SO_MAX_PACING_RATE,
    SO_RCVBUF, SO_RCVLOWAT, SO_SNDBUF, SOL_SOCKET,
};
use libc::{c_int, sockaddr_storage};

use super::{listening, socket};

/// The smallest hop limit of IPv6 packets that are taken: see linux/in6.h.
const IPV6_MINHOPCOUNT: c_int = 73;
/// Delays what is sent: see linux/tcp.h.
const TCP_TX_DELAY: c_int = 37;
/// No limit of the receive window.
const WIDEST_WINDOW: c_int = 0xffff << 14;
/// Where `SO_MEMINFO` has the memory of filters, keys and header options.
const OPTION_MEMORY: usize = 6;
/// More bytes than any value in the table has. A longer one is cut off.
const VALUE_BYTES: usize = 64;

/// How the value that was found is set again.
#[derive(Clone, Copy, Debug)]
enum Reset {
    /// As it was read.
    AsRead,
    /// The kernel doubles what is set.
    Half,
    /// The kernel's default is set by this value, and reads as another.
    Default(c_int),
}

/// An option by which a process can make a listener useless or slow.
#[derive(Debug)]
struct Row {
    name: &'static str,
    level: c_int,
    number: c_int,
    reset: Reset,
}

macro_rules! table {
    ($($level:ident: $($number:ident $(by $reset:expr)?),+;)+) => {
        &[$($(Row {
            name: stringify!($number),
            level: $level,
            number: $number,
            reset: { let _reset = Reset::AsRead; $(let _reset = $reset;)? _reset },
        }),+),+]
    };
}

/// In the order in which they are set: to set the size of a buffer locks it. Not here are options that
/// programs set on purpose and that harm nobody much, such as `SO_KEEPALIVE`, and those whose value follows
/// a sysctl.
const TABLE: &[Row] = table! {
    SOL_SOCKET: SO_BINDTOIFINDEX, SO_LOCK_FILTER, SO_DONTROUTE, SO_RCVLOWAT, SO_RCVBUF by Reset::Half,
        SO_SNDBUF by Reset::Half, SO_BUF_LOCK, SO_LINGER, SO_MAX_PACING_RATE;
    IPPROTO_IP: IP_TTL by Reset::Default(-1), IP_MINTTL;
    IPPROTO_IPV6: IPV6_UNICAST_HOPS by Reset::Default(-1), IPV6_MINHOPCOUNT, IPV6_RTHDR;
    IPPROTO_TCP: TCP_MAXSEG by Reset::Default(0), TCP_CORK,
        TCP_WINDOW_CLAMP by Reset::Default(WIDEST_WINDOW), TCP_USER_TIMEOUT, TCP_TX_DELAY;
};

/// An option of the table, and its value before any worker could change it.
#[derive(Debug)]
struct Kept {
    row: &'static Row,
    value: Vec<u8>,
    /// By which `value` is set again.
    setting: Vec<u8>,
}

/// What the options of a listener were before any worker could change them. A unix socket has none that
/// matter.
#[derive(Debug, Default)]
pub(crate) struct ListenerOptions {
    kept: Vec<Kept>,
    /// The memory that the kernel needed for other options.
    memory: u32,
    /// This program has bound the socket, and has set no filters and no keys.
    is_ours: bool,
}

/// What was done about options of a listener.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    /// The names of those that have their value again.
    pub(crate) names: Vec<&'static str>,
    /// Those that have not, each with the reason.
    pub(crate) failures: Vec<String>,
}

impl ListenerOptions {
    /// Reads the options of a listener that no worker has had yet. `is_ours`: this program has bound it.
    ///
    /// # Errors
    /// From socket(2).
    pub(crate) fn read(fd: BorrowedFd<'_>, is_ours: bool) -> io::Result<Self> {
        let Some(new) = socket::new_like(fd)? else { return Ok(Self::default()) };
        Ok(Self::from_source(fd, is_ours, new.as_fd()))
    }

    /// Returns the options of a listener that an earlier master has bound, as they were then: a worker may
    /// have changed them since.
    ///
    /// # Errors
    /// From socket(2).
    pub(crate) fn of_adopted(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let Some(new) = socket::new_like(fd)? else { return Ok(Self::default()) };
        Ok(Self::from_source(new.as_fd(), true, new.as_fd()))
    }

    fn from_source(source: BorrowedFd<'_>, is_ours: bool, new: BorrowedFd<'_>) -> Self {
        let can_unlock = TABLE.iter().any(|row| row.number == SO_BUF_LOCK && get(new, row).is_ok());
        let keep = |row: &'static Row| {
            if matches!(row.reset, Reset::Half) && !can_unlock {
                return None; // before Linux 5.15: it would be locked for ever
            }
            // The kernel may lack an option, or the socket's family.
            let value = get(source, row).ok()?;
            let is_default = is_ours || get(new, row).is_ok_and(|it| it == value);
            let setting = match row.reset {
                Reset::Half => (as_int(&value)? / 2).to_ne_bytes().to_vec(),
                Reset::Default(number) if is_default => number.to_ne_bytes().to_vec(),
                Reset::AsRead | Reset::Default(_) => value.clone(),
            };
            Some(Kept { row, value, setting })
        };
        let kept = TABLE.iter().filter_map(keep).collect();
        Self { kept, memory: option_memory(source), is_ours }
    }

    /// Sets each option of the table that has another value now, and removes filters and keys: some
    /// dozens of system calls.
    pub(crate) fn restore(&self, fd: BorrowedFd<'_>) -> Restored {
        let mut restored = Restored::default();
        if self.is_ours {
            listening::remove_filters(fd);
        }
        for Kept { row, value, setting } in &self.kept {
            let before = get(fd, row).ok();
            if before.as_ref() == Some(value) {
                continue;
            }
            match listening::set_option_bytes(fd, row.level, row.number, setting) {
                Err(error) => restored.failures.push(format!("{}: {error}", row.name)),
                Ok(()) if get(fd, row).ok() != before => restored.names.push(row.name),
                // It is as it should be: the kernel reports a default otherwise once it was changed.
                Ok(()) => (),
            }
        }
        if !self.kept.is_empty() && option_memory(fd) > self.memory {
            if self.is_ours && remove_key_for_all(fd).is_ok() {
                restored.names.push("TCP_MD5SIG_EXT");
            }
            if option_memory(fd) > self.memory {
                let what = "TCP_MD5SIG, TCP_AO_ADD_KEY or SO_ATTACH_FILTER: cannot be removed";
                restored.failures.push(what.to_owned());
            }
        }
        restored
    }
}

fn get(fd: BorrowedFd<'_>, row: &Row) -> io::Result<Vec<u8>> {
    let mut value = [0; VALUE_BYTES];
    let length = get_bytes(fd, row.level, row.number, &mut value)?;
    Ok(value[..length].to_vec())
}

fn get_bytes(
    fd: BorrowedFd<'_>,
    level: c_int,
    option: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut length = value.len() as libc::socklen_t;
    let (fd, target) = (fd.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: `value` has room for `length` bytes, and both outlive the call.
    super::check(unsafe { libc::getsockopt(fd, level, option, target, &raw mut length) })?;
    Ok(value.len().min(length as usize))
}

fn as_int(value: &[u8]) -> Option<c_int> {
    Some(c_int::from_ne_bytes(value.try_into().ok()?))
}

/// Returns how many bytes the kernel needs for the filters, keys and header options of a socket; 0 if it
/// does not say.
fn option_memory(fd: BorrowedFd<'_>) -> u32 {
    let mut value = [0; VALUE_BYTES];
    let length = get_bytes(fd, SOL_SOCKET, libc::SO_MEMINFO, &mut value).unwrap_or(0);
    let mut words = value[..length].chunks_exact(size_of::<u32>());
    words.nth(OPTION_MEMORY).map_or(0, |word| u32::from_ne_bytes(word.try_into().unwrap_or([0; 4])))
}

/// `tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct Md5Key {
    address: sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: c_int,
    key: [u8; 80],
}

const TCP_MD5SIG_EXT: c_int = 32;
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;

/// Removes the key with which the packets of all clients must be signed, if it is one for no address
/// in particular. The kernel removes no key without its address, and does not tell that.
///
/// # Errors
/// `ENOENT`: there is none.
fn remove_key_for_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_key_for_all(fd, 0)
}

fn set_key_for_all(fd: BorrowedFd<'_>, key_length: u16) -> io::Result<()> {
    let is_ipv4 = socket::tcp_address(fd)?.is_some_and(|address| address.is_ipv4());
    let mut address = socket::zeroed_storage();
    address.ss_family = if is_ipv4 { libc::AF_INET } else { libc::AF_INET6 } as libc::sa_family_t;
    let key = Md5Key {
        address,
        flags: TCP_MD5SIG_FLAG_PREFIX,
        prefix_length: 0,
        key_length,
        interface: 0,
        key: [0; 80],
    };
    listening::set_option_at(fd, IPPROTO_TCP, TCP_MD5SIG_EXT, &key)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use super::*;

    fn listeners() -> impl Iterator<Item = TcpListener> {
        ["127.0.0.1:0", "[::1]:0"].into_iter().filter_map(|it| TcpListener::bind(it).ok())
    }

    /// Sets an option of the table to another value. Returns whether the kernel has it.
    fn change(fd: BorrowedFd<'_>, row: &Row) -> bool {
        let Ok(before) = get(fd, row) else { return false };
        let number = |number: u32| number.to_ne_bytes().to_vec();
        let changed = match row.name {
            "IPV6_RTHDR" => [vec![0, 2, 4, 0, 0, 0, 0, 0], vec![0xfe; 16]].concat(),
            "SO_RCVLOWAT" => number(1 << 16),
            "SO_BUF_LOCK" => number(3),
            "TCP_MAXSEG" => number(88),
            _ => {
                let mut value = vec![0; before.len()];
                value[0] = u8::from(before[0] != 1);
                value
            }
        };
        listening::set_option_bytes(fd, row.level, row.number, &changed).is_ok()
            && get(fd, row).unwrap() != before
    }

    #[test]
    fn each_option_is_restored() {
        for is_ours in [true, false] {
            for listener in listeners() {
                let fd = listener.as_fd();
                let options = ListenerOptions::read(fd, is_ours).unwrap();
                assert_eq!(options.restore(fd), Restored::default());
                // A locked filter stays locked; the interface requires CAP_NET_RAW.
                let skipped = ["SO_LOCK_FILTER", "SO_BINDTOIFINDEX"];
                let mut count = 0;
                for Kept { row, .. } in &options.kept {
                    if skipped.contains(&row.name) || !change(fd, row) {
                        eprintln!("not changed: {}", row.name);
                        continue;
                    }
                    let restored = options.restore(fd);
                    assert!(restored.names.contains(&row.name), "{}: {restored:?}", row.name);
                    assert_eq!(restored.failures, [""; 0]);
                    assert_eq!(options.restore(fd), Restored::default(), "{}", row.name);
                    count += 1;
                }
                assert!(count > 10, "{count}");
                TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            }
        }
    }

    #[test]
    fn key_for_all_clients_is_removed() {
        for listener in listeners() {
            let fd = listener.as_fd();
            let options = ListenerOptions::read(fd, true).unwrap();
            options.restore(fd);
            if set_key_for_all(fd, 3).is_err() {
                return; // a kernel without TCP_MD5SIG
            }
            let address = listener.local_addr().unwrap();
            TcpStream::connect_timeout(&address, Duration::from_millis(100)).unwrap_err();
            assert_eq!(options.restore(fd).names, ["TCP_MD5SIG_EXT"]);
            TcpStream::connect(address).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_restored_is_named() {
        for listener in listeners() {
            let fd = listener.as_fd();
            let inherited = ListenerOptions::read(fd, false).unwrap();
            listening::set_option_at(fd, SOL_SOCKET, SO_LOCK_FILTER, &1).unwrap();
            let restored = inherited.restore(fd);
            assert_eq!(restored.names, [""; 0]);
            assert!(restored.failures[0].starts_with("SO_LOCK_FILTER: "), "{restored:?}");
            if set_key_for_all(fd, 3).is_ok() {
                let failures = inherited.restore(fd).failures;
                assert!(failures[1].starts_with("TCP_MD5SIG, "), "{failures:?}");
            }
        }
    }

    #[test]
    fn unix_socket_has_no_options() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let options = ListenerOptions::read(listener.as_fd(), true).unwrap();
        assert!(options.kept.is_empty());
        assert_eq!(options.restore(listener.as_fd()), Restored::default());
    }
}
