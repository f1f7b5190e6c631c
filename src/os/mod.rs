//! Safe functions over the operating system. The only module with `unsafe`, `libc` and `nix`.
//!
//! It handles descriptors, processes and clocks, and must not depend on workers, settings or
//! protocols. Linux is assumed where a doc comment says so; the rest is plain POSIX.

pub(crate) mod cgroup;
pub(crate) mod child_program;
pub(crate) mod claim;
pub(crate) mod clock;
pub(crate) mod credentials;
pub(crate) mod daemon;
pub(crate) mod epoll;
pub(crate) mod fd_table;
pub(crate) mod file;
pub(crate) mod foreground;
pub(crate) mod helper_process;
pub(crate) mod host;
pub(crate) mod journal;
pub(crate) mod listener_options;
pub(crate) mod listening;
pub(crate) mod log_output;
pub(crate) mod lookups;
pub(crate) mod memory;
pub(crate) mod network_stats;
pub(crate) mod notify_socket;
pub(crate) mod passed_fds;
pub(crate) mod path_watch;
mod pid;
pub(crate) mod poll;
pub(crate) mod private_dir;
pub(crate) mod proc_dir;
pub(crate) mod process;
pub(crate) mod procfs;
pub(crate) mod random;
pub(crate) mod resources;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod terminal;
#[cfg(feature = "testkit")]
pub(crate) mod testing;
pub(crate) mod title;
#[cfg(feature = "uring")]
pub(crate) mod uring;
pub(crate) mod wall_timer;

use std::io;

/// Converts the -1 of a C call into the error in `errno`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
