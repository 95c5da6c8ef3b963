//! The status page: one page of a file in the log's directory, mapped by the writer's process and by
//! readers of other processes. It tells them at once what is durable, and wakes them.
//!
//! What it says is a hint. A reader verifies every batch that it reads; where the chain of batches ends
//! before the number on the page (a copied directory, say), it goes back to what the batches
//! themselves vouch for. Nothing on the page is ever read by the writer but the waiters' flag, which
//! costs it one needless wake-up at most.
//!
//! A reader that sleeps sets the flag, and looks at the number once more; the writer stores the
//! number, and looks at the flag: one of the two sees the other. The writer swaps the flag back, so
//! that one which a killed reader left is gone after the next batch.
//!
//! The page is made with its block, and only on file systems that write to it in place: where a
//! store to a mapped page may need new space, a full disk would end the process. Elsewhere, and
//! where the file cannot be mapped, there is no page.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};
use rustix::thread::futex;

use crate::disk::Store;
use crate::extent::Extent;
use crate::frame::LogId;
use crate::segment::Entropy;

/// Name of the page's file.
pub(crate) const STATUS_NAME: &str = "status";

const PAGE_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"ULstatus");
const VERSION: u32 = 1;
/// File systems that write a block of a file in place, and share a mapping among processes.
const FILE_SYSTEMS: [&str; 5] = ["ext4", "xfs", "tmpfs", "ramfs", "overlayfs"];

const STATE_OPEN: u32 = 1;
const STATE_CLOSED: u32 = 2;
const STATE_POISONED: u32 = 3;

/// The page as it stands in the file. Little endian, as every machine that has it mapped at once.
#[repr(C)]
struct Page {
    magic: AtomicU64,
    version: AtomicU32,
    pid: AtomicU32,
    log_id: [AtomicU64; 2],
    /// Drawn at each open: which writer it is.
    instance: AtomicU64,
    generation: AtomicU64,
    live_epoch: AtomicU64,
    first_lsn: AtomicU64,
    /// Behind the generation: who sees a number sees the generation that it is of.
    durable: AtomicU64,
    state: AtomicU32,
    reserved: [AtomicU32; 13],
    /// 1 while a reader sleeps, or is about to. On a line of its own.
    waiters: AtomicU32,
    /// What readers sleep on; counts wake-ups.
    futex: AtomicU32,
}

const _: () = {
    assert!(core::mem::offset_of!(Page, durable) == 64);
    assert!(core::mem::offset_of!(Page, state) == 72);
    assert!(core::mem::offset_of!(Page, waiters) == 128);
    assert!(core::mem::offset_of!(Page, futex) == 132);
    assert!(size_of::<Page>() <= PAGE_BYTES);
};

/// The writer's side.
pub(crate) struct StatusPage {
    map: PageMap,
    file: OwnedFd,
    /// Something was stored since readers were woken last.
    shown: AtomicBool,
}

impl StatusPage {
    /// Maps the page of the log in `store`, making its file where there is none, and says that the
    /// log is open. A file that is there is used again, so that readers' mappings stay good. `None`
    /// where there can be no page; then no file stays behind that says something old.
    pub(crate) fn make(
        store: &dyn Store,
        log_id: LogId,
        entropy: Entropy<'_>,
        durable: u64,
        extent: &Extent,
    ) -> Option<StatusPage> {
        let made = StatusPage::map(store);
        let drawn = made.and_then(|page| entropy().map(|instance| (page, instance)));
        let Ok((page, instance)) = drawn else {
            // No page, no wrong page. If it cannot be removed either, readers doubt it.
            store.remove(STATUS_NAME).ok();
            return None;
        };
        page.open(log_id, instance, durable, extent);
        Some(page)
    }

