//! The status page: one page of a file in the log's directory. It tells readers of other processes at
//! once what is durable, and wakes them.
//!
//! What it says is a hint. A reader verifies every batch that it reads; where the chain of batches ends
//! before the number on the page (a copied directory, say), it goes back to what the batches
//! themselves vouch for. Nothing on the page is ever read by the writer but the waiters' flag, which
//! costs it some needless writes and wake-ups at most.
//!
//! Anybody may write over the file, or cut it, at any moment, and a load or a store in the mapping of a
//! file that was cut is a signal that ends the process. So both sides use `pread` and `pwrite`, and
//! the mapping is nothing but an address for futex(2), which answers with an error. What it says is
//! written by one `pwrite` with a checksum: a reader that meets a write half done, or something
//! foreign, sees that and looks again, or does without.
//!
//! A reader that sleeps sets the flag. The writer looks for it every few milliseconds while it has
//! something to show, and for a while after it found one set it shows each number at once, and wakes.
//! While nobody reads, it writes once in these milliseconds, not for each batch.
//!
//! No wake-up is lost between the two: the reader takes the futex' count, then looks at the number,
//! then sleeps if the count is the same. The writer writes the number, then raises the count, then
//! wakes. Where the reader's look missed the number, its count is an old one, or it sleeps by the
//! time that the writer wakes.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};
use rustix::thread::futex;

use crate::disk::Store;
use crate::extent::Extent;
use crate::frame::{self, LogId};
use crate::segment::Entropy;

/// Name of the page's file.
pub(crate) const STATUS_NAME: &str = "status";

const PAGE_BYTES: usize = 4096;
const MAGIC: [u8; 8] = *b"ULstatus";
/// 1 had no checksum.
const VERSION: u32 = 2;
/// File systems that write a block of a file in place, and share a mapping among processes.
const FILE_SYSTEMS: [&str; 5] = ["ext4", "xfs", "tmpfs", "ramfs", "overlayfs"];

const STATE_OPEN: u32 = 1;
const STATE_CLOSED: u32 = 2;
const STATE_POISONED: u32 = 3;

/// What the writer says, all of it at once: the page up to here.
const SAID_BYTES: usize = 80;
const CHECKSUM: usize = 76;
/// 1 while a reader sleeps, or has lately. Readers and the writer write it alone.
const WAITERS: usize = 128;
/// What readers sleep on; counts wake-ups.
const FUTEX: usize = 132;

/// How often the writer looks for a reader, and says the number when there is none.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(5);
/// For how long a reader counts as being there after it set the flag. A sleeping one sets it more
/// often by far.
const PRESENT: Duration = Duration::from_secs(1);
/// Tries of a look that met a write half done.
const LOOKS: usize = 4;

/// The writer's side. Only the writer's thread uses it, so nothing here orders anything.
pub(crate) struct StatusPage {
    page: SleepingPlace,
    log_id: LogId,
    /// Drawn at each open: which writer it is.
    instance: u64,
    state: AtomicU32,
    /// There is more to say than the page says.
    behind: AtomicBool,
    /// Something was said since the readers were woken.
    to_wake: AtomicBool,
    /// What the page says.
    generation: AtomicU64,
    look_at_ns: AtomicU64,
    present_until_ns: AtomicU64,
}

impl StatusPage {
    /// Opens the page of the log in `store`, making its file where there is none, and says that the
    /// log is open. A file that is there is used again, so that those who sleep there are woken.
    /// `None` where there can be no page; then no file stays behind that says something old.
    pub(crate) fn make(
        store: &dyn Store,
        log_id: LogId,
        entropy: Entropy<'_>,
        durable: u64,
        extent: &Extent,
    ) -> Option<StatusPage> {
        let made = StatusPage::open(store, log_id, entropy).and_then(|page| {
            page.say(durable, extent)?;
            Ok(page)
        });
        let Ok(page) = made else {
            // No page, no wrong page. If it cannot be removed either, readers doubt it.
            store.remove(STATUS_NAME).ok();
            return None;
        };
        page.page.wake();
        Some(page)
    }

    fn open(store: &dyn Store, log_id: LogId, entropy: Entropy<'_>) -> io::Result<StatusPage> {
        if !FILE_SYSTEMS.contains(&store.facts().file_system.as_str()) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let page = SleepingPlace::new(store.open_status(STATUS_NAME, PAGE_BYTES as u64, true)?)?;
        page.keep_in_memory();
        Ok(StatusPage {
            page,
            log_id,
            instance: entropy()?,
            state: AtomicU32::new(STATE_OPEN),
            behind: AtomicBool::new(false),
            to_wake: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            look_at_ns: AtomicU64::new(0),
            present_until_ns: AtomicU64::new(0),
        })
    }

