//! Memory that a process shares with the children it forks.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// Words that the children may write: zero at first. Untouched pages cost no memory.
///
/// Any process that has them can write anything: validate what is read.
#[derive(Debug)]
pub(crate) struct SharedMemory(Mapping);

impl SharedMemory {
    /// Maps at least one word.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2).
    pub(crate) fn new(words: usize) -> io::Result<Self> {
        let bytes = bytes_of(words)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        Ok(Self(Mapping::new(start.cast(), words.max(1)).inherited()))
    }

    /// Returns the words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.0.words()
    }

    /// Returns what [`forbid_access_except`] keeps it by.
    pub(crate) fn id(&self) -> MappingId {
        self.0.id()
    }
}

/// Gives memory that is free in this process, and that the C library keeps for later, back to the kernel.
/// It looks at every free block, so call it rarely. Only glibc does it; other libraries keep nothing, or
/// decide themselves.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Creates a file without a name in memory, and returns its only descriptor, which is close-on-exec. It
/// needs no directory.
///
/// # Errors
/// `ENOMEM`, `EMFILE` or `ENFILE`, from memfd_create(2).
pub(crate) fn anonymous_file() -> io::Result<OwnedFd> {
    memory_file(MFdFlags::empty())
}

/// Creates a memfd that cannot be executed, so that `vm.memfd_noexec` may have any value. Linux before
/// 6.3 has no such flag.
fn memory_file(flags: MFdFlags) -> io::Result<OwnedFd> {
    let flags = flags | MFdFlags::MFD_CLOEXEC;
    let not_executable = MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL);
    match memfd_create(c"ostler", flags | not_executable) {
        Err(Errno::EINVAL) => Ok(memfd_create(c"ostler", flags)?),
        created => Ok(created?),
    }
}

/// Words that the process which made them writes and its children can only read: zero at first.
///
/// The memory is a sealed memfd (`F_SEAL_FUTURE_WRITE`, Linux 5.1), so a child cannot make its mapping
/// writable. The one writable mapping is not inherited (`MADV_DONTFORK`): a child that calls
/// [`store`](Self::store) dies of SIGSEGV.
#[derive(Debug)]
pub(crate) struct PublishedMemory {
    writable: Mapping,
    readable: Mapping,
}

impl PublishedMemory {
    /// Maps at least one word.
    ///
    /// # Errors
    /// `ENOMEM`, `EMFILE` or `ENFILE`, from memfd_create(2), fcntl(2) and mmap(2).
    pub(crate) fn new(words: usize) -> io::Result<Self> {
        let bytes = bytes_of(words)?;
        let file = memory_file(MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&file, i64::try_from(bytes.get()).map_err(io::Error::other)?)?;
        let map = |protection| -> io::Result<Mapping> {
            // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
            let start =
                unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file.as_fd(), 0) }?;
            Ok(Mapping::new(start.cast(), words.max(1)))
        };
        let writable = map(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        // SAFETY: the range is the mapping that was just made; the advice changes no memory.
        unsafe { madvise(writable.start.cast(), bytes.get(), MmapAdvise::MADV_DONTFORK) }?;
        let seals =
            libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: the descriptor is open, and the command takes an integer.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        if sealed < 0 {
            return Err(io::Error::last_os_error());
        }
        let readable = map(ProtFlags::PROT_READ)?.inherited();
        Ok(Self { writable, readable })
    }

    /// Reads a word.
    ///
    /// # Panics
    /// If there is no word of this index.
    pub(crate) fn load(&self, index: usize) -> u64 {
        self.readable.words()[index].load(Ordering::Acquire)
    }

    /// Returns what [`forbid_access_except`] keeps it by.
    pub(crate) fn id(&self) -> MappingId {
        self.readable.id()
    }

    /// Writes a word, in the process that made them. Returns its earlier value.
    ///
    /// # Panics
    /// If there is no word of this index.
    pub(crate) fn store(&self, index: usize, value: u64) -> u64 {
        self.writable.words()[index].swap(value, Ordering::AcqRel)
    }
}

/// The address of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MappingId(usize);

/// The mappings of this process that its children inherit, each with its size in bytes.
static INHERITED: Mutex<BTreeMap<MappingId, usize>> = Mutex::new(BTreeMap::new());

/// Makes all shared words inaccessible but those of these mappings, for a child that must not reach
/// what other pools use. A later use of the others is a SIGSEGV.
pub(crate) fn forbid_access_except(keep: &[MappingId]) {
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
    for (id, bytes) in inherited().iter().filter(|(id, _)| !keep.contains(id)) {
        let (Some(start), Some(bytes)) = (NonZeroUsize::new(id.0), NonZeroUsize::new(*bytes))
        else {
            continue;
        };
        // SAFETY: the range is a mapping of this module, and stays reserved. A use of
        // it is a fault, and reaches no other memory.
        let replaced = unsafe { mmap_anonymous(Some(start), bytes, ProtFlags::PROT_NONE, flags) };
        debug_assert!(replaced.is_ok(), "the range is mapped");
    }
}

fn inherited() -> MutexGuard<'static, BTreeMap<MappingId, usize>> {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shared mapping of 64-bit words.
#[derive(Debug)]
struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is only ever lent as `&[AtomicU64]`, which any thread may use.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(start: NonNull<AtomicU64>, words: usize) -> Self {
        Self { start, words }
    }

    /// Registers the mapping for [`forbid_access_except`].
    fn inherited(self) -> Self {
        inherited().insert(self.id(), self.bytes());
        self
    }

    fn id(&self) -> MappingId {
        MappingId(self.start.as_ptr() as usize)
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds `words` words that the kernel zeroed (a valid
        // AtomicU64), and lives until `drop`, which the borrow of `self` outlasts. A mapping that is
        // only readable is only loaded from.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    fn bytes(&self) -> usize {
        self.words * size_of::<AtomicU64>()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        inherited().remove(&self.id());
        // SAFETY: `new` mapped exactly this range, and no borrow of it is left.
        let unmapped = unsafe { munmap(self.start.cast(), self.bytes()) };
        debug_assert!(unmapped.is_ok());
    }
}

fn bytes_of(words: usize) -> io::Result<NonZeroUsize> {
    let bytes = words.max(1).checked_mul(size_of::<AtomicU64>()).and_then(NonZeroUsize::new);
    bytes.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_word_is_seen_in_readable_mapping() {
        let memory = PublishedMemory::new(3).unwrap();
        assert_eq!((memory.store(1, 7), memory.store(1, 8)), (0, 7));
        assert_eq!((memory.load(0), memory.load(1)), (0, 8));
    }

    #[test]
    fn readable_mapping_cannot_become_writable() {
        let memory = PublishedMemory::new(1).unwrap();
        let (start, bytes) = (memory.readable.start.cast(), memory.readable.bytes());
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the range is a mapping of this test's own, and the kernel must refuse.
        let changed = unsafe { nix::sys::mman::mprotect(start, bytes, protection) };
        assert_eq!(changed, Err(nix::errno::Errno::EACCES));
    }
}
