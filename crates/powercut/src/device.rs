//! The device: one file, served by FUSE from memory, under a loop device. It writes down every write and
//! every flush, when they begin and when they are done, and fails on command.
//!
//! Writes are answered by several threads, some of them late, so that a flush may overtake a write that
//! it was not told to wait for. What a flush covers is decided later (`history.rs`).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use rustix::mount::UnmountFlags;

use crate::notes::Note;
use crate::random::Random;

/// One thing that happened, in the order in which it did.
#[derive(Debug)]
pub enum Event {
    /// The device got a write. Until its flush is done, any sectors of it may be on the disk or not.
    WriteBegins {
        write: usize,
        offset: u64,
        bytes: Box<[u8]>,
    },
    /// It was answered. A write that failed never is.
    WriteDone {
        write: usize,
    },
    FlushBegins {
        flush: usize,
    },
    FlushDone {
        flush: usize,
    },
    Noted(Note),
}

/// What the device does wrong, from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// After so many more, the next `times` writes fail.
    Write {
        errno: i32,
        after: u32,
        times: u32,
    },
    /// The same, of flushes.
    Flush {
        errno: i32,
        after: u32,
        times: u32,
    },
    /// Each write, or each flush, takes so long.
    SlowWrites(Duration),
    SlowFlushes(Duration),
}

/// What stands on the device, and what happened to it.
pub struct Recorder {
    state: Mutex<State>,
}

struct State {
    disk: Vec<u8>,
    events: Vec<Event>,
    writes: usize,
    flushes: usize,
    recording: bool,
    fault: Option<Fault>,
    random: Random,
    failed: u64,
}

impl Recorder {
    pub fn new(bytes: u64, seed: u64) -> Arc<Recorder> {
        let state = State {
            disk: vec![0; bytes as usize],
            events: Vec::new(),
            writes: 0,
            flushes: 0,
            recording: false,
            fault: None,
            random: Random::new(&[seed, 1]),
            failed: 0,
        };
        Arc::new(Recorder { state: Mutex::new(state) })
    }

    /// Starts to write down; returns what stands on the device now.
    pub fn start(&self) -> Vec<u8> {
        let mut state = self.state();
        state.recording = true;
        state.disk.clone()
    }

    pub fn note(&self, note: Note) {
        self.state().push(Event::Noted(note));
    }

    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Writes and flushes that failed on command.
    pub fn failed(&self) -> u64 {
        self.state().failed
    }

    /// Acknowledgements so far.
    pub fn acked(&self) -> usize {
        let is_acked = |event: &&Event| matches!(event, Event::Noted(Note::Acked { .. }));
        self.state().events.iter().filter(is_acked).count()
    }

    /// Ends the recording and returns what was written down.
    pub fn take(&self) -> Vec<Event> {
        let mut state = self.state();
        state.recording = false;
        std::mem::take(&mut state.events)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        let (write, pause) = {
            let mut state = self.state();
            let write = state.writes;
            state.writes += 1;
            let verdict = state.verdict(true);
            state.push(Event::WriteBegins { write, offset, bytes: bytes.into() });
            let pause = verdict?;
            let (from, to) = (offset as usize, offset as usize + bytes.len());
            match state.disk.get_mut(from..to) {
                Some(place) => place.copy_from_slice(bytes),
                None => return Err(libc::EFBIG),
            }
            (write, pause)
        };
        std::thread::sleep(pause);
        // Before the kernel learns of it: a flush that comes after that covers it.
        self.state().push(Event::WriteDone { write });
        Ok(())
    }

    fn flush(&self) -> Result<(), i32> {
        let (flush, pause) = {
            let mut state = self.state();
            let flush = state.flushes;
            state.flushes += 1;
            state.push(Event::FlushBegins { flush });
            (flush, state.verdict(false)?)
        };
        std::thread::sleep(pause);
        self.state().push(Event::FlushDone { flush });
        Ok(())
    }
}

impl State {
    fn push(&mut self, event: Event) {
        if self.recording {
            self.events.push(event);
        }
    }

    /// How long a write or a flush takes, or with what it fails.
    fn verdict(&mut self, is_write: bool) -> Result<Duration, i32> {
        let failing = match &mut self.fault {
            Some(Fault::Write { errno, after, times }) if is_write => Some((errno, after, times)),
            Some(Fault::Flush { errno, after, times }) if !is_write => Some((errno, after, times)),
            Some(Fault::SlowWrites(time)) if is_write => return Ok(*time),
            Some(Fault::SlowFlushes(time)) if !is_write => return Ok(*time),
            _ => None,
        };
        if let Some((errno, after, times)) = failing {
            if *after > 0 {
                *after -= 1;
            } else if *times > 0 {
                *times -= 1;
                let errno = *errno;
                self.failed += 1;
                return Err(errno);
            }
        }
        let late = self.recording && is_write && self.random.once_in(2);
        Ok(Duration::from_micros(if late { self.random.below(1000) } else { 0 }))
    }
}

/// The device, mounted; gone when dropped.
pub struct Device {
    pub recorder: Arc<Recorder>,
    session: Option<BackgroundSession>,
    point: std::path::PathBuf,
}

impl Device {
    /// Serves it as the file `disk` in `point`.
    pub fn serve(recorder: Arc<Recorder>, point: &Path) -> io::Result<Device> {
        let mut config = Config::default();
        config.mount_options =
            vec![MountOption::FSName("powercut".to_owned()), MountOption::NoAtime];
        config.n_threads = Some(4);
        let session = fuser::spawn_mount(Server(recorder.clone()), point, &config)?;
        Ok(Device { recorder, session: Some(session), point: point.to_owned() })
    }

    pub fn file(&self) -> std::path::PathBuf {
        self.point.join(FILE_NAME)
    }

    /// Takes the device away under whoever uses it: every request fails from now on.
    pub fn pull(&mut self) {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        let _gone = rustix::mount::unmount(&self.point, flags);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.pull();
        drop(self.session.take());
    }
}

const FILE_NAME: &str = "disk";
const FILE: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(86_400);

struct Server(Arc<Recorder>);

impl Server {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_file = inode == FILE;
        let size = if is_file { self.0.state().disk.len() as u64 } else { 0 };
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// Calls that are not here answer ENOSYS: no fallocate, so that loop writes zeros and never discards.
impl Filesystem for Server {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // A flush must be able to come while a write is under way.
        let wanted = InitFlags::FUSE_ASYNC_DIO;
        config.add_capabilities(wanted).map_err(|_| io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == FILE_NAME {
            reply.entry(&FOREVER, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attributes(inode));
    }

    fn open(&self, _req: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = {
            let state = self.0.state();
            let from = (offset as usize).min(state.disk.len());
            let to = (from + size as usize).min(state.disk.len());
            state.disk[from..to].to_vec()
        };
        reply.data(&bytes);
    }

    fn write(
        &self,
        _req: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // It is close(2): nothing to do with the device's cache.
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.flush() {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }
}
