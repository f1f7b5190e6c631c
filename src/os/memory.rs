//! Anonymous memory that a process shares with the children it forks.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A shared mapping of 64-bit words, zero at first. Untouched pages cost no memory.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is only ever lent as `&[AtomicU64]`, which any thread may use.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Maps at least one word.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(crate) fn new(words: usize) -> io::Result<Self> {
        let words = words.max(1);
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let bytes = words.checked_mul(size_of::<AtomicU64>()).and_then(NonZeroUsize::new);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        let bytes = bytes.ok_or_else(too_large)?;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        Ok(Self { start: start.cast(), words })
    }

    /// Returns the words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds `words` words that the kernel zeroed (a valid
        // AtomicU64), and lives until `drop`, which the borrow of `self` outlasts.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        let bytes = self.words * size_of::<AtomicU64>();
        // SAFETY: `new` mapped exactly this range, and no borrow of it is left.
        let unmapped = unsafe { munmap(self.start.cast(), bytes) };
        debug_assert!(unmapped.is_ok());
    }
}