    /// Says what is durable now: at once if there are readers, or after a truncation; else some
    /// milliseconds after the last time. Before anybody learns that it is durable: if this process is
    /// killed next, the readers find all that it acknowledged.
    pub(crate) fn show(&self, now_ns: u64, durable: u64, extent: &Extent) {
        self.behind.store(true, Ordering::Relaxed);
        self.publish(now_ns, durable, extent);
    }

    /// Wakes the readers if there was something new, and says it if it was not said yet and it is time.
    pub(crate) fn wake(&self, now_ns: u64, durable: u64, extent: &Extent) {
        if self.behind.load(Ordering::Relaxed) {
            self.publish(now_ns, durable, extent);
        }
        if self.to_wake.load(Ordering::Relaxed) {
            self.to_wake.store(false, Ordering::Relaxed);
            self.page.wake();
        }
    }

    /// Whether [`wake`](Self::wake) may have something to do.
    pub(crate) fn is_pending(&self) -> bool {
        self.behind.load(Ordering::Relaxed) || self.to_wake.load(Ordering::Relaxed)
    }

    /// When to call [`wake`](Self::wake) again at the latest, if the page says less than there is to say.
    pub(crate) fn is_due_within(&self) -> Option<Duration> {
        self.behind.load(Ordering::Relaxed).then_some(LOOK_EVERY)
    }

    fn publish(&self, now_ns: u64, durable: u64, extent: &Extent) {
        let is_look_due = now_ns >= self.look_at_ns.load(Ordering::Relaxed);
        let is_cut = self.generation.load(Ordering::Relaxed) != extent.generation();
        let present_until_ns = self.present_until_ns.load(Ordering::Relaxed);
        if !(is_look_due || is_cut || now_ns < present_until_ns) {
            return;
        }
        self.behind.store(false, Ordering::Relaxed);
        // A write that failed leaves a page that says too little, or none that is valid.
        let _said = self.say(durable, extent);
        let mut is_read = is_cut || now_ns < present_until_ns;
        if is_look_due {
            self.look_at_ns.store(now_ns + LOOK_EVERY.as_nanos() as u64, Ordering::Relaxed);
            // Behind the write: a reader that has set its flag too late for this look sees the number.
            if self.take_flag() {
                self.present_until_ns.store(now_ns + PRESENT.as_nanos() as u64, Ordering::Relaxed);
                is_read = true;
            }
        }
        if is_read {
            self.to_wake.store(true, Ordering::Relaxed);
        }
    }

    /// Says that the writer has ended, and wakes the readers.
    pub(crate) fn end(&self, poisoned: bool, durable: u64, extent: &Extent) {
        let state = if poisoned { STATE_POISONED } else { STATE_CLOSED };
        self.state.store(state, Ordering::Relaxed);
        // Nobody relies on it.
        let _said = self.say(durable, extent);
        self.page.wake();
    }

    /// Takes the flag back if a reader has set it. One that is set behind the look is found by the next.
    fn take_flag(&self) -> bool {
        let mut flag = [0; 4];
        match self.page.read(WAITERS, &mut flag) {
            Ok(4) => {}
            // Somebody has cut the file: it gets its size back.
            Ok(_) => {
                self.page.write(SAID_BYTES, &[0; PAGE_BYTES - SAID_BYTES]).ok();
                return true;
            }
            Err(_) => return false,
        }
        flag != [0; 4] && self.page.write(WAITERS, &[0; 4]).is_ok()
    }

    fn say(&self, durable: u64, extent: &Extent) -> io::Result<()> {
        let generation = extent.generation();
        self.generation.store(generation, Ordering::Relaxed);
        let mut said = [0; SAID_BYTES];
        let mut put = |at: usize, bytes: &[u8]| said[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &std::process::id().to_le_bytes());
        put(16, &self.log_id.0);
        put(32, &self.instance.to_le_bytes());
        put(40, &generation.to_le_bytes());
        put(48, &extent.live_epoch().to_le_bytes());
        put(56, &extent.first_lsn().to_le_bytes());
        put(64, &durable.to_le_bytes());
        put(72, &self.state.load(Ordering::Relaxed).to_le_bytes());
        let checksum = frame::crc32c(&said[..CHECKSUM]);
        said[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        self.page.write(0, &said)
    }
}

/// A reader's side, in another process (or in the same: it makes no difference).
pub(crate) struct StatusView {
    file: OwnedFd,
    /// Where it may write, it can sleep.
    place: Option<SleepingPlace>,
    log_id: LogId,
    /// Which file was opened.
    id: (u64, u64),
}

/// What the page said at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    /// Which writer, and what it said is durable: if either is another, that is news to who doubted it.
    pub(crate) source: (u64, u64),
    /// The log's generation, which the number is of.
    pub(crate) generation: u64,
}

impl Said {
    pub(crate) fn durable(&self) -> u64 {
        self.source.1
    }

