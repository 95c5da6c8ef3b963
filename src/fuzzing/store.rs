//! A store in memory that counts what is read from it, and stops what never ends.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Access, DeviceFacts, Disk, File, LockError, LockGuard, Store};
use crate::error::{IoError, OpenError};
use crate::options::Options;
use crate::testing::MemStore;
use crate::{BackendInfo, fuzzing::Limits};

/// Passes everything on, within limits.
pub(super) struct Counted {
    inner: Arc<MemStore>,
    counts: Arc<Counts>,
}

struct Counts {
    reads: AtomicU64,
    reads_max: AtomicU64,
    bytes: AtomicU64,
    bytes_max: AtomicU64,
}

impl Counts {
    /// Counts a call; a code path that asks for too much is a bug, and would not end.
    fn take(&self, bytes: u64) {
        let reads = self.reads.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let (reads_max, bytes_max) =
            (self.reads_max.load(Ordering::Relaxed), self.bytes_max.load(Ordering::Relaxed));
        assert!(reads <= reads_max, "more than {reads_max} calls for what is there");
        assert!(bytes <= bytes_max, "more than {bytes_max} bytes read of what is there");
    }
}

impl Counted {
    pub(super) fn new(inner: Arc<MemStore>) -> Arc<Counted> {
        let none = || AtomicU64::new(0);
        let counts = Counts { reads: none(), reads_max: none(), bytes: none(), bytes_max: none() };
        let counted = Counted { inner, counts: Arc::new(counts) };
        counted.start_again();
        Arc::new(counted)
    }

    /// Counts from 0 on, with limits by what is there now.
    pub(super) fn start_again(&self) {
        let files = self.inner.names().len() as u64;
        let present = self.inner.total_bytes() as u64;
        let limits = Limits::of(files, present);
        self.counts.reads.store(0, Ordering::Relaxed);
        self.counts.bytes.store(0, Ordering::Relaxed);
        self.counts.reads_max.store(limits.calls, Ordering::Relaxed);
        self.counts.bytes_max.store(limits.bytes, Ordering::Relaxed);
    }

    fn counted(&self, inner: Arc<dyn File>) -> Arc<dyn File> {
        self.counts.take(0);
        Arc::new(CountedFile { inner, counts: self.counts.clone() })
    }
}

impl Store for Counted {
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
        self.counts.take(0);
        self.inner.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        self.inner.create(name).map(|file| self.counted(file))
    }
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        self.inner.open(name, access).map(|file| self.counted(file))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.counts.take(0);
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
    fn disk(self: Arc<Self>, _: &Options) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        Err(OpenError::Unsupported { what: "no writer runs on it".to_owned(), fix: "" })
    }
}

struct CountedFile {
    inner: Arc<dyn File>,
    counts: Arc<Counts>,
}

impl File for CountedFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read_at(offset, buf)?;
        self.counts.take(read as u64);
        Ok(read)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        // As a real file does, it grows where somebody has cut it.
        let end = offset + buf.len() as u64;
        if self.inner.len()? < end {
            self.set_len(end)?;
        }
        self.inner.write_at(offset, buf)
    }
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.counts.take(len);
        self.inner.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
    fn raw_fd(&self) -> i32 {
        -1
    }
}
