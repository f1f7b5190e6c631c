//! The memory that a ring receives into: buffers that the kernel takes from a queue in shared memory
//! (`IORING_REGISTER_PBUF_RING`, Linux 5.19).

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

/// The number of the only group of buffers.
pub(super) const BUFFER_GROUP: u16 = 0;
/// A power of two.
const COUNT: u16 = 512;
const SIZE: usize = 4 << 10;
const QUEUE_BYTES: usize = COUNT as usize * size_of::<BufRingEntry>();

/// The buffers. They are never unmapped, since the kernel may hold them longer than this process does:
/// there is one ring a process.
pub(super) struct InputBuffers {
    /// `COUNT` entries.
    queue: NonNull<BufRingEntry>,
    /// `COUNT` buffers of `SIZE` bytes.
    memory: NonNull<u8>,
    /// Which buffers the kernel has given to this process.
    is_taken: Box<[bool]>,
    /// Where the next entry goes.
    tail: u16,
}

/// Received bytes, in a buffer of the ring.
#[derive(Debug)]
pub struct Input {
    buffer: u16,
    length: usize,
}

impl InputBuffers {
    /// Registers buffers with a ring.
    ///
    /// # Errors
    /// `ENOMEM`, from mmap(2) or io_uring_register(2).
    pub(super) fn register(ring: &IoUring) -> io::Result<Self> {
        let bytes = NonZeroUsize::new(QUEUE_BYTES + COUNT as usize * SIZE);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address that the kernel chooses overlaps nothing.
        let start = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        // SAFETY: the mapping is longer than `QUEUE_BYTES`.
        let memory = unsafe { start.cast::<u8>().add(QUEUE_BYTES) };
        let queue = start.cast();
        let address = queue.as_ptr() as u64;
        // SAFETY: `address` is the beginning of a page, and of `COUNT` entries that are never unmapped.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, COUNT, BUFFER_GROUP, 0) }?;
        let is_taken = vec![true; COUNT as usize].into_boxed_slice();
        let mut buffers = Self { queue, memory, is_taken, tail: 0 };
        (0..COUNT).for_each(|buffer| buffers.release(Input { buffer, length: 0 }));
        Ok(buffers)
    }

    /// Takes a buffer that the kernel has filled. Returns `None`, and gives it back, if `length` is not
    /// that of bytes.
    pub(super) fn take(&mut self, buffer: u16, length: i32) -> Option<Input> {
        *self.is_taken.get_mut(usize::from(buffer))? = true;
        let length = usize::try_from(length).unwrap_or(0).min(SIZE);
        let input = Input { buffer, length };
        if length == 0 {
            self.release(input);
            return None;
        }
        Some(input)
    }

    /// Returns the bytes in a buffer.
    pub(super) fn bytes(&self, input: &Input) -> &[u8] {
        if !self.is_taken(input) {
            return &[]; // it is of another ring
        }
        // SAFETY: there are more than `buffer` buffers, of `SIZE` bytes each.
        let start = unsafe { self.memory.add(usize::from(input.buffer) * SIZE) };
        // SAFETY: the buffer has at least `length` bytes, and the kernel does not write to it until it
        // is released, for which `self` is borrowed exclusively.
        unsafe { slice::from_raw_parts(start.as_ptr(), input.length) }
    }

    /// Gives a buffer back to the kernel.
    pub(super) fn release(&mut self, input: Input) {
        if !self.is_taken(&input) {
            return;
        }
        let buffer = usize::from(input.buffer);
        self.is_taken[buffer] = false;
        // SAFETY: there are more than `buffer` buffers, of `SIZE` bytes each.
        let start = unsafe { self.memory.add(buffer * SIZE) };
        // SAFETY: the index is below `COUNT`.
        let mut entry = unsafe { self.queue.add(usize::from(self.tail % COUNT)) };
        // SAFETY: the kernel does not use an entry between its head and this tail, and there are no more
        // buffers than entries.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(start.as_ptr() as u64);
        entry.set_len(SIZE as u32);
        entry.set_bid(input.buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `queue` is the first entry of the queue.
        let tail = unsafe { BufRingEntry::tail(self.queue.as_ptr()) };
        // SAFETY: the tail is a u16 of the queue, aligned, which the kernel only reads.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn is_taken(&self, input: &Input) -> bool {
        self.is_taken.get(usize::from(input.buffer)).is_some_and(|is_taken| *is_taken)
    }
}
