//! [`Store`] and [`File`] on a simulated machine: blocking operations, one boundary before each and
//! one behind it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::faults::SimOp;
use super::machine::{Machine, errno};
use super::queue::SimQueue;
use super::{SECTOR_BYTES, SimDisk};
use crate::disk::{
    Access, Backend, BackendInfo, DeviceFacts, DirSyncs, Disk, File, LockError, LockGuard, Method,
    Store,
};
use crate::error::{IoError, OpenError};
use crate::options::Options;

const DIRECTORY: &str = "/sim";

pub(super) struct SimStore {
    disk: SimDisk,
    life: u64,
    facts: DeviceFacts,
    dir: DirSyncs,
}

impl SimStore {
    pub(super) fn new(disk: &SimDisk) -> Self {
        let machine = disk.machine();
        let facts = DeviceFacts {
            device: "sim".to_owned(),
            file_system: "sim".to_owned(),
            volatile: false,
            direct: true,
            block_bytes: machine.options.block_bytes,
            direct_align_bytes: machine.options.block_bytes,
            logical_sector_bytes: SECTOR_BYTES as usize,
            physical_sector_bytes: machine.options.block_bytes,
            write_cache: "write back".to_owned(),
            fua: Some(!machine.options.flush_all),
            kernel: "sim".to_owned(),
        };
        SimStore { disk: disk.clone(), life: machine.life, facts, dir: DirSyncs::default() }
    }

    fn file(&self, machine: &mut Machine, id: u64, access: Access) -> io::Result<Arc<dyn File>> {
        let handle = machine.inode(id)?.handles.clone();
        let block_bytes = self.facts.block_bytes;
        let disk = self.disk.clone();
        Ok(Arc::new(SimFile { disk, life: self.life, id, access, block_bytes, _handle: handle }))
    }
}

impl Store for SimStore {
    fn path(&self, name: &str) -> PathBuf {
        Path::new(DIRECTORY).join(name)
    }

    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn lock(&self) -> Result<LockGuard, LockError> {
        let mut machine = self.disk.machine();
        if let Err(error) = machine.check(self.life).and_then(|()| machine.strike(SimOp::Lock)) {
            return Err(LockError::Io(IoError::new("lock", DIRECTORY, error)));
        }
        if machine.lock.is_some() {
            return Err(LockError::Held(None));
        }
        machine.stats.locks += 1;
        let number = machine.tick();
        machine.lock = Some(number);
        Ok(LockGuard(Box::new(SimLock { disk: self.disk.clone(), number })))
    }

    fn lock_cursors(&self) -> Result<LockGuard, IoError> {
        // Steps are taken one at a time: nobody else can be at it.
        let mut machine = self.disk.machine();
        let locked = machine.check(self.life).and_then(|()| machine.strike(SimOp::Lock));
        locked.map_err(|error| IoError::new("lock", DIRECTORY, error))?;
        Ok(LockGuard(Box::new(())))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut machine = self.disk.machine();
        machine.check(self.life)?;
        machine.strike(SimOp::List)?;
        Ok(machine.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        operate(&self.disk, self.life, |machine| {
            let id = machine.create(name)?;
            self.file(machine, id, Access::Write)
        })
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let mut machine = self.disk.machine();
        machine.check(self.life)?;
        let id = machine.open(name)?;
        machine.strike(SimOp::Open)?;
        self.file(&mut machine, id, access)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        operate(&self.disk, self.life, |machine| machine.rename(from, to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        operate(&self.disk, self.life, |machine| machine.remove(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync(|| operate(&self.disk, self.life, Machine::sync_dir))
    }

    fn disk(self: Arc<Self>, options: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        let (depth, flush_all) = {
            let machine = self.disk.machine();
            (options.depth.unwrap_or(machine.options.depth), machine.options.flush_all)
        };
        let queue = SimQueue::new(self.disk.clone(), self.life, depth, self.facts.block_bytes);
        let method = if flush_all { Method::RingFdatasync } else { Method::RingDsync };
        let info = BackendInfo {
            backend: Backend::Sim,
            method,
            depth,
            why: "the disk is simulated".to_owned(),
            facts: self.facts.clone(),
            probes: Vec::new(),
            registered_buffers: false,
            registered_files: false,
            ring_flags: String::new(),
            huge_pages: false,
            large_method: None,
        };
        Ok((Box::new(queue), info))
    }
}

struct SimLock {
    disk: SimDisk,
    number: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut machine = self.disk.machine();
        if machine.lock == Some(self.number) {
            machine.lock = None;
        }
    }
}

struct SimFile {
    disk: SimDisk,
    life: u64,
    id: u64,
    access: Access,
    block_bytes: usize,
    /// Counts as an open handle of the file.
    _handle: Arc<()>,
}

impl SimFile {
    /// Runs an operation that changes the file.
    fn change<T>(&self, apply: impl FnOnce(&mut Machine) -> io::Result<T>) -> io::Result<T> {
        if self.access == Access::Read {
            return Err(errno(libc::EBADF));
        }
        operate(&self.disk, self.life, apply)
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut machine = self.disk.machine();
        machine.check(self.life)?;
        Ok(machine.inode(self.id)?.visible.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        check_aligned(self.block_bytes, offset, buf)?;
        let mut machine = self.disk.machine();
        machine.check(self.life)?;
        machine.read(self.id, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_aligned(self.block_bytes, offset, buf)?;
        self.change(|machine| {
            let op = machine.submit_write(self.id, offset, buf)?;
            let range = offset..offset + buf.len() as u64;
            machine.apply_write(self.id, op, range, false)?;
            machine.complete_write(self.id, op)
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|machine| machine.set_len(self.id, len))
    }

    fn sync(&self) -> io::Result<()> {
        operate(&self.disk, self.life, |machine| {
            let submitted_at = machine.tick();
            machine.apply_sync(self.id, submitted_at)
        })
    }

    fn raw_fd(&self) -> i32 {
        -1
    }

    fn sim_id(&self) -> u64 {
        self.id
    }
}

/// Runs a blocking operation between its two crash points.
fn operate<T>(
    disk: &SimDisk,
    life: u64,
    apply: impl FnOnce(&mut Machine) -> io::Result<T>,
) -> io::Result<T> {
    let mut machine = disk.machine();
    machine.check(life)?;
    machine.step()?;
    let result = apply(&mut machine);
    machine.step()?;
    result
}

/// Refuses what direct I/O would refuse.
pub(super) fn check_aligned(block_bytes: usize, offset: u64, buf: &[u8]) -> io::Result<()> {
    let aligned = offset.is_multiple_of(block_bytes as u64)
        && buf.len().is_multiple_of(block_bytes)
        && buf.as_ptr().addr().is_multiple_of(block_bytes);
    if aligned { Ok(()) } else { Err(errno(libc::EINVAL)) }
}
