//! The terminal of the process that has started the master.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::fd_table;

/// Leaves the controlling terminal, so that this process can neither write into the terminal's input
/// (ioctl_tty(2), `TIOCSTI`) nor change its foreground process group. Standard input becomes /dev/null,
/// and a terminal at the standard outputs write-only.
pub(crate) fn leave() {
    // Errors leave things as they are: there is no terminal, no /dev or no /proc.
    if let Ok(terminal) = File::open("/dev/tty") {
        // SAFETY: TIOCNOTTY takes no argument, and the descriptor is open.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) };
    }
    let _ = fd_table::replace_with_null(libc::STDIN_FILENO);
    for output in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: isatty(3) takes any number.
        if unsafe { libc::isatty(output) } == 1 {
            let _ = fd_table::reopen(output);
        }
    }
}