    fn map(store: &dyn Store) -> io::Result<StatusPage> {
        if !FILE_SYSTEMS.contains(&store.facts().file_system.as_str()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = store.open_status(STATUS_NAME, PAGE_BYTES as u64, true)?;
        let map = PageMap::new(&file, ProtFlags::READ | ProtFlags::WRITE)?;
        map.keep_in_memory();
        Ok(StatusPage { map, file, shown: AtomicBool::new(false) })
    }

    fn open(&self, log_id: LogId, instance: u64, durable: u64, extent: &Extent) {
        let page = self.map.page();
        page.state.store(0, Ordering::Relaxed);
        // Release: partner is the Acquire in `StatusView::durable`. While it is 0, nothing is read.
        page.durable.store(0, Ordering::Release);
        page.version.store(VERSION, Ordering::Relaxed);
        page.pid.store(std::process::id(), Ordering::Relaxed);
        for (word, value) in page.log_id.iter().zip(id_words(log_id)) {
            word.store(value, Ordering::Relaxed);
        }
        page.instance.store(instance, Ordering::Relaxed);
        page.state.store(STATE_OPEN, Ordering::Relaxed);
        // Release: partner is the Acquire in `StatusView::is_of`.
        page.magic.store(MAGIC, Ordering::Release);
        self.show(durable, extent);
        self.wake();
    }

    /// Shows what is durable now. No system call.
    pub(crate) fn show(&self, durable: u64, extent: &Extent) {
        let page = self.map.page();
        page.generation.store(extent.generation(), Ordering::Relaxed);
        page.live_epoch.store(extent.live_epoch(), Ordering::Relaxed);
        page.first_lsn.store(extent.first_lsn(), Ordering::Relaxed);
        // Release: partner is the Acquire in `StatusView::durable`.
        page.durable.store(durable, Ordering::Release);
        self.shown.store(true, Ordering::Relaxed);
    }

    /// Wakes the readers that sleep, if anything was shown since. No system call where none does.
    pub(crate) fn wake(&self) {
        // Relaxed: only the writer's thread calls this, but for a truncation's `show`, which lets the
        // writer wake them.
        if !self.shown.load(Ordering::Relaxed) {
            return;
        }
        self.shown.store(false, Ordering::Relaxed);
        let page = self.map.page();
        // Partner: the fence in `StatusView::wait`. Orders the number's store before the look.
        fence(Ordering::SeqCst);
        if page.waiters.load(Ordering::Relaxed) == 0 {
            return;
        }
        // AcqRel, with the stores in `StatusView::wait`: a flag set after this is seen next time.
        if page.waiters.swap(0, Ordering::AcqRel) != 0 {
            page.futex.fetch_add(1, Ordering::Release);
            // Waking can only fail for a bad address.
            let _woken = futex::wake(&page.futex, futex::Flags::empty(), u32::MAX >> 1);
        }
    }

    /// Says that the writer has ended. By a write to the file: after a failure of the disk a store to
    /// the mapping might be answered by a signal.
    pub(crate) fn end(&self, poisoned: bool) {
        let state = if poisoned { STATE_POISONED } else { STATE_CLOSED };
        let offset = core::mem::offset_of!(Page, state) as u64;
        // Nobody relies on it.
        let _written = rustix::io::pwrite(self.file.as_fd(), &state.to_le_bytes(), offset);
    }
}

/// A reader's side, in another process (or in the same: it makes no difference).
pub(crate) struct StatusView {
    map: PageMap,
    writable: bool,
    /// Which file was mapped.
    file: (u64, u64),
}

/// What a reader goes by when it doubts the page: another writer, or another number, is news.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Said {
    pub(crate) instance: u64,
    pub(crate) durable: u64,
}

impl StatusView {
    /// Maps the page that stands in the directory now, if there is one for this log.
    pub(crate) fn open(store: &dyn Store, log_id: LogId) -> Option<StatusView> {
        let fd = store.open_status(STATUS_NAME, PAGE_BYTES as u64, false).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let (map, writable) = match PageMap::new(&fd, ProtFlags::READ | ProtFlags::WRITE) {
            Ok(map) => (map, true),
            Err(_) => (PageMap::new(&fd, ProtFlags::READ).ok()?, false),
        };
        let view = StatusView { map, writable, file: (stat.st_dev, stat.st_ino) };
        view.is_of(log_id).then_some(view)
    }

