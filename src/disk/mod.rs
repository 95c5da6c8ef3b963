//! What the log asks of a disk, and who answers.
//!
//! Two traits. [`Store`] is a directory of files with blocking calls: recovery, the preparer and the
//! readers use it. [`Disk`] is what the writer drives: operations are submitted and their results
//! reaped later, so that the writer can fill the next batch while the last is on its way. The writer
//! is one state machine that never knows which disk it drives: [`uring`], [`psync`], or the
//! simulated one.

pub(crate) mod calibrate;
pub(crate) mod choice;
pub(crate) mod device;
pub(crate) mod os;
pub(crate) mod paired;
pub(crate) mod psync;
#[cfg(feature = "sim")]
pub(crate) mod sim;
pub(crate) mod uring;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{IoError, LockHolder, OpenError};
use crate::mem::AlignedBuf;
use crate::options::Options;

/// A log's directory. Names are plain file names inside it; errors are the system's own.
pub(crate) trait Store: Send + Sync {
    /// The path of `name`, for error messages.
    fn path(&self, name: &str) -> PathBuf;
    /// What is known of the device and file system.
    fn facts(&self) -> &DeviceFacts;
    /// Takes the one writer's lock. It is held until the guard is dropped or the process dies.
    fn lock(&self) -> Result<LockGuard, LockError>;
    /// Takes the lock under which cursors are changed, and read by whoever trims; waits for it. It
    /// is held until the guard is dropped or the process dies, for a few small writes at most. It is the
    /// last lock that anyone takes, and not taken twice by one thread.
    ///
    /// Another process may hold it for as long as it is stopped. Whoever holds the right to change
    /// files, or is the writer, must not wait for it: see [`try_lock_cursors`](Self::try_lock_cursors).
    fn lock_cursors(&self) -> Result<LockGuard, IoError>;
    /// The same, but waits for some milliseconds at most. None: others have it.
    fn try_lock_cursors(&self) -> Result<Option<LockGuard>, IoError> {
        self.lock_cursors().map(Some)
    }
    /// The names of all entries, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist, for reading and writing.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file. Symbolic links are refused.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;
    /// Renames, replacing `to`. Durable only after [`sync_dir`](Self::sync_dir).
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Opens the file of the status page: made anew where it is missing or is not `len`
    /// bytes long, or for reading only. An error where the store has none.
    fn open_status(&self, name: &str, len: u64, make: bool) -> io::Result<OwnedFd> {
        let _none = (name, len, make);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Chooses the way to the disk and sets it up. Called on the writer thread, which alone may use
    /// the result, with the lock held.
    fn disk(self: Arc<Self>, options: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError>;
}

/// The syncs of a directory. After one that failed, which names are durable is not known, and a later sync
/// would not tell: so all later ones fail too, whoever asked for the first.
#[derive(Default)]
pub(crate) struct DirSyncs {
    failed: AtomicBool,
}

impl DirSyncs {
    pub(crate) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        // Relaxed: who made the names that are to be durable looks at it on its own thread, or after a
        // lock.
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let synced = sync();
        if synced.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        synced
    }
}

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// An open file. Offsets, lengths and buffer addresses of reads and writes are multiples of the
/// store's block ([`DeviceFacts::block_bytes`]): the file may be open for direct I/O.
pub(crate) trait File: Send + Sync {
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Reads until `buf` is full or the file ends; returns the bytes read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Where the next bytes at `offset` or behind it stand that are not a hole, which reads as zeros; the
    /// end of the file where there are none. `offset` itself is always a right answer.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }
    /// Writes all of `buf`. After an error any part of it may have been written.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Reserves space for the first `len` bytes and sets the size to that. File systems that cannot
    /// reserve only set the size.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Cuts (or extends with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes the file's bytes and metadata durable (fsync). Covers writes that returned before it.
    fn sync(&self) -> io::Result<()>;
    /// The same for the bytes alone, of a file whose size and place do not change (fdatasync).
    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
    /// Whether the file has names beside the one that it was opened by (hard links).
    fn has_other_names(&self) -> io::Result<bool> {
        Ok(false)
    }
    /// The descriptor, where the file is one of the operating system; -1 on a simulated disk.
    fn raw_fd(&self) -> i32;
    /// The simulated disk's number for the file; 0 on a real one.
    #[cfg(feature = "sim")]
    fn sim_id(&self) -> u64 {
        0
    }
}

/// Keeps the lock on a log's directory until dropped.
pub(crate) struct LockGuard(#[allow(dead_code)] pub(crate) Box<dyn Send + Sync>);

pub(crate) enum LockError {
    Held(Option<LockHolder>),
    Io(IoError),
}

/// What is known of the device under a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Device number of the file system, as `major:minor`.
    pub device: String,
    /// File system type: "ext4", "xfs", "tmpfs", …; the magic number in hex where it has no name
    /// here.
    pub file_system: String,
    /// Whether what is written there is gone with the power (tmpfs, ramfs).
    pub volatile: bool,
    /// Whether files are open for direct I/O (O_DIRECT).
    pub direct: bool,
    /// The log's block in bytes: what writes are aligned to, and padded to.
    pub block_bytes: usize,
    /// Alignment of direct I/O in bytes, as statx reports it; 0 when it does not.
    pub direct_align_bytes: usize,
    /// Logical and physical sector of the device in bytes; 0 when unknown.
    pub logical_sector_bytes: usize,
    /// See `logical_sector_bytes`.
    pub physical_sector_bytes: usize,
    /// "write back" or "write through", as the kernel sees the drive's cache; empty when unknown.
    pub write_cache: String,
    /// Whether the kernel may use FUA writes on the device.
    pub fua: Option<bool>,
    /// Kernel release.
    pub kernel: String,
}

/// What the writer drives. Made on the writer thread and used only there.
pub(crate) trait Disk {
    /// Most operations under way at once.
    fn depth_max(&self) -> usize;
    /// Submits an operation. Its result comes from [`reap`](Self::reap), errors included. At most
    /// `depth_max` are ever under way.
    fn submit(&mut self, op: Op);
    /// Moves the results of finished operations into `done`, in any order. With `wait`, and when
    /// something is under way, it blocks until at least one is there. Without, it does not wait for a
    /// write; but where the method syncs on this thread, the sync of a finished write is done here.
    fn reap(&mut self, wait: bool, done: &mut Vec<Done>);
    /// As [`reap`](Self::reap) with `wait`, but may come back with nothing after `time`, where the
    /// disk works on its own meanwhile.
    fn reap_within(&mut self, time: Duration, done: &mut Vec<Done>) {
        let _works_only_in_reap = time;
        self.reap(true, done);
    }
    /// Makes these buffers known to the kernel, so that writes from them skip the pinning of their
    /// pages. Called once, before the first operation. Returns whether it was done: where it is
    /// refused, writes work all the same.
    fn register_buffers(&mut self, _bufs: &[AlignedBuf]) -> bool {
        false
    }
}

/// An operation for a [`Disk`].
pub(crate) struct Op {
    /// The writer's number for it, handed back in [`Done`].
    pub(crate) token: u64,
    pub(crate) file: Arc<dyn File>,
    pub(crate) kind: OpKind,
}

pub(crate) enum OpKind {
    /// Writes the first `len` bytes of `buf` at `offset`; with `durable` it is done only when they
    /// survived a sync. The disk owns the buffer until the operation is done.
    Write { offset: u64, buf: AlignedBuf, len: usize, durable: bool },
    /// Syncs the file's data: covers every write done before it was submitted.
    Sync,
}

/// A finished operation.
pub(crate) struct Done {
    pub(crate) token: u64,
    /// The buffer of a write, handed back.
    pub(crate) buf: Option<AlignedBuf>,
    /// What came of it. A write that ended short and could not be finished is an error.
    pub(crate) result: io::Result<()>,
    /// How long the write itself took where the sync was a separate step; zero where it was not.
    pub(crate) write_took: Duration,
}

/// The way in which a batch is written and made durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Method {
    /// io_uring write with RWF_DSYNC.
    RingDsync,
    /// io_uring write, then fdatasync(2) by the writer thread.
    RingFdatasync,
    /// io_uring write linked to an io_uring FSYNC.
    RingLinkedFsync,
    /// pwritev2(2) with RWF_DSYNC by the writer thread.
    PwriteDsync,
    /// pwrite(2), then fdatasync(2), by the writer thread.
    PwriteFdatasync,
}

