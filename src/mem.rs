//! Aligned buffers for direct I/O: small ones from the heap, others from the kernel page by page, on
//! huge pages where they are large. And the one word that a fork wipes.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// A zeroed buffer, aligned to a page at least. From 2 MiB on it stands on huge
/// pages where the system has them, and every page is there before `new` returns.
pub(crate) struct AlignedBuf {
    memory: Memory,
    len: usize,
    id: u64,
    huge: bool,
    #[cfg(test)]
    _counted: tests::Counted,
}

impl AlignedBuf {
    /// Allocates `len` zeroed bytes.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        #[cfg(feature = "fuzzing")]
        crate::fuzzing::note_buffer(len);
        let (memory, huge) = if len <= HEAP_BYTES_MAX {
            // A mapping costs two calls, which every thread of the process feels, and a page fault
            // for each page.
            (Memory::Heap(Block::new(round_up(len.max(1), PAGE_BYTES)?)?), false)
        } else if len < HUGE_BYTES {
            (Memory::Mapped(Mapping::new(round_up(len, PAGE_BYTES)?, MapFlags::empty())?), false)
        } else {
            let map_len = round_up(len, HUGE_BYTES)?;
            let (map, huge) = match Mapping::reserved_huge(map_len) {
                Ok(map) => (map, true),
                Err(_) => Mapping::transparent_huge(round_up(len, PAGE_BYTES)?)?,
            };
            (Memory::Mapped(map), huge)
        };
        Ok(AlignedBuf {
            memory,
            len,
            // Relaxed: only uniqueness counts.
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            huge,
            #[cfg(test)]
            _counted: tests::Counted::new(),
        })
    }

    /// Whether the buffer was put on huge pages. Transparent ones are asked for, not proved: under
    /// fragmentation the kernel may have given small ones.
    pub(crate) fn is_huge(&self) -> bool {
        self.huge
    }

    /// A number that no other buffer of this process has, ever (0: an empty one): unlike the address, it tells a
    /// buffer from one that stood at the same place before.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is at least `len` bytes, initialised (zeroed), and lives as long as
        // `self` (with no bytes it is a dangling pointer, as it may be); shared access through
        // `&self` excludes writes.
        unsafe { std::slice::from_raw_parts(self.memory.start(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start(), self.len) }
    }
}

/// A word on a page of its own that is 0 in every forked child until the child writes it. It is
/// never freed. `None` where the kernel cannot do that.
pub(crate) fn wipe_on_fork_word() -> Option<&'static AtomicU64> {
    let map = Mapping::new(PAGE_BYTES, MapFlags::empty()).ok()?;
    map.advise(Advice::LinuxWipeOnFork).ok()?;
    let word: NonNull<AtomicU64> = map.start.cast();
    std::mem::forget(map);
    // SAFETY: the page is zeroed, aligned, writable, was leaked just now, and is reached only
    // through this reference.
    Some(unsafe { word.as_ref() })
}

/// What a buffer stands on.
enum Memory {
    Heap(Block),
    Mapped(Mapping),
}

impl Memory {
    fn start(&self) -> *mut u8 {
        match self {
            Memory::Heap(block) => block.start.as_ptr(),
            Memory::Mapped(map) => map.start.as_ptr().cast(),
        }
    }
}

/// Whole zeroed pages of the heap.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a block belongs to the process, not to a thread; access goes through the borrow rules of the one
// owner.
unsafe impl Send for Block {}
// SAFETY: `&Block` gives only shared reads.
unsafe impl Sync for Block {}

impl Block {
    /// `len` is more than 0.
    fn new(len: usize) -> io::Result<Block> {
        let layout = Layout::from_size_align(len, PAGE_BYTES);
        let layout = layout.map_err(|_| io::Error::from(Errno::NOMEM))?;
        // SAFETY: the layout's size is more than 0.
        let start = unsafe { alloc_zeroed(layout) };
        NonNull::new(start).map(|start| Block { start, layout }).ok_or_else(|| Errno::NOMEM.into())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody borrows it any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A private anonymous mapping, unmapped on drop. Of length 0 it is none, and points nowhere.
struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access goes through the borrow rules of
// the one owner.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` gives only shared reads.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize, flags: MapFlags) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: with no address and without MAP_FIXED the kernel picks unused address space.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::PRIVATE | flags) }?;
        NonNull::new(start).map(|start| Mapping { start, len }).ok_or_else(|| Errno::NOMEM.into())
    }