    /// Whether it is still the file that the directory has.
    pub(crate) fn is_current(&self, store: &dyn Store) -> bool {
        store
            .open_status(STATUS_NAME, PAGE_BYTES as u64, false)
            .and_then(|fd| Ok(rustix::fs::fstat(&fd)?))
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.file)
    }

    pub(crate) fn is_of(&self, log_id: LogId) -> bool {
        let page = self.map.page();
        // Acquire: partner is the Release in `StatusPage::open`.
        page.magic.load(Ordering::Acquire) == MAGIC
            && page.version.load(Ordering::Relaxed) == VERSION
            && page.log_id.iter().map(|word| word.load(Ordering::Relaxed)).eq(id_words(log_id))
    }

    /// What the writer says is durable; 0 while it opens.
    pub(crate) fn durable(&self) -> u64 {
        // Acquire: partner is the Release in `StatusPage::show`.
        self.map.page().durable.load(Ordering::Acquire)
    }

    /// The log's generation, at least that of the number that [`durable`](Self::durable) gave before.
    pub(crate) fn generation(&self) -> u64 {
        self.map.page().generation.load(Ordering::Relaxed)
    }

    pub(crate) fn said(&self) -> Said {
        let durable = self.durable();
        Said { instance: self.map.page().instance.load(Ordering::Relaxed), durable }
    }

    /// Whether [`wait`](Self::wait) can sleep until the writer wakes it.
    pub(crate) fn can_wait(&self) -> bool {
        self.writable
    }

    /// Sleeps until the writer shows something, unless `is_there` sees it already, or for a time; may
    /// wake for no reason.
    pub(crate) fn wait(&self, timeout: Duration, is_there: impl Fn() -> bool) {
        if !self.writable {
            return;
        }
        let page = self.map.page();
        // Acquire: partner is the Release in `StatusPage::wake`: who sees a count sees the number.
        let seen = page.futex.load(Ordering::Acquire);
        page.waiters.store(1, Ordering::Release);
        // Partner: the fence in `StatusPage::wake`. Orders the flag before the look.
        fence(Ordering::SeqCst);
        if is_there() {
            return;
        }
        let timeout = futex::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        // However it ends, the caller looks again.
        let _looked_at_again =
            futex::wait(&page.futex, futex::Flags::empty(), seen, Some(&timeout));
    }
}

fn id_words(log_id: LogId) -> [u64; 2] {
    let (halves, _) = log_id.0.as_chunks::<8>();
    [0, 1].map(|at| halves.get(at).map_or(0, |half| u64::from_le_bytes(*half)))
}

/// The page's mapping, unmapped on drop.
struct PageMap {
    start: NonNull<c_void>,
}

// SAFETY: a mapping belongs to the process, not to a thread, and is reached by atomics only.
unsafe impl Send for PageMap {}
// SAFETY: as above.
unsafe impl Sync for PageMap {}

impl PageMap {
    fn new(file: &OwnedFd, prot: ProtFlags) -> io::Result<PageMap> {
        // SAFETY: with no address and without MAP_FIXED the kernel picks unused address space.
        let start = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, prot, MapFlags::SHARED, file, 0) }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(PageMap { start })
    }

    /// Asks that the page is never given up, so that a look at it never reads from the disk.
    fn keep_in_memory(&self) {
        // SAFETY: the range is this mapping. A limit may refuse it: the page is in use all the time,
        // and stays without it as well.
        let _locked = unsafe { mlock(self.start.as_ptr(), PAGE_BYTES) };
    }

    fn page(&self) -> &Page {
        // SAFETY: the mapping is a page long and page-aligned, lives as long as `self`, and every
        // bit pattern is a `Page`. Other processes change it meanwhile: all of it is atomics. A
        // mapping for reading only is never stored to (`StatusView::wait` returns before).
        unsafe { self.start.cast::<Page>().as_ref() }
    }
}

impl Drop for PageMap {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and nobody borrows it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}
