//! The directory of a log on a real file system: the blocking calls of recovery, preparer and
//! readers, the lock, and what can be found out about the device.
#![allow(unsafe_code)]

mod entry;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::{
    Access, BackendInfo, DeviceFacts, DirSyncs, Disk, File, LockError, LockGuard, Store, calibrate,
    device,
};
use crate::error::{IoError, LockHolder, OpenError};
use crate::fork::ForkGuard;
use crate::frame;
use crate::mem::AlignedBuf;
use crate::options::Options;

/// A log's directory.
pub(crate) struct OsStore {
    path: PathBuf,
    dir: OwnedFd,
    facts: DeviceFacts,
    dir_syncs: DirSyncs,
    /// Of the files that are made here.
    file_mode: Mode,
}

impl OsStore {
    /// Opens the directory for writing, creating it with `create`. Whether direct I/O works is found by
    /// a real write; where it does not, files go through the page cache with `buffered_allowed`. Files
    /// get the mode that the log's lock has, or are private.
    pub(crate) fn open(
        path: &Path,
        create: bool,
        buffered_allowed: bool,
    ) -> Result<Arc<OsStore>, OpenError> {
        OsStore::open_with_mode(path, create, buffered_allowed, None)
    }

    /// The same, with a mode for the files that are made.
    pub(crate) fn open_with_mode(
        path: &Path,
        create: bool,
        buffered_allowed: bool,
        file_mode: Option<u32>,
    ) -> Result<Arc<OsStore>, OpenError> {
        let asked = file_mode.map(Mode::from_raw_mode);
        let dir = match create {
            true => create_dir(path, asked.unwrap_or(entry::PRIVATE))?,
            false => open_dir(path)?,
        };
        let file_mode = asked.unwrap_or_else(|| mode_of_lock(&dir));
        let facts = match probe_direct(&dir) {
            // A full disk must not keep a log from being opened: its segments tell as much.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                read_only_facts(&dir)
            }
            probed => probed,
        }
        .map_err(|error| IoError::new("write a scratch file in", path, error))?;
        if !facts.direct && !buffered_allowed {
            return Err(OpenError::Unsupported {
                what: format!("{} ({}) refuses direct I/O", path.display(), facts.file_system),
                fix: "put the log on another file system, or allow buffered I/O (option buffered)",
            });
        }
        let dir_syncs = DirSyncs::default();
        Ok(Arc::new(OsStore { path: path.to_owned(), dir, facts, dir_syncs, file_mode }))
    }

    /// Opens the directory for reading: nothing in it is ever created or changed. A file that
    /// refuses direct I/O is read through the page cache.
    pub(crate) fn open_read_only(path: &Path) -> Result<Arc<OsStore>, OpenError> {
        let dir = open_dir(path)?;
        let facts = read_only_facts(&dir)
            .map_err(|error| IoError::new("look into the directory", path, error))?;
        let (dir_syncs, file_mode) = (DirSyncs::default(), entry::PRIVATE);
        Ok(Arc::new(OsStore { path: path.to_owned(), dir, facts, dir_syncs, file_mode }))
    }

    /// How files are opened that hold data.
    fn direct(&self) -> OFlags {
        if self.facts.direct { OFlags::DIRECT } else { OFlags::empty() }
    }

    fn file(&self, fd: OwnedFd) -> Arc<dyn File> {
        Arc::new(OsFile { fd, align: write_align(&self.facts) })
    }
}

