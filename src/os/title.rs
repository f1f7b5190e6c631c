//! The title that `ps` shows for this process, written over its argument vector (Linux).

use std::env;
use std::fs;
use std::io;
use std::ptr;

/// The memory in which the kernel placed the arguments and the environment: `ps` reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcTitle {
    start: usize,
    length: usize,
}

impl ProcTitle {
    /// Finds that memory, and moves the environment out of it. Call it once, at the start of the
    /// program, before a second thread starts, and after the arguments have been copied: from now
    /// on `std::env::args` returns titles.
    ///
    /// # Errors
    /// /proc is not mounted, or its format is not that of proc(5).
    pub(crate) fn init() -> io::Result<Self> {
        let unreadable =
            || io::Error::new(io::ErrorKind::InvalidData, "cannot read /proc/self/stat");
        let stat = fs::read("/proc/self/stat")?;
        let stat = String::from_utf8_lossy(&stat);
        // The second field is the program's name in parentheses, and may hold any character.
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

    /// Shows `title`, cut to the size of that memory.
    pub(crate) fn set(self, title: &str) {
        let shown = title.len().min(self.length - 1);
        // SAFETY: the kernel mapped this range writable for the life of the process; `init` moved
        // the environment out of it, and nothing else points into it once the arguments have been
        // copied, which is `init`'s condition.
        unsafe { ptr::write_bytes(self.start as *mut u8, 0, self.length) };
        // SAFETY: as above, and `shown` is at most that length.
        unsafe { ptr::copy_nonoverlapping(title.as_ptr(), self.start as *mut u8, shown) };
    }
}

/// Sets each variable again, which makes the C library copy it to the heap.
fn move_environment() {
    for (name, value) in env::vars_os().collect::<Vec<_>>() {
        // SAFETY: `init` is called before there is a second thread.
        unsafe { env::set_var(name, value) };
    }
}
