//! Random numbers of the kernel.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// Returns a number that differs in each process. It is no secret: if the kernel has no random numbers
/// yet, it is made from the clock and the process ID.
pub(crate) fn seed() -> u64 {
    let mut bytes = [0_u8; 8];
    // SAFETY: `bytes` has room for its own length.
    let length =
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    if length == 8 {
        return u64::from_ne_bytes(bytes);
    }
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| now.num_nanoseconds());
    (now as u64).rotate_left(20) ^ u64::from(std::process::id()).rotate_left(44)
}
