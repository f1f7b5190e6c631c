//! This process's own descriptors, as /proc lists them (Linux).

use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

const FOLDER: &CStr = c"/proc/self/fd";
/// Where an entry says how long it is, and where its name begins: see getdents64(2).
const LENGTH_AT: usize = 16;
const NAME_AT: usize = 19;

/// Shows each descriptor of this process until `look` has seen enough. Returns whether it could show
/// them. Async-signal-safe, if `look` is.
pub(crate) fn each(mut look: impl FnMut(RawFd) -> Look) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(folder) = open(FOLDER, flags, Mode::empty()) else { return false };
    let mut buffer = [0_u8; 2048];
    loop {
        let (number, length) = (folder.as_raw_fd(), buffer.len());
        // SAFETY: `buffer` has room for `length` bytes.
        let read =
            unsafe { libc::syscall(libc::SYS_getdents64, number, buffer.as_mut_ptr(), length) };
        let Ok(read) = usize::try_from(read) else { return false };
        if read == 0 {
            return true;
        }
        let mut entries = buffer.get(..read).unwrap_or_default();
        while let Some((entry, rest)) = first_entry(entries) {
            entries = rest;
            if number_in(entry).filter(|fd| *fd != number).map(&mut look) == Some(Look::Enough) {
                return true;
            }
        }
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    On,
    Enough,
}

fn first_entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = entries.get(LENGTH_AT..LENGTH_AT + 2)?;
    let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
    entries.split_at_checked(length).filter(|(entry, _)| entry.len() > NAME_AT)
}

/// The number that an entry is named by; none for `.` and `..`.
fn number_in(entry: &[u8]) -> Option<RawFd> {
    let name = entry.get(NAME_AT..)?.split(|byte| *byte == 0).next()?;
    let digits = |byte: &u8| byte.is_ascii_digit().then(|| i32::from(byte - b'0'));
    if name.is_empty() {
        return None;
    }
    name.iter().try_fold(0_i32, |number, byte| number.checked_mul(10)?.checked_add(digits(byte)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn every_descriptor_is_shown_once_until_it_is_enough() {
        let files: Vec<File> = (0..300).map(|_| File::open("/dev/null").unwrap()).collect();
        let mut seen = Vec::new();
        assert!(each(|fd| {
            seen.push(fd);
            Look::On
        }));
        for file in &files {
            assert_eq!(seen.iter().filter(|fd| **fd == file.as_raw_fd()).count(), 1);
        }
        let mut looks = 0;
        assert!(each(|_| {
            looks += 1;
            if looks == 5 { Look::Enough } else { Look::On }
        }));
        assert_eq!(looks, 5);
    }
}
