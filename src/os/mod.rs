//! The operating system, behind safe faces. The only floor with `unsafe`, `libc` and `nix`.
//!
//! It knows descriptors, processes and clocks; it must never know what a worker, a setting or a
//! protocol is. Linux is assumed where a doc comment says so; the rest is plain POSIX.

pub(crate) mod cgroup;
pub(crate) mod cgroup_manage;
pub(crate) mod child_program;
pub(crate) mod clock;
pub(crate) mod credentials;
pub(crate) mod daemon;
pub(crate) mod epoll;
pub(crate) mod fd_table;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod notify_socket;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod procfs;
pub(crate) mod resources;
pub(crate) mod signal;
pub(crate) mod socket;
#[cfg(feature = "testkit")]
pub(crate) mod testing;
pub(crate) mod title;
pub(crate) mod wall_timer;

use std::io;

/// Turns the -1 of a C call into the error that `errno` names.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