impl Store for OsStore {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn lock(&self) -> Result<LockGuard, LockError> {
        let failed = |action: &str, error: io::Error| {
            LockError::Io(IoError::new(action, self.path(LOCK_NAME), error))
        };
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let fd = entry::open_or_create(&self.dir, LOCK_NAME, self.file_mode)
                .map_err(|error| failed("open the lock file", error))?;
            match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                // Somebody may have removed the file meanwhile: a lock on it would exclude nobody.
                Ok(()) if self.is_current(&fd, LOCK_NAME) => {
                    return Ok(LockGuard(Box::new(Flock { fd, fork: ForkGuard::new() })));
                }
                Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(error) => return Err(failed("lock", error.into())),
            }
            // A killed process' io_uring keeps its files open for a moment, and so the lock.
            if Instant::now() >= deadline {
                return Err(LockError::Held(find_holder(&fd)));
            }
            std::thread::sleep(LOCK_RETRY_EVERY);
        }
    }

    fn lock_cursors(&self) -> Result<LockGuard, IoError> {
        loop {
            if let Some(guard) = self.flock_cursors(FlockOperation::LockExclusive)? {
                return Ok(guard);
            }
        }
    }

    fn try_lock_cursors(&self) -> Result<Option<LockGuard>, IoError> {
        for _ in 0..CURSORS_TRIES {
            let guard = self.flock_cursors(FlockOperation::NonBlockingLockExclusive)?;
            if guard.is_some() {
                return Ok(guard);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            // No name of ours is anything but ASCII: one that is not UTF-8 is nobody we know.
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        debug_assert!(!name.contains('/'));
        Ok(self.file(entry::create(&self.dir, name, self.direct(), self.file_mode)?))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        debug_assert!(!name.contains('/'));
        let fd = match access {
            Access::Write => entry::open(&self.dir, name, OFlags::RDWR | self.direct())?,
            Access::Read => match entry::open(&self.dir, name, OFlags::RDONLY | self.direct()) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    entry::open(&self.dir, name, OFlags::RDONLY)?
                }
                opened => opened?,
            },
        };
        Ok(self.file(fd))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir_syncs.sync(|| Ok(fs::fsync(&self.dir)?))
    }

    fn open_status(&self, name: &str, len: u64, make: bool) -> io::Result<OwnedFd> {
        let found = fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let usable = found.as_ref().is_ok_and(|stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && u64::try_from(stat.st_size) == Ok(len)
                // One that has another name as well may be somebody's file: it is not written to.
                && (stat.st_nlink == 1 || !make)
        });
        if usable {
            return match entry::open(&self.dir, name, OFlags::RDWR) {
                Err(error)
                    if !make
                        && matches!(
                            error.raw_os_error(),
                            Some(libc::EACCES | libc::EPERM | libc::EROFS)
                        ) =>
                {
                    entry::open(&self.dir, name, OFlags::RDONLY)
                }
                opened => opened,
            };
        }
        if !make {
            return Err(found.map_or_else(io::Error::from, |_| io::ErrorKind::InvalidData.into()));
        }
        // The block is written, and synced, before the file has its name: later writes need no space.
        let tmp = format!("{name}.tmp");
        match fs::unlinkat(&self.dir, &*tmp, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let fd = entry::create(&self.dir, &tmp, OFlags::empty(), self.file_mode)?;
        let zeros = vec![0; usize::try_from(len).unwrap_or(0)];
        write_all_at(fd.as_fd(), 0, &zeros, 1, ReadWriteFlags::empty())?;
        fs::fsync(&fd)?;
        fs::renameat(&self.dir, &*tmp, &self.dir, name)?;
        Ok(fd)
    }

    fn disk(self: Arc<Self>, options: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        calibrate::choose(&*self, options)
    }
}

/// The descriptor of a file of the operating system.
pub(crate) fn file_fd(file: &dyn File) -> io::Result<BorrowedFd<'_>> {
    match file.raw_fd() {
        -1 => Err(Errno::BADF.into()),
        // SAFETY: `File::raw_fd` gives a descriptor that the file owns and keeps open for as long
        // as it lives, and the result borrows the file.
        fd => Ok(unsafe { BorrowedFd::borrow_raw(fd) }),
    }
}

