//! The title under which `ps` shows this process: written over its argument vector (Linux).

use std::env;
use std::fs;
use std::io;
use std::ptr;

/// The memory in which the kernel put the arguments and the environment: `ps` reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcTitle {
    start: usize,
    length: usize,
}

impl ProcTitle {
    /// Finds the area, and moves the environment out of it. To be called once, at the start of the
    /// program, before there are threads, and after the arguments have been copied: from here on
    /// `std::env::args` shows titles.
    ///
    /// # Errors
    /// /proc is not mounted, or does not read as proc(5) says.
    pub(crate) fn init() -> io::Result<Self> {
        let unreadable =
            || io::Error::new(io::ErrorKind::InvalidData, "cannot read /proc/self/stat");
        let stat = fs::read_to_string("/proc/self/stat")?;
        // The second field is the program's name in parentheses, and may hold anything.
        let (_, rest) = stat.rsplit_once(") ").ok_or_else(unreadable)?;
        let field = |number: usize| -> io::Result<usize> {
            let text = rest.split(' ').nth(number - 3).ok_or_else(unreadable)?;
            text.trim().parse().map_err(|_| unreadable())
        };
        let (arg_start, arg_end) = (field(48)?, field(49)?);
        let (env_start, env_end) = (field(50)?, field(51)?);
        if arg_start == 0 || arg_end <= arg_start {
            return Err(unreadable());
        }
        let contiguous = env_start == arg_end && env_end > env_start;
        let end = if contiguous { env_end } else { arg_end };
        if contiguous {
            move_environment();
        }
        Ok(Self { start: arg_start, length: end - arg_start })
    }

    /// Shows `title`, cut to the area's size.
    pub(crate) fn set(self, title: &str) {
        let shown = title.len().min(self.length - 1);
        // SAFETY: the kernel mapped this range writable for the life of the process; `claim` moved
        // the environment out of it, and nothing else points into it once the arguments have been
        // copied, which is `claim`'s condition.
        unsafe { ptr::write_bytes(self.start as *mut u8, 0, self.length) };
        // SAFETY: as above, and `shown` is at most the area's length.
        unsafe { ptr::copy_nonoverlapping(title.as_ptr(), self.start as *mut u8, shown) };
    }
}

/// Sets each variable anew, which makes the C library copy it to the heap.
fn move_environment() {
    for (name, value) in env::vars_os().collect::<Vec<_>>() {
        // SAFETY: `claim` is called before there is a second thread.
        unsafe { env::set_var(name, value) };
    }
}