impl Method {
    /// Every method, in the order in which one is preferred when they are equally fast.
    pub const ALL: [Method; 5] = [
        Method::RingDsync,
        Method::RingFdatasync,
        Method::PwriteDsync,
        Method::PwriteFdatasync,
        Method::RingLinkedFsync,
    ];

    /// Whether it goes through io_uring.
    pub fn is_ring(self) -> bool {
        matches!(self, Method::RingDsync | Method::RingFdatasync | Method::RingLinkedFsync)
    }

    /// The method's name, as the command takes and prints it.
    pub fn name(self) -> &'static str {
        match self {
            Method::RingDsync => "ring-dsync",
            Method::RingFdatasync => "ring-fdatasync",
            Method::RingLinkedFsync => "ring-linked-fsync",
            Method::PwriteDsync => "pwrite-dsync",
            Method::PwriteFdatasync => "pwrite-fdatasync",
        }
    }

    /// The method with this name.
    pub fn from_name(name: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.name() == name)
    }
}

impl core::fmt::Display for Method {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Which way to the disk a log took, and why.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BackendInfo {
    /// The backend that runs. Where small batches and large ones take different ways, it is
    /// [`Backend::Uring`].
    pub backend: Backend,
    /// How a batch is written and made durable.
    pub method: Method,
    /// How a batch of 64 KiB or more is, where that is another way.
    pub large_method: Option<Method>,
    /// Most writes under way at once.
    pub depth: usize,
    /// Why this one, and what was refused: one or two sentences for a person.
    pub why: String,
    /// What is known of the device and file system.
    pub facts: DeviceFacts,
    /// Every method that was considered, with what was measured of it.
    pub probes: Vec<MethodProbe>,
    /// Whether writes come from buffers registered with the kernel.
    pub registered_buffers: bool,
    /// Whether files are registered with the kernel.
    pub registered_files: bool,
    /// The io_uring set-up flags that the kernel took; empty without a ring.
    pub ring_flags: String,
    /// Whether the batch buffers stand on huge pages.
    pub huge_pages: bool,
}

/// Who carries out the writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Backend {
    /// io_uring.
    Uring,
    /// Plain system calls by the writer thread.
    Psync,
    /// The simulated disk.
    Sim,
}

impl core::fmt::Display for Backend {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Backend::Uring => "uring",
            Backend::Psync => "psync",
            Backend::Sim => "sim",
        })
    }
}

/// What is known of one method on one device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MethodProbe {
    /// The method.
    pub method: Method,
    /// Writes under way at once.
    pub depth: usize,
    /// Median of one small durable write in µs, from its submission; 0 when it was not measured.
    pub p50_us: f64,
    /// 99th percentile of the same.
    pub p99_us: f64,
    /// Why it does not work here; `None` when it does.
    pub refused: Option<String>,
}