/// What a direct write must be aligned to in offset and length; 1 through the page cache.
pub(crate) fn write_align(facts: &DeviceFacts) -> usize {
    match (facts.direct, facts.direct_align_bytes, facts.logical_sector_bytes) {
        (false, ..) => 1,
        (true, 0, 0) => facts.block_bytes,
        (true, 0, sector) => sector,
        (true, align, _) => align,
    }
}

/// Writes all of `buf`, with `flags` on each call. A call that ends short is finished from the last
/// aligned offset that it reached.
pub(crate) fn write_all_at(
    fd: BorrowedFd<'_>,
    offset: u64,
    buf: &[u8],
    align: usize,
    flags: ReadWriteFlags,
) -> io::Result<()> {
    let mut written = 0;
    let mut tries = 0;
    while written < buf.len() {
        let (at, rest) = (offset + written as u64, &buf[written..]);
        let wrote = if flags.is_empty() {
            rustix::io::pwrite(fd, rest, at)
        } else {
            rustix::io::pwritev2(fd, &[io::IoSlice::new(rest)], at, flags)
        };
        match wrote {
            Ok(bytes) => {
                let progress = aligned_progress(bytes, rest.len(), align);
                if progress == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                written += progress;
                tries = 0;
            }
            Err(Errno::INTR | Errno::AGAIN) if tries < TRIES_MAX => {
                tries += 1;
                std::thread::yield_now();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How far a write that wrote `bytes` of `wanted` got: down to the alignment, unless it is done.
pub(crate) fn aligned_progress(bytes: usize, wanted: usize, align: usize) -> usize {
    if bytes >= wanted { wanted } else { bytes - bytes % align }
}

/// Tries of a call that answers "interrupted" or "try again" without any progress.
pub(crate) const TRIES_MAX: u32 = 1000;

struct OsFile {
    fd: OwnedFd,
    align: usize,
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(fs::fstat(&self.fd)?.st_size).unwrap_or(0))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match rustix::io::pread(&self.fd, &mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // Only the end of the file stops a direct read between two blocks; the next call would
            // be refused for its offset.
            if !filled.is_multiple_of(self.align) {
                break;
            }
        }
        Ok(filled)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        match fs::seek(&self.fd, fs::SeekFrom::Data(offset)) {
            Ok(at) => Ok(at.max(offset)),
            Err(Errno::NXIO) => Ok(self.len()?.max(offset)),
            // A file system that does not know.
            Err(_) => Ok(offset),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        write_all_at(self.fd.as_fd(), offset, buf, self.align, ReadWriteFlags::empty())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        loop {
            match fs::fallocate(&self.fd, FallocateFlags::empty(), 0, len) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.len()? == len { Ok(()) } else { self.set_len(len) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(rustix::io::retry_on_intr(|| fs::ftruncate(&self.fd, len))?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(fs::fsync(&self.fd)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(fs::fdatasync(&self.fd)?)
    }

    fn has_other_names(&self) -> io::Result<bool> {
        Ok(fs::fstat(&self.fd)?.st_nlink > 1)
    }

    fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

const LOCK_NAME: &str = "log.lock";
const CURSORS_LOCK_NAME: &str = "cursors.lock";
/// How often, a millisecond apart, it is tried where nobody may wait for it.
const CURSORS_TRIES: u32 = 10;
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
const LOCK_RETRY_EVERY: Duration = Duration::from_millis(5);

/// A held lock. The kernel releases it when the last copy of the descriptor is closed, and a forked
/// child has one: so the process that took the lock gives it back by name, and only that one.
struct Flock {
    fd: OwnedFd,
    fork: ForkGuard,
}

impl Drop for Flock {
    fn drop(&mut self) {
        if !self.fork.forked() {
            // If it fails, closing the descriptor does the same unless a child lives on.
            let unlocked = fs::flock(&self.fd, FlockOperation::Unlock);
            debug_assert!(unlocked.is_ok());
        }
    }
}

impl OsStore {
    /// None: somebody else has it, or it is to be tried again.
    fn flock_cursors(&self, operation: FlockOperation) -> Result<Option<LockGuard>, IoError> {
        let failed = |action: &str, error: io::Error| {
            IoError::new(action, self.path(CURSORS_LOCK_NAME), error)
        };
        let fd = entry::open_or_create(&self.dir, CURSORS_LOCK_NAME, self.file_mode)
            .map_err(|error| failed("open the lock file", error))?;
        match fs::flock(&fd, operation) {
            // A lock on a file that lost its name would exclude nobody.
            Ok(()) if self.is_current(&fd, CURSORS_LOCK_NAME) => {
                Ok(Some(LockGuard(Box::new(Flock { fd, fork: ForkGuard::new() }))))
            }
            Ok(()) | Err(Errno::INTR | Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed("lock", error.into())),
        }
    }

    /// Whether the open file is the one that the directory has under `name`.
    fn is_current(&self, fd: &OwnedFd, name: &str) -> bool {
        match (fs::fstat(fd), fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            (Ok(open), Ok(named)) => (open.st_dev, open.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        }
    }
}

/// Who holds a flock on the file, as /proc/locks tells it.
fn find_holder(fd: &OwnedFd) -> Option<LockHolder> {
    let stat = fs::fstat(fd).ok()?;
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let pid = parse_holder(&locks, fs::major(stat.st_dev), fs::minor(stat.st_dev), stat.st_ino)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(LockHolder { pid, name: name.map(|name| name.trim_end().to_owned()) })
}

/// Finds a line like `1: FLOCK  ADVISORY  WRITE 1234 fe:00:12345 0 EOF`. On file systems with
/// several volumes (btrfs) the device there is not the one that stat reports: then the inode alone
/// decides, if only one line has it.
fn parse_holder(locks: &str, major: u32, minor: u32, inode: u64) -> Option<u32> {
    let mut same_inode = Vec::new();
    for line in locks.lines() {
        let mut words = line.split_ascii_whitespace().skip(1);
        // A waiter's line has "->" here.
        if words.next() != Some("FLOCK") {
            continue;
        }
        let Some(pid) = words.nth(2).and_then(|word| word.parse::<u32>().ok()) else { continue };
        let mut file = words.next().unwrap_or_default().splitn(3, ':');
        let mut device = || u32::from_str_radix(file.next()?, 16).ok();
        let device = (device(), device());
        if file.next().and_then(|word| word.parse::<u64>().ok()) != Some(inode) {
            continue;
        }
        if device == (Some(major), Some(minor)) {
            return Some(pid);
        }
        same_inode.push(pid);
    }
    (same_inode.len() == 1).then(|| same_inode[0])
}

/// The mode of a log that is there, as its lock has it.
fn mode_of_lock(dir: &OwnedFd) -> Mode {
    match fs::statat(dir, LOCK_NAME, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            entry::PRIVATE | Mode::from_raw_mode(stat.st_mode & 0o666)
        }
        _ => entry::PRIVATE,
    }
}

/// Who may read the files of a directory with this mode may also look them up.
fn dir_mode(file_mode: Mode) -> Mode {
    let bits = file_mode.as_raw_mode();
    Mode::from_raw_mode(bits | (bits & 0o444) >> 2)
}

fn open_dir(path: &Path) -> Result<OwnedFd, OpenError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT => OpenError::NotFound { dir: path.to_owned() },
        error => IoError::new("open the directory", path, error.into()).into(),
    })
}

/// Creates what is missing of the path, and makes the names durable. The directory's own name is
/// synced even when it was there, until it holds a segment: whoever made it may have died before.
fn create_dir(path: &Path, file_mode: Mode) -> Result<OwnedFd, OpenError> {
    let failed = |action: &str, error: io::Error| IoError::new(action, path, error);
    let missing =
        path.ancestors().take_while(|part| !part.as_os_str().is_empty() && !part.exists()).count();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| failed("create the directory", error))?;
    let dir = open_dir(path)?;
    if missing > 0 {
        // The umask may have taken something away, or the mode is a wider one.
        entry::set_mode(&dir, dir_mode(file_mode))
            .map_err(|error| failed("set the mode of", error.into()))?;
    }
    let list_failed = |error| failed("list the directory", error);
    if missing == 0 && any_segment(&dir).map_err(list_failed)?.is_some() {
        return Ok(dir);
    }
    let mut parent = dir.try_clone().map_err(|error| failed("open the directory", error))?;
    for _ in 0..missing.max(1) {
        parent = match entry::open_at(&parent, "..", OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(parent) => parent,
            // A parent that we may pass but not read cannot be synced by us.
            Err(Errno::ACCESS | Errno::PERM) => break,
            Err(error) => return Err(failed("open the parent of", error.into()).into()),
        };
        match fs::fsync(&parent) {
            // Some file systems have no sync for directories, and read-only ones nothing to sync.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS) => {}
            Err(error) => return Err(failed("sync the parent of", error.into()).into()),
        }
    }
    Ok(dir)
}

/// Finds out by a real write whether direct I/O works, and what the device is.
fn probe_direct(dir: &OwnedFd) -> io::Result<DeviceFacts> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    // Relaxed: only uniqueness counts.
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let name = format!("direct-{}-{serial}.tmp", std::process::id());
    let file = entry::create(dir, &name, OFlags::empty(), entry::PRIVATE)?;
    let probed = device::facts(file.as_fd()).and_then(|mut facts| {
        facts.direct = try_direct(&file, &mut facts.block_bytes)?;
        if !facts.direct {
            facts.direct_align_bytes = 0;
        }
        Ok(facts)
    });
    match fs::unlinkat(dir, &*name, AtFlags::empty()) {
        // A recovery in another process may have swept it.
        Ok(()) | Err(Errno::NOENT) => probed,
        Err(error) => Err(error.into()),
    }
}

/// Writes and reads back one block by direct I/O; a block found too small is raised to 4 KiB.
fn try_direct(file: &OwnedFd, block_bytes: &mut usize) -> io::Result<bool> {
    match fs::fcntl_setfl(file, OFlags::DIRECT) {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let sizes = [*block_bytes, (*block_bytes).max(4096)];
    for size in sizes {
        let mut written = AlignedBuf::new(size)?;
        written.fill(0x5a);
        match write_all_at(file.as_fd(), 0, &written, size, ReadWriteFlags::empty()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
            Err(error) => return Err(error),
        }
        let mut read = AlignedBuf::new(size)?;
        match rustix::io::pread(file, &mut *read, 0) {
            Ok(bytes) if bytes == size && read[..] == written[..] => {
                *block_bytes = size;
                return Ok(true);
            }
            Ok(_) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The facts as far as reading tells them: by one of the segments, else by the directory.
fn read_only_facts(dir: &OwnedFd) -> io::Result<DeviceFacts> {
    // The segment may be removed or renamed at any moment: then the directory has to do.
    if let Some(name) = any_segment(dir)?
        && let Ok(file) = entry::open(dir, &name, OFlags::RDONLY)
    {
        let mut facts = device::facts(file.as_fd())?;
        let mut block = AlignedBuf::new(facts.block_bytes)?;
        facts.direct = entry::open(dir, &name, OFlags::RDONLY | OFlags::DIRECT)
            .is_ok_and(|file| rustix::io::pread(&file, &mut *block, 0).is_ok());
        return Ok(facts);
    }
    // `open` goes without direct I/O file by file where it must.
    let mut facts = device::facts(dir.as_fd())?;
    facts.direct = true;
    Ok(facts)
}

fn any_segment(dir: &OwnedFd) -> io::Result<Option<String>> {
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        // Opening a pipe of that name would wait for its other end.
        if matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown)
            && let Ok(name) = entry.file_name().to_str()
            && frame::parse_segment_name(name).is_some()
        {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
pub(crate) mod tests;
