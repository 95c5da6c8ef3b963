//! A store that counts the bytes that are read from it: what opening a log costs.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::BackendInfo;
use crate::disk::{Access, DeviceFacts, Disk, File, LockError, LockGuard, Store};
use crate::error::{IoError, OpenError};
use crate::options::Options;

/// Everything is passed on to the store inside.
pub(super) struct Meter<'a> {
    inner: &'a dyn Store,
    read_bytes: Arc<AtomicU64>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(inner: &'a dyn Store) -> Self {
        Meter { inner, read_bytes: Arc::new(AtomicU64::new(0)) }
    }

    /// Bytes read from all files that were opened here.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    fn metered(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(MeteredFile { inner, read_bytes: self.read_bytes.clone() })
    }
}

impl Store for Meter<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.inner.path(name)
    }
    fn facts(&self) -> &DeviceFacts {
        self.inner.facts()
    }
    fn lock(&self) -> Result<LockGuard, LockError> {
        self.inner.lock()
    }
    fn lock_cursors(&self) -> Result<LockGuard, IoError> {
        self.inner.lock_cursors()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.inner.create(name).map(|file| self.metered(file))
    }
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.inner.open(name, access).map(|file| self.metered(file))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
    fn disk(self: Arc<Self>, _: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        Err(OpenError::Unsupported {
            what: "no writer runs on a store that only counts".to_owned(),
            fix: "this is a bug: please report it",
        })
    }
}

struct MeteredFile {
    inner: Arc<dyn File>,
    read_bytes: Arc<AtomicU64>,
}

impl File for MeteredFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, buf)?;
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        self.inner.next_data(offset)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.inner.allocate(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn has_other_names(&self) -> io::Result<bool> {
        self.inner.has_other_names()
    }
    fn raw_fd(&self) -> i32 {
        self.inner.raw_fd()
    }
    #[cfg(feature = "sim")]
    fn sim_id(&self) -> u64 {
        self.inner.sim_id()
    }
}