    fn decode(bytes: &[u8; SAID_BYTES], log_id: LogId) -> Option<Said> {
        let word = |at: usize| frame::get_u64(bytes, at);
        let half = |at: usize| frame::get_u32(bytes, at);
        let is_valid = bytes[..8] == MAGIC
            && half(8) == VERSION
            && bytes[16..32] == log_id.0
            && half(CHECKSUM) == frame::crc32c(&bytes[..CHECKSUM]);
        let said = Said { source: (word(32), word(64)), generation: word(40) };
        // No log reaches more, and the number is counted on from.
        let is_number = (1..=frame::NUMBER_MAX).contains(&said.durable());
        (is_valid && is_number).then_some(said)
    }
}

impl StatusView {
    /// Opens the page that stands in the directory now, if there is one. Whether it is this log's, and
    /// says anything, is seen at each [`look`](Self::look).
    pub(crate) fn open(store: &dyn Store, log_id: LogId) -> Option<StatusView> {
        let file = store.open_status(STATUS_NAME, PAGE_BYTES as u64, false).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let place = file.try_clone().and_then(SleepingPlace::new).ok();
        Some(StatusView { file, place, log_id, id: (stat.st_dev, stat.st_ino) })
    }

    /// Whether it is still the file that the directory has.
    pub(crate) fn is_current(&self, store: &dyn Store) -> bool {
        store
            .open_status(STATUS_NAME, PAGE_BYTES as u64, false)
            .and_then(|fd| Ok(rustix::fs::fstat(&fd)?))
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.id)
    }

    /// What the page says now, if it says something of this log. One system call.
    ///
    /// A file system may let a read see a half of a write: neither the fields together nor a field
    /// alone are sure to be of one state, however they are aligned, and a number put together
    /// from two may be larger than both. The checksum tells, and a write lasts less than a look.
    pub(crate) fn look(&self) -> Option<Said> {
        (0..LOOKS).find_map(|_| {
            let mut bytes = [0; SAID_BYTES];
            let got = read(self.file.as_fd(), 0, &mut bytes).ok()?;
            (got == SAID_BYTES).then(|| Said::decode(&bytes, self.log_id)).flatten()
        })
    }

    /// Tells the writer that somebody reads, so that it says each number at once.
    pub(crate) fn announce(&self) {
        // Without it the page is some milliseconds old. In a file that is no page of this log nothing is written.
        let _told = self
            .place
            .as_ref()
            .filter(|_| self.is_ours())
            .map(|place| place.write(WAITERS, &1u32.to_le_bytes()));
    }

    /// Whether the file is a page of this log, and not somebody's file that has its name.
    fn is_ours(&self) -> bool {
        let mut start = [0; 32];
        matches!(read(self.file.as_fd(), 0, &mut start), Ok(32))
            && start[..8] == MAGIC
            && start[16..] == self.log_id.0
    }

    /// Whether [`wait`](Self::wait) can sleep until the writer wakes it.
    pub(crate) fn can_wait(&self) -> bool {
        self.place.is_some()
    }

    /// Sleeps until the writer shows something, unless the page says by now what `is_news`, or for a
    /// time; may wake for no reason. False: this cannot be slept at now, and it has not slept.
    pub(crate) fn wait(&self, timeout: Duration, is_news: impl Fn(&Said) -> bool) -> bool {
        let Some(place) = &self.place else { return false };
        let mut count = [0; 4];
        if !self.is_ours()
            || !matches!(place.read(FUTEX, &mut count), Ok(4))
            || place.write(WAITERS, &1u32.to_le_bytes()).is_err()
        {
            return false;
        }
        match self.look() {
            None => false,
            Some(said) if is_news(&said) => true,
            Some(_) => place.sleep(u32::from_le_bytes(count), timeout),
        }
    }
}

fn read(file: BorrowedFd<'_>, at: usize, bytes: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *bytes, at as u64))?)
}

/// The page's file, open for writing, and mapped for its address: the mapping is never loaded from nor
/// stored to. Unmapped on drop.
struct SleepingPlace {
    file: OwnedFd,
    start: NonNull<c_void>,
}

// SAFETY: a mapping belongs to the process, not to a thread, and only the kernel looks into it.
unsafe impl Send for SleepingPlace {}
// SAFETY: as above.
unsafe impl Sync for SleepingPlace {}

