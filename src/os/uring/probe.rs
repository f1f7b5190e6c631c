//! How rings are set up here, and whether this machine permits them.

use std::fs;
use std::io;

use io_uring::IoUring;
use nix::sys::utsname::uname;

/// Returns what all rings here are set up with: one thread submits, and the kernel's work is deferred
/// until that thread asks for results (Linux 6.1).
pub(super) fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_taskrun_flag();
    builder
}

/// Opens a small ring and closes it again. `changes_user` says whether workers run as another user, whom
/// the kernel may not permit what it permits this one.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn probe(changes_user: bool) -> Result<(), String> {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let switch = sysctl("io_uring_disabled");
    builder().build(8).map(drop).map_err(|error| missing(&error, &release, switch))?;
    if changes_user && switch == Some(1) && sysctl("io_uring_group").is_none_or(|group| group < 0) {
        return Err(
            "the sysctl kernel.io_uring_disabled is 1: the workers' user may not".to_owned()
        );
    }
    Ok(())
}

/// Returns a number of `/proc/sys/kernel`, which Linux has from 6.6 on.
fn sysctl(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
}

/// Returns what is missing, by the error of io_uring_setup(2), the kernel's release and the sysctl
/// `kernel.io_uring_disabled`.
fn missing(error: &io::Error, release: &str, switch: Option<i64>) -> String {
    match (error.raw_os_error(), switch) {
        (Some(libc::ENOSYS), _) => format!("the kernel ({release}) has no io_uring"),
        (Some(libc::EINVAL), _) => {
            format!(
                "the kernel ({release}) is older than 6.1, which IORING_SETUP_DEFER_TASKRUN needs"
            )
        }
        (Some(libc::EPERM | libc::EACCES), Some(switch @ 1..)) => {
            format!("the sysctl kernel.io_uring_disabled is {switch}")
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "a seccomp policy or security module forbids io_uring_setup(2), as containers often do"
                .to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "there is no memory for a ring, or RLIMIT_MEMLOCK (ulimit -l) is too small".to_owned()
        }
        _ => format!("io_uring_setup(2) fails: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_names_what_is_missing() {
        let missing =
            |errno, switch| missing(&io::Error::from_raw_os_error(errno), "5.15.0", switch);
        assert!(missing(libc::ENOSYS, None).contains("(5.15.0) has no io_uring"));
        assert!(missing(libc::EINVAL, None).contains("(5.15.0) is older than 6.1"));
        assert!(missing(libc::EPERM, Some(2)).contains("kernel.io_uring_disabled is 2"));
        assert!(missing(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(missing(libc::EPERM, None).contains("seccomp"));
        assert!(missing(libc::ENOMEM, Some(0)).contains("RLIMIT_MEMLOCK"));
        assert!(missing(libc::EMFILE, Some(0)).contains("io_uring_setup(2) fails: "));
    }
}