    /// From the pool of reserved huge pages, which most systems leave empty.
    fn reserved_huge(len: usize) -> io::Result<Self> {
        let map = Mapping::new(len, MapFlags::HUGETLB | MapFlags::HUGE_2MB)?;
        // A cgroup may refuse the pages after mmap allowed them: an error here, SIGBUS if touched.
        map.advise(Advice::LinuxPopulateWrite)?;
        Ok(map)
    }

    fn transparent_huge(len: usize) -> io::Result<(Self, bool)> {
        let mut map =
            Mapping::new(len.checked_add(HUGE_BYTES).ok_or(Errno::NOMEM)?, MapFlags::empty())?;
        let address = map.start.as_ptr() as usize;
        map.cut_front(address.next_multiple_of(HUGE_BYTES) - address);
        map.cut_back(len);
        let huge = map.advise(Advice::LinuxHugepage).is_ok() && transparent_huge_allowed();
        match map.advise(Advice::LinuxPopulateWrite) {
            Ok(()) => {}
            Err(Errno::INVAL) => map.touch(),
            Err(error) => return Err(error.into()),
        }
        Ok((map, huge))
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is this mapping; the advice used here (huge, populate, wipe on fork)
        // never changes what the calling process reads from it.
        unsafe { madvise(self.start.as_ptr(), self.len, advice) }
    }

    fn touch(&mut self) {
        for at in (0..self.len).step_by(PAGE_BYTES) {
            // SAFETY: `at` is inside the mapping, which `&mut self` holds exclusively.
            unsafe { self.start.cast::<u8>().add(at).write_volatile(0) };
        }
    }

    fn cut_front(&mut self, bytes: usize) {
        if bytes > 0 {
            let old = self.start;
            // SAFETY: `bytes` is less than the length, so the new start is inside the mapping.
            self.start = unsafe { old.byte_add(bytes) };
            self.len -= bytes;
            drop(Mapping { start: old, len: bytes });
        }
    }

    fn cut_back(&mut self, len: usize) {
        if len < self.len {
            // SAFETY: `len` is less than the length, so the cut is inside the mapping.
            let start = unsafe { self.start.byte_add(len) };
            drop(Mapping { start, len: self.len - len });
            self.len = len;
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: the range is this mapping's own, and nobody borrows it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.len) };
        // It fails only when the kernel cannot split a mapping: the pages then stay, unused.
        debug_assert!(unmapped.is_ok());
    }
}

/// Whether the system gives transparent huge pages to those who ask.
fn transparent_huge_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
            .is_ok_and(|modes| !modes.contains("[never]"))
    })
}

fn round_up(len: usize, unit: usize) -> io::Result<usize> {
    len.checked_next_multiple_of(unit).ok_or_else(|| Errno::NOMEM.into())
}

/// Smallest page of any Linux machine; the kernel rounds lengths up where pages are larger.
const PAGE_BYTES: usize = 4096;
const HUGE_BYTES: usize = 2 << 20;
const HEAP_BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static ALIVE: Cell<isize> = const { Cell::new(0) };
    }

    /// Buffers that this thread made, less those that it freed.
    pub(crate) fn buffers_alive() -> isize {
        ALIVE.get()
    }

    /// Lives as long as its buffer.
    pub(super) struct Counted(());

    impl Counted {
        pub(super) fn new() -> Counted {
            ALIVE.set(ALIVE.get() + 1);
            Counted(())
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            // A thread that ends has no count any more.
            let _ended = ALIVE.try_with(|alive| alive.set(alive.get() - 1));
        }
    }

    #[test]
    fn buffers_are_zeroed_aligned_and_as_long_as_asked() {
        for len in
            [0, 1, 512, 4096, 5000, 64 << 10, (64 << 10) + 1, 2 << 20, (2 << 20) + 4096, 5 << 20]
        {
            let mut buf = AlignedBuf::new(len).unwrap();
            let align = if len >= HUGE_BYTES { HUGE_BYTES } else { PAGE_BYTES };
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % align, 0, "{len}");
            assert!(buf.iter().all(|&byte| byte == 0));
            buf.fill(0xa5);
            assert!(buf.iter().all(|&byte| byte == 0xa5));
            assert!(!buf.is_huge() || len >= HUGE_BYTES);
        }
    }

    #[test]
    fn a_buffer_at_a_reused_address_has_another_id() {
        let first = AlignedBuf::new(4096).unwrap();
        let id = first.id();
        drop(first);
        let ids: Vec<u64> = (0..8).map(|_| AlignedBuf::new(4096).unwrap().id()).collect();
        assert!(!ids.contains(&id));
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        assert!(AlignedBuf::new(usize::MAX).is_err());
        assert!(AlignedBuf::new(usize::MAX / 2).is_err());
    }
}
