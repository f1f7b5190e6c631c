//! How rings are set up here, and whether this machine permits them.

use std::fs;
use std::io;

use io_uring::IoUring;
use nix::sys::utsname::uname;

use crate::os::credentials::{self, Credentials};

/// Returns what all rings here are set up with: one thread submits, and the kernel's work is deferred
/// until that thread asks for results (Linux 6.1).
pub(super) fn builder() -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_taskrun_flag();
    builder
}

/// Opens a small ring and closes it again. `credentials` are those of the workers: the kernel may permit
/// them what it does not permit this process, or the reverse.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn probe(credentials: &Credentials) -> Result<(), String> {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned());
    let switches = Switches {
        disabled: sysctl("io_uring_disabled"),
        group: sysctl("io_uring_group").and_then(|group| u32::try_from(group).ok()),
    };
    // Only root takes on other credentials.
    let has_changed = credentials::is_root() && *credentials != Credentials::default();
    let others = has_changed.then_some(credentials);
    let opened = builder().build(8).map(drop);
    switches.judge(opened, others).map_err(|refusal| match refusal {
        Refusal::Of(error) => missing(&error, &release.unwrap_or_default(), switches.disabled),
        Refusal::Credentials => {
            "the sysctl kernel.io_uring_disabled is 1, and the workers' user is \
             not in the group of kernel.io_uring_group"
                .to_owned()
        }
    })
}

/// The sysctls `kernel.io_uring_disabled` and `kernel.io_uring_group`.
struct Switches {
    disabled: Option<i64>,
    group: Option<u32>,
}

/// Why workers cannot open rings.
#[derive(Debug)]
enum Refusal {
    /// This process cannot.
    Of(io::Error),
    /// Their credentials.
    Credentials,
}

impl Switches {
    /// Returns whether workers can open rings. `opened` says whether this process can, and `others` are
    /// the credentials that root takes on for the workers, if they are others.
    fn judge(&self, opened: io::Result<()>, others: Option<&Credentials>) -> Result<(), Refusal> {
        let (Some(credentials), Some(1)) = (others, self.disabled) else {
            return opened.map_err(Refusal::Of);
        };
        // CAP_SYS_ADMIN is kept with the user root.
        let keeps_admin = opened.is_ok() && credentials.user().is_none_or(|user| user == 0);
        let is_member = self.group.is_some_and(|group| credentials.groups().contains(&group));
        match opened.map_err(|error| (error.kind(), error)) {
            Err((kind, error)) if kind != io::ErrorKind::PermissionDenied => {
                Err(Refusal::Of(error))
            }
            _ if keeps_admin || is_member => Ok(()),
            _ => Err(Refusal::Credentials),
        }
    }
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
    use serde_json::json;

    use super::*;

    /// `io_uring_disabled` = 1: rings are for CAP_SYS_ADMIN and for members of `io_uring_group`.
    #[test]
    fn workers_credentials_decide_if_rings_are_restricted() {
        let credentials = |user, groups: &[u32]| {
            Credentials::from_json(&json!([user, groups[0], groups])).unwrap()
        };
        let (nobody, member) = (credentials(Some(65534), &[65534]), credentials(Some(7), &[7, 99]));
        let (root, group) = (credentials(Some(0), &[0]), credentials(None, &[98]));
        let permits = |disabled, group, opened: Result<(), i32>, others: Option<&Credentials>| {
            let opened = opened.map_err(io::Error::from_raw_os_error);
            Switches { disabled, group }.judge(opened, others).is_ok()
        };
        let (opened, refused) = (Ok(()), Err(libc::EPERM));
        for group in [None, Some(98)] {
            assert!(!permits(Some(1), group, opened, Some(&nobody)));
            assert!(!permits(Some(1), group, opened, Some(&member)));
            assert!(!permits(Some(1), group, refused, Some(&root)));
        }
        assert!(permits(Some(1), Some(99), opened, Some(&member)));
        assert!(permits(Some(1), Some(99), refused, Some(&member)));
        assert!(!permits(Some(1), Some(99), Err(libc::EINVAL), Some(&member)));
        assert!(permits(Some(1), None, opened, Some(&root)));
        assert!(permits(Some(1), None, opened, Some(&group)));
        assert!(permits(Some(1), Some(98), refused, Some(&group)));
        assert!(permits(Some(1), None, opened, None));
        for disabled in [None, Some(0)] {
            assert!(permits(disabled, None, opened, Some(&nobody)));
            assert!(!permits(disabled, Some(99), refused, Some(&member)));
        }
        assert!(!permits(Some(2), Some(99), refused, Some(&member)));
    }

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