impl SleepingPlace {
    fn new(file: OwnedFd) -> io::Result<SleepingPlace> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: with no address and without MAP_FIXED the kernel picks unused address space.
        let start = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, prot, MapFlags::SHARED, &file, 0) }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(SleepingPlace { file, start })
    }

    /// Asks that the page is never given up, so that a write to it never reads from the disk.
    fn keep_in_memory(&self) {
        // SAFETY: the range is this mapping. A limit may refuse it: the page is in use all the time,
        // and stays without it as well.
        let _locked = unsafe { mlock(self.start.as_ptr(), PAGE_BYTES) };
    }

    fn read(&self, at: usize, bytes: &mut [u8]) -> io::Result<usize> {
        read(self.file.as_fd(), at, bytes)
    }

    fn write(&self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let written =
            rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, bytes, at as u64))?;
        if written == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Raises the count and wakes all who sleep, in one system call.
    fn wake(&self) {
        let futex = self.futex();
        let all = u32::MAX >> 1;
        // If the file was cut this fails, and the readers look by themselves in a moment.
        let _woken = futex::wake_op(
            futex,
            futex::Flags::empty(),
            all,
            0,
            futex,
            futex::WakeOp::Add,
            futex::WakeOpCmp::Lt,
            1,
            0,
        );
    }

    /// Sleeps while the count is `seen`. False: it cannot, as the file was cut, say.
    fn sleep(&self, seen: u32, timeout: Duration) -> bool {
        let timeout = futex::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let slept = futex::wait(self.futex(), futex::Flags::empty(), seen, Some(&timeout));
        matches!(slept, Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT))
    }

    /// For futex(2) only: it fails where there is no memory behind the address, a load is a signal.
    fn futex(&self) -> &AtomicU32 {
        // SAFETY: the mapping is a page long and page-aligned, so the word is inside it and aligned, and
        // it lives as long as `self`. Other processes change it: it is an atomic, which also keeps
        // the compiler from loading it unasked. It is handed to the kernel, and nobody loads it.
        unsafe { self.start.cast::<AtomicU32>().add(FUTEX / size_of::<AtomicU32>()).as_ref() }
    }
}

impl Drop for SleepingPlace {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and nobody borrows it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok());
    }
}

/// Reads a page for a fuzz target: what is accepted has a valid checksum and says something.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_page(bytes: &[u8], repaired: bool) {
    let mut page = [0; SAID_BYTES];
    let len = bytes.len().min(SAID_BYTES);
    page[..len].copy_from_slice(&bytes[..len]);
    let log_id = LogId([7; 16]);
    if repaired {
        page[..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&log_id.0);
        let checksum = frame::crc32c(&page[..CHECKSUM]);
        page[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    }
    if let Some(said) = Said::decode(&page, log_id) {
        assert!((1..=frame::NUMBER_MAX).contains(&said.durable()));
        assert_eq!(frame::get_u32(&page, CHECKSUM), frame::crc32c(&page[..CHECKSUM]));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{BackendChoice, Durability, Lsn, Options};

    /// What the page in a log's directory says to somebody who takes it for that of `log_id`. None at
    /// all: this file system has no page.
    fn said(log: &crate::Log, log_id: LogId) -> Option<Option<u64>> {
        let store: Arc<dyn Store> = log.shared().store.clone();
        let page = StatusView::open(&*store, log_id)?;
        Some(page.look().map(|said| said.durable()))
    }

    #[test]
    fn it_speaks_of_its_own_log_only_and_of_nothing_that_is_not_synced() {
        let dir = tempfile::tempdir_in(".").expect("a directory");
        let options = Options::new()
            .segment_bytes(1 << 20)
            .backend(BackendChoice::Psync)
            .buffered(true)
            .calibrate(false)
            .durability(Durability::Written)
            .vouch_after(Duration::from_secs(99));
        let log = options.open(dir.path()).expect("it opens");
        let found = crate::mark::find_mark(&*log.shared().store).expect("it reads");
        let (id, _) = found.expect("there is a mark");
        log.append(b"one").expect("appends").wait().expect("is written");
        log.sync().expect("syncs");
        // Often enough for the writer to say something each time.
        for _ in 0..5 {
            log.append(b"more").expect("appends").wait().expect("is written");
            std::thread::sleep(2 * LOOK_EVERY);
        }
        let Some(shown) = said(&log, id) else {
            eprintln!("skipped: the status page: this file system has none");
            return;
        };
        assert_eq!(log.durable_lsn(), Lsn::new(1));
        assert_eq!(shown, Some(1));
        // As somebody leaves it who writes over it, or a reader meets it half written.
        let page = std::fs::OpenOptions::new().write(true).open(dir.path().join(STATUS_NAME));
        let page = page.expect("the page's file");
        std::os::unix::fs::FileExt::write_all_at(&page, &[3], 64).expect("is written");
        assert_eq!(said(&log, id), Some(None), "the checksum is that of another number");
        std::os::unix::fs::FileExt::write_all_at(&page, &[1], 64).expect("is written");
        assert_eq!(said(&log, id), Some(Some(1)));
        let other = LogId(id.0.map(|byte| byte ^ 1));
        assert_eq!(said(&log, other), Some(None), "the page of another log");
    }
}
