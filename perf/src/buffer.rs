//! A buffer on huge pages, as the log itself writes from: with 4 KiB pages the disk's own
//! bandwidth would be measured too low.
#![allow(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::{io, slice};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes at an address that is a multiple of 2 MiB, on huge pages where the system gives them.
pub struct HugeBuf {
    map: NonNull<u8>,
    map_bytes: usize,
    start: NonNull<u8>,
    len: usize,
}

impl HugeBuf {
    /// `len` bytes, all `fill`.
    pub fn new(len: usize, fill: u8) -> io::Result<Self> {
        let map_bytes = len.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let map = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                map_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?
        .cast::<u8>();
        let skip = map.addr().next_multiple_of(HUGE_PAGE_BYTES) - map.addr();
        let start = map.wrapping_add(skip);
        let (Some(map), Some(start)) = (NonNull::new(map), NonNull::new(start)) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let mut buf = HugeBuf { map, map_bytes, start, len };
        // Only advice: without huge pages the buffer works all the same.
        // SAFETY: the range lies inside the mapping made above, which nothing else refers to.
        _ = unsafe { madvise(start.as_ptr().cast(), map_bytes - skip, Advice::LinuxHugepage) };
        buf.fill(fill);
        Ok(buf)
    }
}

impl Deref for HugeBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies inside the mapping, which lives as long as `self` and
        // is zero-initialised by the kernel.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for HugeBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` is the only way to it.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for HugeBuf {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `new`; no reference into it outlives `self`.
        _ = unsafe { munmap(self.map.as_ptr().cast(), self.map_bytes) };
    }
}

// SAFETY: the buffer owns its mapping alone, like a `Box<[u8]>`.
unsafe impl Send for HugeBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for HugeBuf {}
